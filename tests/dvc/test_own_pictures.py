"""Pictures that DVC's cache is linked to, as in projects of before, and objects there that an edit has altered."""

import hashlib
import json
import os
import stat
from pathlib import Path

import pytest

from eridiff.dvc.outs import object_path
from eridiff.dvc.own_pictures import find_misnamed, make_own, rename_misnamed, unsafe_types
from stages import captions
from tests.support.checkouts import SMALL


def put(cache: Path, data: bytes, *, name: bytes | None = None, suffix: str = "") -> Path:
    """An object of a cache, by the name of its bytes or of others; read-only, as DVC leaves it."""
    path = object_path(cache, md5(data if name is None else name) + suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(0o444)
    return path


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def test_links_into_the_cache_become_files_of_their_own(tmp_path: Path) -> None:
    cache, raw = tmp_path / "cache", tmp_path / "raw"
    (raw / "sub").mkdir(parents=True)
    hard, soft, locked, mine = raw / "a.txt", raw / "sub/b.png", raw / "c.txt", raw / "d.txt"
    hard.hardlink_to(put(cache, b"a caption"))
    soft.symlink_to(put(cache, b"a picture"))
    locked.write_bytes(b"read-only")
    locked.chmod(0o444)
    (tmp_path / "library.txt").write_bytes(b"mine")
    mine.hardlink_to(tmp_path / "library.txt")  # the user's own link, which is none of DVC's
    (raw / "gone.txt").symlink_to("nowhere")
    assert make_own(raw, cache) == [hard, locked, soft]
    for path, data in ((hard, b"a caption"), (soft, b"a picture"), (locked, b"read-only"), (mine, b"mine")):
        assert path.read_bytes() == data and not path.is_symlink()
        assert path.stat().st_mode & stat.S_IWUSR
    for path in (hard, soft):
        path.write_bytes(b"edited")
        assert path.stat().st_nlink == 1
    assert mine.samefile(tmp_path / "library.txt")
    assert find_misnamed(cache) == []
    assert make_own(raw, cache) == []
    assert sorted(path.name for path in raw.iterdir()) == ["a.txt", "c.txt", "d.txt", "gone.txt", "sub"]


def test_a_data_raw_that_is_a_link_is_followed(tmp_path: Path) -> None:
    """The originals lie elsewhere, and DVC had made links of them."""
    originals, cache = tmp_path / "originals", tmp_path / "cache"
    originals.mkdir()
    (originals / "a.txt").hardlink_to(put(cache, b"a caption"))
    (tmp_path / "raw").symlink_to(originals)
    make_own(tmp_path / "raw", cache)
    (originals / "a.txt").write_bytes(b"edited")
    assert object_path(cache, md5(b"a caption")).read_bytes() == b"a caption"


def test_an_object_that_an_edit_altered_is_named_and_moved(tmp_path: Path) -> None:
    """What it was called is missing then, which DVC says, instead of the wrong bytes, which it would not."""
    cache = tmp_path / "cache"
    sound = put(cache, b"sound")
    folder = put(cache, json.dumps([{"md5": md5(b"first"), "relpath": "sub/0.txt"}]).encode(), suffix=".dir")
    altered = put(cache, b"second", name=b"first")
    twice = put(cache, b"sound", name=b"another")
    linked = object_path(cache, md5(b"before"))  # as when the edit was committed: one file by both names
    linked.parent.mkdir(exist_ok=True)
    linked.hardlink_to(sound)
    (cache / "files/md5/ab").mkdir(exist_ok=True)
    (cache / "files/md5/ab/notes").write_bytes(b"no object")
    found = find_misnamed(cache)
    assert {one.path for one in found} == {altered, twice, linked}
    lines = sorted(rename_misnamed(cache, found), key=lambda line: "0.txt" not in line)
    assert lines[0].startswith(f"{altered} (sub/0.txt) holds other bytes than its name says")
    assert "`dvc fetch --all-commits`" in lines[0]
    assert not any(path.exists() for path in (altered, twice, linked))
    assert object_path(cache, md5(b"second")).read_bytes() == b"second"
    assert sound.read_bytes() == b"sound" and folder.exists()
    assert find_misnamed(cache) == []


def test_a_folder_object_keeps_its_suffix(tmp_path: Path) -> None:
    cache, data = tmp_path / "cache", b"[]"
    put(cache, data, name=b"[1]", suffix=".dir")
    (one,) = find_misnamed(cache)
    list(rename_misnamed(cache, [one]))
    assert object_path(cache, md5(data) + ".dir").read_bytes() == data


def test_what_cannot_be_moved_is_left_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    altered = put(cache, b"second", name=b"first")
    other = put(cache, b"third", name=b"second")
    found = {one.path: one for one in find_misnamed(cache)}
    (line,) = rename_misnamed(cache, [found[altered]])
    assert f"left, since {other} is another: run this again" in line

    def refuse(*arguments: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    (line,) = rename_misnamed(cache, [found[other]])
    assert line.endswith("left (Permission denied): remove it, or DVC takes it for what it is not")
    assert altered.exists() and other.exists()


@pytest.mark.parametrize(
    ("config", "local", "unsafe"),
    [
        ('type = "reflink,copy"', "", ()),
        ("", "", ()),  # DVC's own choice is the same
        ('type = "hardlink,reflink,copy"', "", ("hardlink",)),
        ('type = "reflink,copy"', "type = symlink", ("symlink",)),
    ],
)
def test_the_kinds_of_links_of_a_project(tmp_path: Path, config: str, local: str, unsafe: tuple[str, ...]) -> None:
    assert unsafe_types(tmp_path) == ()
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text(f"[cache]\n{config}\n")
    (tmp_path / ".dvc/config.local").write_text(f"[cache]\n{local}\n")
    assert unsafe_types(tmp_path) == unsafe


@pytest.mark.parametrize("kinds", ["hardlink,reflink,copy", "reflink,copy"])
def test_a_run_warns_of_links_that_an_edit_goes_through(
    kinds: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who never asks `eridiff why` in a project of before is told by the stage that reads the pictures."""
    monkeypatch.chdir(tmp_path)
    Path("data/raw").mkdir(parents=True)
    Path(".dvc").mkdir()
    Path(".dvc/config").write_text(f'[cache]\ntype = "{kinds}"\n')
    for name in ("params/tiny-sdxl.yaml", "raw/fox.png", "raw/fox.txt"):
        target = Path("params.yaml") if name.startswith("params") else Path("data", name)
        target.write_bytes((SMALL / name).read_bytes())
    captions.main()
    warned = (
        "warning: this project is one of before: its cache.type has hardlink: an edit of data/raw would alter DVC's"
    )
    assert (warned in capsys.readouterr().err) == ("hardlink" in kinds)
