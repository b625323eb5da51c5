"""Which caption is whose: the forms that people have, names that only look equal, what would be lost."""

import json
import os
import time
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eridiff.captionnames import by_names, match_rows, nearest
from eridiff.captionowners import find_captions

NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


ASKED = {"from": "human", "value": "<image>\nDescribe the picture."}
LLAVA = json.dumps([{"id": "0", "image": "p0.png", "conversations": [ASKED, {"from": "gpt", "value": "a cat"}]}])
ANSWER = {"role": "assistant", "content": [{"type": "text", "text": "a cat"}]}
IMAGES = [{"id": 7, "file_name": "p0.png"}]
COCO = json.dumps({"info": {}, "images": IMAGES, "annotations": [{"image_id": 7, "id": 1, "caption": "a cat"}]})
CHAT = json.dumps([{"messages": [{"role": "user", "content": "<image>"}, ANSWER], "images": ["/data/p0.png"]}])


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    return folder


def put(folder: Path, **texts: str) -> None:
    """Files by their names, `/` written as `__`."""
    for name, text in texts.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def found(folder: Path, *pictures: str) -> tuple[dict[str, str], list[tuple[str, str]], list[str]]:
    """Captions by picture, what is not used, problems; every other file of the folder is there too."""
    files = [
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()
    ]
    problems: list[str] = []
    captions, unused, _ = find_captions(folder, sorted([*files, *pictures]), sorted(pictures), problems)
    return {path: caption.text for path, caption in captions.items()}, unused, problems


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p0.txt", "a cat"),
        ("p0.caption", "a cat"),
        ("p0.tags", "a cat"),
        ("p0.png.txt", "a cat"),
        ("P0.TXT", "a cat"),
        ("captions/p0.txt", "a cat"),
        ("Captions/p0.caption", "a cat"),
        ("caption/p0.png.txt", "a cat"),
        ("txt/p0.txt", "a cat"),
        ("p0.json", '{"caption": "a cat"}'),
        ("p0.png.json", '{"tags": ["a cat"]}'),
        ("p0.json", '{"text": " a cat ", "tags": ""}'),
        ("p0.json", '{"<MORE_DETAILED_CAPTION>": "a cat"}'),
        ("p0.json", '["a cat"]'),
        ("meta_cap.json", '{"p0": {"caption": "a cat"}}'),
        ("meta_lat.json", '{"p0": {"tags": "a cat", "train_resolution": [512, 512]}}'),
        ("meta_cap.json", '{"p0.png": {"caption": "a cat"}}'),
        ("meta_cap.json", '{"/workspace/train/10_cats/p0": {"caption": "a cat"}}'),
        ("meta_cap.json", r'{"C:\\train\\10_cats\\p0.png": {"caption": "a cat"}}'),
        ("captions.json", '{"p0.png": "a cat"}'),
        ("all.json", '[{"image": "p0.png", "text": "a cat"}]'),
        ("captions.csv", "filename,caption\np0.png,a cat\n"),
        ("captions.tsv", "image\ttext\np0.png\ta cat\n"),
        ("train.jsonl", '{"file_name": "p0.png", "text": "a cat"}'),
        ("tags.csv", "filename,tags\np0.png,a cat\n"),
        ("all.json", '[{"file": "p0.png", "prompt": "no", "caption": "a cat"}]'),
        ("prompt.json", '{"source": "source/p0.png", "target": "p0.png", "prompt": "a cat"}\n'),
        ("prompt.json", '{"target": "p0.png", "prompt": "a cat"}\n{"target": "p0.png", "prompt": "a cat"}\n'),
        ("dataset.json", LLAVA),
        ("train.jsonl", LLAVA[1:-1]),
        ("dataset.json", CHAT),
        ("p0.cap", "a cat"),
        ("p0.json", '{"<MORE_DETAILED_CAPTION>": "a cat", "score": 1}'),
        ("p0.png.json", '{"tags": {"my tags": {"0": ["a cat"], "1": []}}, "urls": []}'),
        ("table.csv", "key,caption,url\np0,a cat,https://x\n"),
        ("table.csv", "id,caption\np0,a cat\n"),
        ("captions_train2017.json", COCO),
    ],
)
def test_every_form_that_people_have(raw: Path, name: str, text: str) -> None:
    (raw / name).parent.mkdir(exist_ok=True)
    (raw / name).write_text(text)
    assert found(raw, "p0.png") == ({"p0.png": "a cat"}, [], [])


