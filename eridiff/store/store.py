"""The content-addressed store: one folder of entries that projects, experiments and machines may share.

    STORE/FORMAT                      'eridiff-store 1'
    STORE/KIND/entries/ab/KEY.safetensors    an entry just encoded, not yet in a shard
    STORE/KIND/shards/ID.safetensors         many entries; ID is a digest of the keys and checksums in it
    STORE/KIND/catalogue.sealed.parquet             what the headers of the shards say; may be removed
    STORE/pixels/ID.tsv                      file digest, rules <tab> pixel digest, one immutable file a batch
    STORE/roots/PROJECT.STAGE.json           what a project's stage put out last, which gc keeps
    STORE/runs/TRAIN_KEY/                    state from which a killed training resumes

KIND is `latents` or `texts`; eridiff/store/entries.py has the format of entries and shards. Files are written to a
temporary name and renamed, never changed: any number of processes may fill one store.
"""

import json
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import RLock

from eridiff.core.errors import StoreError
from eridiff.core.files import canonical_json, inode, link_or_copy
from eridiff.core.progress import warn
from eridiff.formats.safetensors import RawTensor, TensorFile, write_tensors
from eridiff.store.catalogue import Catalogue, list_loose, read_store
from eridiff.store.entries import (
    WAY_OUT,
    KeyFields,
    Location,
    check_parts,
    checksum,
    open_shard,
    read_catalogue,
    read_entry,
    shard_id,
    shard_metadata,
)
from eridiff.store.entry_table import EntryTable, sorted_keys
from eridiff.store.faults import Check, check_file, check_now, refuse_damaged
from eridiff.store.marker import check_format
from eridiff.store.sharding import Keys, Placement, shard_name, split_sorted

SHARDS_AT_A_TIME = 4  # read, checked and written by publish: what it holds in memory


class EntryGone(StoreError):
    """An entry that was there has vanished from the store: it must be encoded again."""


