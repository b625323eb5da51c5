"""The content-addressed store: one folder of entries that projects, experiments and machines may share.

    STORE/FORMAT                      'eridiff-store 1'
    STORE/KIND/entries/ab/KEY.safetensors    an entry just encoded, not yet in a shard
    STORE/KIND/shards/ID.safetensors         many entries; ID is a digest of the keys and checksums in it
    STORE/pixels/ID.tsv                      file digest <tab> pixel digest, one immutable file a batch
    STORE/runs/TRAIN_KEY/                    state from which a killed training resumes

KIND is `latents` or `texts`. A key is the digest of everything that the value depends on; these parts stand
beside the tensors, so that any difference can be named. Entries and shards have one format: safetensors, the
tensors named KEY.NAME, and in the metadata a checksum and the parts of each key. Files are written to a
temporary name and renamed, never changed: any number of processes may fill one store.
"""

import hashlib
import json
import os
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eridiff.errors import DataError, StoreError
from eridiff.files import atomic_write, canonical_json, digest_json, link_or_copy, write_text
from eridiff.tensorfile import RawTensor, TensorFile, write_tensors

FORMAT = "eridiff-store 1\n"
SHARD_BYTES = 64 << 20
OWN_NAMES = {"FORMAT", "latents", "texts", "pixels", "runs"}
Parts = dict[str, Any]


@dataclass(frozen=True)
class Location:
    """Where an entry lies: the file, its checksum, and the parts of its key."""

    path: Path
    checksum: str
    parts: Parts
    size: int


def entry_key(parts: Parts) -> str:
    """The key of an entry: the digest of everything that its value depends on."""
    return digest_json(parts)


