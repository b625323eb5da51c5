"""Which code this is: its digest, what of it git calls changed, and where its presets and pipeline lie."""

from pathlib import Path

from eridiff.core.files import digest_file, digest_json
from eridiff.core.git import ask_git
from eridiff.versions import NAME

ROOT = Path(__file__).parent.parent.parent  # of the checkout, or where the package is installed
FOLDERS = ("eridiff", "stages")
TEMPLATE = ROOT / "eridiff" / "template"  # of an installed package alone: setup.py puts it into the wheel


def code_digest() -> str:
    """Digest of all of eridiff's code: for what is remembered of this machine, and counted again when code changes."""
    files = sorted(path for path in (ROOT / "eridiff").rglob("*.py"))
    return digest_json({path.relative_to(ROOT).as_posix(): digest_file(path) for path in files})


def template() -> Path:
    """The folder with dvc.yaml, presets/, .dvcignore and .dvc that projects are made from: the checkout, or a copy."""
    return TEMPLATE if TEMPLATE.is_dir() else ROOT


def changed_code(root: Path = ROOT) -> list[str]:
    """Files of eridiff/ and stages/ that differ from git's HEAD, or that it does not have; [] where there is no git.

    An installed package is no checkout, though its environment may lie in one of git's.
    """
    if TEMPLATE.is_dir():
        return []
    said = ask_git(root, "status", "--porcelain", "-z", "--no-renames", "--untracked-files=all", "--", *FOLDERS) or b""
    files = (entry[3:] for entry in said.decode("utf-8", "replace").split("\0") if entry)
    return sorted(file for file in files if Path(file).name != NAME)  # at that one DVC looks


def describe_changed(files: list[str]) -> str | None:
    """A line for who edits the code: DVC does not see it."""
    if not files:
        return None
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    return (
        f"{files[0]}{more} differ{'' if more else 's'} from git's HEAD, and DVC does not look at code: to run a stage "
        "with it, `dvc repro -f -s STAGE`; where its results move, raise its version (docs/development.md)"
    )