class Store:
    """One kind of entries in a store; reads the catalogue once, when first asked."""

    def __init__(self, root: Path, kind: str) -> None:
        self.root = root
        self.kind = kind
        self.folder = root / kind
        self.shards_written = 0
        self.published: list[str] = []  # names of the shards in the last out, less the suffix
        self.written: set[Path] = set()  # shards that this process has written, from entries that it has checked
        self._found: Catalogue | None = None
        self._lock = RLock()
        check_format(root)

    @property
    def catalogue(self) -> EntryTable:
        """Every key in the store and where its entry lies; shards in sorted order, the first wins."""
        return self._catalogue.entries

    @property
    def _catalogue(self) -> Catalogue:
        with self._lock:
            if self._found is None:
                self._found = read_store(self.folder)
                for reason in self._found.damaged.values():
                    warn(f"{reason} What it held counts as missing.")
            return self._found

    def look_again(self) -> None:
        """Forget what was read of the store: other processes may have changed it."""
        with self._lock:
            self._found = None

    def missing(self, keys: Iterable[str] | Keys) -> list[str]:
        """The keys that are missing in the store, sorted, each once."""
        return [key.decode() for key in self.catalogue.lacking(sorted_keys(keys))]

    def put(self, key: str, key_fields: KeyFields, tensors: Mapping[str, RawTensor]) -> None:
        """Add one entry, atomically. What is there already is kept: an entry never changes."""
        if key not in self.catalogue:
            self.keep(key, key_fields, tensors)

    def keep(self, key: str, key_fields: KeyFields, tensors: Mapping[str, RawTensor]) -> None:
        """Write one entry as a file of its own, wherever else it stands."""
        total = checksum(tensors)
        key_fields = json.loads(canonical_json(key_fields))  # as they will be read: a tuple is a list
        path = self.catalogue.loose_path(key)
        named = {f"{key}.{name}": tensor for name, tensor in tensors.items()}
        try:
            write_tensors(path, named, shard_metadata({key: (total, key_fields)}))
        except OSError as error:
            raise StoreError(
                f"cannot write to the store {self.root}: {error.strerror}. What was written is kept: make room or "
                "give yourself the right to it and run `dvc repro`, or choose another store with ERIDIFF_STORE."
            ) from None
        self.catalogue.add(Location(key, path, total, sum(len(t.data) for t in tensors.values())))

    def get(self, key: str) -> dict[str, RawTensor]:
        """The tensors of one entry, checked against its checksum."""
        return self._read(key, {})[1]

    def _read(self, key: str, files: dict[Path, TensorFile]) -> tuple[Location, dict[str, RawTensor]]:
        """An entry and where it lies; looked for again where another process has just moved it into a shard."""
        for _ in range(10):  # others may move it again meanwhile
            location, loose = self.catalogue.get(key), self.catalogue.loose_path(key)
            if location is None:
                break
            try:
                if location.path == loose:  # another process may have put its own; a file each, so none stays open
                    file = open_shard(loose, whole=True)
                    location = read_catalogue(file)[key]
                else:
                    file = files[location.path] = files.get(location.path) or open_shard(location.path)
                return location, read_entry(file, key, location.checksum)
            except FileNotFoundError:
                self.look_again()
            except KeyError:
                raise StoreError(f"{location.path} is damaged: it is missing entry {key[:12]}. {WAY_OUT}") from None
        raise EntryGone(f"entry {key[:12]} is gone from the store {self.root}: run `dvc repro`, it is encoded again.")

    def adopt(self, shards: Iterable[Path]) -> int:
        """Take in shards that lie elsewhere (a stage's own earlier output); returns how many keys were new."""
        before = len(self.catalogue)
        inodes = {inode(path) for path in self._catalogue.shards if path.exists()}
        for path in shards:
            if inode(path) in inodes:  # the same file: its entries are known
                continue
            file = open_shard(path)
            entries = read_catalogue(file)
            if all(key in self.catalogue for key in entries):
                continue
            refuse_damaged(check_file(path, "shard")[0])
            target = self._shard_path({key: location.checksum for key, location in entries.items()})
            link_or_copy(path, target)
            self._catalogue.shards.add(target)
            for key, location in read_catalogue(open_shard(target)).items():
                if key not in self.catalogue:
                    self.catalogue.add(location)
        return len(self.catalogue) - before

    def publish(self, keys: Iterable[str] | Keys, out: Path, check: Check = check_now) -> Placement:
        """Fill the folder `out` with hardlinked shards that hold exactly these keys; returns key -> file name.

        check: reads a shard that was there before, and refuses a damaged one.
        The shards are a function of the set of keys: one, or split into 16 by the next digit of the key wherever one
        would be larger than SHARD_BYTES. Several are read, checked and written at a time.
        Raises: EntryGone where the store has lost one of them, StoreError where one is damaged.
        """
        wanted = sorted_keys(keys)
        groups = list(split_sorted(wanted, self._all_of(wanted).sizes(wanted)))
        placed = Placement(wanted, [prefix for prefix, _ in groups])
        try:
            for old in out.glob("shard-*.safetensors"):
                old.unlink()
            self.published = self._place_all(out, [(prefix, wanted[part]) for prefix, part in groups], check)
        except FileNotFoundError:  # gc took a shard between its look-up and its link
            self.look_again()
            raise EntryGone(f"a shard has vanished from the store {self.root}: run `dvc repro`.") from None
        except OSError as error:
            raise StoreError(f"cannot write shards to {self.root} or {out}: {error.strerror}.") from None
        return placed

    def _all_of(self, keys: Keys) -> EntryTable:
        """The entries, with all of some keys among them.

        Raises: EntryGone where the store has lost one.
        """
        table = self.catalogue  # another thread may look again meanwhile
        if len(lost := table.lacking(keys)):
            raise EntryGone(f"entry {lost[0].decode()[:12]} is gone from the store {self.root}: run `dvc repro`.")
        return table

    def _place_all(self, out: Path, groups: Iterable[tuple[str, Keys]], check: Check) -> list[str]:
        """Link the shard of each group of keys into `out`; their names in the store.

        Shards that are there are linked at once, since threads would only wait for each other; others are written.
        """
        with ThreadPoolExecutor(SHARDS_AT_A_TIME, thread_name_prefix="eridiff-shard") as pool:
            begun: deque[Callable[[], str]] = deque()
            names: list[str] = []
            try:
                for prefix, keys in groups:
                    checksums = self._checksums(keys)
                    if self._has_shard(path := self._shard_path(checksums)):
                        if path not in self.written:
                            check(path)
                        begun.append(partial(str, self._place(out, prefix, checksums)))
                    else:
                        begun.append(pool.submit(self._write_and_place, out, prefix, keys).result)
                while begun:  # one that fails is in no list then, which its traceback would keep alive, maps and all
                    names.append(begun.popleft()())
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return names

    def _checksums(self, keys: Keys) -> dict[str, str]:
        return dict(zip([key.decode() for key in keys], self._all_of(keys).checksums(keys), strict=True))

    def _write_and_place(self, out: Path, prefix: str, keys: Keys) -> str:
        return self._place(out, prefix, self._checksums(keys))

    def _place(self, out: Path, prefix: str, checksums: Mapping[str, str]) -> str:
        """Link the shard of some keys into `out`; its name in the store."""
        shard = self._shard(checksums, prefix)
        link_or_copy(shard, out / shard_name(prefix))
        return shard.stem

    def gather(self, keys: Iterable[str], prefix: str) -> bool:
        """Put the entries of some keys into their shard before `publish` asks for it; False where one is not here yet.

        Entries that other processes have put meanwhile count.
        Raises: StoreError, OSError as `publish`, which will say the same.
        """
        checksums = {}
        for key in keys:
            entry = self.catalogue.get(key) or self._find_loose(key)
            if entry is None:
                return False
            checksums[key] = entry.checksum
        self._shard(checksums, prefix)
        return True

    def _find_loose(self, key: str) -> Location | None:
        """An entry that another process has put since the catalogue was read."""
        with suppress(FileNotFoundError):
            entry = read_catalogue(open_shard(self.catalogue.loose_path(key)))[key]
            self.catalogue.add(entry)
            return entry
        return None

    def _shard(self, checksums: Mapping[str, str], prefix: str) -> Path:
        """The store's shard of exactly these keys, written if there is none; entries of their own are then removed."""
        keys, path = list(checksums), self._shard_path(checksums)
        if not self._has_shard(path):
            path = self._write_shard(keys)
            self.catalogue.move(keys, path)
            with self._lock:
                self.shards_written += 1
                self.written.add(path)
        loose = {name.removesuffix(".safetensors") for name in list_loose(self.folder / "entries", prefix)}
        if inside := [key for key in keys if key in loose]:
            self.catalogue.move(inside, path)
            for key in inside:
                _remove_copy(self.catalogue.loose_path(key))
        return path

    def _write_shard(self, keys: list[str]) -> Path:
        entries: dict[str, Location] = {}
        tensors: dict[str, RawTensor] = {}
        files: dict[Path, TensorFile] = {}
        for key in keys:
            entries[key], read = self._read(key, files)
            tensors |= {f"{key}.{name}": tensor for name, tensor in read.items()}
        path = self._shard_path({key: entry.checksum for key, entry in entries.items()})
        entries = _with_parts(entries)
        write_tensors(path, tensors, shard_metadata({k: (e.checksum, e.key_fields) for k, e in entries.items()}))
        self._catalogue.shards.add(path)
        return path

    def _has_shard(self, path: Path) -> bool:
        """Whether a shard is there; one that another process just wrote is looked into.

        Raises: StoreError where a damaged file stands in its place.
        """
        if path in self._catalogue.damaged:
            raise StoreError(self._catalogue.damaged[path])
        if path in self._catalogue.shards:
            return True
        if path.exists():
            read_catalogue(open_shard(path))
            return True
        return False

    def _shard_path(self, checksums: Mapping[str, str]) -> Path:
        return self.folder / "shards" / f"{shard_id(checksums)}.safetensors"


def _with_parts(entries: Mapping[str, Location]) -> dict[str, Location]:
    """The entries with their key fields, each file's header read once.

    Raises: StoreError where the key fields do not give the key.
    """
    headers = {path: read_catalogue(open_shard(path)) for path in {e.path for e in entries.values() if e.known is None}}
    found = {key: e if e.known is not None else headers[e.path][key] for key, e in entries.items()}
    for entry in found.values():
        check_parts(entry)
    return found


def _remove_copy(path: Path) -> None:
    """Remove a loose entry that stands in a shard; where it may not be removed it only takes space."""
    with suppress(OSError):
        path.unlink(missing_ok=True)