def checksum(tensors: Mapping[str, RawTensor]) -> str:
    """Checksum of one entry's tensors, by which a reader finds damage."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        digest.update(f"{name}\0{tensors[name].dtype}\0{list(tensors[name].shape)}\0".encode())
        digest.update(tensors[name].data)
    return digest.hexdigest()


def shard_metadata(entries: Mapping[str, tuple[str, Parts]]) -> dict[str, str]:
    """The metadata of an entry or shard file: key -> (checksum, parts); parts equal in all are written once."""
    all_parts = [parts for _, parts in entries.values()]
    texts = [{k: canonical_json(v) for k, v in parts.items()} for parts in all_parts]  # True is not 1
    shared = {k: v for k, v in all_parts[0].items() if all(text.get(k) == texts[0][k] for text in texts)}
    own = {
        key: {"sum": total, "parts": {k: v for k, v in parts.items() if k not in shared}}
        for key, (total, parts) in entries.items()
    }
    return {"eridiff": canonical_json({"format": 1, "shared": shared, "entries": own})}


def read_catalogue(file: TensorFile) -> dict[str, Location]:
    """The entries of one entry or shard file, from its header alone.

    Raises: StoreError where the file is none of the store's.
    """
    try:
        record = json.loads(file.metadata["eridiff"])
        shared, entries = record["shared"], record["entries"]
        sizes: dict[str, int] = dict.fromkeys(entries, 0)
        for name in file.header:
            sizes[name.split(".", 1)[0]] += file.size(name)
        return {
            key: Location(file.path, entry["sum"], {**shared, **entry["parts"]}, sizes[key])
            for key, entry in entries.items()
        }
    except (KeyError, ValueError, TypeError, AttributeError):
        raise StoreError(f"{file.path} is no shard of an eridiff store, or is damaged.") from None


def read_entry(file: TensorFile, key: str, expected: str) -> dict[str, RawTensor]:
    """The tensors of one entry, checked.

    Raises: StoreError that names the file where the bytes are not those that were written.
    """
    names = file.names[bisect_left(file.names, f"{key}.") : bisect_left(file.names, f"{key}/")]  # '/' follows '.'
    tensors = {name.split(".", 1)[1]: file.raw(name) for name in names}
    if checksum(tensors) != expected:
        raise StoreError(
            f"{file.path} is damaged: entry {key[:12]} does not match its checksum. Remove the file, "
            "its copies in the store and in DVC's cache (docs/troubleshooting.md finds them), and run `dvc repro`."
        )
    return tensors


class Store:
    """One kind of entries in a store; reads the catalogue once, when first asked."""

    def __init__(self, root: Path, kind: str) -> None:
        self.root = root
        self.folder = root / kind
        self.shards_written = 0
        self._catalogue: dict[str, Location] | None = None
        _check_format(root)

    @property
    def catalogue(self) -> dict[str, Location]:
        """Every key in the store and where its entry lies; shards in sorted order, the first wins."""
        while self._catalogue is None:
            loose = sorted(self.folder.glob("entries/*/*.safetensors"))
            shards = sorted(self.folder.glob("shards/*.safetensors"))
            found: dict[str, Location] = {}
            if all(_add(found, path) for path in [*shards, *loose]):
                self._catalogue = found
            # else an entry moved into a shard that was not there yet when the shards were listed: look again
        return self._catalogue

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Those of the keys that the store lacks, sorted, each once."""
        return sorted(set(keys) - set(self.catalogue))

    def put(self, key: str, parts: Parts, tensors: Mapping[str, RawTensor]) -> None:
        """Add one entry, atomically. What is there already is kept: an entry never changes."""
        if key in self.catalogue:
            return
        total = checksum(tensors)
        parts = json.loads(canonical_json(parts))  # as they will be read: a tuple is a list
        path = self._loose_path(key)
        named = {f"{key}.{name}": tensor for name, tensor in tensors.items()}
        try:
            write_tensors(path, named, shard_metadata({key: (total, parts)}))
        except OSError as error:
            raise StoreError(f"cannot write to the store {self.root}: {error.strerror}.") from None
        self.catalogue[key] = Location(path, total, parts, sum(len(t.data) for t in tensors.values()))

    def get(self, key: str) -> dict[str, RawTensor]:
        """The tensors of one entry, checked against its checksum."""
        return self._read(key, {})[1]

    def _read(self, key: str, files: dict[Path, TensorFile]) -> tuple[Location, dict[str, RawTensor]]:
        """An entry and where it lies; looked for again where another process has just moved it into a shard."""
        for _ in range(10):  # others may move it again meanwhile
            if key not in self.catalogue:
                break
            location = self.catalogue[key]
            try:
                file = files[location.path] = files.get(location.path) or TensorFile(location.path)
                if location.path == self._loose_path(key):  # another process may have put its own
                    location = read_catalogue(file)[key]
                return location, read_entry(file, key, location.checksum)
            except FileNotFoundError:
                self._catalogue = None
            except (DataError, KeyError) as error:
                raise StoreError(f"{location.path} is damaged ({error}): remove it and run `dvc repro`.") from None
        raise StoreError(f"entry {key[:12]} is gone from the store {self.root}: run `dvc repro`.")

    def adopt(self, shards: Iterable[Path]) -> int:
        """Take in shards that lie elsewhere (a stage's own earlier output); returns how many keys were new."""
        before = len(self.catalogue)
        for path in shards:
            file = TensorFile(path)
            entries = read_catalogue(file)
            if set(entries) <= set(self.catalogue):
                continue
            for key, location in entries.items():
                read_entry(file, key, location.checksum)
            target = self._shard_path({key: location.checksum for key, location in entries.items()})
            link_or_copy(path, target)
            _add(self.catalogue, target)
        return len(self.catalogue) - before

    def publish(self, keys: Iterable[str], out: Path) -> dict[str, str]:
        """Fill the folder `out` with hardlinked shards that hold exactly these keys; returns key -> file name.

        The shards are a function of the set of keys: one, or split into 16 by the next digit of the key
        wherever one would be larger than SHARD_BYTES.
        """
        sizes = {key: self.catalogue[key].size for key in set(keys)}
        placed: dict[str, str] = {}
        try:
            for old in out.glob("shard-*.safetensors"):
                old.unlink()
            for prefix, members in sorted(split_keys(sizes).items()):
                name = f"shard-{prefix or 'all'}.safetensors"
                link_or_copy(self._shard(members), out / name)
                placed |= dict.fromkeys(members, name)
        except OSError as error:
            raise StoreError(f"cannot write shards to {self.root} or {out}: {error.strerror}.") from None
        return placed

    def _shard(self, keys: list[str]) -> Path:
        """The store's shard of exactly these keys; written if there is none, its loose entries then removed."""
        entries = {key: self.catalogue[key] for key in keys}
        path = self._shard_path({key: entry.checksum for key, entry in entries.items()})
        if not path.exists():
            tensors: dict[str, RawTensor] = {}
            files: dict[Path, TensorFile] = {}
            for key in keys:
                entries[key], read = self._read(key, files)
                tensors |= {f"{key}.{name}": tensor for name, tensor in read.items()}
            path = self._shard_path({key: entry.checksum for key, entry in entries.items()})
            write_tensors(path, tensors, shard_metadata({k: (e.checksum, e.parts) for k, e in entries.items()}))
            self.shards_written += 1
        for key, entry in entries.items():
            loose = self._loose_path(key)
            loose.unlink(missing_ok=True)
            if entry.path == loose:
                self.catalogue[key] = replace(entry, path=path)
        return path

    def _loose_path(self, key: str) -> Path:
        return self.folder / "entries" / key[:2] / f"{key}.safetensors"

    def _shard_path(self, checksums: Mapping[str, str]) -> Path:
        return self.folder / "shards" / f"{digest_json(dict(checksums))}.safetensors"


