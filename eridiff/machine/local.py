"""Where things are on this machine: the checkout, local.yaml, the store. Nothing here changes a result."""

import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from eridiff.core.config import MAX_STEPS, Section, read_yaml, validate
from eridiff.core.errors import ConfigError
from eridiff.core.progress import warn
from eridiff.versions import STAGES

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # of a project or a base: a folder, and part of paths

CODE = "eridiff/families"  # of a checkout

Paths = Annotated[tuple[str, ...], Field(max_length=1000)]

MAX_BLOCKS = 10_000
Checkpointing = Literal["none", "selective", "full", "offload"] | Annotated[int, Field(ge=0, le=MAX_BLOCKS)]
RENAMED_KEYS = {"activations": "activation_checkpointing"}  # name of before -> name; still read
RENAMED_VALUES = {"activations": {"keep": "none", "recompute": "full"}}  # name of before -> its values of before


class LocalConfig(Section):
    """Settings of one machine (`local.yaml`, untracked). None of them changes a byte of a result."""

    store: str | None = None
    """Folder of the store. The environment variable ERIDIFF_STORE wins; default: ~/.cache/eridiff/store."""
    device: str | None = None
    """Where models run: `cuda`, `cuda:1`, `cpu`. The environment variable ERIDIFF_DEVICE wins."""
    bases: Annotated[dict[str, str | Paths], Field(max_length=1000)] = Field(default_factory=dict)
    """Base name -> the folder, the file or the files that hold its weights on this machine."""
    model_folders: Paths = ()
    """Folders searched for bases by name, after `bases` and the variable ERIDIFF_MODELS (paths joined by ':')."""
    comfyui: str | None = None
    """ComfyUI's folder, which is searched for models. ERIDIFF_COMFYUI takes precedence; default: ~/ComfyUI and
    similar."""
    allow_pickle: bool = False
    """Also read pickled weights (.ckpt, .pt): only their tensors, no code in them is run."""
    activation_checkpointing: Checkpointing | None = None
    """Activation checkpointing in training: `none`; how many of the denoiser's blocks are computed again in the
    backward pass; `selective`, half of them; `full`, all; `offload` also moves the blocks' inputs to RAM. Each needs
    less GPU memory and more time than the one before, with identical results. null: as many blocks as the GPU needs."""
    swap: Annotated[int, Field(ge=0, le=MAX_BLOCKS)] | None = None
    """How many of the denoiser's blocks keep their weights in RAM while they train; each is copied to the GPU ahead of
    its turn, with identical results. null: as many as it takes where recomputing every block is not enough; 0: none."""
    workers: Annotated[int, Field(ge=0, le=1024)] | None = None
    """Threads that read pictures ahead of the VAE; 0: none. null: by the machine's cores."""
    processes: Annotated[int, Field(ge=1, le=256)] = 1
    """Processes for the stages latents and text, one CUDA device each."""
    preview_every: Annotated[int, Field(ge=0, le=MAX_STEPS)] = 0
    """Draw the preview prompts every N training steps into runs/previews (0: never)."""
    preview_prompts: Annotated[tuple[str, ...], Field(max_length=100)] = ()
    """What previews draw."""
    preview_steps: Annotated[int, Field(ge=1, le=1000)] = 20
    """Sampling steps of a preview."""
    state_every: Annotated[int, Field(ge=1, le=MAX_STEPS)] = 50
    """Steps between two states from which a killed training resumes."""
    check_days: Annotated[float, Field(ge=0, le=36500)] = 7.0
    """Days for which a shard of the store, or the weights of a base, that were read and found sound count as sound,
    while size, time and inode stay: then every byte is read again. 0: at each run."""
    served_as: Annotated[tuple[str, ...], Field(max_length=100)] = ()
    """Names and addresses of this machine by which others reach `make serve`, such as `studio.local`; any other is
    refused. It then needs a password (docs/flow.md). ERIDIFF_SERVED_AS (joined by ',') wins."""


