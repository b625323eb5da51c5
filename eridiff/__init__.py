"""eridiff: LoRA training for diffusion models as a pipeline that recomputes only what changed."""

__version__ = "0.1.0"
