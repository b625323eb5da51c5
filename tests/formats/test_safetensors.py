"""safetensors files: canonical bytes, read by the library, damage found."""

import json
import re
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch

from eridiff.core.errors import DataError
from eridiff.formats.safetensors import (
    RawTensor,
    TensorFile,
    digest_tensors,
    raw_tensor,
    raw_tensors,
    write_tensors,
)
from tests.support import processes
from tests.support.tensors import load_tensors

METADATA = {"format": "pt", "eridiff": '{"a":1}', "ключ": "wert ✓", "b": "2", "a": ""}


def every_kind() -> dict[str, torch.Tensor]:
    """All dtypes, a scalar, an empty tensor, a transposed one."""
    values = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    return {
        "fp32": values,
        "fp64": values.double(),
        "bf16": values.bfloat16(),
        "fp16": values.half(),
        "e4m3": values.to(torch.float8_e4m3fn),
        "e5m2": values.to(torch.float8_e5m2),
        "i64": torch.tensor([-(2**62), 7]),
        "i32": torch.tensor([[1], [-2]], dtype=torch.int32),
        "i16": torch.tensor([-300], dtype=torch.int16),
        "i8": torch.tensor([-3], dtype=torch.int8),
        "u8": torch.tensor([200], dtype=torch.uint8),
        "bool": torch.tensor([True, False, True]),
        "scalar": torch.tensor(1.5),
        "scalar.bf16": torch.tensor(-2.0, dtype=torch.bfloat16),
        "empty": torch.empty(0, 4),
        "transposed": values.t(),
        "ünï.code": torch.ones(1),
    }


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and raw_tensor(a).data == raw_tensor(b).data


def test_the_library_reads_what_is_written(tmp_path: Path) -> None:
    path, tensors = tmp_path / "a.safetensors", every_kind()
    write_tensors(path, raw_tensors(tensors), METADATA)
    theirs, ours = safetensors.torch.load_file(path), load_tensors(path)
    assert set(theirs) == set(ours) == set(tensors)
    for name, tensor in tensors.items():
        assert same(theirs[name], tensor), name
        assert same(ours[name], tensor), name
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == METADATA
    assert TensorFile(path).metadata == METADATA


def test_what_the_library_writes_is_read(tmp_path: Path) -> None:
    path, tensors = tmp_path / "a.safetensors", {k: t.contiguous() for k, t in every_kind().items()}
    safetensors.torch.save_file(tensors, path, {"format": "pt"})
    assert all(same(tensor, tensors[name]) for name, tensor in load_tensors(path).items())
    assert TensorFile(path).names == sorted(tensors)


WRITE = """
import sys
from pathlib import Path
from eridiff.formats.safetensors import RawTensor, write_tensors
kinds = {"F32": 4, "BF16": 2, "F8_E4M3": 1, "I64": 8, "BOOL": 1}
names = set(kinds)  # in the order of this process's hashes
tensors = {f"{name}.{i}": RawTensor(name, (i, 3), bytes(kinds[name] * 3 * i)) for name in names for i in (2, 0, 1)}
write_tensors(Path(sys.argv[1]), tensors, {key: key * 3 for key in {"format", "eridiff", "b", "a", "modelspec"}})
print(",".join(names))
"""


