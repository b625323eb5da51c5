"""Files that belong to another picture or to another program, told by their names: masks, copies, thumbnails.

`cat-masklabel.png` is a mask where a picture `cat` lies beside it, and a picture of its own where none does: a name
alone decides nothing. A folder `masks` holds masks where the pictures in it have the names of pictures outside it.
Case does not count, and letters that are equal to the eye are equal. Paths are relative and posix.
"""

import posixpath
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["mask", "control picture", "thumbnail", "copy", "backup", "other program's file"]


@dataclass(frozen=True, kw_only=True)
class Companion:
    """A file that is left out. owner: the picture that it belongs to, None where its folder or program tells.

    folder: the folder that is left out whole with it, "" where there is none.
    """

    path: str
    kind: Kind
    owner: str | None
    reason: str
    folder: str = ""


MASKS = ("masklabel", "mask", "masks", "matte", "segmentation", "seg")
CONTROLS = (
    "condlabel", "cond", "conditioning", "control", "canny", "openpose", "dwpose", "depth", "depthmap", "depth_map",
    "normalmap", "normal_map", "lineart", "softedge", "scribble", "hed", "mlsd",
)  # fmt: skip
THUMBNAILS = ("thumb", "thumbs", "thumbnail", "preview", r"\d{2,4}x\d{2,4}")
COPY = r"copy|kopie|copie|copia|cópia|kopia|kopi|копия|コピー|副本"

# A picture's name with what follows it. The group of each pattern is that name.
_AFTER = r"^(.+?)[-_. ](?:{})$"
_BEFORE = r"^(?:{})[-_. ](.+)$"
NAMES: tuple[tuple[Kind, str], ...] = (
    ("mask", _AFTER.format("|".join(MASKS))),
    ("mask", _BEFORE.format("mask")),
    ("control picture", _AFTER.format("|".join(CONTROLS))),
    ("thumbnail", _AFTER.format("|".join(THUMBNAILS))),
    ("thumbnail", _BEFORE.format("thumb")),
    ("copy", r"^(.+?) ?\(\d{1,3}\)$"),
    ("copy", rf"^(.+?)(?: - |[-_ ])(?:{COPY})(?: ?\(?\d{{1,3}}\)?)?$"),
    ("copy", rf"^(.+?) \((?:{COPY}|another copy|\d+(?:st|nd|rd|th) copy)\)$"),
    ("copy", rf"^(?:{COPY}) (?:\(\d+\) )?(?:of|von|de|di|van) (.+)$"),
)
STEMS = tuple((kind, re.compile(pattern, re.IGNORECASE)) for kind, pattern in NAMES)
BACKUP = re.compile(r"^(.+?)(?:~|_original|[._-](?:bak|backup|orig|old|tmp))$", re.IGNORECASE)  # of a whole name
UNFINISHED = (".part", ".crdownload", ".download", ".partial", ".opdownload", ".aria2")

FOLDERS: dict[str, Kind] = {
    **dict.fromkeys(("mask", "masks", "masklabel", "masklabels", "matte", "mattes"), "mask"),
    **dict.fromkeys(
        (
            "control", "controls", "controlnet", "control_images", "conditioning", "conditioning_images",
            "conditioning_data", "conditioning_data_dir", "cond", "canny", "depth", "openpose",
            "lineart", "scribble", "hed",
        ),
        "control picture",
    ),
    **dict.fromkeys(("thumb", "thumbs", "thumbnail", "thumbnails"), "thumbnail"),
}  # fmt: skip
_FOLDER_WORDS: tuple[tuple[Kind, str], ...] = (
    ("mask", "masks?|masklabels?|mattes?"),
    ("control picture", "controls?|controlnet|conditioning|cond"),
    ("thumbnail", "thumbs?|thumbnails?"),
)
# `cat_masks` beside `cat`, `masks_cat`. The group is the folder that it belongs to.
FOLDERS_OF = tuple(
    (kind, re.compile(form.format(words), re.IGNORECASE)) for kind, words in _FOLDER_WORDS for form in (_AFTER, _BEFORE)
)
# Of what such a folder may hold masks beside a folder of any name: words that name no subject.
NO_SUBJECT = {
    "alpha", "binary", "data", "dataset", "image", "images", "img", "imgs", "input", "object", "photos", "pics",
    "pictures", "source", "subject", "target", "train", "training",
}  # fmt: skip
# A folder of what pictures were made from, beside that of the pictures, as ControlNet's and editors' data sets have it.
PAIRS = {
    "source": ("target",),
    "sources": ("targets",),
    "input": ("output", "target"),
    "inputs": ("outputs", "targets"),
}
REPEATS = re.compile(r"^[0-9]+_")
# Folders that no person names so: what lies in them is their program's, with or without a partner.
PROGRAM_FOLDERS = {
    "@eadir": "Synology's own folder", "#recycle": "Synology's recycle bin", "@recycle": "QNAP's recycle bin",
    ".@__thumb": "QNAP's own folder", "$recycle.bin": "Windows' recycle bin", "recycler": "Windows' recycle bin",
    "system volume information": "Windows' own folder", "__macosx": "macOS's own folder in a ZIP",
    "lost+found": "the file system's own folder", "__pycache__": "Python's own folder",
}  # fmt: skip
LIGHTROOM = (".lrdata", ".lrlibrary", ".lrprev")
PROGRAM_FILES = {
    "thumbs.db": "Windows' own thumbnails", "ehthumbs.db": "Windows' own thumbnails",
    "desktop.ini": "Windows' own file",
    "icon\r": "macOS's own file", "zbthumbnail.info": "ZoomBrowser's own file", "picasa.ini": "Picasa's own file",
}  # fmt: skip
PROGRAM_SUFFIXES = {
    ".npz": "a cache of another trainer (kohya)", ".npy": "a cache of another trainer",
    ".pt": "a cache of another trainer",
    ".safetensors": "a cache of another trainer", ".xmp": "edits of Lightroom or Adobe (XMP)",
    ".aae": "edits of an iPhone", ".lnk": "a shortcut of Windows", ".url": "a shortcut of Windows",
    ".pp3": "edits of RawTherapee", ".on1": "edits of ON1", ".lrprev": "a preview of Lightroom",
}  # fmt: skip