def test_a_conversation_of_several_answers_is_an_error(raw: Path) -> None:
    answers = [{"from": "gpt", "value": text} for text in ("a cat", "It is red.")]
    put(raw, **{"dataset.json": json.dumps([{"image": "p0.png", "conversations": [ASKED, *answers]}])})
    why = "holds no captions: row 1: a conversation of 2 answers, any of which may be the caption: keep one"
    problem = "".join(found(raw, "p0.png")[2])
    assert problem.startswith("caption files are in") and f"dataset.json: {why}" in problem


def test_an_object_of_captions_by_names_that_are_columns_too(raw: Path) -> None:
    put(raw, **{"captions.json": '{"image": "a cat", "text": "a dog"}'})
    assert found(raw, "image.png", "text.png")[0] == {"image.png": "a cat", "text.png": "a dog"}


def test_json_of_conversations_without_a_picture_is_an_error(raw: Path) -> None:
    put(raw, **{"dataset.json": LLAVA.replace("p0", "owl")})
    problem = "".join(found(raw, "p0.png")[2])
    assert problem.startswith("caption files are in") and "dataset.json: none of its rows names a picture" in problem


def test_kohyas_sentence_and_tags_are_one_caption(raw: Path) -> None:
    put(raw, **{"meta_cap.json": '{"p0": {"tags": "1cat, sofa", "caption": "a cat"}, "p1": {}}'})
    assert found(raw, "p0.png", "p1.png") == ({"p0.png": "a cat, 1cat, sofa"}, [], [])


def test_folders_of_pictures_and_of_captions_side_by_side(raw: Path) -> None:
    put(raw, **{"captions__a__p0.txt": "in a", "captions__p1.txt": "one"})
    captions, unused, problems = found(raw, "images/a/p0.png", "images/p1.png")
    assert captions == {"images/a/p0.png": "in a", "images/p1.png": "one"} and not unused and not problems


@pytest.mark.parametrize(
    ("picture", "caption"),
    [
        (f"{NFD}.png", f"{NFC}.txt"),
        (f"{NFC}.png", f"{NFD}.txt"),
        ("Cat.JPG", "cat.txt"),
        ("Cat.JPG", "cat.jpg.txt"),
        ("ﬁg１.png", "fig1.txt"),
        ("Straße.png", "STRASSE.txt"),
    ],
)
def test_names_equal_to_the_eye(raw: Path, picture: str, caption: str) -> None:
    (raw / caption).write_text("seen")
    assert found(raw, picture) == ({picture: "seen"}, [], [])


def test_exact_names_go_before_equal_looks(raw: Path) -> None:
    put(raw, **{"cat.txt": "small", "CAT.txt": "large"})
    assert found(raw, "cat.png", "CAT.png")[0] == {"cat.png": "small", "CAT.png": "large"}
    captions, unused, problems = found(raw, "cat.png")
    assert (captions, problems) == ({"cat.png": "small"}, [])
    assert unused == [("CAT.txt", "a caption file without a picture of its name: rename it to cat.txt if it is that of "
                       "cat.png")]  # fmt: skip


def test_a_look_that_two_pictures_have_is_an_error(raw: Path) -> None:
    put(raw, **{"CAT.txt": "x"})
    (problem,) = found(raw, "cat.png", "Cat.png")[2]
    assert problem.startswith("pictures of one name that share a caption file.") and "Cat.png and cat.png" in problem


CASES = [
    (["a.png"], "", "a.png", "a.png"),
    (["sub/a.png"], "", r"sub\a.png", "sub/a.png"),
    (["sub/a.png"], "", "Sub/A.PNG", "sub/a.png"),
    (["a.png"], "", "a", "a.png"),
    (["z.v1.png"], "", "z.v1", "z.v1.png"),
    (["a.png", "a.jpg"], "", "a", None),  # two candidates
    (["a.png"], "", "a.jpg", None),  # another suffix is another file
    (["a.png"], "", "/home/me/set/a.png", "a.png"),
    (["x/a.png"], "", r"D:\set\x\a.png", "x/a.png"),
    (["x/a.png", "a.png"], "", "/set/x/a.png", "x/a.png"),
    (["sub/a.png"], "sub", "sub/a.png", "sub/a.png"),
    (["sub/a.png"], "sub", "../a.png", None),
    (["sub/a.png"], "", "../sub/a.png", None),
    ([f"{NFD}.png"], "", f"{NFC}.png", f"{NFD}.png"),
    (["a.png"], "", "", None),
    (["a.png"], "", "/", None),
    (["a.png"], "", "\ud800", None),
    (["a.png"], "", "b.png", None),
]


