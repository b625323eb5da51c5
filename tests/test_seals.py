"""Checksums inside files: every flip is found, also in the mark; files of before are read where they are known."""

import hashlib
import io
import json
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import safetensors

from eridiff.errors import DataError
from eridiff.files import canonical_json, write_text
from eridiff.ownouts import locked_md5
from eridiff.seals import BLANK, MARK, check_out, check_seal, read_sealed, seal_into, sealed, sealed_json, write_sealed
from eridiff.tables import read_table, table_bytes
from eridiff.tensorfile import RawTensor, TensorFile, open_sealed, write_sealed_tensors

TENSORS = {"a": RawTensor("F32", (2,), bytes(range(8))), "b": RawTensor("U8", (3,), b"\1\2\3")}
COLUMNS, ROWS = {"a": "str", "b": "int"}, [{"a": "x", "b": 1}, {"a": "y", "b": 2}]


def test_the_checksum_is_that_of_the_file_with_zeros_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / "a.sealed.safetensors"
    write_sealed_tensors(path, TENSORS, {"k": "v"})
    data = path.read_bytes()
    before, _, after = data.partition(MARK)
    assert after[:64].decode() == hashlib.sha256(before + BLANK.encode() + after[64:]).hexdigest()
    write_sealed_tensors(tmp_path / "b", TENSORS, {"k": "v"})
    assert (tmp_path / "b").read_bytes() == data  # a function of the content
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {"k": "v", "seal": (MARK + after[:64]).decode()}
        assert file.get_tensor("b").tolist() == [1, 2, 3]


def examples(folder: Path) -> list[Path]:
    """A file of each format, whose names say that they are sealed."""
    write_sealed_tensors(folder / "a.sealed.safetensors", TENSORS, {"k": "v"})
    write_text(folder / "a.sealed.json", sealed_json({"b": [1, 2], "a": "é"}))
    write_sealed(folder / "a.sealed.parquet", table_bytes(ROWS, COLUMNS, {}))
    return sorted(folder.iterdir())


def test_every_flipped_bit_of_every_format_is_found(tmp_path: Path) -> None:
    for path in examples(tmp_path):
        data = path.read_bytes()
        assert check_seal(data, path)
        for place in range(len(data)):
            for bit in range(8):
                flipped = data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]
                with pytest.raises(
                    DataError, match=rf"{path.name} is damaged: .* Run `eridiff store repair`, then `dvc repro`"
                ):
                    check_seal(flipped, path)
        for length in (0, len(data) - 1, data.index(MARK) + 70):
            with pytest.raises(DataError, match="is damaged"):
                check_seal(data[:length], path)


def test_json_reads_as_json(tmp_path: Path) -> None:
    record = json.loads(sealed_json({"b": [1, 2], "a": "é"}))
    assert record.pop("seal").startswith(MARK.decode())
    assert record == {"a": "é", "b": [1, 2]}


def test_a_mark_is_found_across_the_chunks_of_a_big_file() -> None:
    for length in ((1 << 20) - 5, (1 << 20) - len(MARK), (1 << 20) + 1):
        data = sealed(b"x" * length + BLANK.encode() + b"y" * 100)
        assert check_seal(data, Path("a"))
        with pytest.raises(DataError, match="is damaged"):
            check_seal(data[:-1] + b"z", Path("a"))


def test_somebodys_text_that_is_a_mark_does_no_harm() -> None:
    """A caption may hold a mark and digits; the blank one, by which the place is found, is refused."""
    text = MARK.decode() + "7" * 64
    data = sealed_json({"a": text}).encode()
    assert check_seal(data, Path("a"))
    assert json.loads(data)["a"] == text
    with pytest.raises(DataError, match="a text holds the mark of checksums"):
        sealed_json({"a": BLANK})
    with pytest.raises(DataError, match="a text holds the mark of checksums"):
        seal_into(io.BytesIO(), [f"{BLANK} {BLANK}".encode()])