def find_upward(name: str, start: Path | None = None) -> Path | None:
    """The nearest folder at or above `start` (default: the current one) that holds `name`."""
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / name).exists():
            return folder
    return None


def find_checkout(start: Path | None = None) -> Path | None:
    """The checkout at or above a folder (default: the current one); None where there is none."""
    return find_upward(CODE, start)


def checkout_root(start: Path | None = None) -> Path:
    """The checkout's top folder, found upward from the current one: a project lies in projects/NAME.

    Raises: ConfigError where no folder above is a checkout.
    """
    folder = find_checkout(start)
    if folder is None:
        raise ConfigError(f"{start or Path.cwd()} is not inside an eridiff checkout: run this from the checkout.")
    return folder


def find_home(start: Path | None = None) -> Path | None:
    """The folder whose data/bases holds for a folder: the nearest standalone project or checkout; None outside."""
    found = [folder for name in (CODE, STAGES) if (folder := find_upward(name, start))]
    return max(found, key=lambda folder: len(folder.parts), default=None)


def bases_dir() -> Path:
    """The folder of base pointers: of a standalone project its own, else shared by the checkout and its projects.

    Raises: ConfigError outside both.
    """
    home = find_home()
    if home is None:
        raise ConfigError(
            f"{Path.cwd()} is not inside an eridiff checkout or project: run this there. `eridiff new` makes a project."
        )
    return home / "data" / "bases"


def load_local() -> LocalConfig:
    """Read the nearest local.yaml at or above the current folder, over the user's own; all defaults without either.

    Upward, so that the checkout's file also holds in projects and in `dvc exp` workspaces, which lie
    inside the checkout and see no untracked file. The user's holds in every checkout and project.
    """
    folder = find_upward("local.yaml")
    nearest = folder / "local.yaml" if folder else None
    chosen: dict[str, object] = {}
    for path in (user_config(), nearest):
        if path is not None and path.exists():
            where = path.name if path == nearest else str(path)
            found = _with_names_of_today(read_yaml(path) or {}, where)
            validate(LocalConfig, found, where=where, prefix="")
            chosen |= found
    return validate(LocalConfig, chosen, where="local.yaml", prefix="")


def _with_names_of_today(found: object, where: str) -> Any:
    """The content of a local.yaml with renamed keys and their values under today's names; a line for each."""
    if not isinstance(found, Mapping):
        return found
    current = dict(found)
    for before, name in RENAMED_KEYS.items():
        if before not in current:
            continue
        if name in current:
            raise ConfigError(f"{where}: '{before}' is the earlier name of '{name}', which is set too. Remove it.")
        value = current.pop(before)
        current[name] = RENAMED_VALUES[before].get(value, value) if isinstance(value, str) else value
        _warn_once(f"{where}: '{before}: {value}' is now '{name}: {current[name]}'. The earlier words are still read.")
    return current


@cache
def _warn_once(line: str) -> None:
    """Warn once a process: several parts of a stage read local.yaml."""
    warn(line)


def store_root() -> Path:
    """The store's folder: ERIDIFF_STORE, else local.yaml's `store`, else the user's cache folder."""
    chosen = os.environ.get("ERIDIFF_STORE") or load_local().store
    if chosen:
        return Path(chosen).expanduser()
    return user_cache() / "store"


def places_file() -> Path:
    """The local.yaml in which `eridiff base add` notes where weights lie: the checkout's.

    Of a standalone project the user's own, so that the next project finds them too; its own where it has one, whose
    `bases` stand in place of the user's.
    """
    checkout, home = find_checkout(), find_home()
    if home is None or home == checkout:
        return checkout_root() / "local.yaml"
    return home / "local.yaml" if (home / "local.yaml").exists() else user_config()


def user_config() -> Path:
    """This user's local.yaml, which counts in every checkout and project: ~/.config/eridiff/local.yaml."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "eridiff" / "local.yaml"


def user_cache() -> Path:
    """This user's cache folder of eridiff."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "eridiff"
