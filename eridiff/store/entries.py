"""The format of the store's entries: keys, checksums, and what the header of an entry or shard file says.

Entries and shards have one format: safetensors, the tensors named KEY.NAME, and in the metadata a checksum and the
fields of each key. A key is the digest of everything that the value depends on; the fields stand beside the tensors,
so that any difference can be named.
"""

import hashlib
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eridiff.core.errors import DataError, StoreError
from eridiff.core.files import canonical_json, digest_json
from eridiff.core.json_files import parse_json
from eridiff.formats.safetensors import MAX_SHARD_HEADER_BYTES, RawTensor, TensorFile

KeyFields = dict[str, Any]  # what a key is the digest of; `key_fields` in the headers of files
FORMAT = 1
KEY_LETTERS = 64  # a sha256
CHECKSUM_LETTERS = 32  # a blake2b of 16 bytes
WAY_OUT = "Run `eridiff store repair`, then `dvc repro`."


@dataclass(frozen=True, slots=True)
class Location:
    """Where an entry lies: the file, its checksum, the bytes of its tensors, and the fields of its key.

    known: the key fields where they were read already; otherwise they are read from the file's header when asked for.
    """

    key: str
    path: Path
    checksum: str
    size: int
    known: KeyFields | None = None

    @property
    def key_fields(self) -> KeyFields:
        """The fields of the key.

        Raises: StoreError where the file is damaged.
        """
        if self.known is not None:
            return self.known
        return read_catalogue(open_shard(self.path))[self.key].key_fields


def entry_key(key_fields: KeyFields) -> str:
    """The key of an entry: the digest of everything that its value depends on."""
    return digest_json(key_fields)


def shard_id(checksums: Mapping[str, str]) -> str:
    """The name of a shard in the store: the digest of its keys and checksums."""
    return digest_json(dict(checksums))


def checksum(tensors: Mapping[str, RawTensor]) -> str:
    """Checksum of one entry's tensors, by which a reader finds damage."""
    digest = hashlib.blake2b(digest_size=CHECKSUM_LETTERS // 2)
    for name in sorted(tensors):
        digest.update(f"{name}\0{tensors[name].dtype}\0{list(tensors[name].shape)}\0".encode())
        digest.update(tensors[name].data)
    return digest.hexdigest()


def shard_metadata(entries: Mapping[str, tuple[str, KeyFields]]) -> dict[str, str]:
    """The metadata of an entry or shard file: key -> (checksum, key fields); fields equal in all are written once."""
    all_fields = [key_fields for _, key_fields in entries.values()]
    texts = [{k: canonical_json(v) for k, v in key_fields.items()} for key_fields in all_fields]  # True is not 1
    shared = {k: v for k, v in all_fields[0].items() if all(text.get(k) == texts[0][k] for text in texts)}
    own = {
        key: {"sum": total, "parts": {k: v for k, v in key_fields.items() if k not in shared}}
        for key, (total, key_fields) in entries.items()
    }
    return {"eridiff": canonical_json({"format": FORMAT, "shared": shared, "entries": own})}


def read_catalogue(file: TensorFile) -> dict[str, Location]:
    """The entries of one entry or shard file, from its header alone.

    Raises: StoreError where the file is none of the store's.
    """
    try:
        record = parse_json(file.metadata["eridiff"])
        shared, entries = record["shared"], record["entries"]
        if record["format"] != FORMAT:
            raise ValueError(record["format"])
        sizes: dict[str, int] = dict.fromkeys(entries, 0)
        for name in file.header:
            sizes[name.split(".", 1)[0]] += file.size(name)
        if any(len(k) != KEY_LETTERS or len(e["sum"]) != CHECKSUM_LETTERS for k, e in entries.items()):
            raise ValueError(entries)
        return {
            key: Location(key, file.path, entry["sum"], sizes[key], {**shared, **entry["parts"]})
            for key, entry in entries.items()
        }
    except (KeyError, ValueError, TypeError, AttributeError):
        raise StoreError(f"{file.path} is no shard of an eridiff store, or is damaged. {WAY_OUT}") from None


def open_shard(path: Path, *, whole: bool = False) -> TensorFile:
    """An entry or shard file of a store or of a caching stage's out; whole: read at once, so that no file stays open.

    Raises: StoreError with the way out where it is truncated or no safetensors file, FileNotFoundError.
    """
    try:
        return TensorFile(path, whole=whole, max_header=MAX_SHARD_HEADER_BYTES)
    except DataError as error:
        raise StoreError(f"{error} {WAY_OUT}") from None


def tensors_of(file: TensorFile, key: str) -> dict[str, RawTensor]:
    """The tensors of one entry, unchecked."""
    names = file.names[bisect_left(file.names, f"{key}.") : bisect_left(file.names, f"{key}/")]  # '/' follows '.'
    return {name.split(".", 1)[1]: file.raw(name) for name in names}


def check_parts(entry: Location) -> None:
    """Check that the key fields that stand beside an entry give its key.

    Raises: StoreError that names the file.
    """
    if entry_key(entry.key_fields) != entry.key:
        raise StoreError(
            f"{entry.path} is damaged: entry {entry.key[:12]} has key fields that do not give its key. {WAY_OUT}"
        )


def read_entry(file: TensorFile, key: str, expected: str) -> dict[str, RawTensor]:
    """The tensors of one entry, checked.

    Raises: StoreError that names the file where the bytes are not those that were written.
    """
    tensors = tensors_of(file, key)
    if checksum(tensors) != expected:
        raise StoreError(f"{file.path} is damaged: entry {key[:12]} does not match its checksum. {WAY_OUT}")
    return tensors
