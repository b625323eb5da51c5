"""What belongs to another picture or program is left out by its name, and only where its partner is there."""

import unicodedata

import pytest

from eridiff.dataset.companions import captions_of_left_out, find_companions


def kinds(*paths: str) -> dict[str, tuple[str, str | None]]:
    return {path: (found.kind, found.owner) for path, found in find_companions(paths, paths).items()}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("X-masklabel.png", "mask"), ("X-mask.png", "mask"), ("X_mask.webp", "mask"), ("X.mask.png", "mask"),
        ("mask_X.png", "mask"), ("X.jpg-masklabel.png", "mask"), ("x_MASK.PNG", "mask"),
        ("X-condlabel.png", "control picture"), ("X_control.png", "control picture"),
        ("X_depth.png", "control picture"), ("X-normal_map.png", "control picture"), ("X_seg.png", "mask"),
        ("X (1).png", "copy"), ("X(2).jpg", "copy"), ("X - Copy.png", "copy"), ("X - Copy (2).png", "copy"),
        ("X copy.png", "copy"), ("X copy 2.png", "copy"), ("X - Kopie.jpg", "copy"), ("X (copy).png", "copy"),
        ("X (3rd copy).png", "copy"), ("Copy of X.jpg", "copy"), ("Kopie von X.jpg", "copy"),
        ("X_thumb.jpg", "thumbnail"), ("X.preview.png", "thumbnail"), ("X-150x150.jpg", "thumbnail"),
        ("X-thumbnail.jpg", "thumbnail"),
        ("X.jpg~", "backup"), ("X.jpg.bak", "backup"), ("X.jpg_original", "backup"), ("X.orig", "backup"),
    ],
)  # fmt: skip
def test_names_that_follow_a_pictures_name(name: str, kind: str) -> None:
    assert kinds("a/X.jpg", f"a/{name}") == {f"a/{name}": (kind, "a/X.jpg")}
    assert kinds(f"a/{name}") == {}  # without its partner it is a picture
    assert kinds("X.jpg", f"a/{name}") == {}  # a partner is in its folder
    assert kinds("a/Y.jpg", "a/XX.jpg", f"a/{name}") == {}


@pytest.mark.parametrize(
    "name", ["X1.png", "X 2.png", "X_b.png", "X-edit.png", "Xmask.png", "masks.png", "X_unmasked.png", "X copycat.png"]
)
def test_names_that_only_look_like_one(name: str) -> None:
    assert kinds("X.jpg", name) == {}


def test_a_series_that_begins_at_one_is_no_series_of_copies() -> None:
    """As Windows names many files at once."""
    assert kinds("cat (1).jpg", "cat (2).jpg", "cat (3).jpg") == {}
    assert kinds("cat.jpg", "cat (1).jpg", "cat (1) (1).jpg", "cat (1)-mask.png").keys() == {
        "cat (1).jpg", "cat (1) (1).jpg", "cat (1)-mask.png",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("masks", "mask"), ("mask", "mask"), ("Masks", "mask"), ("control", "control picture"),
        ("conditioning", "control picture"), ("depth", "control picture"),
        ("thumbs", "thumbnail"), ("Thumbnails", "thumbnail"),
    ],
)  # fmt: skip
def test_folders_that_hold_pictures_names(folder: str, kind: str) -> None:
    assert kinds("X.jpg", f"{folder}/X.png", f"{folder}/Y.png") == {
        f"{folder}/X.png": (kind, "X.jpg"),
        f"{folder}/Y.png": (kind, None),  # of a picture that is gone
    }
    assert kinds("a/X.jpg", f"a/{folder}/X.png") == {f"a/{folder}/X.png": (kind, "a/X.jpg")}
    assert kinds("a/b/X.jpg", f"a/{folder}/b/X.png") == {f"a/{folder}/b/X.png": (kind, "a/b/X.jpg")}
    assert kinds(f"{folder}/X.png", "Z.png") == {}  # pictures of masks
    assert kinds(f"{folder}/X.png") == {}


def test_a_folder_beside_the_pictures_folder() -> None:
    assert kinds("images/1.png", "images/2.png", "masks/1.png", "masks/2.png") == {
        "masks/1.png": ("mask", "images/1.png"),
        "masks/2.png": ("mask", "images/2.png"),
    }
    names = [f"masks/{number}.png" for number in range(1, 6)]
    assert kinds("hats/1.png", *names) == {}  # one number of five is chance


@pytest.mark.parametrize(
    ("pictures", "others"),
    [
        ("10_ohwx cat", "10_ohwx cat_mask"), ("10_cat", "cat_masks"), ("train", "train-mask"), ("cats", "masks_cats"),
        ("10_cat", "10_masks"), ("10_cat", "alpha_masks"), ("cats", "conditioning_data_dir"), ("cats", "_controls"),
        ("cats", "cats control"), ("cats", "cats_thumbs"),
    ],
)  # fmt: skip
def test_a_folder_called_after_the_pictures_folder(pictures: str, others: str) -> None:
    names = [f"{number}.png" for number in range(3)]
    found = find_companions([], [f"{folder}/{name}" for folder in (pictures, others) for name in names])
    assert {path: one.owner for path, one in found.items()} == {
        f"{others}/{name}": f"{pictures}/{name}" for name in names
    }


