"""safetensors files, written by one function so that equal tensors give equal bytes.

The library writes metadata in the order of a hash map that differs from process to process; here the header
is canonical: metadata first, keys sorted, tensors in the order of (item size descending, name). The files are
ordinary safetensors. Reading needs no torch; a tensor is a dtype, a shape and bytes until torch asks for it.
"""

import errno
import hashlib
import json
import math
import resource
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from eridiff.core.errors import DataError
from eridiff.core.files import atomic_write, map_file, open_file
from eridiff.core.printable import UNSAFE
from eridiff.formats.seals import BLANK, KEY, check_sealed, seal_into

if TYPE_CHECKING:
    import torch

ITEM_SIZE = {
    "F64": 8,
    "I64": 8,
    "F32": 4,
    "I32": 4,
    "F16": 2,
    "BF16": 2,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
ITEM_SIZE |= {"F8_E4M3": 1, "F8_E5M2": 1}
TORCH_NAMES = {"F64": "float64", "I64": "int64", "F32": "float32", "I32": "int32", "F16": "float16"}
TORCH_NAMES |= {"BF16": "bfloat16", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"}
TORCH_NAMES |= {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
# A header is read at once, as Python objects of up to twenty times its size. The largest checkpoint in one file has
# 300 KB of it; a store's shard of 64 MiB has as many entries as fit into it, and says of each what its key is made of.
MAX_HEADER_BYTES = 1 << 24
MAX_SHARD_HEADER_BYTES = 1 << 26
MIN_LETTERS = 8  # of a header for each list or object in it: a tensor has three in at least fifty
MAX_NAME_LETTERS = 1000  # of a tensor, and of a dtype
MAX_SIDES = 16  # of a shape


@dataclass(frozen=True)
class RawTensor:
    """A tensor as it lies in a file: dtype by its safetensors name, shape, little-endian bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes | memoryview

    def torch(self) -> "torch.Tensor":
        """A torch tensor with a copy of the data, on the CPU."""
        import torch

        dtype = getattr(torch, TORCH_NAMES[self.dtype])
        if not self.data:
            return torch.empty(self.shape, dtype=dtype)
        return torch.frombuffer(bytearray(self.data), dtype=dtype).reshape(self.shape)


def raw_tensor(tensor: "torch.Tensor") -> RawTensor:
    """The bytes of a torch tensor (any device, any strides)."""
    import torch

    tensor = tensor.detach().cpu().contiguous()
    names = {getattr(torch, value): key for key, value in TORCH_NAMES.items()}
    data = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
    return RawTensor(names[tensor.dtype], tuple(tensor.shape), data)


def raw_tensors(tensors: Mapping[str, "torch.Tensor"]) -> dict[str, RawTensor]:
    """`raw_tensor` over a mapping."""
    return {name: raw_tensor(tensor) for name, tensor in tensors.items()}


def write_tensors(path: Path, tensors: Mapping[str, RawTensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically; the bytes are a function of the arguments alone."""
    with atomic_write(path) as file:
        write_tensors_to(file, tensors, metadata)


def write_sealed_tensors(path: Path, tensors: Mapping[str, RawTensor], metadata: Mapping[str, str]) -> None:
    """`write_tensors`, with a checksum of all bytes in the metadata (eridiff/formats/seals.py)."""
    with atomic_write(path) as file:
        seal_into(file, _pieces(tensors, {**metadata, KEY: BLANK}))


def write_tensors_to(file: BinaryIO, tensors: Mapping[str, RawTensor], metadata: Mapping[str, str]) -> None:
    """`write_tensors` into an open file; tensor data is streamed, never joined in memory."""
    for piece in _pieces(tensors, metadata):
        file.write(piece)


def _pieces(tensors: Mapping[str, RawTensor], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    yield header_bytes(tensors, metadata)
    for name in _ordered(tensors):
        yield tensors[name].data


def header_bytes(tensors: Mapping[str, RawTensor], metadata: Mapping[str, str]) -> bytes:
    """The first bytes of a file, up to the data: a function of names, dtypes, shapes, lengths and metadata."""
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    offset = 0
    for name in _ordered(tensors):
        tensor = tensors[name]
        end = offset + len(tensor.data)
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)  # data starts aligned to 8 bytes, so that it can be mapped
    return struct.pack("<Q", len(text)) + text


def _ordered(tensors: Mapping[str, RawTensor]) -> list[str]:
    return sorted(tensors, key=lambda name: (-ITEM_SIZE[tensors[name].dtype], name))


class TensorFile:
    """A safetensors file, memory-mapped: the header at once, each tensor's bytes when asked for.

    whole: read all of it into memory instead, so that no file stays open (a map holds one).
    max_header: bytes of a header that is not read.
    Raises: DataError where the file is truncated or is no safetensors file.
    """

    def __init__(self, path: Path, *, whole: bool = False, max_header: int = MAX_HEADER_BYTES) -> None:
        self.path = path
        with open_file(path) as file:
            size = file.seek(0, 2)
            file.seek(0)
            self.header, self._start = _read_header(file, path, size, max_header)
            if whole:
                file.seek(0)
                self._map = memoryview(file.read())
        self.metadata: dict[str, str] = self.header.pop("__metadata__", {})
        ends = [info["data_offsets"][1] for info in self.header.values()]
        if self._start + max(ends, default=0) != size:
            raise DataError(
                f"{path} is damaged: {size} bytes, but its header speaks of {self._start + max(ends, default=0)}. "
                "Fetch it again."
            )

    def __contains__(self, name: str) -> bool:
        return name in self.header

    @cached_property
    def names(self) -> list[str]:
        """Names of the tensors, sorted."""
        return sorted(self.header)

    @cached_property
    def _map(self) -> memoryview:
        try:
            return map_file(self.path)
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            allow_more_files()
            return map_file(self.path)

    def raw(self, name: str) -> RawTensor:
        """One tensor as a view of the mapped file."""
        info = self.header[name]
        begin, end = info["data_offsets"]
        data = self._map[self._start + begin : self._start + end]
        return RawTensor(info["dtype"], tuple(info["shape"]), data)

    @property
    def first_bytes(self) -> memoryview:
        """The header as it lies in the file, up to the data."""
        return self._map[: self._start]

    def size(self, name: str) -> int:
        """Bytes of one tensor."""
        begin, end = self.header[name]["data_offsets"]
        return int(end - begin)


def allow_more_files() -> None:
    """Raise this process's limit of open files to the hard one: a big cache has thousands of shards, each mapped."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _what_else(start: bytes) -> str:
    """What lies under a weight file's name when a download went wrong, and the way out, by its first 8 bytes."""
    if start == b"version ":
        return "it is a pointer of git-lfs. Run `git lfs pull` where it comes from, or fetch the file itself"
    if start.lstrip().startswith(b"<"):
        return "it is a web page, as sites give that want a login. Fetch it again"
    if start.startswith((b"PK\3\4", b"\x80")):
        return "it is a pickle or an archive. Take the .safetensors file of the model"
    return "it is another kind of file, or was cut short. Fetch it again"


def _read_header(file: BinaryIO, path: Path, size: int, limit: int) -> tuple[dict[str, Any], int]:
    """The header as a dict and the offset at which tensor data starts."""
    first = file.read(8)
    length = struct.unpack("<Q", first)[0] if len(first) == 8 else size
    if length < size and length >= limit:
        raise DataError(f"{path} has a header of {length} bytes, which no model has: at most {limit} are read.")
    if length >= size:
        raise DataError(f"{path} is no whole safetensors file ({size} bytes): {_what_else(first)}.")
    text = file.read(length)
    try:
        if (text.count(b"[") + text.count(b"{")) * MIN_LETTERS > length + 64:
            raise ValueError("too many lists")
        header: dict[str, Any] = json.loads(text.decode("utf-8"))
        sound = all(_is_sound(name, info) for name, info in header.items()) and _is_gapless(header)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise DataError(f"{path} is damaged: its header cannot be read. Fetch it again.")
    return header, 8 + length


def _is_gapless(header: Mapping[str, Any]) -> bool:
    """Whether tensors lie one behind the other, as the format asks: no byte belongs to none, or to two."""
    places = sorted(info["data_offsets"] for name, info in header.items() if name != "__metadata__")
    ends = [0, *(end for _, end in places)]
    return all(begin == before for before, (begin, _) in zip(ends, places, strict=False))


def _is_sound(name: str, info: dict[str, Any]) -> bool:
    """Whether one line of a header says what it must: texts, or a place that is as long as the shape asks for.

    A name that a terminal obeys, or that no encoding takes, is no tensor's; nor has a metadata text halves of letters.
    """
    if name == "__metadata__":
        return all((isinstance(value, str) and value.isascii()) or value.encode("utf-8") for value in info.values())
    if len(name) > MAX_NAME_LETTERS or UNSAFE.search(name) or len(info["dtype"]) > MAX_NAME_LETTERS:
        return False
    begin, end = info["data_offsets"]
    numbers = (begin, end, *info["shape"])
    if len(numbers) > MAX_SIDES + 2 or not all(type(number) is int and 0 <= number < 1 << 63 for number in numbers):
        return False
    item = ITEM_SIZE.get(info["dtype"])  # None: a dtype that is only ever carried as bytes
    return bool(begin <= end if item is None else end - begin == math.prod(info["shape"]) * item)


def open_sealed(path: Path, way_out: str) -> TensorFile:
    """A file that must be sealed, or is of before seals, checked as a whole before its header is read.

    Raises: DataError where it is damaged, FileNotFoundError.
    """
    check_sealed(map_file(path), path, way_out)
    return TensorFile(path)


def digest_tensors(tensors: Mapping[str, RawTensor]) -> str:
    """sha256 (hex) over names, dtypes, shapes and bytes: what a set of weights is, whatever file holds it."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        digest.update(tensor.data)
    return digest.hexdigest()


def is_canonical(file: TensorFile) -> bool:
    """Whether a file's header is byte for byte what `write_tensors` writes for its tensors and metadata."""
    return bytes(file.first_bytes) == header_bytes({name: file.raw(name) for name in file.names}, file.metadata)


def holds_digest(file: TensorFile) -> bool:
    """Whether a file is, byte for byte, one of tensors that give the `digest` in its metadata."""
    tensors = {name: file.raw(name) for name in file.names}
    return is_canonical(file) and digest_tensors(tensors) == file.metadata.get("digest")