@pytest.mark.slow
def test_five_processes_write_the_same_bytes(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.safetensors" for i in range(5)]
    orders = {processes.run(WRITE, path, seed=seed) for seed, path in enumerate(paths)}
    assert len(orders) > 1, "the processes differ in nothing: the test shows nothing"
    assert len({path.read_bytes() for path in paths}) == 1


def test_the_layout_is_canonical(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {
        "b": RawTensor("U8", (1,), b"\1"),
        "a": RawTensor("U8", (2,), b"\2\3"),
        "z": RawTensor("I32", (1,), b"\4" * 4),
    }
    write_tensors(path, tensors, {"y": "1", "x": "2"})
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    assert length % 8 == 0
    assert list(json.loads(data[8 : 8 + length])) == ["__metadata__", "z", "a", "b"]
    assert list(json.loads(data[8 : 8 + length])["__metadata__"]) == ["x", "y"]
    assert data[8 + length :] == b"\4\4\4\4\2\3\1"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.safetensors"
    write_tensors(path, {"a": RawTensor("F32", (2,), bytes(range(8))), "b": RawTensor("U8", (), b"\7")}, {"k": "v"})
    return path


def test_every_truncation_is_found(small: Path) -> None:
    data = small.read_bytes()
    for length in range(len(data)):
        small.write_bytes(data[:length])
        with pytest.raises(DataError, match=r"small\.safetensors"):
            TensorFile(small)
    small.write_bytes(data + b"\0")
    with pytest.raises(DataError, match="is damaged"):
        TensorFile(small)


def test_a_flipped_byte_is_an_error_or_leaves_whole_tensors(small: Path) -> None:
    """No flip ends in another error than DataError, nor in a tensor whose bytes do not fill its shape."""
    data = small.read_bytes()
    refused = 0
    for place in range(len(data)):
        for mask in (0x01, 0x10, 0xFF):
            small.write_bytes(data[:place] + bytes([data[place] ^ mask]) + data[place + 1 :])
            try:
                file = TensorFile(small)
            except DataError as error:
                assert "small.safetensors" in str(error)
                refused += 1
                continue
            for name in file.names:
                raw = file.raw(name)
                assert len(raw.data) == file.size(name) <= 8
    assert refused > len(data)


HEADERS = [
    "[]",
    "7",
    '{"a": 1}',
    '{"a": {}}',
    '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0]}}',
    '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}',
    '{"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}',
    '{"a": {"dtype": "F32", "shape": ["2"], "data_offsets": [0, 8]}}',
    '{"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}',
    '{"a": {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}}',
    '{"__metadata__": {"k": 1}, "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}',
    "\xff",
]


@pytest.mark.parametrize("header", HEADERS)
def test_other_headers_are_refused(tmp_path: Path, header: str) -> None:
    path = tmp_path / "other.safetensors"
    text = header.encode("latin-1")
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(DataError, match=r"other\.safetensors is damaged"):
        TensorFile(path)


def test_a_pickle_and_a_huge_header_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    torch.save({"a": torch.ones(2)}, path)
    with pytest.raises(DataError, match=r"model\.bin is no whole safetensors file"):
        TensorFile(path)
    path.write_bytes(struct.pack("<Q", 1 << 60) + bytes(100))
    with pytest.raises(DataError, match=r"model\.bin is no whole safetensors file \(108 bytes\)"):
        TensorFile(path)


def test_the_digest_covers_name_dtype_shape_and_bytes() -> None:
    base = RawTensor("F16", (2, 3), bytes(12))
    variants = [
        {"a": base},
        {"b": base},
        {"a": RawTensor("BF16", (2, 3), bytes(12))},
        {"a": RawTensor("F16", (3, 2), bytes(12))},
        {"a": RawTensor("F16", (2, 3), bytes(11) + b"\1")},
        {"a": base, "b": RawTensor("F16", (0,), b"")},
        {},
    ]
    assert len({digest_tensors(tensors) for tensors in variants}) == len(variants)
    assert digest_tensors({"a": base, "b": base}) == digest_tensors({"b": base, "a": base})


def test_memory_of_a_read_tensor_is_its_own(small: Path) -> None:
    tensor = TensorFile(small).raw("a").torch()
    tensor.add_(1)  # must not write into the mapped file
    assert TensorFile(small).raw("a").data == bytes(range(8))


@pytest.mark.parametrize(
    ("start", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "it is a pointer of git-lfs. Run `git lfs pull`"),
        (b"<!DOCTYPE html><html>", "it is a web page, as sites give that want a login. Fetch it again"),
        (b"PK\3\4 and so on", "it is a pickle or an archive. Take the .safetensors file of the model"),
        (b"cut", "it is another kind of file, or was cut short. Fetch it again"),
    ],
)
def test_what_lies_under_a_weight_files_name_is_told(start: bytes, what: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(start)
    with pytest.raises(DataError, match=re.escape(f"{path} is no whole safetensors file ({len(start)} bytes): {what}")):
        TensorFile(path)
