"""The section `buckets` of params.yaml."""

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from eridiff.core.config import Section

TOKEN = 16  # pixels a side of an image token: of every family the VAE's factor times the patch


class BucketParams(Section):
    """Which sizes pictures are trained at."""

    resolution: Annotated[int, Field(ge=64, le=8192)]
    """Square root of the largest area of a bucket in pixels: 1024 permits 1024x1024, 832x1216..."""
    more_resolutions: Annotated[tuple[Annotated[int, Field(ge=64, le=8192)], ...], Field(max_length=16)] = ()
    """Further resolutions: every picture is also put into a bucket of each, and trained at all of them."""
    step: Annotated[int, Field(ge=8, le=8192, multiple_of=8, validate_default=True)] = 64
    """Sides are multiples of this."""
    rule: Literal["area", "equal_tokens"] = "area"
    """area: for each side the longest other side that the area allows. equal_tokens: all buckets of a resolution have
    exactly the same area, so transformers see one number of image tokens; use `step: 16` with it (docs/buckets.md)."""
    max_aspect: Annotated[float, Field(ge=1, le=8)] = 2.0
    """The longest bucket's long side over its short side. Longer pictures are cropped to that shape."""
    upscale: bool = False
    """Enlarge pictures that are smaller than their bucket; otherwise they are left out and named in the report."""
    crop: Literal["center", "top"] = "center"
    """Which part of a picture that is too tall is kept: the middle, or the top (heads). If it is too wide: the
    middle."""

    @field_validator("step")
    @classmethod
    def _one_square_fits(cls, value: int, info: ValidationInfo) -> int:
        least = min((info.data.get("resolution", value), *info.data.get("more_resolutions", ())))
        if value > least:
            raise ValueError(f"must be at most resolution ({least})")
        return value

    @field_validator("rule")
    @classmethod
    def _tokens_are_whole(cls, value: str, info: ValidationInfo) -> str:
        step = info.data.get("step", TOKEN)
        if value == "equal_tokens" and step % TOKEN:
            raise ValueError(f"equal_tokens needs a step that is a multiple of {TOKEN} (it is {step})")
        return value