@pytest.mark.parametrize(("paths", "folder", "name", "picture"), CASES)
def test_rows_are_matched_where_it_is_certain(paths: list[str], folder: str, name: str, picture: str | None) -> None:
    assert match_rows([name], folder, by_names(paths)) == [picture]


def test_a_folder_that_is_not_here_is_not_passed_over() -> None:
    """Two folders of another machine, of which one is here without its folder: whose `0.png` it is nobody knows."""
    assert match_rows(["/set/a/0.png", "/set/b/0.png"], "", by_names(["0.png"])) == [None, None]
    assert match_rows(["/set/a/0.png", "/set/b/1.png"], "", by_names(["0.png", "1.png"])) == [None, None]
    assert match_rows(["/set/a/0.png", "/set/a/1.png"], "", by_names(["0.png", "1.png"])) == ["0.png", "1.png"]
    assert match_rows(["1.png", "/set/0.png"], "", by_names(["0.png", "1.png"])) == ["1.png", None]
    assert match_rows(["0.png", "/set/0.png"], "", by_names(["0.png"])) == ["0.png", None]  # the exact one has it


def test_rows_without_a_picture_say_which_was_meant(raw: Path) -> None:
    put(raw, **{"metadata.csv": "file_name,text\nsub/kat.png,x\na.jpg,x\nzzzzzzzz.png,x\n"})
    (problem,) = found(raw, "sub/cat.png", "a.png")[2]
    assert problem.startswith("captions of pictures that do not exist (file_name is relative to the folder of the")
    assert problem.splitlines()[1:] == [
        f"       {raw}/metadata.csv line 2: 'sub/kat.png'. Did you mean 'sub/cat.png'?",
        f"       {raw}/metadata.csv line 3: 'a.jpg'. Did you mean 'a.png'?",
        f"       {raw}/metadata.csv line 4: 'zzzzzzzz.png'",
    ]


def test_the_order_of_the_forms(raw: Path) -> None:
    """One caption each, and a word for each that another goes before; an empty one goes before none."""
    forms = {
        "p0.txt": "first", "p0.png.txt": "second", "p0.tags": "third", "captions__p0.txt": "fourth",
        "p0.json": '{"caption": "fifth"}', "meta_cap.json": '{"p0": {"caption": "sixth"}}',
    }  # fmt: skip
    words = ["first", "second", "third", "fourth", "fifth", "sixth"]
    put(raw, **forms)
    for number, (name, word) in enumerate(zip(forms, words, strict=True)):
        captions, unused, problems = found(raw, "p0.png")
        assert captions == {"p0.png": word} and problems == []
        assert len(unused) == len(words) - number - 1
        assert all(f"not used: p0.png has its caption from {name.replace('__', '/')}" in why for _, why in unused)
        put(
            raw, **{name: " \n"} if not name.endswith("json") else {name: "{}" if "meta" in name else '{"caption": ""}'}
        )
    assert found(raw, "p0.png")[0] == {"p0.png": " \n"}


def test_equal_captions_of_two_forms_need_no_word(raw: Path) -> None:
    put(raw, **{"p0.txt": "a cat\n", "meta_cap.json": '{"p0": {"caption": "a cat"}}'})
    put(raw, **{"meta_lat.json": '{"p0": {"caption": "a cat"}}'})
    assert found(raw, "p0.png") == ({"p0.png": "a cat\n"}, [], [])


def test_two_captions_of_one_form_are_refused(raw: Path) -> None:
    put(raw, **{"meta_cap.json": '{"p0": {"caption": "a"}}', "meta_lat.json": '{"p0": {"caption": "b"}}'})
    (problem,) = found(raw, "p0.png")[2]
    assert problem.startswith("pictures with more than one caption.")
    assert problem.endswith(f"{raw}/p0.png: meta_cap.json key 'p0' and meta_lat.json key 'p0'")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("owl.txt", "an owl"),
        ("meta_cap.json", '{"owl": {"caption": "an owl"}}'),
        ("captions.csv", "picture,words\np0.png,a cat\n"),
        ("captions/owl.txt", "an owl"),
    ],
)
def test_captions_of_which_none_is_a_pictures_are_an_error(raw: Path, name: str, text: str) -> None:
    put(raw, **{name.replace("/", "__"): text})
    captions, _, problems = found(raw, "p0.png", "p1.png")
    assert captions == {}
    why = {
        "meta_cap.json": ": none of its rows names a picture of the folder",
        "captions.csv": ": holds no captions: line 1: needs the columns file_name and text (or caption), has: "
        "picture, words",
    }
    assert problems == [
        f"caption files are in {raw}, and none is a picture's. A caption has its picture's name (cat.txt for cat.png), "
        f"or names it in a row of its own. Rename these, or move them out of the folder:\n"
        f"       {name}{why.get(name, '')}\n"
        "       Pictures without a caption:\n       p0.png\n       p1.png"
    ]


