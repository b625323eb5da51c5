"""The hub's models: what its cache holds, what has to be fetched, and what to do where a licence stands before it."""

import re
from pathlib import Path

from eridiff.bases.places import hub_cache
from eridiff.core.errors import BaseError
from eridiff.core.progress import say
from eridiff.family import family_names, published

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Components' folders alone: beside them lie the same weights as one file, and ComfyUI's copies of the encoders.
WANTED = ["model_index.json", "*/*.json", "*/*.txt", "*/*.model", "*/*.safetensors"]
WANTED += ["README.md", "LICENSE*", "NOTICE*"]  # what the licence is: eridiff/bases/licences.py
UNWANTED = [
    "text_encoders/*",
    "safety_checker/*",
    "*/*.fp16*.safetensors",
    "*/*.bf16*.safetensors",
    "*/openvino*",
    "*/flax*",
]


def cached_snapshot(repository: str) -> Path | None:
    """The newest snapshot of a repository in the hub's cache that has a model_index.json."""
    folder = hub_cache() / f"models--{repository.replace('/', '--')}" / "snapshots"
    found = [index.parent for index in folder.glob("*/model_index.json")]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def page_of(folder: Path) -> str | None:
    """The page on the hub of a snapshot in the hub's cache; None for any other folder."""
    place = folder.parent.parent
    if folder.parent.name != "snapshots" or not place.name.startswith("models--"):
        return None
    return f"https://huggingface.co/{place.name.removeprefix('models--').replace('--', '/', 1)}"


def fetch_snapshot(repository: str) -> Path:
    """A repository's model folder, from the cache, or fetched into it.

    Raises: BaseError where it cannot be had, with what to do.
    """
    if (cached := cached_snapshot(repository)) is not None:
        return cached
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    say(f"{repository} is fetched from the hub into {hub_cache()}")
    try:
        return Path(snapshot_download(repository, allow_patterns=WANTED, ignore_patterns=UNWANTED))
    except GatedRepoError:
        raise BaseError(gated(repository)) from None
    except RepositoryNotFoundError:
        raise BaseError(
            f"the hub has no public model '{repository}'. If it is private, log in with `hf auth login`."
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        first = str(error).strip().splitlines()[0]
        raise BaseError(f"{repository} is not in {hub_cache()} and cannot be fetched: {first}") from None


def gated(repository: str) -> str:
    """What to do where a model is given only to those who agreed to its licence."""
    lines = [
        f"{repository} is given only to those who agreed to its licence.",
        f"  1. Read and accept it at https://huggingface.co/{repository}",
        "  2. Make a token (read) at https://huggingface.co/settings/tokens and run `hf auth login`",
        "  3. Run this command again.",
    ]
    for name in family_names():
        if repository in published(name).hub.values():
            lines.append("Or copy single files that you have into ComfyUI's models, and add the first of them:")
            for component, (folder, *files) in published(name).files.items():
                lines.append(f"  {component}: {' or '.join(files)} into models/{folder}")
    return "\n       ".join(lines)