def find_companions(files: Iterable[str], pictures: Collection[str]) -> dict[str, Companion]:
    """Path -> companion, of those of the files that belong to another picture or program.

    files: all of the folder; pictures: those that are pictures by their bytes.
    """
    files, pictures = sorted(files), set(pictures)
    found: dict[str, Companion] = {}
    for path in files:
        if reason := _program(path):
            found[path] = Companion(path=path, kind="other program's file", owner=None, reason=reason)
    plain = [path for path in pictures if path not in found]
    found |= _in_folders(plain, _named)
    found |= _in_folders([path for path in plain if path not in found], _named_after)
    found |= _in_folders([path for path in plain if path not in found], _named_pair)
    names = Names(path for path in plain if path not in found)
    for path in files:
        if path in found or path not in pictures:
            continue
        if companion := _by_name(path, names):
            found[path] = companion
    return found


def captions_of_left_out(
    files: Iterable[str], pictures: Collection[str], companions: Mapping[str, Companion]
) -> dict[str, str]:
    """File -> the left-out picture whose caption it would be: `cat-mask.txt`, `cat-mask.png.txt` of `cat-mask.png`;
    or the folder that is left out with it: `masks/metadata.jsonl`.

    pictures: all, left out or not; a file with the name of one that stays is its own.
    """
    files, folders = list(files), {one.folder for one in companions.values()} - {""}
    kept = {name for path in pictures if path not in companions for name in (path, posixpath.splitext(path)[0])}
    gone = sorted(path for path in pictures if path in companions)
    left = {name: path for path in gone for name in (path, posixpath.splitext(path)[0])}
    owners = ((path, posixpath.splitext(path)[0]) for path in files if path not in companions)
    own = {path: left[name] for path, name in owners if name in left and name not in kept and path not in kept}
    return own | {
        path: f"{folder}/"
        for path in files
        if path not in own and path not in companions
        for folder in _above(path)
        if folder in folders
    }


def _above(path: str) -> list[str]:
    """The folders that a file lies in, the nearest last."""
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


class Names:
    """Pictures by their names as the eye sees them."""

    def __init__(self, pictures: Iterable[str]) -> None:
        self._found: dict[str, list[str]] = defaultdict(list)
        for path in sorted(pictures):
            for name in {same(posixpath.splitext(path)[0]), same(path)}:
                self._found[name].append(path)

    def find(self, name: str, but: str) -> str | None:
        """A picture of this path, with or without its suffix, other than one."""
        return next((path for path in self._found.get(same(name), ()) if path != but), None)