def test_words_about_the_folder_are_no_captions(raw: Path) -> None:
    put(raw, **{"README.txt": "x", "license.txt": "x", "workflow.json": '{"nodes": [1]}', "prices.csv": "a,b\n1,2\n"})
    captions, unused, problems = found(raw, "p0.png")
    assert (captions, problems) == ({}, [])
    assert [path for path, _ in unused] == ["README.txt", "license.txt", "prices.csv", "workflow.json"]


def test_rows_of_a_table_that_name_no_picture_are_said(raw: Path) -> None:
    rows = {"p0": {"caption": "a"}, "gone": {"caption": "b"}, "gone2": {"caption": "c"}}
    put(raw, **{"meta_cap.json": json.dumps(rows)})
    assert found(raw, "p0.png") == (
        {"p0.png": "a"},
        [("meta_cap.json", "2 of its 3 rows name no picture, such as 'gone'")],
        [],
    )
    put(raw, **{"meta_cap.json": json.dumps({**rows, "p1.jpg": {"caption": "d"}})})
    (problem,) = found(raw, "p0.png", "p1.png")[2]
    assert problem.startswith("captions that would be lost.") and "key 'p1.jpg'. Did you mean 'p1.png'?" in problem
    put(raw, **{"p1.txt": "its own"})
    assert found(raw, "p0.png", "p1.png")[0] == {"p0.png": "a", "p1.png": "its own"}
    assert found(raw, "p0.png", "p1.png")[2] == []


def test_a_table_of_nearly_the_pictures_names_is_an_error(raw: Path) -> None:
    """Also where another picture has a caption: the folders of the rows are none of this folder's."""
    put(raw, **{"p1.txt": "x", "meta_cap.json": '{"/a/p0": {"caption": "a"}, "/b/p2": {"caption": "b"}}'})
    (problem,) = found(raw, "p0.png", "p1.png", "p2.png")[2]
    assert "key '/a/p0'. Did you mean 'p0.png'?" in problem and "key '/b/p2'. Did you mean 'p2.png'?" in problem


def test_rows_of_pictures_that_are_left_out_are_no_mistakes(raw: Path) -> None:
    put(raw, **{"metadata.csv": "file_name,text\na.png,a\na-mask.png,mask\n"})
    put(raw, **{"meta_cap.json": '{"/x/a": {"caption": "a"}, "/x/a-mask": {"caption": "mask"}}'})
    problems: list[str] = []
    files = ["a-mask.png", "a.png", "meta_cap.json", "metadata.csv"]
    captions, unused, _ = find_captions(raw, files, ["a.png"], problems, left_out=["a-mask.png"])
    assert ({path: one.text for path, one in captions.items()}, unused, problems) == ({"a.png": "a"}, [], [])
    put(raw, **{"metadata.csv": "file_name,text\nmasks/a.png,mask\n"})
    captions, unused, _ = find_captions(raw, ["metadata.csv"], ["a.png"], problems, left_out=["masks/a.png"])
    assert (captions, unused, problems) == ({}, [], [])


def test_a_broken_json_is_an_error_only_where_its_caption_would_be_lost(raw: Path) -> None:
    put(raw, **{"p0.json": '{"caption": "a ca'})
    (problem,) = found(raw, "p0.png")[2]
    assert problem.startswith("captions that would be lost.") and f"{raw}/p0.json: no JSON (" in problem
    put(raw, **{"p0.txt": "a cat"})
    captions, unused, problems = found(raw, "p0.png")
    assert (captions, problems) == ({"p0.png": "a cat"}, []) and unused[0][1].startswith("no JSON (")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"caption": "B\xe4r"}', "byte 14 (0xE4) is no UTF-8"),
        (b'{"caption": "\\ud800"}', "its caption holds half a letter"),
        (b'{"a": 1, "a": 2}', "no JSON (the key 'a' stands twice)"),
    ],
)
def test_a_json_of_one_picture_that_cannot_be_read(raw: Path, data: bytes, words: str) -> None:
    (raw / "p0.json").write_bytes(data)
    (problem,) = found(raw, "p0.png")[2]
    assert f"{raw}/p0.json: {words}" in problem