def test_a_folder_called_after_another_folder_holds_pictures() -> None:
    assert kinds("dogs/1.png", "cat_masks/1.png") == {}  # of cats that wear masks
    assert kinds("1.png", "venice_masks/1.png", "venice_masks/2.png") == {}
    assert kinds("1.png", "2.png", "venice_masks/1.png", "venice_masks/2.png").keys() == {
        "venice_masks/1.png", "venice_masks/2.png",
    }  # fmt: skip
    assert kinds("10_cat_mask/a.png", "10_cat_mask/masks/a.png").keys() == {"10_cat_mask/masks/a.png"}


@pytest.mark.parametrize(("source", "target"), [("source", "target"), ("Sources", "targets"), ("input", "output")])
def test_a_folder_of_what_the_pictures_were_made_from(source: str, target: str) -> None:
    names = [f"{folder}/{name}.png" for folder in (source, target) for name in "012"]
    assert kinds(*names) == {f"{source}/{name}.png": ("control picture", f"{target}/{name}.png") for name in "012"}
    inside = [f"10_set/{name}" for name in names]
    assert set(kinds(*inside)) == {f"10_set/{source}/{name}.png" for name in "012"}
    assert kinds(*names[:3]) == kinds(*names[:3], "other/0.png", "0.png") == {}


def test_names_in_folders_may_say_it_twice() -> None:
    assert kinds("X.jpg", "masks/X_mask.png", "masks/X-masklabel.png").keys() == {
        "masks/X_mask.png", "masks/X-masklabel.png",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("@eaDir/X.jpg/SYNOPHOTO_THUMB_XL.jpg", "in @eaDir/, Synology's own folder"),
        ("a/@eaDir/X.jpg", "in @eaDir/, Synology's own folder"),
        ("__MACOSX/X.jpg", "in __MACOSX/, macOS's own folder in a ZIP"),
        ("Photos Previews.lrdata/A/B.jpg", "in Photos Previews.lrdata/, previews of Lightroom"),
        ("#recycle/X.jpg", "in #recycle/, Synology's recycle bin"),
        ("Thumbs.db", "Windows' own thumbnails"),
        ("X.npz", "a cache of another trainer (kohya)"),
        ("X_1024x1024_sdxl.npz", "a cache of another trainer (kohya)"),
        ("X.xmp", "edits of Lightroom or Adobe (XMP)"),
    ],
)
def test_files_of_other_programs(path: str, words: str) -> None:
    found = find_companions(["X.jpg", path], ["X.jpg", path] if path.endswith(".jpg") else ["X.jpg"])
    assert {name: (one.kind, one.reason) for name, one in found.items()} == {path: ("other program's file", words)}


def test_downloads_that_did_not_finish() -> None:
    assert kinds("Y.jpg", "X.jpg.crdownload") == {"X.jpg.crdownload": ("backup", None)}


def test_names_equal_to_the_eye() -> None:
    composed, apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    assert kinds(f"{composed}.png", f"{apart}_mask.png") == {f"{apart}_mask.png": ("mask", f"{composed}.png")}


def test_only_pictures_are_companions_by_name() -> None:
    assert find_companions(["X.jpg", "X_mask.txt", "X (1).txt"], ["X.jpg"]) == {}


def test_each_mask_has_its_picture() -> None:
    paths = ["a.jpg", "b.jpg", "c.jpg", "a-masklabel.png", "a_mask.png", "masks/b.png", "c (1).jpg", "masks/z.png"]
    found = find_companions(paths, paths)
    masks = {path: one.owner for path, one in found.items() if one.kind == "mask" and one.owner}
    assert masks == {"a-masklabel.png": "a.jpg", "a_mask.png": "a.jpg", "masks/b.png": "b.jpg"}


def test_captions_of_what_is_left_out() -> None:
    pictures = ["a.jpg", "a-mask.png", "a (1).jpg", "a.jpg_original", "masks/a.png"]
    texts = ["a.txt", "a-mask.txt", "a (1).jpg.txt", "a.jpg.txt", "masks/a.caption", "b.txt"]
    files = [*pictures, *texts, "X.npz", "X.txt"]
    assert captions_of_left_out(files, pictures, find_companions(files, pictures)) == {
        "a-mask.txt": "a-mask.png",
        "a (1).jpg.txt": "a (1).jpg",
        "masks/a.caption": "masks/a.png",
    }


def test_what_lies_in_a_folder_that_is_left_out_is_left_out_with_it() -> None:
    """A table of masks' captions would else be read as the pictures'."""
    pictures = ["a.jpg", "masks/a.png"]
    texts = ["a.txt", "masks/metadata.jsonl", "masks/captions/a.txt", "other/b.txt"]
    files = [*pictures, *texts]
    assert captions_of_left_out(files, pictures, find_companions(files, pictures)) == {
        "masks/metadata.jsonl": "masks/",
        "masks/captions/a.txt": "masks/",
    }


def test_many_names_take_no_time() -> None:
    paths = [f"{number}{tail}" for number in range(5000) for tail in (".jpg", "-mask.png", " (1).jpg")]
    paths += [f"{'copy ' * 200}{number}.jpg" for number in range(50)]
    assert len(find_companions(paths, paths)) == 10_000
