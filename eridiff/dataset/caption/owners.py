"""Which caption is whose: caption files and tables of the folder => one caption each picture, and what is not used.

Where several hold a caption of one picture, eridiff/dataset/caption/precedence.py says which counts.
"""

import posixpath
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from eridiff.core.errors import DataError, listing
from eridiff.dataset.caption.files import MAX_TABLE_BYTES, METADATA_NAMES, SIDECAR_SUFFIXES, TABLE_SUFFIXES, read_text
from eridiff.dataset.caption.json_values import NotJson, caption_in, lone_surrogate, parse_json
from eridiff.dataset.caption.names import Pictures, bare, by_names, eye, in_caption_folder, match_rows, nearest, stem
from eridiff.dataset.caption.precedence import (
    COPY,
    FILE,
    FOLDER,
    FULL_NAME,
    JSON,
    TABLE,
    TAGS,
    Caption,
    Unused,
    one_each,
)
from eridiff.dataset.caption.rows import MetadataRow
from eridiff.dataset.caption.tables import ALBUM, read_metadata

NOT_CAPTIONS = re.compile(
    r"(?:readme|licen[cs]e|copying|notice|credits?|authors?|attributions?|changelog|urls?|sources?|links?|prompts?|"
    r"sample_prompts?|notes?|todo|requirements)\b",
    re.IGNORECASE,
)
# Google's `cat.jpg.supplemental-metadata.json`, often cut short; `cat.jpg(1).json` is that of `cat(1).jpg`
TAKEOUT = re.compile(r"(\.\w+?)(?:\.sup[a-z-]*)?(\([0-9]+\))?(\.json)$")
LIKE_CAPTIONS = re.compile(r"cap|tag|meta|prompt|text|data|train|annot|label", re.IGNORECASE)
LIKE_TEXTS = re.compile(r"has: .*(?:caption|text|prompt|tags)", re.IGNORECASE)  # columns of a table that is not read
SHOWN = 5
NO_COPIES: Mapping[str, str] = {}
GUESSED = 20  # names for which pictures with other letters are looked for


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A folder as captions are looked for in it. everything: its pictures, and those that are left out."""

    place: Path
    pictures: Pictures
    everything: Pictures

    def owned(self, rows: Sequence[MetadataRow], table: str) -> list[tuple[MetadataRow, str | None]]:
        """Each row with its picture, None where none is certain; less those of pictures that are left out, which are
        looked for beside the others: `masks/a.png` is not `a.png`."""
        owners = match_rows([row.file_name for row in rows], posixpath.dirname(table), self.everything)
        pairs = zip(rows, owners, strict=True)
        return [(row, one) for row, one in pairs if one is None or one in self.pictures.paths]


@dataclass(kw_only=True)
class Found:
    """What tables have given so far.

    inputs: pictures that rows name as what theirs was conditioned on, with that one. wrong: what would be lost. lost:
    files that seem to hold captions and give none.
    """

    captions: list[Caption] = field(default_factory=list)
    inputs: dict[str, str] = field(default_factory=dict)
    unused: list[Unused] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


def find_captions(
    folder: Path,
    files: Sequence[str],
    paths: Sequence[str],
    problems: list[str],
    left_out: Collection[str] = (),
    copies: Mapping[str, str] = NO_COPIES,
) -> tuple[dict[str, Caption], list[Unused], dict[str, str]]:
    """The caption of each picture that has one, the files, rows and captions that are not used, and the pictures that
    tables name as what another one was conditioned on, with that one.

    files: all of the folder, relative and sorted; paths: the pictures among them; left_out: pictures that are not
    used, whose rows are no mistakes; copies: those of them that equal a picture, whose captions are its own where it
    has none. What contradicts itself, cannot be read, or would be lost, is added to `problems`, each kind with all its
    offenders.
    """
    among = Folder(place=folder, pictures=by_names([*paths, *copies]), everything=by_names([*paths, *left_out]))
    texts = [path for path in files if _suffix(path) in SIDECAR_SUFFIXES]
    captions, unused, lost = _sidecars(folder, texts, among.pictures, problems)
    tables = [path for path in files if _suffix(path) in TABLE_SUFFIXES]
    named = [path for path in tables if posixpath.basename(path) in METADATA_NAMES]
    others = [path for path in tables if posixpath.basename(path) not in METADATA_NAMES]
    found = Found()
    captions += _metadata_captions(among, named, found.inputs, problems)
    served = {copies.get(one.picture, one.picture) for one in captions}
    _read_other_tables(among, others, served, found)
    if found.wrong:
        problems.append(
            f"captions that would be lost. Mend these, or move the files out of the folder:{listing(found.wrong)}"
        )
    chosen, passed = one_each(_of_pictures([*captions, *found.captions], copies), folder, problems)
    lost += found.lost
    if paths and lost and not chosen and not problems:
        problems.append(
            f"caption files are in {folder}, and none is a picture's. A caption has its picture's name (cat.txt for "
            f"cat.png), or names it in a row of its own. Rename these, or move them out of the folder:"
            f"{listing(lost[:SHOWN])}\n       Pictures without a caption:{listing(paths[:SHOWN])}"
        )
    inputs = {path: owner for path, owner in found.inputs.items() if path not in chosen and path not in copies}
    return chosen, [*unused, *found.unused, *passed], inputs


def _of_pictures(captions: Iterable[Caption], copies: Mapping[str, str]) -> list[Caption]:
    """The captions, those of copies as their pictures'."""
    return [replace(one, picture=copies[one.picture], rank=COPY) if one.picture in copies else one for one in captions]


