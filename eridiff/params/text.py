"""The section `text` of params.yaml."""

from typing import Annotated, Literal

from pydantic import Field

from eridiff.core.config import Section
from eridiff.core.errors import ConfigError
from eridiff.family import Family


class TextParams(Section):
    """How captions become embeddings. Every key here is part of an embedding's key in the store."""

    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Number format of the text encoders."""
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 8
    """Captions per batch. Fixed; the last batch is padded with the empty caption."""
    max_tokens: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Tokens of the T5 encoder, if the family has one; null: the family's default."""
    tf32: bool = False
    """Let fp32 products on CUDA use TF32: faster, rounded."""
    compile: bool = False
    """Compile the encoders' layers with torch.compile: faster for many captions, rounded."""


def choose_max_tokens(params: TextParams, family: Family) -> int:
    """The token limit of the family's longest encoder.

    Raises: ConfigError for a value that the family's encoders do not take.
    """
    chosen = family.MAX_TOKENS[0] if params.max_tokens is None else params.max_tokens
    if chosen not in family.MAX_TOKENS:
        choices = ", ".join(map(str, sorted(family.MAX_TOKENS)))
        raise ConfigError(
            f"params.yaml: text.max_tokens is {chosen}, which this family does not take. Known: {choices}."
        )
    return chosen