def same(name: str) -> str:
    """A name such that those equal to the eye are equal."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _by_name(path: str, names: Names) -> Companion | None:
    folder, name = posixpath.split(path)
    stem, suffix = posixpath.splitext(name)
    if suffix.lower() in UNFINISHED:
        return Companion(path=path, kind="backup", owner=None, reason="a download that did not finish")
    if match := BACKUP.match(name):
        owner = names.find(posixpath.join(folder, match[1]), path)
        if owner is not None:
            return Companion(path=path, kind="backup", owner=owner, reason=f"a backup of {owner}")
    for kind, pattern in STEMS:
        if match := pattern.match(stem):
            name = posixpath.join(folder, match[1])
            owner = names.find(name + suffix, path) or names.find(name, path)
            if owner is not None:
                return Companion(path=path, kind=kind, owner=owner, reason=_reason(kind, owner))
    return None


def _reason(kind: Kind, owner: str) -> str:
    return f"a {kind} of {owner}: rename it if it is a picture of its own"


def _program(path: str) -> str | None:
    """What a file is whose name or folder only a program gives; None for others."""
    *folders, name = path.split("/")
    for folder in folders:
        low = folder.lower()
        if words := PROGRAM_FOLDERS.get(low):
            return f"in {folder}/, {words}"
        if low.endswith(LIGHTROOM):
            return f"in {folder}/, previews of Lightroom"
    low = name.lower()
    if low.startswith(("synophoto_thumb_", "synoindex_media")):
        return "a thumbnail of Synology"
    return PROGRAM_FILES.get(low) or PROGRAM_SUFFIXES.get(posixpath.splitext(low)[1])


Named = tuple[Kind, str]  # what a folder holds by its name, and the folder that it belongs to: "" for any


def _named(folder: str) -> Named | None:
    """What a folder called `masks` and the like holds, with or without repeats in front."""
    kind = FOLDERS.get(REPEATS.sub("", folder.lower()).lstrip("_"))
    return (kind, "") if kind else None


def _named_after(folder: str) -> Named | None:
    """The same of a folder that is called after the one with its pictures."""
    for kind, pattern in FOLDERS_OF:
        if match := pattern.match(REPEATS.sub("", folder)):
            return kind, match[1]
    return None


def _named_pair(folder: str) -> Named | None:
    """The same of a folder that is one of two by their names."""
    low = folder.lower()
    return ("control picture", low) if low in PAIRS else None


def _in_folders(pictures: Collection[str], named: Callable[[str], Named | None]) -> dict[str, Companion]:
    """Pictures in folders called `masks` and the like, where these hold names of pictures outside."""
    inside: dict[tuple[str, Named], list[str]] = defaultdict(list)  # the outermost such folder of each
    outside = []
    for path in sorted(pictures):
        parts = path.split("/")
        hit = next(((at, what) for at, part in enumerate(parts[:-1]) if (what := named(part))), None)
        if hit is None:
            outside.append(path)
        else:
            inside["/".join(parts[: hit[0] + 1]), hit[1]].append(path)
    names = Names(outside)
    found: dict[str, Companion] = {}
    for (folder, (kind, of)), paths in inside.items():
        for place in _partners_places(folder, outside, of):
            owners = {path: _owner(path, folder, place, kind, names) for path in paths}
            known = sum(owner is not None for owner in owners.values())
            beside = place == posixpath.dirname(folder) and not of
            if known and (beside or 2 * known > len(paths)):  # in a folder elsewhere `1.png` may be chance
                found |= {path: _of_folder(path, folder, kind, owner) for path, owner in owners.items()}
                break
    return found


def _of_folder(path: str, folder: str, kind: Kind, owner: str | None) -> Companion:
    what = f"a {kind} of {owner}" if owner else f"in {folder}/ with {kind}s of other pictures, of none by its name"
    reason = f"{what}: rename the folder if its pictures are their own"
    return Companion(path=path, kind=kind, owner=owner, reason=reason, folder=folder)


def _partners_places(folder: str, outside: Iterable[str], of: str) -> list[str]:
    """Folders whose pictures it may belong to: the one it lies in, then those beside it, of this name if it has one."""
    above = posixpath.dirname(folder)
    start = f"{above}/" if above else ""
    below = [path[len(start) :] for path in outside if path.startswith(start)]
    beside = {path.split("/")[0] for path in below if "/" in path}
    if same(posixpath.basename(folder)) == of and of in PAIRS:
        return sorted(posixpath.join(above, name) for name in beside if same(name) in PAIRS[of])
    if of and same(of) not in NO_SUBJECT:
        beside = {name for name in beside if same(REPEATS.sub("", name)) == same(of)}
    return [above, *sorted(posixpath.join(above, name) for name in beside)]


def _owner(path: str, folder: str, place: str, kind: Kind, names: Names) -> str | None:
    """The picture of a file in such a folder: of its own name, or of its name less `_mask` and the like."""
    inner = posixpath.join(place, path[len(folder) + 1 :])
    head, name = posixpath.split(inner)
    stem = posixpath.splitext(name)[0]
    if owner := names.find(posixpath.join(head, stem), path):
        return owner
    for other, pattern in STEMS:
        if other == kind and (match := pattern.match(stem)):
            return names.find(posixpath.join(head, match[1]), path)
    return None