def _add(catalogue: dict[str, Location], path: Path) -> bool:
    """Add a file's entries to a catalogue, what is there first stays; False where another process moved the file."""
    try:
        entries = read_catalogue(TensorFile(path))
    except FileNotFoundError:
        return False
    except DataError as error:
        raise StoreError(f"{error} Remove it: what it held is encoded again.") from None
    for key, location in entries.items():
        catalogue.setdefault(key, location)
    return True


def split_keys(sizes: Mapping[str, int], prefix: str = "") -> dict[str, list[str]]:
    """Prefix -> sorted keys, each group at most SHARD_BYTES unless it is a single entry."""
    keys = sorted(sizes)
    if not keys:
        return {}
    if len(keys) == 1 or sum(sizes.values()) <= SHARD_BYTES:
        return {prefix: keys}
    groups: dict[str, list[str]] = {}
    for digit in "0123456789abcdef":
        part = {key: sizes[key] for key in keys if key.startswith(prefix + digit)}
        groups |= split_keys(part, prefix + digit)
    return groups


class PixelDigests:
    """What the store remembers of pictures: file digest -> pixel digest, so that a rename decodes nothing."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "pixels"
        self.known: dict[str, str] = {}
        for path in sorted(self.folder.glob("*.tsv")):
            try:
                self.known |= dict(line.split("\t") for line in path.read_text("utf-8").splitlines())
            except ValueError:
                raise StoreError(f"{path} is damaged. Remove it: its pictures are read again.") from None

    def learn(self, digests: Mapping[str, str]) -> None:
        """Remember new digests in one immutable file, named by its content."""
        new = {key: value for key, value in digests.items() if key not in self.known}
        if new:
            text = "".join(f"{key}\t{value}\n" for key, value in sorted(new.items()))
            write_text(self.folder / f"{hashlib.sha256(text.encode()).hexdigest()}.tsv", text)
            self.known |= new


def _check_format(root: Path) -> None:
    """Make the store's marker, or refuse a folder that is something else."""
    marker = root / "FORMAT"
    try:
        found = marker.read_text("utf-8") if marker.exists() else None
        if found is None:
            foreign = sorted(set(os.listdir(root)) - OWN_NAMES) if root.exists() else []
            foreign = [name for name in foreign if not name.startswith(".")]
            if foreign:
                raise StoreError(
                    f"{root} is no store: it holds {foreign[0]} and no FORMAT. Choose an empty folder with "
                    "ERIDIFF_STORE or `store:` in local.yaml."
                )
            with atomic_write(marker) as file:
                file.write(FORMAT.encode())
    except OSError as error:
        raise StoreError(
            f"the store {root} cannot be used: {error.strerror}. Choose another with ERIDIFF_STORE or `store:` "
            "in local.yaml."
        ) from None
    if found is not None and found != FORMAT:
        raise StoreError(f"{marker} says {found.strip()!r}; this eridiff reads {FORMAT.strip()!r}.")
