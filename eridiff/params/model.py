"""The section `model` of params.yaml, and how the weights of a frozen model may be stored."""

from typing import Literal

from eridiff.core.config import Section

Quantised = Literal["fp8", "int8", "nf4"]  # storage of a frozen model's layers (eridiff/models/quantise.py)


class ModelParams(Section):
    """Which model is trained."""

    family: str
    """The architecture: a folder of eridiff/families."""
    base: str
    """The base: a folder of data/bases, made by `eridiff base add`."""
    allow_cpu: bool = False
    """Run on a CPU if there is no CUDA device. Only useful for small bases."""
