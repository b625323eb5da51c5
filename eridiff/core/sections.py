"""What a section of a configuration file is made of: the sections inside it, its types, its fields' docstrings."""

import ast
import inspect
from collections.abc import Iterator
from itertools import pairwise
from textwrap import dedent
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo


def leaf_types(annotation: Any) -> list[Any]:
    """All plain types and literal values inside an annotation such as `tuple[Literal['a', 'b'], ...] | None`."""
    inner = [arg for arg in get_args(annotation) if not isinstance(arg, FieldInfo)]
    return [leaf for arg in inner for leaf in leaf_types(arg)] if inner else [annotation]


def section_of(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """The section that a field holds (alone, in a list, or optional)."""
    kinds = leaf_types(model.model_fields[name].annotation)
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def nested(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """Sections inside a section, at any depth: (key path, model); `[]` marks a list of them."""
    for name, field in model.model_fields.items():
        if section := section_of(model, name):
            path = f"{prefix}.{name}{'[]' if get_origin(field.annotation) is tuple else ''}"
            yield path, section
            yield from nested(section, path)


def docstrings(model: type[BaseModel]) -> dict[str, str]:
    """Field -> the docstring under it, read from the source; fields of the models it inherits from first.

    pydantic can do it (`use_attribute_docstrings`), but at import and for every model, at each start of a stage; only
    the pages and the form show them.
    """
    above = [docstrings(base) for base in model.__bases__ if issubclass(base, BaseModel) and base.model_fields]
    return {name: text for texts in [*above, _own_docstrings(model)] for name, text in texts.items()}


def _own_docstrings(model: type[BaseModel]) -> dict[str, str]:
    (definition,) = ast.parse(dedent(inspect.getsource(model))).body
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id: inspect.cleandoc(text.value.value)
        for field, text in pairwise(definition.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }
