"""The drift check's measurement of the text encoders: fixed captions, and some numbers of their embeddings."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from eridiff.caching.drift_records import Encoder, Values, name_precision, some_values
from eridiff.family import Family, TextEncoders
from eridiff.params.text import TextParams, choose_max_tokens
from eridiff.weights.nonfinite import blame
from eridiff.weights.pointers import Pointer

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Words that all tokenizers know, what they cut differently, and more than any limit takes.
CAPTIONS = (
    "",
    "a red fox jumps over a lazy dog, flat drawing",
    "Ünïcode, 日本語 & 12.5 % of_snake_case; (weights:1.2)",
    "one two three four five six seven eight nine ten " * 60,
)


def text_encoder(pointer: Pointer, params: TextParams, family: Family) -> Encoder:
    """The text encoders of a base, as the section `text` runs them."""
    limit = choose_max_tokens(params, family)
    precision = {"dtype": params.dtype, "tf32": params.tf32, "max_tokens": limit}
    return Encoder(
        stage="text",
        name=f"the set of text encoders of {pointer.base}",
        identity={"encoders": pointer.identity(), "params": precision, "version": family.VERSIONS.family.text_encode},
        precision=name_precision(params.dtype, params.tf32),
    )


def text_drift_values(params: TextParams, family: Family, encoders: TextEncoders, device: "torch.device") -> Values:
    """Some numbers of the embeddings of fixed captions.

    Raises: DataError where they are not finite.
    """
    import torch

    from eridiff.models.precision import fix_threads, use_tf32

    fix_threads(device)
    use_tf32(params.tf32)
    encoders.to(device)

    def work() -> "Mapping[str, Tensor]":
        with torch.inference_mode():
            return family.encode_text(encoders, list(CAPTIONS), choose_max_tokens(params, family))

    return some_values(work, "the text encoders", lambda: blame(encoders.encoders, "text.dtype", params.dtype, work))
