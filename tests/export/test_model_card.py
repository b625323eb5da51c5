"""The card beside an exported LoRA: what its author says, how it was trained, and on what."""

from pathlib import Path

from tests.support.exports import exported


def test_model_card(tmp_path: Path) -> None:
    out = exported(tmp_path, "sd35", title="A | Fox", license="mit", description="Foxes in ink.", tags=("ink",))
    card = (out / "README.md").read_text()
    wanted = ["# A | Fox", "Foxes in ink.", "Trigger: `eridraw`", 'license: "mit"', '["lora", "ink"]']
    wanted += ["| `lora-kohya.safetensors` | Forge", "8 pictures.", "| 832 x 1216 | 3 |", "drawing (8), red fox (3)"]
    wanted += ["| optimizer.lr | 0.0001 |", "| lora.rank | 4 |", f"| buckets.parquet | `{'b' * 64}` |"]
    wanted += ["tiny-sd35 (sd35): the adapters after 120 steps"]
    assert [text for text in wanted if text not in card] == []
