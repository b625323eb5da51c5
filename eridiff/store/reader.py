"""A cache folder as the trainer reads it: shards mapped into memory, entries at random by key, no copies.

Any program can do the same with safetensors and pyarrow alone: docs/store.md has it in ten lines.
"""

import mmap
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from eridiff.core.errors import DataError
from eridiff.core.files import open_file
from eridiff.formats.safetensors import MAX_SHARD_HEADER_BYTES, TORCH_NAMES, RawTensor, TensorFile, allow_more_files
from eridiff.store.entries import read_catalogue, read_entry, tensors_of


class Shard:
    """One shard, mapped: its tensors lie in the map's own memory, which the system drops and reads again at will.

    The map is private to this process, so that a write into a tensor by mistake never reaches the file.
    """

    def __init__(self, path: Path) -> None:
        self.file = TensorFile(path, max_header=MAX_SHARD_HEADER_BYTES)

    @cached_property
    def _data(self) -> memoryview:
        """The part of the file after its header."""
        with open_file(self.file.path) as file:
            whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        ends = [info["data_offsets"][1] for info in self.file.header.values()]
        return memoryview(whole)[len(whole) - max(ends, default=0) :]

    def tensor(self, name: str) -> Tensor:
        """One tensor, without a copy."""
        info = self.file.header[name]
        begin, end = info["data_offsets"]
        dtype = getattr(torch, TORCH_NAMES[info["dtype"]])
        if begin == end:
            return torch.empty(info["shape"], dtype=dtype)
        return torch.frombuffer(self._data[begin:end], dtype=dtype).reshape(info["shape"])


class Cache:
    """Entries of one cache folder by key; an entry's checksum is checked when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._sound: set[str] = set()

    @cached_property
    def _entries(self) -> dict[str, tuple[Shard, str]]:
        """Key -> its shard and checksum; not the fields of the key, which are many bytes."""
        allow_more_files()
        shards = [Shard(path) for path in sorted(self.folder.glob("*.safetensors"))]
        return {key: (shard, found.checksum) for shard in shards for key, found in read_catalogue(shard.file).items()}

    def read(self, key: str) -> dict[str, RawTensor]:
        """The tensors of one entry as views of the file's bytes, checked once.

        Raises: DataError where the folder is missing it, StoreError where it is damaged.
        """
        if key not in self._entries:
            raise DataError(f"{self.folder} is missing entry {key[:12]}: remove the folder and run `dvc repro`.")
        shard, checksum = self._entries[key]
        if key in self._sound:
            return tensors_of(shard.file, key)
        tensors = read_entry(shard.file, key, checksum)
        self._sound.add(key)
        return tensors

    def tensors(self, key: str) -> dict[str, Tensor]:
        """The tensors of one entry in the shard's own memory: nothing is copied.

        Raises: as `read`.
        """
        names = self.read(key)
        shard, _ = self._entries[key]
        return {name: shard.tensor(f"{key}.{name}") for name in names}
