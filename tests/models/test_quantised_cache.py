"""Quantised bases in the store: read back as they were made, made anew where they are damaged, forgotten by gc."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from eridiff.family import load_family
from eridiff.models import quantised_cache as keptbases
from eridiff.models.load import _read_model, load_denoiser
from eridiff.models.quantise import Storage
from eridiff.store.gc import LEASE_DAYS, plan_gc, remove
from eridiff.store.pins import DAY_SECONDS
from tests.support.bases import FAMILIES, source

KINDS = ("fp8", "int8", "nf4")


def load(family: str, kind: Any, store: Path) -> dict[str, torch.Tensor]:
    module = load_family(family)
    storage = Storage(kind=kind, device=torch.device("cpu"), store=store)
    denoiser = load_denoiser(module, source(family), torch.bfloat16, storage)
    assert not any(parameter.requires_grad or parameter.is_meta for parameter in denoiser.parameters())
    assert not denoiser.training
    return denoiser.state_dict()


def answer(family: str, kind: Any, store: Path) -> torch.Tensor:
    """What a loaded denoiser's first quantised layers make of ones: its weights as they are computed with."""
    module = load_family(family)
    storage = Storage(kind=kind, device=torch.device("cpu"), store=store)
    denoiser = load_denoiser(module, source(family), torch.float32, storage)
    layers = [layer for layer in denoiser.modules() if hasattr(layer, "in_features")][:6]
    return torch.cat([layer(torch.ones(1, layer.in_features)).flatten() for layer in layers])  # type: ignore[operator]


def kept(store: Path) -> list[Path]:
    return sorted(store.glob("bases/*.safetensors"))


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Components that were loaded out of the base's own files."""
    found: list[str] = []

    def counted(kind: Any, source: Any, component: str, *rest: Any) -> Any:
        found.append(component)
        return _read_model(kind, source, component, *rest)

    monkeypatch.setattr("eridiff.models.load._read_model", counted)
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow
def test_the_second_start_reads_what_the_first_made(family: str, kind: Any, tmp_path: Path, loads: list[str]) -> None:
    first = load(family, kind, tmp_path)
    second = load(family, kind, tmp_path)
    assert loads == [load_family(family).DENOISER]
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert {tensor.dtype for tensor in first.values()} == {tensor.dtype for tensor in second.values()}
    assert torch.equal(answer(family, kind, tmp_path), answer(family, kind, tmp_path))


def test_every_kind_and_format_is_kept_apart(tmp_path: Path, loads: list[str]) -> None:
    for kind in KINDS:
        load(FAMILIES[0], kind, tmp_path)
    answer(FAMILIES[0], "fp8", tmp_path)
    load(FAMILIES[1], "fp8", tmp_path)
    assert len(kept(tmp_path)) == len(loads) == 5


def test_what_was_just_kept_is_not_digested_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load(FAMILIES[0], "int8", tmp_path)
    monkeypatch.setattr(keptbases, "holds_digest", lambda _: pytest.fail("read once more"))
    load(FAMILIES[0], "int8", tmp_path)
    assert "quantised base: 0.0 GiB read from the store in " in capsys.readouterr().out


@pytest.mark.parametrize("place", [-1, 200, 8])
def test_a_damaged_one_is_made_anew(
    place: int, tmp_path: Path, loads: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    first = load(FAMILIES[0], "fp8", tmp_path)
    path = kept(tmp_path)[0]
    whole = path.read_bytes()
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place:][1:])
    second = load(FAMILIES[0], "fp8", tmp_path)
    assert len(loads) == 2
    assert f"{path} is damaged: it is made again" in capsys.readouterr().err
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert path.read_bytes() == whole


def test_a_truncated_one_is_made_anew(tmp_path: Path, loads: list[str]) -> None:
    load(FAMILIES[0], "int8", tmp_path)
    path = kept(tmp_path)[0]
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    load(FAMILIES[0], "int8", tmp_path)
    assert len(loads) == 2
    assert path.read_bytes() == whole


def test_a_store_without_room_keeps_none(
    tmp_path: Path, loads: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("eridiff.models.quantised_cache.write_tensors", full)
    load(FAMILIES[0], "fp8", tmp_path)
    assert kept(tmp_path) == []
    assert "is not kept in" in capsys.readouterr().err


def test_gc_keeps_what_was_used_within_the_lease(tmp_path: Path) -> None:
    load(FAMILIES[0], "fp8", tmp_path)
    load(FAMILIES[0], "int8", tmp_path)
    one, other = kept(tmp_path)
    made = one.stat().st_mtime
    for path in (one, other):
        os.utime(path, (made, made))
    later = made + (LEASE_DAYS + 1) * DAY_SECONDS
    os.utime(one.with_suffix(".used"), (later - DAY_SECONDS, later - DAY_SECONDS))
    plan = plan_gc(tmp_path, now=later)
    assert [(item.path, item.what, item.size) for item in plan.garbage] == [(other, "base", other.stat().st_size)]
    remove(tmp_path, plan, now=later)
    assert kept(tmp_path) == [one]
    assert sorted(tmp_path.glob("bases/*.used")) == [one.with_suffix(".used")]
