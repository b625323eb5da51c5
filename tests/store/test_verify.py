"""`eridiff store verify` finds every planted fault; `repair` keeps what is sound."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from eridiff.core.files import canonical_json, write_text
from eridiff.dvc import outs as ownouts
from eridiff.dvc.outs import OwnFile, OwnOut, digest_md5, object_path, read_originals, read_outs
from eridiff.formats.safetensors import RawTensor, TensorFile, digest_tensors, write_sealed_tensors, write_tensors
from eridiff.formats.seals import sealed_json
from eridiff.store.entries import checksum
from eridiff.store.faults import Fault
from eridiff.store.pins import pin
from eridiff.store.pixels import PixelDigests
from eridiff.store.repair import RECORD, compare, repair
from eridiff.store.store import Store
from eridiff.store.verify import verify
from tests.support.entries import ENTRIES, KEYS, contents, filled


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store with a shard of six entries, two single entries, pixels and a pin."""
    root = tmp_path / "store"
    store = filled(root, ENTRIES[:8])
    store.publish(KEYS[:6], tmp_path / "out")
    PixelDigests(root).learn({"a": "b"})
    pin(root, "latents", tmp_path, store.published)
    assert verify(root, []) == []
    return root


def shard_of(root: Path) -> Path:
    (path,) = root.glob("latents/shards/*")
    return path


def entry_of(root: Path) -> Path:
    return sorted(root.glob("latents/entries/*/*"))[0]


def alter(path: Path, place: int, mask: int = 0xFF) -> None:
    """Flip bits in place, times kept: every link shows it, as after a fault of the disk."""
    facts = path.stat()
    with open(path, "r+b") as file:
        file.seek(place, os.SEEK_END if place < 0 else os.SEEK_SET)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ mask]))
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def data_place(path: Path, key: str) -> int:
    file = TensorFile(path)
    return len(file.first_bytes) + int(file.header[f"{key}.mean"]["data_offsets"][0])


def test_a_flipped_bit_in_an_entrys_data_names_the_entry(root: Path, tmp_path: Path) -> None:
    path = shard_of(root)
    alter(path, data_place(path, KEYS[2]), 0x01)
    (fault,) = verify(root, [])
    assert fault == Fault(path=path, what="shard", key=KEYS[2], problem=fault.problem)
    assert fault.line() == f"{path}: entry {KEYS[2][:12]}: does not match its checksum"


@pytest.mark.slow
def test_every_byte_of_a_shard_counts(root: Path) -> None:
    """Header, padding, data: whichever bit is flipped, verify says so."""
    path = shard_of(root)
    size = path.stat().st_size
    for place in range(0, size, 7):
        alter(path, place, 0x10)
        assert [fault.path for fault in verify(root, [])][:1] == [path], place
        alter(path, place, 0x10)
    assert verify(root, []) == []


@pytest.mark.parametrize("length", [0, 7, 100, -1])
@pytest.mark.parametrize("what", ["shard", "entry"])
def test_truncated_files_are_found(root: Path, what: str, length: int) -> None:
    path = shard_of(root) if what == "shard" else entry_of(root)
    path.write_bytes(path.read_bytes()[:length])
    (fault,) = verify(root, [])
    assert (fault.path, fault.what, fault.key) == (path, what, None)


def test_zeroed_bytes_are_found(root: Path) -> None:
    path = shard_of(root)
    with open(path, "r+b") as file:
        file.seek(-40, os.SEEK_END)
        file.write(bytes(40))
    assert {fault.path for fault in verify(root, [])} == {path}


def test_an_entry_under_a_wrong_key_is_found(root: Path) -> None:
    path = entry_of(root)
    wrong = path.with_name(f"{path.name[:2]}{'0' * 62}.safetensors")
    path.rename(wrong)
    (fault,) = verify(root, [])
    assert (fault.path, fault.what) == (wrong, "entry")
    assert fault.problem == f"it holds entry {path.stem[:12]}, not what it says"


def test_a_renamed_shard_is_found(root: Path) -> None:
    path = shard_of(root)
    wrong = path.with_name(f"{'f' * 64}.safetensors")
    path.rename(wrong)
    (fault,) = verify(root, [])
    assert (fault.path, fault.problem) == (wrong, f"its entries ask for the name {path.stem}")