def test_a_json_of_two_pictures_is_an_error(raw: Path) -> None:
    put(raw, **{"p0.json": '{"caption": "a"}'})
    (problem,) = found(raw, "p0.png", "p0.jpg")[2]
    assert f"{raw}/p0.json: the JSON of one picture, called after several: p0.jpg and p0.png" in problem


def test_json_of_other_programs_is_no_caption(raw: Path) -> None:
    """Outlines of labelme, a workflow: named, and the picture is as without them."""
    put(raw, **{"p0.json": '{"version": "5.0", "shapes": [], "imageData": "' + "A" * 5_000_000 + '"}'})
    assert found(raw, "p0.png") == ({}, [("p0.json", "holds neither caption nor tags")], [])


@pytest.mark.parametrize("suffix", ["", ".supplemental-metadata", ".supplemental-me", ".suppl"])
def test_what_google_takeout_writes_of_each_picture_and_album(raw: Path, suffix: str) -> None:
    facts = '{"title": "p0.jpg", "description": "%s", "geoData": {"latitude": 0.0}}'
    put(raw, **{f"p0.jpg{suffix}.json": facts % "a cat", f"p1.jpg{suffix}.json": facts % ""})
    put(raw, **{"metadata.json": '{"title": "Cats", "description": "", "date": {"timestamp": "1"}}'})
    captions, unused, problems = found(raw, "p0.jpg", "p1.jpg")
    assert captions == {"p0.jpg": "a cat"} and problems == []
    assert {why for _, why in unused} == {"holds neither caption nor tags"}
    (raw / f"p0.jpg{suffix}.json").unlink()
    assert found(raw, "p0.jpg", "p1.jpg")[::2] == ({}, [])  # captions by trigger alone are no mistake


@pytest.mark.parametrize("name", ["cat.jpg(1).json", "cat.jpg.supplemental-metadata(1).json", "cat(1).jpg.json"])
def test_googles_json_of_a_second_picture_of_one_name(raw: Path, name: str) -> None:
    put(raw, **{name: '{"title": "cat.jpg", "description": "the second"}', "cat.jpg.json": '{"description": "first"}'})
    assert found(raw, "cat.jpg", "cat(1).jpg") == ({"cat.jpg": "first", "cat(1).jpg": "the second"}, [], [])
    captions, unused, _ = find_captions(raw, [name, "cat.jpg.json"], ["cat.jpg"], [], left_out=["cat(1).jpg"])
    assert captions["cat.jpg"].text == "first" and unused == [(name, "left out with its picture: cat(1).jpg")]


def test_several_texts_of_one_picture_under_names_of_no_known_form_are_none(raw: Path) -> None:
    put(raw, **{"p0.json": '{"long_caption": "a", "short_caption": "b"}'})
    assert found(raw, "p0.png") == ({}, [("p0.json", "holds neither caption nor tags")], [])


def test_columns_of_captions_without_a_name_are_said(raw: Path) -> None:
    put(raw, **{"shard.csv": "hash,caption\n17,a cat\n", "Details.csv": "imgName,favorite\np0.png,no\n"})
    problem = "".join(found(raw, "p0.png")[2])
    assert "shard.csv: holds no captions: line 1: needs the columns" in problem and "Details" not in problem


def test_a_link_to_nothing_is_told(raw: Path) -> None:
    (raw / "p0.txt").symlink_to("gone.txt")
    assert "p0.txt: missing, or a link to nothing." in found(raw, "p0.png")[2][0]


