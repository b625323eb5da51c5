from typing import Annotated, Literal

from pydantic import Field

from eridiff.core.config import Section
from eridiff.core.sections import docstrings, leaf_types, nested
from tests.support import processes


class Inner(Section):
    """Inside."""

    size: int = 1
    """How large,
    in pixels."""


class Outer(Inner):
    """Outside."""

    one: Inner | None = None
    """One of them."""
    many: Annotated[tuple[Inner, ...], Field(max_length=3)] = ()
    bare: str = ""


def test_docstrings_are_those_under_the_fields_and_of_the_models_above() -> None:
    assert docstrings(Outer) == {"size": "How large,\nin pixels.", "one": "One of them."}
    assert docstrings(Inner) == {"size": "How large,\nin pixels."}


def test_nested_sections_have_their_key_paths() -> None:
    assert list(nested(Outer, "train")) == [("train.one", Inner), ("train.many[]", Inner)]


def test_leaf_types_leave_out_bounds() -> None:
    assert leaf_types(tuple[Annotated[Literal["a", 2], Field(max_length=3)], ...] | None) == [
        "a", 2, Ellipsis, type(None),
    ]  # fmt: skip


def test_no_docstring_is_read_at_a_stage_s_start() -> None:
    """Reading sources costs each start of a stage time; only the pages and the form show them."""
    code = "import inspect; inspect.findsource = None\nimport stages.check; print('ok')"
    assert processes.run(code) == "ok\n"
