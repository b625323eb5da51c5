"""The section `latents` of params.yaml."""

from typing import Annotated, Literal

from pydantic import Field

from eridiff.core.config import Section, Seed

IN_NO_KEY = {"flip", "crops", "crop_zoom", "seed"}  # they decide which samples there are, not what one holds


class LatentParams(Section):
    """How pictures become latents."""

    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Number format of the VAE. In fp16 the VAEs of some bases overflow; that is an error, not a black picture."""
    batch_size: Annotated[int, Field(ge=1, le=1024)] = 4
    """Pictures per batch. Fixed, so that free memory never changes results; the last batch is padded."""
    keep: Literal["mean_std", "mean"] = "mean_std"
    """Store the posterior's mean and std, from which each step draws; or only the mean, half the size."""
    flip: bool = False
    """Also cache every picture mirrored; training draws one of the two."""
    crops: Annotated[int, Field(ge=1, le=1000)] = 1
    """Crops of each picture, from which training draws: the bucket's own, and others at random positions."""
    crop_zoom: Annotated[float, Field(ge=1, le=4)] = 1.0
    """Largest factor by which the other crops are magnified, never beyond the picture's own size. With 1 they only
    move along the side that sticks out of the bucket: a picture of just its shape has one crop."""
    seed: Seed = 0
    """Seed of the other crops."""
    alpha: Literal["white", "black", "grey"] = "white"
    """Background of transparent pixels."""
    resample: Literal["lanczos", "bicubic", "area"] = "lanczos"
    """Filter for scaling pictures down."""
    tf32: bool = False
    """Let fp32 products on CUDA use TF32: faster, rounded."""
    channels_last: bool = False
    """Memory format of the VAE on CUDA: faster with bf16, rounded."""
    compile: bool = False
    """Compile the VAE with torch.compile: faster for many pictures, rounded."""
    tile: Annotated[int, Field(ge=64, le=16384, multiple_of=32)] | None = None
    """Encode pictures with a side above this many pixels in overlapping tiles: less memory, slightly different
    latents."""

    @property
    def per_picture(self) -> int:
        """Samples of each picture: its crops, each mirrored too where that is asked for."""
        return self.crops * (2 if self.flip else 1)
