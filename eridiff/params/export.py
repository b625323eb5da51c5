"""The section `export` of params.yaml."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, field_validator

from eridiff.core.config import MAX_STEPS, Section


class ExportParams(Section):
    """What is exported, and the files' metadata."""

    checkpoint: Literal["last", "best"] | Annotated[int, Field(ge=0, le=MAX_STEPS)] = "last"
    """Which checkpoint: the last, the one with the lowest loss, or a step."""
    ema: bool | None = None
    """Export the moving average (train.ema_decay) instead of the adapters themselves; null: as `sample.ema` says, so
    that the file is the one in the pictures."""
    dtype: Literal["fp16", "bf16", "fp32"] = "fp16"
    """Number format of the files. Training is fp32, so fp32 is exact and twice as large."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$")] = "lora"
    """Stem of the files' names: letters, digits, '.', '_' and '-'."""
    title: str | None = None
    """Title; null: the name."""
    author: str | None = None
    """Who made it."""
    license: str | None = None
    """Licence of the LoRA, such as `apache-2.0`."""
    description: str | None = None
    """What it does, in a few words."""
    tags: Annotated[tuple[str, ...], Field(max_length=1000)] = ()
    """Keywords for model managers and hubs."""
    date: str | None = None
    """Date in ISO 8601 and in quotes, such as "2024-06-01"; null: none. A clock is never read."""

    @field_validator("date")
    @classmethod
    def _is_iso(cls, value: str | None) -> str | None:
        if value is not None:
            datetime.fromisoformat(value)
        return value

    def stated(self) -> dict[str, str | None]:
        """What the user says of the LoRA, under modelspec's names."""
        stated = {"title": self.title or self.name, "author": self.author, "date": self.date}
        about = {"license": self.license, "description": self.description, "tags": ",".join(self.tags)}
        return {**stated, **about}