def test_edited_parts_are_found(root: Path) -> None:
    path = entry_of(root)
    path.write_bytes(path.read_bytes().replace(b"flip", b"flop"))
    (fault,) = verify(root, [])
    assert (fault.path, fault.key) == (path, path.stem)
    assert fault.problem == "has key fields that do not give its key"


def test_stray_files_pixels_and_pins_are_found(root: Path) -> None:
    strays = [root / "holiday.jpg", root / "latents/notes.txt", root / "latents/shards/x.bin", root / "pixels/x.txt"]
    for path in strays:
        path.write_text("x")
    (pixels,) = root.glob("pixels/*.tsv")
    pixels.write_text("a\tc\n")
    (pinned,) = root.glob("roots/*")
    pinned.write_text("{}")
    found = {fault.path: fault.what for fault in verify(root, [])}
    assert found == dict.fromkeys(strays, "stray") | {pixels: "pixels", pinned: "pin"}
    (root / ".FORMAT.x.tmp").write_text("")
    (root / "latents/shards/.x.tmp").write_text("")  # of a process that writes, or was killed: gc's business
    assert len(verify(root, [])) == 6


def test_repair_keeps_the_sound_entries(root: Path, tmp_path: Path) -> None:
    path = shard_of(root)
    before = path.read_bytes()
    alter(path, data_place(path, KEYS[2]))
    done = repair(root, verify(root, []), [], None)
    assert (done.removed, done.kept, done.stages, done.left) == ((path,), 5, (), ())
    assert verify(root, []) == []
    store = Store(root, "latents")
    assert store.missing(KEYS[:8]) == [KEYS[2]]
    store.put(*ENTRIES[2])
    store.publish(KEYS[:6], tmp_path / "again")
    assert shard_of(root).name == path.name
    assert shard_of(root).read_bytes() == before


