"""The bases of tests/small, opened for tests: the current folder is a checkout that has them (conftest.py)."""

from functools import cache
from typing import Any

import torch

from eridiff.families import family_names, load_family
from eridiff.sources import ModelSource, find_source, pointers_of

FAMILIES = family_names()


@cache
def source(family: str) -> ModelSource:
    pointers = pointers_of(f"tiny-{family}", load_family(family).PARTS, family)
    return find_source(pointers.values())


@cache
def pipeline(family: str, scheduler: str = "euler") -> Any:
    """A pipeline with nothing adapted; tests that adapt load their own."""
    made = load_family(family).load_pipeline(source(family), torch.float32, scheduler)
    made.set_progress_bar_config(disable=True)
    return made
