"""Every family is whole: all members of the protocols, of their types, and no family's name outside its folder."""

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from eridiff.family import Family, Keys, Scene, Workflow, load_family, load_keys, load_workflow, pipeline_name
from eridiff.models.load import find_class
from eridiff.weights.lora_keys import Dialect
from tests.support import training
from tests.support.bases import FAMILIES, source

ROOT = Path(__file__).parent.parent.parent
PROTOCOLS = {Family: load_family, Keys: load_keys, Workflow: load_workflow}


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type, as far as the protocols use types."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin is Literal:
        return value in inner
    if origin is Mapping:
        return isinstance(value, Mapping) and all(fits(k, inner[0]) and fits(v, inner[1]) for k, v in value.items())
    if origin is tuple and inner[-1] is Ellipsis:
        return isinstance(value, tuple) and all(fits(item, inner[0]) for item in value)
    if origin is tuple:
        return isinstance(value, tuple) and len(value) == len(inner) and all(map(fits, value, inner))
    return type(value) is hint


def assert_whole(module: Any, protocol: type) -> None:
    """Every member of a protocol is in the module: values of the type, functions of the same parameters."""
    hints = get_type_hints(protocol)
    functions = {n: f for n, f in vars(protocol).items() if inspect.isfunction(f) and not n.startswith("_")}
    assert len(hints) + len(functions) > 0
    for name, hint in hints.items():
        assert hasattr(module, name), f"{module.__name__} lacks {name}"
        assert fits(getattr(module, name), hint), f"{module.__name__}.{name} is {getattr(module, name)!r}, not {hint}"
    for name, function in functions.items():
        assert hasattr(module, name), f"{module.__name__} lacks {name}"
        wanted = list(inspect.signature(function).parameters.values())[1:]
        given = list(inspect.signature(getattr(module, name)).parameters.values())
        assert [(p.name, p.default) for p in given] == [(p.name, p.default) for p in wanted], (
            f"{module.__name__}.{name}"
        )
        assert getattr(module, name).__doc__, f"{module.__name__}.{name} has no docstring"


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_member_is_there(family: str, protocol: type) -> None:
    assert_whole(PROTOCOLS[protocol](family), protocol)


def test_what_is_missing_or_of_another_type_is_found() -> None:
    """The check above can fail."""
    whole = load_family(FAMILIES[0])
    for changes in (
        {"OBJECTIVE": "other"},
        {"PARTS": {"vae": "vae"}},
        {"SIDE_MULTIPLE": 8.0},
        {"NEGATIVE": 1},
        {"predict": lambda x: x},
    ):
        module = ModuleType("broken")
        vars(module).update({**{k: v for k, v in vars(whole).items() if not k.startswith("__")}, **changes})
        with pytest.raises(AssertionError, match="broken"):
            assert_whole(module, Family)
    with pytest.raises(AssertionError, match="empty lacks"):
        assert_whole(ModuleType("empty"), Workflow)


@pytest.mark.parametrize("family", FAMILIES)
def test_values_fit_each_other(family: str) -> None:
    module = load_family(family)
    assert set(module.PARTS) == {"vae", "text", "denoiser"}
    assert module.PARTS["denoiser"] == (module.DENOISER, "scheduler")
    assert {*module.MODELS, *module.TOKENIZERS, "scheduler"} == {c for parts in module.PARTS.values() for c in parts}
    assert not set(module.MODELS) & set(module.TOKENIZERS)
    assert set(load_keys(family).COMPONENTS) <= set(module.MODELS)
    assert {"attention", "all-linear"} <= set(module.TARGET_SETS)
    assert all(re.compile(pattern) for pattern in module.TARGET_SETS.values())
    assert "euler" in module.SCHEDULERS
    kinds = {type(block).__name__ for block in training.base_denoiser(family).modules()}
    assert set(module.BLOCKS) <= kinds
    assert len(set(module.MAX_TOKENS)) == len(module.MAX_TOKENS) > 0
    vae = source(family).config("vae")
    assert module.SIDE_MULTIPLE % 2 ** (len(vae["block_out_channels"]) - 1) == 0
    unused = module.unused_modules(source(family).config(module.DENOISER))
    assert all(any(re.fullmatch(pattern, name) for pattern in module.TARGET_SETS.values()) for name in unused)


@pytest.mark.parametrize("family", FAMILIES)
def test_classes_are_there(family: str) -> None:
    """Each by the name that the library itself gives it."""
    module = load_family(family)
    for name in (module.PIPELINE, *module.MODELS.values(), *module.TOKENIZERS.values()):
        library, _, own = name.rpartition(".")
        found = find_class(name)
        assert found.__name__ in (own, own.removesuffix("Fast"))
        assert found.__module__.split(".")[0] == library
    assert pipeline_name(family) == find_class(module.PIPELINE).__name__


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_and_workflow_answer(family: str) -> None:
    keys, config = load_keys(family), source(family).config(load_family(family).DENOISER)
    assert keys.DIALECTS
    assert all(isinstance(dialect, Dialect) for dialect in keys.DIALECTS)
    assert keys.architecture(config)
    assert keys.base_version(config)
    assert keys.canonical("nothing", "a.b.weight") == "a.b.weight"
    scene = Scene(
        lora="x.safetensors",
        files={component: f"{component}.safetensors" for component in keys.COMPONENTS},
        prompt="p",
        size=(64, 96),
        denoiser_config=config,
        scheduler_config=source(family).config("scheduler"),
    )
    graph = load_workflow(family).workflow(scene)
    assert all({"class_type", "inputs"} <= set(node) for node in graph.values())
    assert "x.safetensors" in str(graph)


def test_no_family_is_named_outside_its_folder() -> None:
    pattern = re.compile(rf"(?<![a-z0-9])({'|'.join(FAMILIES)})(?![a-z0-9])", re.IGNORECASE)
    assert pattern.search("the flux_config") and pattern.search("SDXL's") and not pattern.search("influx")
    found = []
    for folder in ("eridiff", "stages"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            own = (
                path.relative_to(ROOT / folder).parts[1]
                if "families" in path.parts and path.parent.name in FAMILIES
                else ""
            )
            for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
                names = {match.lower() for match in pattern.findall(line)}
                if names - {own}:
                    found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert found == []


def test_a_family_is_three_files() -> None:
    for family in FAMILIES:
        folder = ROOT / "eridiff" / "families" / family
        assert {path.name for path in folder.glob("*.py")} == {"__init__.py", "family.py", "keys.py", "workflow.py"}
