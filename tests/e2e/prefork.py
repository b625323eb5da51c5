"""A `python` that has imported the heavy libraries already: what end-to-end tests start stages with.

A stage of a clone imports torch, diffusers, transformers and peft for 12 CPU-seconds, and works for one. So `start`
starts one process that imports these libraries, and nothing of eridiff, and puts a `python` of its own into a folder
for PATH: it hands `-m MODULE` to that process, which forks a child with the caller's folder, environment, arguments and
files. The child imports the clone's own code. All else goes to the real python. Another folder has a `dvc` too.

The workers of xdist are children of one such process too (tests/conftest.py): the libraries are imported once a run of
the tests, not once a worker. The server of a worker's own stages is then a child of it as well, and ready at once.

What starts stages by `sys.executable` finds that `python` with `stages` in front of PYTHONPATH; of that one only stages
are children, and all else, Prefect's processes and DVC, is as ever.

A caller that is killed ends its child; SIGINT and SIGTERM are passed on. But a child is in the server's process group,
not in the caller's: what is killed by its group, with all that it started, must be started by the real `dvc`.
"""

import array
import atexit
import contextlib
import gc
import importlib
import inspect
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

SHIM = """#!{python} -SE
import array, json, os, signal, socket, sys
name, arguments = os.path.basename(sys.argv[0]), sys.argv[1:]
if arguments[:1] == ["-u"]:  # the output of a child is a pipe, and written at its end
    arguments = arguments[1:]
if name not in ("python", "worker"):  # a command of that name's module
    arguments = ["-m", name, *arguments]
mine = arguments[:1] == ["-m"] and arguments[1] != "stages.flow" and arguments[1].startswith({only!r})
if not mine and name != "worker":
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
server = socket.socket(socket.AF_UNIX)
server.connect({place!r})
wanted = json.dumps({{"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}}).encode()
server.sendmsg([len(wanted).to_bytes(8, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))])
server.sendall(wanted)
for signum in (signal.SIGINT, signal.SIGTERM):
    signal.signal(signum, lambda number, frame: server.sendall(bytes([number])))
code = server.recv(1)
os._exit(code[0] if code else 255)
"""
# Everything heavy that a stage may import; lazy modules are loaded by their members' names.
LIBRARIES = ("numpy", "numpy.ma", "numpy.typing", "pyarrow.parquet", "pyarrow.compute", "ruamel.yaml", "configobj")
LIBRARIES += ("PIL.ImageCms", "PIL.ImageDraw", "PIL.ImageFont", "PIL.ImageSequence", "PIL.BmpImagePlugin")
LIBRARIES += ("PIL.GifImagePlugin", "PIL.JpegImagePlugin", "PIL.PpmImagePlugin", "PIL.PngImagePlugin")
LIBRARIES += ("PIL.TiffImagePlugin", "PIL.WebPImagePlugin", "PIL.AvifImagePlugin", "zoneinfo")
LIBRARIES += ("pydantic.main", "pydantic.json_schema", "pydantic.type_adapter", "pydantic.plugin._loader")
LIBRARIES += ("typer", "filelock", "einops", "torch", "torch.utils.checkpoint", "accelerate", "bitsandbytes", "peft")
LIBRARIES += ("peft.tuners.lora.bnb", "platformdirs.unix", "scmrepo.git", "dvc_render.vega_templates")
LIBRARIES += ("dvc.repo", "dvc.cli", "dvc.commands.repro", "dvc.commands.status", "networkx")
MEMBERS = {
    "transformers": "CLIPTextModel CLIPTextModelWithProjection CLIPTokenizer T5EncoderModel T5TokenizerFast",
    "diffusers": "AutoencoderKL UNet2DConditionModel SD3Transformer2DModel FluxTransformer2DModel "
    "StableDiffusionXLPipeline StableDiffusion3Pipeline FluxPipeline DDPMScheduler DDIMScheduler "
    "DPMSolverMultistepScheduler EulerDiscreteScheduler EulerAncestralDiscreteScheduler UniPCMultistepScheduler "
    "FlowMatchEulerDiscreteScheduler",
}


SESSION = "PREFORK_OF_THE_TESTS"  # in the environment: the folder of the server that this process comes from


@dataclass(frozen=True)
class Prefork:
    """A running server, and the folders with its `python` and its `dvc`, for the front of PATH."""

    folder: Path
    dvc: Path
    worker: Path  # a python for a worker of xdist
    stages: Path  # for PYTHONPATH: sys.executable is a python that forks stages and nothing else
    process: "subprocess.Popen[bytes]"  # what holds it alive
    pid: int  # its own


