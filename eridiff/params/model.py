"""The section `model` of params.yaml, and how a frozen model may be stored and computed with in fewer bits."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Discriminator, Tag, model_validator

from eridiff.core.config import Section

Stored = Literal["fp8", "int8", "nf4"]  # storage of a frozen model's layers (eridiff/models/quantise.py)


class QuantisedArithmetic(Section):
    """A base whose blocks are stored in eight bits and also multiplied in them, forward and backward."""

    storage: Stored
    """Format of the weights, which are held twice (as they are and transposed): as much memory as bf16."""
    compute: Literal["fp8", "int8"]
    """Format of both factors of each product; the same as `storage`. fp8 needs compute capability 8.9 (Ada, Hopper) or
    later, int8 7.5 (Turing) or later."""

    @model_validator(mode="after")
    def _same(self) -> Self:
        if self.storage != self.compute:
            raise ValueError(
                f"storage {self.storage} with compute {self.compute}: what is stored is what is multiplied. Known: "
                "{storage: fp8, compute: fp8}, {storage: int8, compute: int8}; or one word, which only stores: fp8, "
                "int8 or nf4"
            )
        return self


def _spelling(value: Any) -> str:
    """Which of the two spellings a value is, so that an error is explained in that one's terms."""
    return "section" if isinstance(value, Mapping | BaseModel) else "word"


Quantised = Annotated[
    Annotated[Stored, Tag("word")] | Annotated[QuantisedArithmetic, Tag("section")], Discriminator(_spelling)
]


class ModelParams(Section):
    """Which model is trained."""

    family: str
    """The architecture: a folder of eridiff/families."""
    base: str
    """The base: a folder of data/bases, made by `eridiff base add`."""
    allow_cpu: bool = False
    """Run on a CPU if there is no CUDA device. Only useful for small bases."""