def test_only_regular_files_of_the_folder_are_read(raw: Path) -> None:
    """A pipe is not waited for, a device not read to its end, and what lies elsewhere is nobody's caption."""
    os.mkfifo(raw / "a.txt")
    (raw / "b.txt").symlink_to("/dev/zero")
    (raw / "c.txt").symlink_to("/etc/passwd")
    (raw / "d.txt").symlink_to("nowhere.txt")
    (raw / "e.txt").write_text("x" * 300_000)
    (raw / "f.txt").symlink_to("f.caption")
    (raw / "f.caption").write_text("f")
    os.mkfifo(raw / "metadata.jsonl")
    (raw / "captions.json").symlink_to("/dev/zero")
    _, unused, problems = found(raw, *(f"{name}.png" for name in "abcde"))
    first, second = problems
    assert first.splitlines() == [
        f"5 caption files of {raw} cannot be read:",
        f"       {raw}/a.txt: a pipe, no file. Remove it.",
        f"       {raw}/b.txt: a link out of {raw}, to /dev/zero. Copy the file here, or remove the link.",
        f"       {raw}/c.txt: a link out of {raw}, to /etc/passwd. Copy the file here, or remove the link.",
        f"       {raw}/d.txt: missing, or a link to nothing. Restore it, or remove it.",
        f"       {raw}/e.txt: 300,000 bytes, and at most 262,144 are read. Shorten it, or remove it.",
    ]
    assert second.splitlines()[1:] == [f"       {raw}/metadata.jsonl: a pipe, no file. Remove it."]
    assert ("captions.json", f"a link out of {raw}, to /dev/zero. Copy the file here, or remove the link.") in unused


def test_links_within_the_folder_and_into_dvcs_cache_are_read(raw: Path, tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    link.symlink_to(real)  # a data/raw that is a link itself
    put(real, **{"texts__0.txt": "zero"})
    (real / "a.txt").symlink_to("texts/0.txt")
    cached = tmp_path / "files" / "md5" / "ab" / ("c" * 30)
    cached.parent.mkdir(parents=True)
    cached.write_text("one")
    (real / "b.txt").symlink_to(cached)
    problems: list[str] = []
    captions, _, _ = find_captions(link, ["a.png", "a.txt", "b.png", "b.txt"], ["a.png", "b.png"], problems)
    assert {path: caption.text for path, caption in captions.items()} == {"a.png": "zero", "b.png": "one"}
    assert problems == []


def test_thousands_of_rows_without_a_picture_take_no_time() -> None:
    pictures = by_names(f"{number:05}.png" for number in range(5_000))
    names = [f"/x/{number:05}_.png" for number in range(5_000)]
    start = time.process_time()
    assert match_rows(names, "", pictures) == [None] * 5_000
    assert [nearest(name, pictures) for name in names] == [None] * 5_000
    assert match_rows(["a/" * 100_000 + "0.png"] * 9, "", pictures) == [None] * 9
    assert time.process_time() - start < 5


NAMES = st.sampled_from(["a", "A", "b", "a.v1", NFC, NFD, "1"])
FOLDERS = st.sampled_from(["", "x/", "captions/", "images/", "X/captions/"])
PATHS = st.builds(lambda folder, name, end: folder + name + end, FOLDERS, NAMES, st.sampled_from([".png", ".jpg"]))
ENDS = [".txt", ".caption", ".tags", ".png.txt", ".jpg.TXT", ".json"]
OTHERS = st.builds(lambda folder, name, end: folder + name + end, FOLDERS, NAMES, st.sampled_from(ENDS))
TABLES = ["meta_cap.json", "x/metadata.jsonl", "captions.csv"]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.sets(PATHS, min_size=1, max_size=5),
    st.sets(OTHERS, max_size=5),
    st.sampled_from(TABLES),
    st.lists(PATHS, max_size=3),
)
def test_no_caption_is_lost_without_a_word(
    raw: Path, pictures: set[str], sidecars: set[str], table: str, rows: list[str]
) -> None:
    """Each caption is a picture's, one alone, or a line or an error names its file."""
    for old in sorted(raw.rglob("*"), reverse=True):
        old.rmdir() if old.is_dir() else old.unlink()
    texts = {name: f"text of {name}" for name in sidecars}
    put(raw, **{name: json.dumps({"caption": text}) if ".json" in name else text for name, text in texts.items()})
    if table == "meta_cap.json":
        put(raw, **{table: json.dumps({row: {"caption": f"row {row}"} for row in rows})})
    elif table == "captions.csv":
        put(raw, **{table: "image,text\n" + "".join(f"{row},row {row}\n" for row in rows)})
    else:
        lines = [json.dumps({"file_name": row, "text": f"row {row}"}) for row in rows]
        put(raw, **{table: "\n".join(lines)})
    captions, unused, problems = found(raw, *sorted(pictures))
    assert set(captions) <= pictures
    assert len(set(captions.values())) == len(captions), "one caption of two pictures"
    if not problems:
        said = "\n".join(f"{path}: {why}" for path, why in unused)
        assert [name for name, text in texts.items() if text not in captions.values() and name not in said] == []
        lost = [row for row in rows if f"row {row}" not in captions.values()]
        assert not lost or table in said