@cache
def start() -> Prefork:
    """Start the server of this process, once, and wait until it has imported everything. It ends with this process."""
    folder = Path(tempfile.mkdtemp(prefix="prefork-"))
    place = folder / "socket"
    shims = [folder / name for name in ("python", "commands/dvc", "workers/worker", "stages/python")]
    for shim in shims:
        shim.parent.mkdir(exist_ok=True)
        only = "stages." if shim.parent.name == "stages" else ""
        shim.write_text(SHIM.format(python=sys.executable, place=str(place), only=only))
        shim.chmod(0o755)
    (shims[3].parent / "sitecustomize.py").write_text(f"import sys\nsys.executable = {str(shims[3])!r}\n")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE", "DVC_NO_ANALYTICS": "1"}
    environment |= {"DIFFUSERS_VERBOSITY": "error", "TRANSFORMERS_VERBOSITY": "error"}
    for name in ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE"):  # clones are compiled once: each child else compiled them
        environment.pop(name, None)
    command = [sys.executable, __file__, str(place)]
    if session := os.environ.get(SESSION):
        command = [f"{session}/python", "-m", Path(__file__).stem, str(place)]
    process = subprocess.Popen(
        command, cwd=Path(__file__).parent, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    word, _, pid = process.stdout.readline().decode().partition(" ")
    assert word == "ready", "the server of end-to-end tests did not start"
    atexit.register(_end, process, folder)
    return Prefork(folder, shims[1].parent, shims[2], shims[3].parent, process, int(pid))


def _end(process: "subprocess.Popen[bytes]", folder: Path) -> None:
    """With the process that started it."""
    assert process.stdin is not None
    process.stdin.close()
    process.wait(timeout=60)
    shutil.rmtree(folder, ignore_errors=True)


def started() -> int | None:
    """The server's process id, if this process has started it."""
    return start().pid if start.cache_info().currsize else None


@dataclass
class Run:
    """A child and the connection of who asked for it."""

    asker: socket.socket
    pid: int
    pidfd: int


def serve(place: str) -> dict[str, Any]:
    """Fork a child for each request; returns in the child, with what it was asked for."""
    for name in LIBRARIES:
        importlib.import_module(name)
    for name, members in MEMBERS.items():
        module = importlib.import_module(name)
        for member in members.split():
            getattr(module, member)
    importlib.import_module("dvc.cli.parser").get_main_parser()  # imports all commands
    # Its table of 1,100 patterns is built at the first load of a text encoder.
    importlib.import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("clip")
    inspect.getmodule(serve)  # looks through all modules once: pydantic asks for each class, in each child
    inspect.getmodule = _module_of  # type: ignore[assignment]
    gc.collect()
    gc.freeze()
    door = socket.socket(socket.AF_UNIX)
    door.bind(place)
    door.listen(64)
    print("ready", os.getpid(), flush=True)
    runs: list[Run] = []
    while True:
        ready, _, _ = select.select([0, door, *(run.asker for run in runs), *(run.pidfd for run in runs)], [], [])
        if 0 in ready:  # the tests are over
            for run in runs:
                os.kill(run.pid, signal.SIGKILL)
            sys.exit()
        if door in ready:
            asker, _ = door.accept()
            if (wanted := _fork(asker, runs, door)) is not None:
                return wanted
        for run in [run for run in runs if run.asker in ready]:
            _signalled(run)
        for run in [run for run in runs if run.pidfd in ready]:
            _, status = os.waitpid(run.pid, 0)
            code = os.waitstatus_to_exitcode(status)
            with contextlib.suppress(OSError):
                run.asker.sendall(bytes([code if code >= 0 else 128 - code]))
            run.asker.close()
            os.close(run.pidfd)
            runs.remove(run)


def _module_of(item: Any, file: str | None = None, *, found: Any = inspect.getmodule) -> Any:
    """inspect.getmodule; but frames of the import system have none, and it looks through thousands of modules for them.

    pydantic asks for the module of every frame above a class, once a class: half of what a light stage costs here.
    """
    return None if inspect.isframe(item) and item.f_code.co_filename.startswith("<") else found(item, file)


def _signalled(run: Run) -> None:
    """Pass on the signals of who asked; its end ends the child."""
    with contextlib.suppress(OSError):
        numbers = run.asker.recv(16)
        for number in numbers or [signal.SIGKILL]:
            os.kill(run.pid, number)


def _fork(asker: socket.socket, runs: list[Run], door: socket.socket) -> dict[str, Any] | None:
    """None in the server; in the child what it was asked for, its files in place."""
    size, rights, _, _ = asker.recvmsg(8, socket.CMSG_SPACE(3 * 4))
    files = array.array("i")
    files.frombytes(rights[0][2])
    data = b""
    while len(data) < int.from_bytes(size, "big"):
        data += asker.recv(1 << 20)
    pid = os.fork()
    if pid:
        for number in files:
            os.close(number)
        runs.append(Run(asker, pid, os.pidfd_open(pid)))
        return None
    for target, number in enumerate(files):
        os.dup2(number, target)
        os.close(number)
    for run in runs:
        run.asker.close()
        os.close(run.pidfd)
    asker.close()
    door.close()
    wanted: dict[str, Any] = json.loads(data)
    return wanted


def become(wanted: dict[str, Any], libraries: list[str]) -> None:
    """Run a module, or code, as the real python would, and end; nothing is taken apart, which costs half a second."""
    os.environ.clear()
    os.environ.update(wanted["environment"])
    os.chdir(wanted["folder"])
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    kind, what, *arguments = wanted["arguments"]
    sys.argv = [what if kind == "-m" else kind, *arguments]
    sys.path[:] = [wanted["folder"], *paths, *libraries]
    if any((Path(path) / "sitecustomize.py").exists() for path in paths):
        importlib.import_module("sitecustomize")
    code = 0
    try:
        if kind == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            exec(what, {"__name__": "__main__"})
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:
        sys.excepthook(*sys.exc_info())
        code = 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code & 255)


if __name__ == "__main__":
    LIBRARY_PATHS = [path for path in sys.path if path and not path.startswith(str(Path(__file__).parent))]
    become(serve(sys.argv[1]), LIBRARY_PATHS)
