"""What the code means, as numbers: eridiff/versions.yaml for the stages, versions.yaml in each family's folder.

dvc.yaml declares them as params, so a raised number runs its stage, and an edit of code alone runs nothing. A number is
raised by hand, with a sentence, when a stage's outs move beyond rounding for some input: golden files in tests/ say so.
A project outside a checkout has copies of these files, since DVC reads params beside dvc.yaml: versions/stages.yaml and
versions/FAMILY.yaml.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from eridiff.core.config import Section, read_yaml, validate

FIRST = 1  # the number of every version at first, and of all results from before there were any
NAME = "versions.yaml"
HERE = Path(__file__).parent
COPIES = "versions"  # the folder of the copies in a standalone project
STAGES = f"{COPIES}/stages.yaml"
Version = Annotated[int, Field(ge=FIRST, le=100_000)]


class Change(Section):
    """One raise of one version."""

    version: str
    """Its name, such as `stages.train`."""
    number: Annotated[int, Field(gt=FIRST, le=100_000)]
    """What it was raised to."""
    sentence: Annotated[str, Field(min_length=20, max_length=1000)]
    """What changes for whom."""


Changes = Annotated[tuple[Change, ...], Field(max_length=10_000)]


class Versions(Section):
    """A file of versions: sections of numbers, and a sentence for each raise."""

    changes: Changes = ()
    """Every raise, in any order."""

    @property
    def numbers(self) -> dict[str, int]:
        """Name, such as `stages.train` -> number."""
        sections = self.model_dump(exclude={"changes"})
        return {f"{section}.{name}": n for section, named in sections.items() for name, n in named.items()}

    @model_validator(mode="after")
    def _each_raise_has_its_sentence(self) -> "Versions":
        raises = {(name, n) for name, number in self.numbers.items() for n in range(FIRST + 1, number + 1)}
        said = [(change.version, change.number) for change in self.changes]
        if lacking := sorted(raises - set(said)):
            name, number = lacking[0]
            raise ValueError(f"`changes` lacks the sentence for {name} {number}: what changes for whom")
        if odd := sorted(set(said) - raises) or sorted(pair for pair in said if said.count(pair) > 1):
            name, number = odd[0]
            raise ValueError(f"`changes` names {name} {number}, which is no raise or is named twice")
        return self

    def sentences(self, name: str, before: int, now: int) -> list[str]:
        """What each raise of a version between two numbers changes; [] where it went down."""
        found = sorted(
            (change.number, change.sentence)
            for change in self.changes
            if change.version == name and before < change.number <= now
        )
        return [sentence for _, sentence in found]


class StageNumbers(Section):
    """A number a stage: raised, that stage runs again, in every project."""

    check: Version
    captions: Version
    buckets: Version
    latents: Version
    text: Version
    train: Version
    sample: Version
    export: Version


class StoreNumbers(Section):
    """What stands in the store's keys for all families."""

    pixels: Version
    """Crop, resample and colour of a picture before the VAE."""


class CodeVersions(Versions):
    """eridiff/versions.yaml."""

    stages: StageNumbers
    store: StoreNumbers


class FamilyNumbers(Section):
    """What one family's code means to the stages that use it."""

    train: Version
    vae_encode: Version
    text_encode: Version
    sample: Version
    export: Version


class FamilyVersions(Versions):
    """versions.yaml of a family's folder."""

    family: FamilyNumbers


def code_versions(folder: Path = HERE) -> CodeVersions:
    """Versions of the stages and of the store's keys.

    Raises: ConfigError where the file is not what this module knows.
    """
    path = folder / NAME
    return validate(CodeVersions, read_yaml(path), where=str(path), prefix="")


def family_versions(folder: Path) -> FamilyVersions:
    """Versions of a family, from its folder.

    Raises: ConfigError where the file is missing, or not what this module knows.
    """
    path = folder / NAME
    return validate(FamilyVersions, read_yaml(path), where=str(path), prefix="")


def version_files() -> dict[str, Path]:
    """Every file of versions, by the place of its copy in a standalone project."""
    families = sorted((HERE / "families").glob(f"*/{NAME}"))
    return {STAGES: HERE / NAME, **{f"{COPIES}/{path.parent.name}.yaml": path for path in families}}


def is_standalone(folder: Path) -> bool:
    """Whether a folder is a project outside any checkout: it has copies of the versions."""
    return (folder / STAGES).exists()


def describe_change(file: Versions, name: str, before: object, now: object, family: str) -> str:
    """`train 3 -> 4: what changes for whom`. before, now: as dvc.lock and the file have it; None where they do not."""
    section, _, short = name.partition(".")
    label = f"{family}'s {short}" if section == "family" else short
    old, new = (number if isinstance(number, int) else FIRST - 1 for number in (before, now))
    said = file.sentences(name, old, new)
    if old > new >= FIRST:
        said = ["this eridiff is an earlier one than the last run's"]
    shown = ["(absent)" if number is None else str(number) for number in (before, now)]
    return ": ".join([f"{label} {' -> '.join(shown)}", *([" ".join(said)] if said else [])])


def pixels_part() -> Mapping[str, int]:
    """What the version of pixels adds to a latent's key: nothing at first, so that keys of before stay."""
    number = code_versions().store.pixels
    return {"pixels_version": number} if number > FIRST else {}
