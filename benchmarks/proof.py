"""Presets at full size: every stage on photographs, a base of the exact configs with random weights, a small card.

    python -m benchmarks.proof --work FOLDER --photographs FOLDER [--out FOLDER] PRESET=GIB ...

The card's memory beyond GIB is taken away first, the context of each stage counted in. What is measured is the whole
process of each stage: seconds by the clock, and the most memory that the card had in use; beside them what `eridiff
plan` says of both, and how long the steps of training took alone. Training runs twice: the second time it only starts.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from eridiff.bases.add import make_pointers
from eridiff.check import load_all
from eridiff.core.files import write_text
from eridiff.family import load_family, pipeline_name, published
from eridiff.memory import plan
from eridiff.memory.plan import Planner
from eridiff.memory.train import CONTEXT
from eridiff.models.load import load_denoiser, load_text_encoders, load_vae
from eridiff.params.edit import filled
from eridiff.projects.projects import project_dvc_yaml
from eridiff.weights.pointers import Pointer, empty_source, pointer_text

ROOT = Path(__file__).parent.parent
GIB = 2**30
DEVICE = "cuda"
BEFORE = ("captions", "buckets")
STAGES = ("latents", "text", "train", "train", "sample", "export")  # the second training has nothing left to do
STEPS = 20
TOKENIZERS = ROOT / "data" / "bases"  # of the demo: fewer words, the same kinds


class Card:
    """One GPU whose memory is taken away down to what a smaller card has, and watched."""

    def __init__(self, gib: float) -> None:
        free, total = torch.cuda.mem_get_info()
        self.taken = torch.empty(max(0, free - int(gib * GIB)), dtype=torch.uint8, device=DEVICE)
        self.before = total - torch.cuda.mem_get_info()[0]
        self.peak = 0

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Note the most memory in use beyond what was taken."""
        self.peak, done = 0, threading.Event()

        def watch() -> None:
            while not done.wait(0.02):
                free, total = torch.cuda.mem_get_info()
                self.peak = max(self.peak, total - free - self.before)

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def write_base(folder: Path, family_name: str, variant: str, share: Path | None) -> None:
    """A base in diffusers' layout with random weights; parts that another folder has already are linked."""
    family, configs = load_family(family_name), published(family_name).models[variant]
    write_text(folder / "model_index.json", json.dumps({"_class_name": pipeline_name(family_name)}))
    for component in (name for names in family.PARTS.values() for name in names):
        target = folder / component
        if share is not None and component != family.DENOISER and component != "scheduler":
            target.symlink_to(share / component)
        elif component.startswith("tokenizer"):
            shutil.copytree(TOKENIZERS / f"tiny-{family_name}" / component, target)
        elif component == "scheduler":
            write_text(target / "scheduler_config.json", json.dumps(configs[component]))
        else:
            write_text(target / "config.json", json.dumps(configs[component]))
            save_file(random_weights(family, configs, component), _weights_file(target, component), {"format": "pt"})


def _weights_file(folder: Path, component: str) -> Path:
    name = "model" if component.startswith("text") else "diffusion_pytorch_model"
    return folder / f"{name}.safetensors"


def random_weights(family: Any, configs: Mapping[str, Any], component: str) -> dict[str, torch.Tensor]:
    """bf16 tensors of a component's names and shapes; matrices keep the size of what goes through."""
    model = empty_model(family, configs, component)
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    generator = torch.Generator(DEVICE).manual_seed(0)
    found = {}
    for name, tensor in model.state_dict().items():
        if name in tied:
            continue
        if tensor.dim() < 2:
            value = torch.ones(tensor.shape) if name.endswith("weight") else torch.zeros(tensor.shape)
        else:
            fan_in = tensor[0].numel()
            value = torch.randn(tensor.shape, generator=generator, device=DEVICE) * fan_in**-0.5
        found[name] = value.to(torch.bfloat16) if tensor.is_floating_point() else value.to(tensor.dtype)
    return found


def empty_model(family: Any, configs: Mapping[str, Any], component: str) -> torch.nn.Module:
    """A component's model on the meta device, by the loader of all bases."""
    from eridiff.weights.components import Component

    components = {name: Component(name=name, config=dict(c), files={}, digest="") for name, c in configs.items()}
    source = empty_source([Pointer(base="", family="", part="all", components=components)])
    if component == family.DENOISER:
        return load_denoiser(family, source, torch.bfloat16)
    if component == "vae":
        return load_vae(family, source, torch.bfloat16)
    return load_text_encoders(family, source, torch.bfloat16).encoders[component]