def _suffix(path: str) -> str:
    return posixpath.splitext(path)[1].lower()


def _owners(path: str, pictures: Pictures) -> tuple[Sequence[str], int]:
    """The pictures that a caption file's name says, and that name's rank: exact names before those that look it."""
    name = stem(path)
    looks = [
        (pictures.stems.get(name, []), FILE),
        ([name] if name in pictures.paths else [], FULL_NAME),
        (pictures.seen_stems.get(eye(name), []), FILE),
        (pictures.seen.get(eye(name), []), FULL_NAME),
    ]
    if in_caption_folder(path):
        looks.append((pictures.bare.get(bare(name), []), FOLDER))
        looks.append((pictures.bare.get(bare(stem(name)), []) if stem(name) != name else [], FOLDER))
    return next(((owners, rank) for owners, rank in looks if owners), ((), FILE))


def _sidecars(
    folder: Path, texts: Sequence[str], pictures: Pictures, problems: list[str]
) -> tuple[list[Caption], list[Unused], list[str]]:
    """Captions in files of their own; such files without a picture, with the reason; and those that mean a picture."""
    captions: list[Caption] = []
    unused: list[Unused] = []
    lost: list[str] = []
    shared, unread = [], []
    exact = {owner for path in texts for owner in pictures.stems.get(stem(path), [])}
    for path in texts:
        owners, rank = _owners(path, pictures)
        looked_for = len(owners) == 1 and rank == FILE and stem(owners[0]) != stem(path)
        if not owners or (looked_for and owners[0] in exact):
            unused.append((path, _orphan(path, pictures, guess=len(unused) < GUESSED)))
            lost += [] if NOT_CAPTIONS.match(posixpath.basename(path)) else [path]
        elif len(owners) > 1:
            shared.append(f"{folder / path}: {' and '.join(sorted(owners))}")
        else:
            try:
                text = read_text(folder / path, folder)
            except DataError as error:
                unread.append(str(error))
                continue
            rank = rank if _suffix(path) in (".txt", ".caption") else TAGS
            captions.append(Caption(picture=owners[0], text=text, source=path, rank=rank))
    if shared:
        problems.append(f"pictures of one name that share a caption file. Rename all but one:{listing(shared)}")
    if unread:
        kind = "caption file" if len(unread) == 1 else "caption files"
        problems.append(f"{len(unread)} {kind} of {folder} cannot be read:{listing(unread)}")
    return captions, unused, lost


def _orphan(path: str, pictures: Pictures, *, guess: bool) -> str:
    near = nearest(stem(path), pictures, guess=guess)
    hint = f": rename it to {stem(near)}{_suffix(path)} if it is that of {near}" if near else ""
    return f"a caption file without a picture of its name{hint}"


def _inputs(rows: Iterable[tuple[MetadataRow, str | None]], table: str, pictures: Pictures) -> dict[str, str]:
    """Pictures that rows name as what theirs was conditioned on, with that one; none that is a row's own."""
    own = [(row, owner) for row, owner in rows if owner is not None]
    named = [(row.conditioning, owner) for row, owner in own if row.conditioning]
    found = match_rows([name for name, _ in named], posixpath.dirname(table), pictures) if named else []
    trained = {owner for _, owner in own}
    pairs = zip(found, named, strict=True)
    return {path: owner for path, (_, owner) in pairs if path is not None and path not in trained}


def _metadata_captions(
    among: Folder, tables: Sequence[str], inputs: dict[str, str], problems: list[str]
) -> list[Caption]:
    """Captions of metadata files; a row's file_name is relative to the folder of its file. inputs: gets _inputs."""
    folder, pictures = among.place, among.pictures
    captions: list[Caption] = []
    unread: list[str] = []
    missing: list[str] = []
    for path in tables:
        try:
            rows, wrong = read_metadata(folder / path, folder)
        except DataError as error:
            unread.append(str(error))
            continue
        unread += [f"{folder / path}{problem}" for problem in wrong]
        owned = among.owned(rows, path)
        inputs |= _inputs(owned, path, pictures)
        taken = {owner for _, owner in owned if owner}
        free = by_names(pictures.paths - taken) if len(taken) < len(owned) else pictures
        for row, owner in owned:
            if owner is None:
                hint = _did_you_mean(row.file_name, free, guess=len(missing) < GUESSED)
                missing.append(f"{folder / path}{row.place}: {_shown(row.file_name)}{hint}")
            elif row.text is not None:
                captions.append(Caption(picture=owner, text=row.text, source=f"{path}{row.place}"))
    if unread:
        problems.append(f"captions that cannot be read. Mend these:{listing(unread)}")
    if missing:
        problems.append(
            "captions of pictures that do not exist (file_name is relative to the folder of the metadata "
            f"file). Add the pictures, or remove these rows:{listing(missing)}"
        )
    return captions