def test_what_stages_keep_beside_entries_is_no_stray(root: Path) -> None:
    """Bases that were quantised, states of trainings, what was counted and measured."""
    for name in (
        "bases/a.used",
        "footprints/a.json",
        "rates/a.json",
        "runs/a/state.safetensors",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    assert verify(root, []) == []


def other_files(root: Path) -> list[Path]:
    """A file of each kind that a store holds beside entries, shards, pixels and pins."""
    tensors = {"a": RawTensor("F32", (2,), bytes(range(8)))}
    run = root / "runs/key"
    write_sealed_tensors(run / "state-000002.sealed.safetensors", tensors, {"eridiff": "{}"})
    write_sealed_tensors(run / "checkpoints/adapters-000002.sealed.safetensors", tensors, {})
    write_tensors(root / "bases/key.safetensors", tensors, {"digest": digest_tensors(tensors)})
    write_text(root / "probes/encoder/versions-1.sealed.json", sealed_json({"generation": ""}))
    write_text(root / "kernels/answer.sealed.json", sealed_json({"fault": ""}))
    assert Store(root, "latents").catalogue  # which writes catalogue.sealed.parquet
    assert verify(root, []) == []
    places = ("runs", "bases", "probes", "kernels")
    paths = [path for place in places for path in (root / place).rglob("*") if path.is_file()]
    return [*paths, root / "latents/catalogue.sealed.parquet", root / "FORMAT"]


@pytest.mark.slow
def test_every_byte_of_every_kind_of_file_counts(root: Path) -> None:
    for path in other_files(root):
        for place in range(0, path.stat().st_size, 11):
            alter(path, place, 1 << place % 8)
            assert [fault.path for fault in verify(root, [])] == [path], place
            alter(path, place, 1 << place % 8)
    assert verify(root, []) == []


def test_repair_of_other_files(root: Path) -> None:
    paths = other_files(root)
    for path in paths:
        alter(path, 1)
    done = repair(root, verify(root, []), [], None)
    assert set(done.removed) == set(paths[:-1])
    assert [fault.line() for fault in done.left] == [
        f"{root / 'FORMAT'}: it must say 'eridiff-store 1': write that into it"
    ]


def test_objects_of_the_project_and_of_the_users_files(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All outs in dvc.lock, single files too, and DVC's objects of data/raw; the pictures themselves may be edited."""
    monkeypatch.chdir(tmp_path)
    cache = tmp_path / "cache"
    monkeypatch.setattr(ownouts, "cache_folder", lambda: cache)

    def tracked(path: str, files: dict[str, bytes]) -> dict[str, str]:
        """Files of an out in place and in the cache; what dvc.lock says of it."""
        items = []
        for name, data in files.items():
            md5 = hashlib.md5(data).hexdigest()
            for place in (Path(path, name), object_path(cache, md5)):
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(data)
            items.append({"md5": md5, "relpath": name})
        if list(files) == [""]:
            return {"path": path, "md5": items[0]["md5"]}
        listing = canonical_json(items).encode()
        md5 = f"{hashlib.md5(listing).hexdigest()}.dir"
        object_path(cache, md5).parent.mkdir(parents=True, exist_ok=True)
        object_path(cache, md5).write_bytes(listing)
        return {"path": path, "md5": md5}

    table = tracked("data/captions/a.parquet", {"": b"table"})
    lora = tracked("data/lora", {"step.safetensors": b"weights"})
    raw = {**tracked("data/raw", {"a.png": b"picture"}), "path": "raw"}
    stages = {"captions": {"outs": [table]}, "train": {"outs": [lora]}}
    write_text(Path("dvc.lock"), canonical_json({"stages": stages}))
    write_text(Path("data/raw.dvc"), canonical_json({"outs": [raw]}))
    Path("dvc.yaml").touch()

    def faults() -> list[Fault]:
        return verify(root, read_outs(), read_originals())

    assert faults() == []
    objects = [path for path in cache.rglob("*") if path.is_file()]
    assert len(objects) == 5
    for path in (*objects, Path("data/captions/a.parquet"), Path("data/lora/step.safetensors")):
        alter(path, 1)
        assert path in [fault.path for fault in faults()]
        alter(path, 1)
    Path("data/raw/a.png").write_bytes(b"edited")
    assert faults() == []
    picture = object_path(cache, hashlib.md5(b"picture").hexdigest())
    for path in (picture, Path("data/lora/step.safetensors")):
        alter(path, 1)
    done = repair(root, faults(), read_outs(), cache)
    assert done.removed == (Path("data/lora/step.safetensors"),)
    assert [fault.path for fault in done.left] == [picture]
    assert picture.exists()
    assert done.stages == ("train",)


def test_repair_of_single_entries_pixels_pins_and_strays(root: Path) -> None:
    entry = entry_of(root)
    alter(entry, -1)
    (pixels,) = root.glob("pixels/*.tsv")
    pixels.write_text("")
    (pinned,) = root.glob("roots/*")
    pinned.write_text("nonsense")
    (root / "holiday.jpg").write_text("")
    done = repair(root, verify(root, []), [], None)
    assert set(done.removed) == {entry, pixels, pinned}
    assert done.kept == 0
    assert [fault.path for fault in done.left] == [root / "holiday.jpg"]
    assert [fault.what for fault in verify(root, [])] == ["stray"]


def own_out(folder: Path, cache: Path, *, link: bool) -> OwnOut:
    """The folder as DVC commits it: objects by md5, read-only, linked or copied."""
    files = []
    for path in sorted(folder.iterdir()):
        md5 = digest_md5(path)
        place = object_path(cache, md5)
        place.parent.mkdir(parents=True, exist_ok=True)
        if link:
            os.link(path, place)
        else:
            place.write_bytes(path.read_bytes())
        files.append(OwnFile(path=path, md5=md5, object=place))
    text = json.dumps([{"md5": file.md5, "relpath": file.path.name} for file in files])
    temporary = folder.parent / "listing"
    temporary.write_text(text)
    md5 = f"{digest_md5(temporary)}.dir"
    listing = object_path(cache, md5)
    listing.parent.mkdir(parents=True, exist_ok=True)
    temporary.rename(listing)
    return OwnOut(stage="latents", folder=folder, md5=md5, listing=listing, files=tuple(files))


@pytest.mark.parametrize("link", [True, False])
def test_store_out_and_object_are_repaired_together(
    root: Path, tmp_path: Path, link: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One inode: all three go, also the object of another state. Copies: only the damaged one and what shows it."""
    monkeypatch.chdir(tmp_path)
    out = own_out(tmp_path / "out", tmp_path / "cache", link=link)
    (file,) = out.files
    assert verify(root, [out]) == []
    alter(file.object, data_place(file.object, KEYS[0]))
    faults = verify(root, [out])
    damaged = {file.object, file.path, shard_of(root)} if link else {file.object}
    assert {fault.path for fault in faults} == damaged
    assert {fault.key for fault in faults} == {KEYS[0]}
    done = repair(root, faults, [out], tmp_path / "cache")
    assert set(done.removed) == damaged | {file.path}
    assert done.stages == ("latents",)
    assert done.kept == (5 if link else 0)  # a copy's entries stand in the store
    assert compare([out]) == []  # not made again yet
    store = Store(root, "latents")
    assert store.missing(KEYS[:6]) == ([KEYS[0]] if link else [])
    store.put(*ENTRIES[0])
    store.publish(KEYS[:6], tmp_path / "out")
    assert compare([own_out(tmp_path / "out", tmp_path / "cache", link=False)]) == [(str(tmp_path / "out"), True)]
    assert not RECORD.exists()


def test_sound_entries_of_a_damaged_object_are_kept_where_the_store_lacks_them(root: Path, tmp_path: Path) -> None:
    out = own_out(tmp_path / "out", tmp_path / "cache", link=False)
    alter(out.files[0].object, data_place(out.files[0].object, KEYS[0]))
    empty = tmp_path / "empty"
    done = repair(empty, verify(empty, [out]), [out], tmp_path / "cache")
    assert done.kept == 5
    assert Store(empty, "latents").missing(KEYS[:6]) == [KEYS[0]]


def test_a_repair_that_gave_other_bytes_is_said(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    out = own_out(tmp_path / "out", tmp_path / "cache", link=True)
    alter(out.files[0].object, -1)
    repair(root, verify(root, [out]), [out], tmp_path / "cache")
    (tmp_path / "out/shard-all.safetensors").write_bytes(b"as another device has it")
    assert compare([own_out(tmp_path / "out", tmp_path / "cache", link=True)]) == [(str(tmp_path / "out"), False)]


def test_damage_of_the_listing_and_strays_of_an_out_are_found(root: Path, tmp_path: Path) -> None:
    out = own_out(tmp_path / "out", tmp_path / "cache", link=True)
    (tmp_path / "out/extra.txt").write_text("")
    out.listing.write_text("[]")
    assert {fault.path: fault.what for fault in verify(root, [out])} == {
        out.listing: "listing",
        tmp_path / "out/extra.txt": "stray",
    }


def test_an_index_that_differs_is_found(root: Path, tmp_path: Path) -> None:
    (tmp_path / "out/index.parquet").write_bytes(b"PAR1")
    out = own_out(tmp_path / "out", tmp_path / "cache", link=False)
    (tmp_path / "out/index.parquet").write_bytes(b"PAR2")
    (fault,) = verify(root, [out])
    assert (fault.path, fault.what) == (tmp_path / "out/index.parquet", "out")
    assert fault.problem.startswith("its md5 is ")


def test_an_entry_is_whole_after_every_repair(root: Path) -> None:
    """Every third byte of the shard damaged in turn: what is left in the store is what was put, or missing."""
    path = shard_of(root)
    kept = path.read_bytes()
    for place in range(9, len(kept), 151):
        alter(path, place)
        repair(root, verify(root, []), [], None)
        store = Store(root, "latents")
        there = [key for key in KEYS[:6] if not store.missing([key])]
        assert [checksum(store.get(key)) for key in there] == [
            checksum(tensors) for key, _, tensors in ENTRIES[:6] if key in there
        ]
        for entry in root.glob("latents/entries/*/*"):
            entry.unlink()
        path.write_bytes(kept)
    assert contents(root / "latents/shards") == {path.name: kept}
