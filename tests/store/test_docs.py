"""docs/store.md: its reader reads what the stages put out, and its table of folders is the store's."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from eridiff.caching.latents.plan import INDEX_COLUMNS
from eridiff.formats.safetensors import raw_tensors
from eridiff.formats.tables import write_table
from eridiff.store.entries import entry_key
from eridiff.store.marker import OWN_NAMES
from eridiff.store.store import Store
from tests.conftest import ROOT

PAGE = (ROOT / "docs/store.md").read_text("utf-8")


def test_the_ten_line_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, rows, expected = Store(tmp_path / "store", "latents"), [], {}
    empty = {name: "" if kind == "str" else 0 for name, kind in INDEX_COLUMNS.items()}
    for number in range(6):
        parts = {"number": number}
        mean, std = torch.randn(4, 8, 8), torch.rand(4, 8, 8).bfloat16()
        store.put(entry_key(parts), parts, raw_tensors({"mean": mean, "std": std}))
        expected[f"{number // 2}.png", 0, number % 2] = (mean, std)
        rows.append({**empty, "path": f"{number // 2}.png", "flip": number % 2, "key": entry_key(parts)})
    monkeypatch.setattr("eridiff.store.sharding.SHARD_BYTES", 3000)
    placed = store.publish([str(row["key"]) for row in rows], tmp_path / "data/latents")
    assert len(set(placed.values())) > 1
    table = [{**row, "shard": placed[str(row["key"])]} for row in rows]
    write_table(tmp_path / "data/latents/index.parquet", table, INDEX_COLUMNS)
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert len([line for line in code.splitlines() if line.strip()]) == 9
    names: dict[str, Any] = {}
    exec(compile(code, "docs/store.md", "exec"), names)
    assert set(names["latents"]) == set(expected)
    for place, (mean, std) in expected.items():
        found_mean, found_std = names["latents"][place]
        assert torch.equal(found_mean, mean) and torch.equal(found_std, std)


def test_the_layout_names_every_folder() -> None:
    layout = PAGE[PAGE.index("## Layout") : PAGE.index("## The life")]
    assert {name for name in OWN_NAMES if f"`{name}" not in layout} == set()