def test_a_small_file_of_before_is_read_and_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "pin.json"
    path.write_text('{"a": 1}')
    for _ in range(2):
        assert read_sealed(path, "x") == b'{"a": 1}'
    assert capsys.readouterr().out == f"{path} carries no checksum, as files of before: it is read as it is\n"
    path.rename(tmp_path / "pin.sealed.json")
    with pytest.raises(DataError, match=r"pin\.sealed\.json is damaged: .* Do this"):
        read_sealed(tmp_path / "pin.sealed.json", "Do this.")


def unsealed_table() -> bytes:
    """A table as it was written before."""
    buffer = io.BytesIO()
    pq.write_table(pq.read_table(io.BytesIO(table_bytes(ROWS, COLUMNS, {"k": 1}))), buffer)
    data = buffer.getvalue()
    assert MARK not in data
    return data


def lock(**outs: bytes) -> None:
    """A dvc.lock with files as outs."""
    entries = [{"path": path, "md5": hashlib.md5(data).hexdigest()} for path, data in outs.items()]
    Path("dvc.lock").write_text(json.dumps({"schema": "2.0", "stages": {"captions": {"outs": entries}}}))


def test_an_out_of_before_is_read_where_dvc_lock_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data, path = unsealed_table(), Path("t.parquet")
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"t\.parquet is damaged: it carries no checksum"):
        read_table(path)
    lock(**{"t.parquet": data})
    assert read_table(path) == (ROWS, {"k": 1})
    assert read_table(path.absolute()) == (ROWS, {"k": 1})
    assert capsys.readouterr().out.count("t.parquet carries no checksum") == 2  # one a name
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(DataError, match=r"t\.parquet is damaged: it carries no checksum, and dvc.lock names other"):
        read_table(path)


def test_the_mark_cannot_be_flipped_away_from_an_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its md5 is in dvc.lock, of a table as of a LoRA."""
    monkeypatch.chdir(tmp_path)
    data = table_bytes(ROWS, COLUMNS, {})
    lock(**{"t.parquet": data})
    for place in range(data.index(MARK), data.index(MARK) + len(MARK)):
        flipped = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        with pytest.raises(DataError, match=r"t\.parquet is damaged: it carries no checksum, and dvc.lock"):
            check_out(flipped, Path("t.parquet"))


def test_the_md5_of_a_file_in_a_folder_and_of_an_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    subprocess.run(["dvc", "init", "--no-scm", "-q"], check=True, timeout=300)
    listing = canonical_json([{"md5": "aa" * 16, "relpath": "step-000010.safetensors"}]).encode()
    md5 = hashlib.md5(listing).hexdigest()
    place = Path(".dvc/cache/files/md5") / md5[:2] / f"{md5[2:]}.dir"
    place.parent.mkdir(parents=True)
    place.write_bytes(listing)
    outs = [{"path": "data/lora", "md5": f"{md5}.dir"}]
    Path("dvc.lock").write_text(json.dumps({"stages": {"train": {"outs": outs}}}))
    assert locked_md5(Path("data/lora/step-000010.safetensors")) == "aa" * 16
    assert locked_md5(tmp_path / "data/lora/step-000010.safetensors") == "aa" * 16
    assert locked_md5(Path("data/lora/step-000020.safetensors")) is None
    assert locked_md5(Path("elsewhere/data/lora/step-000010.safetensors")) is None
    assert locked_md5(Path("/x/files/md5/ab/" + "c" * 30)) == "ab" + "c" * 30


def test_the_damage_of_tensors_is_found_before_any_is_given(tmp_path: Path) -> None:
    path = tmp_path / "a.sealed.safetensors"
    write_sealed_tensors(path, TENSORS, {})
    assert open_sealed(path, "Do this.").names == ["a", "b"]
    path.write_bytes(path.read_bytes()[:-1] + b"\7")
    assert TensorFile(path).names == ["a", "b"]  # which says nothing of bytes
    with pytest.raises(DataError, match=r"a\.sealed\.safetensors is damaged: .* Do this\."):
        open_sealed(path, "Do this.")