def make_project(preset: str, photographs: Path) -> Path:
    """projects/proof-PRESET: the preset with a trigger, 20 steps, and no check of the base, which is random."""
    folder = ROOT / "projects" / f"proof-{preset}"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(photographs, folder / "data" / "raw")
    changes = {
        "captions": {"trigger": "proof"},
        "buckets": {"upscale": True},
        "train": {"steps": STEPS, "check_base": False},
    }
    text = filled((ROOT / "presets" / f"{preset}.yaml").read_text("utf-8"), changes)
    write_text(folder / "params.yaml", text.replace("warmup_steps: 100", "warmup_steps: 5"))
    write_text(folder / "dvc.yaml", project_dvc_yaml((ROOT / "dvc.yaml").read_text("utf-8")))
    return folder


def prove(preset: str, gib: float, work: Path, photographs: Path) -> list[dict[str, Any]]:
    """Rows of one preset: a stage each."""
    params = load_all(ROOT / "presets" / f"{preset}.yaml")
    model = params["model"]
    bases = work / "bases"
    if not (bases / model.base).exists():
        for old in bases.glob("*"):  # the memory that holds them is not endless
            if pipeline_name(model.family) not in (old / "model_index.json").read_text("utf-8"):
                shutil.rmtree(old)
        shared = next(iter(sorted(bases.glob("*"))), None)
        if shared is not None:  # its denoiser is done with
            shutil.rmtree(shared / load_family(model.family).DENOISER)
        shutil.rmtree(work / "store" / "bases", ignore_errors=True)
        start = time.monotonic()
        write_base(bases / model.base, model.family, model.base, shared)
        for pointer in make_pointers(model.base, bases / model.base):
            write_text(ROOT / "data" / "bases" / model.base / f"{pointer.part}.json", pointer_text(pointer))
        print(f"{model.base}: base made in {time.monotonic() - start:.0f} s", flush=True)
    folder, rows = make_project(preset, photographs), []
    environment = os.environ | {"ERIDIFF_MODELS": str(bases), "ERIDIFF_STORE": str(work / "store")}
    environment["PYTHONPATH"] = f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"
    for stage in BEFORE:
        run_stage(stage, folder, environment).check_returncode()
    planned = {one.stage: one for one in Planner(folder, plan_card(gib)).estimates()}
    torch.cuda.empty_cache()
    card = Card(gib)
    for stage in STAGES:
        start = time.monotonic()
        with card.watched():
            done = run_stage(stage, folder, environment)
        row = {"preset": preset, "GiB of card": gib, "stage": stage, "s": time.monotonic() - start}
        row |= {"peak GiB": card.peak / GIB, "rc": done.returncode, **what_plan_says(planned.get(stage))}
        if stage == "train" and not done.returncode:
            row["s of steps"] = json.loads((folder / "runs" / "train.json").read_text("utf-8"))["seconds"]
        words = [line for line in done.stdout.splitlines() if line and " left" not in line]
        rows.append(row | {"words": words[-6:]})
        print(json.dumps(row), *rows[-1]["words"], sep="\n    ", flush=True)
        if done.returncode:
            print(done.stdout[-1500:], done.stderr[-3000:], flush=True)
            break
    for path in folder.glob("data/samples/grid.png"):
        shutil.copy(path, work / f"{preset}.png")
    return rows


def run_stage(stage: str, folder: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """One stage of a project, as DVC starts it."""
    command = [sys.executable, "-m", f"stages.{stage}"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def plan_card(gib: float) -> plan.Card:
    """A card of this GPU's speed and a smaller one's memory."""
    return plan.Card(name=torch.cuda.get_device_name(), memory=int(gib * GIB), is_here=True)


def what_plan_says(estimate: plan.Estimate | None) -> dict[str, Any]:
    """Columns of a stage that is planned for."""
    if estimate is None:
        return {}
    return {"planned GiB": (estimate.found.memory + CONTEXT) / GIB, "planned s": estimate.seconds}


def main() -> None:
    """Prove each preset; print a table, write proof.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="+", metavar="PRESET=GIB")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--photographs", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for named in arguments.presets:
        preset, _, gib = named.partition("=")
        rows += prove(preset, float(gib), arguments.work, arguments.photographs)
        if arguments.out is not None:
            arguments.out.mkdir(parents=True, exist_ok=True)
            write_text(arguments.out / "proof.json", json.dumps(rows, indent=1) + "\n")
            for picture in arguments.work.glob(f"{preset}.png"):
                shutil.copy(picture, arguments.out / picture.name)


if __name__ == "__main__":
    main()
