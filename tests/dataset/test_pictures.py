"""The folder scan: what is found, what is ignored by name, what is refused and how."""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from eridiff.core.errors import DataError, listing
from eridiff.dataset.folder_files import Ignored
from eridiff.dataset.image.icc import PRIMARIES, matrix_profile
from eridiff.dataset.picture_notes import image_facts, notes
from eridiff.dataset.pictures import Picture, scan_pictures
from eridiff.machine.filedigests import FileDigests


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "raw").mkdir(parents=True)
    return Path("data/raw")


@pytest.fixture
def digests(tmp_path: Path) -> Iterator[FileDigests]:
    with FileDigests(tmp_path / "digests.sqlite") as digests:
        yield digests


def put(path: Path, content: str | bytes | tuple[int, int] = (4, 3)) -> None:
    """Write a picture of a size, or a file of these bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, tuple):
        Image.new("RGB", content, "red").save(path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def captions(pictures: list[Picture]) -> dict[str, str | None]:
    return {picture.path: picture.caption for picture in pictures}


def refused(raw: Path, digests: FileDigests) -> str:
    with pytest.raises(DataError) as caught:
        scan_pictures(raw, digests)
    return str(caught.value)


def test_a_picture_and_its_sidecar(raw: Path, digests: FileDigests) -> None:
    put(raw / "b" / "cat.PNG", (5, 4))
    put(raw / "b" / "cat.txt", "\ufeffa cat\r\n")
    put(raw / "a.jpg")
    put(raw / "a.caption", "")
    put(raw / "z.v1.webp")
    pictures, ignored = scan_pictures(raw, digests)
    assert [picture.path for picture in pictures] == ["a.jpg", "b/cat.PNG", "z.v1.webp"]
    assert pictures[1] == Picture(
        path="b/cat.PNG",
        file_digest=hashlib.sha256((raw / "b" / "cat.PNG").read_bytes()).hexdigest(),
        width=5,
        height=4,
        orientation=1,
        repeats=1,
        caption="a cat\r\n",
        caption_source="b/cat.txt",
    )
    assert (pictures[0].caption, pictures[0].caption_source) == ("", "a.caption")
    assert (pictures[2].caption, pictures[2].caption_source) == (None, None)
    assert ignored == []


def test_metadata_files_name_pictures_below_their_folder(raw: Path, digests: FileDigests) -> None:
    for name in ("j/a.png", "j/deep/b.png", "c/a.png", "p/a.png", "p/b.png"):
        put(raw / name)
    put(raw / "j" / "metadata.jsonl", '{"file_name": "a.png", "text": "A"}\n{"file_name": "./deep/b.png", "text": "B"}')
    put(raw / "metadata.csv", "file_name,caption\nc/a.png,C\n")
    pq.write_table(pa.table({"file_name": ["a.png", "b.png"], "text": ["P", None]}), raw / "p" / "metadata.parquet")
    pictures, ignored = scan_pictures(raw, digests)
    assert captions(pictures) == {"c/a.png": "C", "j/a.png": "A", "j/deep/b.png": "B", "p/a.png": "P", "p/b.png": None}
    assert [picture.caption_source for picture in pictures] == [
        "metadata.csv line 2",
        "j/metadata.jsonl line 1",
        "j/metadata.jsonl line 2",
        "p/metadata.parquet row 1",
        None,
    ]
    assert ignored == []


def test_repeats_of_the_nearest_folder_count(raw: Path, digests: FileDigests) -> None:
    for name in ("10_toy/a.png", "10_toy/sub/a.png", "10_toy/3_red/a.png", "toy_2/a.png", "5x_b/a.png", "7_a.png"):
        put(raw / name)
    pictures, _ = scan_pictures(raw, digests)
    assert {picture.path: picture.repeats for picture in pictures} == {
        "10_toy/3_red/a.png": 3,
        "10_toy/a.png": 10,
        "10_toy/sub/a.png": 10,
        "5x_b/a.png": 1,
        "7_a.png": 1,
        "toy_2/a.png": 1,
    }


def test_other_files_are_reported_and_hidden_ones_are_not(raw: Path, digests: FileDigests) -> None:
    put(raw / "a.png")
    for name in (".gitignore", "a.png.dvc", ".cache/b.png", ".DS_Store"):
        put(raw / name, "x")
    for name in ("notes.md", "x/IMG.HEIC", "lonely.txt", "captions.csv", "x/a.npz", "a.txt"):
        put(raw / name, "x")
    (raw / "linked").symlink_to(raw.resolve() / "x")
    pictures, ignored = scan_pictures(raw, digests)
    assert [picture.path for picture in pictures] == ["a.png"]
    assert ignored == [
        Ignored(
            path="captions.csv",
            reason="holds no captions: line 1: needs the columns file_name and text (or caption), has: x",
        ),
        Ignored(path="linked", reason="a link to a folder: copy the folder here"),
        Ignored(path="lonely.txt", reason="a caption file without a picture of its name"),
        Ignored(path="notes.md", reason="neither a picture nor a caption"),
        Ignored(path="x/IMG.HEIC", reason=".heic pictures are not read: save it as PNG or JPEG"),
        Ignored(path="x/a.npz", reason="a cache of another trainer (kohya)"),
    ]


def test_a_picture_is_one_by_its_first_bytes(raw: Path, digests: FileDigests) -> None:
    for name in ("a.jpe", "b.jpg_large", "c", "d.JFIF", "e.png", "f.tmp", "g.heic"):
        Image.new("RGB", (4, 3), "red").save(raw / "x", format="JPEG")
        os.replace(raw / "x", raw / name)
    put(raw / "c.txt", "a caption")
    put(raw / "h.jpeg", (5, 4))
    Image.new("RGB", (4, 3)).save(raw / "raw.nef", format="TIFF")  # a camera's file begins as a TIFF does
    put(raw / "i", b"\0\0\0\x18ftypheic")
    put(raw / "j", b"no picture")
    pictures, ignored = scan_pictures(raw, digests)
    assert [picture.path for picture in pictures] == [
        "a.jpe", "b.jpg_large", "c", "d.JFIF", "e.png", "f.tmp", "g.heic", "h.jpeg",
    ]  # fmt: skip
    assert captions(pictures)["c"] == "a caption"
    assert ignored == [
        Ignored(
            path="i",
            reason="a HEIC picture, which is not read, whatever its name. Save it as PNG or JPEG, or remove it.",
        ),
        Ignored(path="j", reason="neither a picture nor a caption"),
        Ignored(path="raw.nef", reason=".nef pictures are not read: save it as PNG or JPEG"),
    ]


def test_what_belongs_to_other_pictures_is_left_out(raw: Path, digests: FileDigests) -> None:
    for name in (
        "a.png",
        "a-masklabel.png",
        "masks/a.png",
        "@eaDir/a.png/SYNOPHOTO_THUMB_M.png",
        "b_mask.png",
        "c.png",
    ):
        put(raw / name)
    put(raw / "a (1).png")
    put(raw / "c - Copy.png", (9, 9))
    put(raw / "._c.png", b"\0\5\x16\7")
    put(raw / ".thumbnails" / "x.png")
    for name, text in (("a", "a"), ("a-masklabel", "m"), ("a (1)", "copied"), ("b_mask", "b")):
        put(raw / f"{name}.txt", text)
    put(raw / "metadata.jsonl", '{"file_name": "masks/a.png", "text": "no stray"}\n')
    pictures, ignored = scan_pictures(raw, digests)
    assert captions(pictures) == {"a.png": "a", "b_mask.png": "b", "c.png": None}
    assert {item.path: item.reason for item in ignored} == {
        "._c.png": "macOS's own data of c.png",
        ".thumbnails/": "pictures in a hidden folder, as file managers keep thumbnails: rename it to use them",
        "@eaDir/a.png/SYNOPHOTO_THUMB_M.png": "in @eaDir/, Synology's own folder",
        "a (1).png": "a copy of a.png, equal to the byte",
        "a (1).txt": "not used: a.png has its caption from a.txt",
        "a-masklabel.png": "a mask of a.png: rename it if it is a picture of its own",
        "a-masklabel.txt": "left out with its picture: a-masklabel.png",
        "c - Copy.png": "a copy of c.png: rename it if it is a picture of its own (its bytes differ)",
        "masks/a.png": "a mask of a.png: rename the folder if its pictures are their own",
    }
    assert notes(pictures, ignored)[0] == (
        "left out by name: 7 that belong to another picture or program: copy 2, mask 2, other program's file 3"
    )


def test_the_caption_of_an_equal_copy_is_its_pictures(raw: Path, digests: FileDigests) -> None:
    for name, size in (("a.png", 4), ("a (1).png", 4), ("a (1) (1).png", 4), ("b.png", 5), ("b - Copy.png", 5)):
        put(raw / name, (size, 3))
    for name, size in (("c.jpg", 6), ("c.png", 7), ("c (2).png", 7), ("d.png", 4), ("d (1).png", 9)):
        put(raw / name, (size, 3))
    put(raw / "a (1) (1).txt", "of the copy of a copy")
    put(raw / "c (2).caption", "of the copy of its kind")
    put(raw / "d (1).txt", "of another picture")
    put(raw / "metadata.jsonl", '{"file_name": "b - Copy.png", "text": "a row of the copy"}\n')
    pictures, ignored = scan_pictures(raw, digests)
    assert captions(pictures) == {
        "a.png": "of the copy of a copy",
        "b.png": "a row of the copy",
        "c.jpg": None,
        "c.png": "of the copy of its kind",
        "d.png": None,
    }
    reasons = {item.path: item.reason for item in ignored}
    assert reasons["c (2).png"] == "a copy of c.png, equal to the byte"
    assert reasons["d (1).txt"] == "left out with its picture: d (1).png"
    put(raw / "a (1).txt", "another")
    assert "pictures with more than one caption." in refused(raw, digests)


def test_what_a_table_says_that_pictures_were_made_from_is_left_out(raw: Path, digests: FileDigests) -> None:
    for name in ("edges/0.png", "edges/1.png", "pics/0.png", "pics/1.png", "e.png", "p.png"):
        put(raw / name)
    rows = [{"source": f"edges/{name}.png", "target": f"pics/{name}.png", "prompt": f"cat {name}"} for name in "01"]
    put(raw / "prompt.json", "\n".join(json.dumps(row) for row in rows))
    put(raw / "metadata.csv", "file_name,conditioning_image,text\np.png,e.png,a dog\n")
    pictures, ignored = scan_pictures(raw, digests)
    assert captions(pictures) == {"p.png": "a dog", "pics/0.png": "cat 0", "pics/1.png": "cat 1"}
    assert [(item.path, item.kind) for item in ignored] == [
        (path, "control picture") for path in ("e.png", "edges/0.png", "edges/1.png")
    ]
    assert ignored[0].reason == (
        "what p.png was made from, or its mask, as a table says: give it a caption if it is a picture of its own"
    )
    table = pa.table({"image": ["p.png"], "mask": ["e.png"], "text": ["a dog"], "source": [1]})
    pq.write_table(table, raw / "metadata.parquet")
    (raw / "metadata.csv").unlink()
    again, still = scan_pictures(raw, digests)
    assert (captions(again), still) == (captions(pictures), ignored)
    put(raw / "e.txt", "a picture of its own")
    assert "e.png" in captions(scan_pictures(raw, digests)[0])


def test_colours_and_pictures_that_show_nothing_are_named(raw: Path, digests: FileDigests) -> None:
    noise = Image.effect_noise((64, 64), 50).convert("RGB")
    noise.save(raw / "fine.png")
    noise.save(raw / "wide.png", icc_profile=matrix_profile("Display P3", PRIMARIES[12]))
    noise.save(raw / "odd.png", icc_profile=b"rubbish")
    noise.convert("RGBA").save(raw / "seen.png")
    clear = noise.convert("RGBA")
    clear.putalpha(0)
    clear.save(raw / "clear.png")
    put(raw / "red.jpg", (300, 300))
    pictures, ignored = scan_pictures(raw, digests)
    assert image_facts(pictures) == {"blank": {"clear.png": "fully transparent", "red.jpg": "of one colour"}}
    assert notes(pictures, ignored) == [
        "colour: 1 picture converted to sRGB from Display P3: wide.png",
        "colour: 1 picture taken as sRGB, since its colour profile cannot be used (cannot open profile from string): "
        "odd.png",
        "nothing to see: 1 picture fully transparent: clear.png",
        "nothing to see: 1 picture of one colour: red.jpg",
    ]
    assert image_facts([picture for picture in pictures if not picture.blank]) == {}


def test_what_is_no_file_is_never_opened(raw: Path, digests: FileDigests, tmp_path: Path) -> None:
    put(raw / "a.png")
    for name in ("pipe.png", "pipe.txt", "pipe"):
        os.mkfifo(raw / name)
    for name in ("zero.jpg", "zero.txt", "zero"):
        (raw / name).symlink_to("/dev/zero")
    (tmp_path / "secret.txt").write_text("x")
    (raw / "a.txt").symlink_to(tmp_path / "secret.txt")
    (raw / "metadata.jsonl").symlink_to("../../secret.txt")
    assert refused(raw, digests).splitlines() == [
        "files of data/raw that are not read. Put files in their place, or remove them:",
        f"       data/raw/a.txt: a link that leaves the folder, to {tmp_path / 'secret.txt'}",
        f"       data/raw/metadata.jsonl: a link that leaves the folder, to {tmp_path / 'secret.txt'}",
        *(
            f"       data/raw/{name}: no file: a pipe, a socket or a device"
            for name in ("pipe.png", "pipe.txt", "zero.jpg", "zero.txt")
        ),
    ]
    for name in ("pipe.png", "pipe.txt", "zero.jpg", "zero.txt", "a.txt", "metadata.jsonl"):
        (raw / name).unlink()
    assert {item.path: item.reason for item in scan_pictures(raw, digests)[1]} == dict.fromkeys(
        ("pipe", "zero"), "no file: a pipe, a socket or a device"
    )


def test_links_within_the_folder_to_pictures_and_into_dvcs_cache_are_read(
    raw: Path, digests: FileDigests, tmp_path: Path
) -> None:
    put(tmp_path / "elsewhere" / "a.png")
    (raw / "a.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    put(raw / "b.txt", "words")
    (raw / "a.txt").symlink_to("b.txt")
    put(raw / "c.png")
    put(tmp_path / "cache" / "files" / "md5" / "ab" / ("c" * 30), "cached")
    (raw / "c.txt").symlink_to(tmp_path / "cache" / "files" / "md5" / "ab" / ("c" * 30))
    pictures, _ = scan_pictures(raw, digests)
    assert captions(pictures) == {"a.png": "words", "c.png": "cached"}


def test_digests_are_remembered(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(raw / "a.png")
    os.utime(raw / "a.png", (1, 1))
    with FileDigests(tmp_path / "digests.sqlite") as digests:
        first = scan_pictures(raw, digests)
    for reader in (
        "eridiff.machine.filedigests.digest_file",
        "eridiff.dataset.pictures.read_header",
        "eridiff.dataset.pictures.shows_nothing",
    ):
        monkeypatch.setattr(reader, lambda path: pytest.fail(f"{path} was read again"))
    with FileDigests(tmp_path / "digests.sqlite") as digests:
        assert scan_pictures(raw, digests) == first


def test_the_header_of_another_picture_is_read_anew(raw: Path, tmp_path: Path) -> None:
    for second, size in enumerate(((8, 6), (10, 4))):
        put(raw / "a.png", size)
        os.utime(raw / "a.png", (second, second))
        with FileDigests(tmp_path / "digests.sqlite") as digests:
            (picture,), _ = scan_pictures(raw, digests)
        assert (picture.width, picture.height) == size


def test_a_missing_folder_is_refused(raw: Path, digests: FileDigests) -> None:
    raw.rmdir()
    assert refused(raw, digests) == (
        "data/raw is no folder. Make it and put pictures there, or run `dvc checkout` or `dvc pull`."
    )


def test_a_folder_without_pictures_is_refused(raw: Path, digests: FileDigests) -> None:
    message = refused(raw, digests)
    assert message.startswith("data/raw holds no pictures (.avif, .bmp,") and message.endswith("put some there.")
    put(raw / "a.heic", "x")
    assert refused(raw, digests).endswith(
        "put some there. It holds only:\n       a.heic: .heic pictures are not read: save it as PNG or JPEG"
    )


def test_unreadable_pictures_are_named_in_one_error(raw: Path, digests: FileDigests) -> None:
    put(raw / "good.png")
    put(raw / "empty.png", b"")
    put(raw / "sub" / "text.jpg", "hello")
    (raw / "gone.png").symlink_to("nowhere.png")
    message = refused(raw, digests)
    assert message.startswith("3 pictures of data/raw cannot be used:\n")
    assert "data/raw/empty.png: empty file (0 bytes). Copy it again" in message
    assert "data/raw/sub/text.jpg: no picture" in message
    assert "data/raw/gone.png: missing, or a link to nothing." in message
    assert "good" not in message


def test_a_long_list_is_cut(raw: Path, digests: FileDigests) -> None:
    for number in range(103):
        put(raw / f"{number:03}.png", b"")
    lines = refused(raw, digests).splitlines()
    assert lines[0] == "103 pictures of data/raw cannot be used:"
    assert lines[100].startswith("       data/raw/099.png: empty file") and lines[101:] == ["       and 3 more"]
    assert listing(["a"] * 100) == "\n       a" * 100
    assert listing(["new\nline.jpg"]) == "\n       new\\nline.jpg"


def test_mistakes_of_every_kind_are_named_at_once(raw: Path, digests: FileDigests) -> None:
    for name in ("a.png", "a.jpg", "b.png", "c.png", "2024_x/d.png"):
        put(raw / name)
    put(raw / "a.txt", "a")
    put(raw / "b.txt", b"sch\xf6n")
    put(raw / "c.txt", "c")
    put(raw / "metadata.jsonl", '{"file_name": "c.png", "text": "c"}\n{"file_name": "gone.png", "text": "x"}\n')
    put(raw / "e.png", b"")
    lines = [line for line in refused(raw, digests).splitlines() if not line.startswith(" ")]
    assert [re.split("[:.(]", line.removeprefix("error: "))[0] for line in lines] == [
        "pictures of one name that share a caption file",
        "1 caption file of data/raw cannot be read",
        "captions of pictures that do not exist ",
        "pictures with more than one caption",
        "a folder `N_name` counts each of its pictures N times, and N must be 1 to 1000",
        "1 picture of data/raw cannot be used",
    ]
    assert all(line.startswith("error: ") for line in lines[1:])  # the first gets it when it is printed


def test_pictures_that_share_a_sidecar_are_refused(raw: Path, digests: FileDigests) -> None:
    for name in ("a.png", "a.jpg", "b.png", "b.webp"):
        put(raw / name)
    scan_pictures(raw, digests)  # without a caption file, two of one name are two pictures
    put(raw / "a.txt", "a")
    put(raw / "b.caption", "b")
    assert refused(raw, digests) == (
        "pictures of one name that share a caption file. Rename all but one:"
        "\n       data/raw/a.txt: a.jpg and a.png\n       data/raw/b.caption: b.png and b.webp"
    )


def test_two_captions_of_one_picture_are_refused(raw: Path, digests: FileDigests) -> None:
    for name in ("a.png", "b.png", "c.png"):
        put(raw / name)
    put(raw / "a.txt", "a")
    put(raw / "a.caption", "a")
    put(raw / "b.txt", "")
    put(raw / "metadata.jsonl", '{"file_name": "b.png", "text": "b"}\n' + '{"file_name": "c.png", "text": "c"}\n' * 2)
    assert refused(raw, digests) == (
        "pictures with more than one caption. Keep one source for each:"
        "\n       data/raw/a.png: a.caption and a.txt"
        "\n       data/raw/b.png: b.txt and metadata.jsonl line 1"
        "\n       data/raw/c.png: metadata.jsonl line 2 and metadata.jsonl line 3"
    )


def test_metadata_of_missing_pictures_is_refused(raw: Path, digests: FileDigests) -> None:
    put(raw / "sub" / "a.png")
    put(raw / "sub" / "metadata.csv", "file_name,text\nsub/a.png,x\n../a.png,x\n/etc/a.png,x\na.png,fine\n")
    message = refused(raw, digests)
    assert "captions of pictures that do not exist (file_name is relative to the folder of the metadata" in message
    assert "Add the pictures, or remove these rows:" in message
    assert message.splitlines()[1:] == [
        "       data/raw/sub/metadata.csv line 2: 'sub/a.png'",
        "       data/raw/sub/metadata.csv line 3: '../a.png'",
        "       data/raw/sub/metadata.csv line 4: '/etc/a.png'",
    ]


def test_broken_metadata_of_all_files_is_one_error(raw: Path, digests: FileDigests) -> None:
    put(raw / "a.png")
    put(raw / "metadata.jsonl", '{"file_name": "a.png", "text": "a"}\n{broken')
    put(raw / "x" / "metadata.csv", "name,words\n")
    put(raw / "y" / "metadata.csv", b"file_name,text\na.png,B\xe4r")
    put(raw / "z" / "metadata.parquet", b"x")
    lines = refused(raw, digests).splitlines()
    assert lines[0] == "captions that cannot be read. Mend these:"
    assert lines[1].startswith("       data/raw/metadata.jsonl line 2: no JSON (")
    assert lines[2] == (
        "       data/raw/x/metadata.csv line 1: needs the columns file_name and text (or caption), has: name, words"
    )
    assert lines[3] == "       data/raw/y/metadata.csv: byte 22 (0xE4) is no UTF-8. Save the file as UTF-8."
    assert lines[4].startswith("       data/raw/z/metadata.parquet: no Parquet (")


def test_captions_of_another_encoding_are_named_in_one_error(raw: Path, digests: FileDigests) -> None:
    for name in ("a", "b", "c"):
        put(raw / f"{name}.png")
    put(raw / "a.txt", "Bär".encode("latin-1"))
    put(raw / "b.txt", "Bär".encode("utf-16"))
    put(raw / "c.txt", "Bär")
    assert refused(raw, digests) == (
        "2 caption files of data/raw cannot be read:"
        "\n       data/raw/a.txt: byte 1 (0xE4) is no UTF-8. Save the file as UTF-8."
        "\n       data/raw/b.txt: byte 0 (0xFF) is no UTF-8 (it looks like UTF-16). Save the file as UTF-8."
    )


@pytest.mark.parametrize("name", ["0_toy", "2024_holiday"])
def test_absurd_repeats_are_refused(raw: Path, digests: FileDigests, name: str) -> None:
    put(raw / name / "a.png")
    message = refused(raw, digests)
    assert "N must be 1 to 1000. Rename these folders" in message
    assert f"data/raw/{name}: {int(name.split('_')[0])} repeats" in message


def test_names_that_are_no_utf8_are_refused(raw: Path, digests: FileDigests) -> None:
    put(raw / "a.png")
    os.rename(raw / "a.png", os.fsencode(raw) + b"/b\xe4r.png")
    assert refused(raw, digests) == ("data/raw: names that are no UTF-8. Rename these files:\n       'b\\udce4r.png'")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_without_permission_is_refused(raw: Path, digests: FileDigests) -> None:
    put(raw / "sub" / "a.png")
    (raw / "sub").chmod(0)
    try:
        assert "data/raw/sub: cannot be read (Permission denied). Check" in refused(raw, digests)
    finally:
        (raw / "sub").chmod(0o755)
