"""What `eridiff new` copies of a folder of pictures, and what it refuses before anything is made."""

import os
import stat
from pathlib import Path

import pytest

from eridiff.core.errors import DataError
from eridiff.dataset.intake import copy_files, list_files, refuse_endless

ODD = ("-dash.jpg", "a b.JPG", "new\nline.png", "ümlaut 🐱.jpeg", 'it\'s "so".webp', "back\\slash.gif")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "my pictures"
    for name in ODD:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def test_odd_names_and_links_are_copied_as_files(images: Path, tmp_path: Path) -> None:
    (images / "sub").mkdir()
    (images / "sub" / "a.txt").write_text("a caption")
    (images / "link.jpg").symlink_to("a b.JPG")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "far.png").write_bytes(b"far")
    (images / "folder").symlink_to(outside)
    (images / "-dash.jpg").chmod(0o444)
    files = list_files(images)
    assert files == sorted([*ODD, "sub/a.txt", "link.jpg", "folder/far.png"])
    copy_files(images, files, tmp_path / "data" / "raw")
    copied = {path.relative_to(tmp_path / "data/raw").as_posix(): path for path in (tmp_path / "data/raw").rglob("*")}
    assert sorted(name for name, path in copied.items() if path.is_file()) == files
    assert not any(path.is_symlink() for path in copied.values())
    assert copied["link.jpg"].read_bytes() == b"a b.JPG" and copied["folder/far.png"].read_bytes() == b"far"
    assert copied["-dash.jpg"].stat().st_mode & stat.S_IWUSR
    assert not (images / "-dash.jpg").stat().st_mode & stat.S_IWUSR


def test_hidden_files_stay_behind(images: Path) -> None:
    for name in (".DS_Store", "._a b.JPG", ".git/config", ".dvcignore"):
        (images / name).parent.mkdir(exist_ok=True)
        (images / name).write_bytes(b"x")
    (images / ".gone").symlink_to("nowhere")
    assert list_files(images) == sorted(ODD)


def test_all_that_cannot_be_copied_is_named_at_once(images: Path) -> None:
    (images / "gone.jpg").symlink_to("nowhere.jpg")
    (images / "sub").mkdir()
    (images / "sub" / "loop").symlink_to("..")
    os.mkfifo(images / "pipe.jpg")
    Path(os.fsdecode(os.fsencode(images) + b"/l\xe4tin.jpg")).write_bytes(b"x")
    with pytest.raises(DataError) as caught:
        list_files(images)
    assert str(caught.value) == (
        f"{images} cannot be copied as it is. Mend or remove these, then run it again:"
        "\n       'l\\udce4tin.jpg': its name is no UTF-8"
        "\n       gone.jpg: a link to nothing"
        "\n       pipe.jpg: no file: a pipe, a socket or a device"
        "\n       sub/loop: a link to a folder that it lies in"
    )


def test_text_that_a_link_finds_elsewhere_is_refused(images: Path, tmp_path: Path) -> None:
    """`a.txt -> /etc/passwd` would be a caption; a link within the folder is as good as a file."""
    (tmp_path / "secret.txt").write_text("x")
    (images / "own.txt").write_text("a caption")
    (images / "a b.txt").symlink_to("own.txt")
    assert "a b.txt" in list_files(images)
    (images / "-dash.txt").symlink_to(tmp_path / "secret.txt")
    (images / "zero.jpg").symlink_to("/dev/zero")
    with pytest.raises(DataError) as caught:
        list_files(images)
    assert str(caught.value).splitlines()[1:] == [
        f"       -dash.txt: a link that leaves the folder, to {tmp_path / 'secret.txt'}",
        "       zero.jpg: no file: a pipe, a socket or a device",
    ]


def test_what_dvc_would_read_without_end_is_refused(images: Path) -> None:
    refuse_endless(images)
    refuse_endless(images / "nowhere")
    (images / "gone.png").symlink_to("nowhere")  # DVC stops there by itself
    refuse_endless(images)
    os.mkfifo(images / "pipe.jpg")
    (images / "zero.txt").symlink_to("/dev/zero")
    with pytest.raises(DataError) as caught:
        refuse_endless(images)
    assert str(caught.value) == (
        f"{images} holds what DVC would read without end. Remove these:"
        "\n       pipe.jpg: no file: a pipe, a socket or a device"
        "\n       zero.txt: no file: a pipe, a socket or a device"
    )


def test_pictures_are_told_by_their_first_bytes(tmp_path: Path) -> None:
    (tmp_path / "IMG_1").write_bytes(b"\xff\xd8\xff\xe0 JFIF")
    assert list_files(tmp_path) == ["IMG_1"]


def test_a_folder_without_pictures(images: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"empty holds no pictures\. Known kinds: \.avif, \.bmp"):
        list_files(tmp_path / "empty")
    with pytest.raises(DataError, match=r"a b\.JPG is no folder of pictures"):
        list_files(images / "a b.JPG")


def test_a_copy_that_fails_says_why_and_not_of_every_file(images: Path, tmp_path: Path) -> None:
    files = [f"gone-{number}.jpg" for number in range(20)]
    with pytest.raises(DataError) as caught:
        copy_files(images, files, tmp_path / "raw")
    first, *lines = str(caught.value).splitlines()
    assert first == f"{images} could not be copied to {tmp_path / 'raw'}:"
    assert len(lines) == 3 and "gone-0.jpg" in lines[0]