def _did_you_mean(name: str, pictures: Pictures, *, guess: bool) -> str:
    near = nearest(name, pictures, guess=guess)
    return f". Did you mean {_shown(near)}?" if near else ""


def _shown(name: str) -> str:
    """A name as a message can print it: letters of all scripts, and no control characters."""
    return repr(name.encode("utf-8", "backslashreplace").decode() if lone_surrogate(name) else name[:200])


def _read_other_tables(among: Folder, tables: Sequence[str], served: set[str], found: Found) -> None:
    """Captions of JSON files of one picture and of tables of any name; what is not used, and what seems lost."""
    for path in tables:
        owners, owners_left_out = _json_owners(path, among.pictures), _json_owners(path, among.everything)
        if owners_left_out and not owners:
            found.unused.append((path, f"left out with its picture: {owners_left_out[0]}"))
            continue
        captions: list[Caption] = []
        reason: str | None
        if len(owners) > 1:
            reason = f"the JSON of one picture, called after several: {' and '.join(sorted(owners))}"
        elif owners:
            captions, reason = _json_caption(among.place, path, owners[0])
        else:
            captions, reason = _table_captions(among, path, served, found)
            seems_lost = not captions and _seems_captions(path, reason)
            reason = reason or (None if captions else "none of its rows names a picture of the folder")
            found.lost += [f"{path}: {reason}"] if seems_lost else []
        if reason and not served.issuperset(owners) and reason != NEITHER:
            found.wrong.append(f"{among.place / path}: {reason}")
        elif reason:
            found.unused.append((path, reason))
        found.captions += captions


def _seems_captions(path: str, reason: str | None) -> bool:
    """Whether a table that gave none looks as if it held captions. reason: why it gave none, if that is known."""
    if reason is None:
        return True
    return reason != NEITHER and bool(LIKE_CAPTIONS.search(stem(path)) or LIKE_TEXTS.search(reason))


def _json_owners(path: str, pictures: Pictures) -> Sequence[str]:
    """The pictures that a JSON file is called after."""
    return _owners(TAKEOUT.sub(r"\2\1\3", path), pictures)[0] if _suffix(path) == ".json" else ()


NEITHER = "holds neither caption nor tags"


def _json_caption(folder: Path, path: str, owner: str) -> tuple[list[Caption], str | None]:
    """The caption of a JSON file that is called after a picture; or why there is none."""
    try:
        text = caption_in(parse_json(read_text(folder / path, folder, at_most=MAX_TABLE_BYTES)))
    except NotJson as error:
        return [], f"no JSON ({error})"
    except DataError as error:
        return [], str(error).removeprefix(f"{folder / path}: ")
    if text is None or lone_surrogate(text):
        return [], NEITHER if text is None else "its caption holds half a letter"
    return [Caption(picture=owner, text=text, source=path, rank=JSON)], None


def _table_captions(among: Folder, path: str, served: set[str], found: Found) -> tuple[list[Caption], str | None]:
    """The captions of a table of another name, and what to say of it; rows that seem a picture's are wrong."""
    folder, pictures, wrong = among.place, among.pictures, found.wrong
    try:
        rows, mistakes = read_metadata(folder / path, folder)
    except DataError as error:
        return [], str(error).removeprefix(f"{folder / path}: ")
    if mistakes == [ALBUM]:
        return [], NEITHER
    if not rows:
        why = mistakes[0] if mistakes else ""
        if why.startswith(": holds no"):
            return [], why.removeprefix(": ")
        return [], f"holds no captions{':' * bool(why)}{why.removeprefix(':')}"
    wrong.extend(f"{folder / path}{mistake}" for mistake in mistakes)
    owned = among.owned(rows, path)
    found.inputs |= _inputs(owned, path, pictures)
    captions = [
        Caption(picture=owner, text=row.text, source=f"{path}{row.place}", rank=TABLE)
        for row, owner in owned
        if owner is not None and row.text is not None
    ]
    strangers = [row for row, owner in owned if owner is None]
    if not strangers:
        return captions, None
    bare_ones = by_names(pictures.paths - served - {one.picture for one in captions})
    for row in strangers:
        near = nearest(row.file_name, bare_ones, guess=False)
        if near:
            wrong.append(f"{folder / path}{row.place}. Did you mean {_shown(near)}?")
    if not captions:
        return [], None
    return (
        captions,
        f"{len(strangers)} of its {len(rows)} rows name no picture, such as {_shown(strangers[0].file_name)}",
    )
