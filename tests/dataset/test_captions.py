"""Caption rules one by one, the trigger, the variants, the tables and the report."""

import time
import unicodedata
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eridiff.core.config import validate
from eridiff.core.errors import ConfigError, DataError
from eridiff.dataset.caption.rules import RULES
from eridiff.dataset.caption_report import report
from eridiff.dataset.captions import (
    CAPTION_COLUMNS,
    IMAGE_COLUMNS,
    caption_variants,
    captions_rows,
    clean_caption,
    images_rows,
)
from eridiff.dataset.folder_files import Ignored
from eridiff.dataset.pictures import Picture
from eridiff.formats.tables import read_table, write_table
from eridiff.params.captions import CaptionParams, RuleName

ALL = list(RULES)


def params(**values: Any) -> CaptionParams:
    return validate(CaptionParams, values, where="params.yaml", prefix="captions")


def cleaned(raw: str | None, **values: Any) -> str:
    return clean_caption(raw, params(**{"rules": ALL, **values})).text


def picture(path: str, caption: str | None = None, **values: Any) -> Picture:
    known = {"file_digest": path, "width": 4, "height": 3, "orientation": 1, "repeats": 1}
    return Picture(path=path, caption=caption, caption_source=None, **{**known, **values})


def test_the_table_holds_every_named_rule() -> None:
    assert tuple(RULES) == get_args(RuleName)


@pytest.mark.parametrize(
    ("rule", "raw", "clean"),
    [
        ("html_tags", "a <b>red</b> <i class='x'>cat</i>", "a red cat"),
        ("html_tags", "a cat,<br/>a dog<BR>x<p>y</p>", "a cat,\na dog\nx\ny\n"),
        ("html_tags", "a<!-- no\nword -->b", "ab"),
        ("html_tags", "I <3 it, a < b > c, <lora:x:1>, <a cat>", "I <3 it, a < b > c, <lora:x:1>, <a cat>"),
        ("html_entities", "Tom &amp; Jerry&#39;s &#x2013; &lt;b&gt;", "Tom & Jerry's – <b>"),
        ("html_entities", "AT&T, cats & dogs, &copy, &amp;amp; &nosuch;", "AT&T, cats & dogs, &copy, &amp; &nosuch;"),
        ("html_entities", "&#" + "1" * 5_000 + "; &#" + "0" * 5_000 + "65;", "&#" + "1" * 5_000 + "; A"),
        ("html_entities", "&#x" + "f" * 5_000 + "; &#xD800; &notes;", "&#x" + "f" * 5_000 + "; \ufffd &notes;"),
        ("unicode", "a\u00a0cat\u2003x\u200b\u200dy\ufeff\u00ad", "a cat xy"),
        ("unicode", "\u201ccafe\u0301\u201d \u2018x\u2019\u2026\u2028z", "\"caf\u00e9\" 'x'...\nz"),
        ("unicode", "a\x0bcat\x00 ~", "a\ncat ~"),
        ("unicode", "a\tb\nc\r\nd — 🐙", "a\tb\nc\r\nd — 🐙"),
        ("other_scripts", "a cat\n一只猫\nкошка, cat\n♥ 3\nun café", "a cat\n♥ 3\nun café"),
        ("other_scripts", "line one  \r\nline two", "line one  \r\nline two"),
        ("file_names", "IMG_2031.JPG, a cat", "a cat"),
        ("file_names", "a cat, DSC01234, sitting, foo.png", "a cat, sitting"),
        ("file_names", "cat_final_v2, file_name_v2, PXL_20240131_123456, _MG_0001, P1010234", ""),
        ("file_names", "photo (IMG-20240101-WA0001.jpg) of a cat\nfoo.webp\nb", "photo of a cat\n\nb"),
        (
            "file_names",
            "model v2, 1girl, img, 3.5 stars, a_red_hat",
            "model v2, 1girl, img, 3.5 stars, a_red_hat",
        ),
        ("underscores", "red_apple, o_o, ^_^, a__b_c", "red apple, o_o, ^_^, a  b c"),
        ("whitespace", "  a   cat\t\r\n\r\n  red hat \n", "a cat, red hat"),
        ("whitespace", "A cat sits\non a mat.\nIt sleeps.", "A cat sits on a mat. It sleeps."),
        ("whitespace", "a cat,\nred hat:\nblue", "a cat, red hat: blue"),
        ("duplicate_tags", "a cat, Red,a Cat, red ,blue", "a cat, Red,blue"),
        ("duplicate_tags", "a, , b,, c", "a, , b,, c"),
        ("punctuation", " , a cat ,, , red,blue , 1,000 ; ", "a cat, red, blue, 1,000"),
    ],
)
def test_each_rule(rule: RuleName, raw: str, clean: str) -> None:
    assert RULES[rule](raw) == clean


@pytest.mark.parametrize("rule", ALL)
@given(st.text(alphabet=st.one_of(st.characters(), st.sampled_from(" ,\n&;<>_.b/")), max_size=30))
def test_rules_settle(rule: RuleName, text: str) -> None:
    once = RULES[rule](text)
    if rule not in ("html_tags", "html_entities"):  # `&amp;amp;` is one level a time
        assert RULES[rule](once) == once
    assert RULES[rule]("") == ""


def test_rules_run_in_one_order_whatever_the_order_in_params() -> None:
    raw = "&lt;b&gt; a_cat<br>一只猫\nbig_C, A_cat"
    results = {cleaned(raw, rules=rules) for rules in (ALL, ALL[::-1], sorted(ALL))}
    assert results == {"<b> a cat, big C, A cat"}


def test_rules_that_are_off_do_nothing() -> None:
    raw = "a <b>cat</b> &amp; xx_y,, IMG_1234.JPG  \u00a0z"
    assert cleaned(raw, rules=[]) == raw
    assert cleaned(raw, rules=["underscores"]) == raw.replace("_", " ")


def test_blank_ends_are_no_content_and_fire_no_rule() -> None:
    result = clean_caption("a cat\r\n", params(rules=ALL))
    assert (result.text, result.rules_fired) == ("a cat", ())
    assert cleaned(" a cat\n", rules=[]) == "a cat"


def test_rules_fired_are_named_in_order() -> None:
    result = clean_caption("a <b>cat</b> &amp; A_dog\nx,, x", params(rules=ALL[::-1], trigger="tok"))
    assert result.text == "tok, a cat & A dog, x"
    assert result.rules_fired == (
        "html_tags", "html_entities", "underscores", "whitespace", "trigger", "duplicate_tags", "punctuation",
    )  # fmt: skip


def test_the_trigger_is_put_in_front_where_it_is_missing() -> None:
    assert cleaned("a cat", trigger="tok") == "tok, a cat"
    assert cleaned("a tok cat", trigger="tok") == "a tok cat"
    assert cleaned("a token", trigger="tok") == "tok, a token"  # no whole word
    assert cleaned("a Tok cat", trigger="tok") == "tok, a Tok cat"  # case counts
    assert cleaned("<tok> cat", trigger="<tok>") == "<tok> cat"
    assert cleaned("by ohwx man, x", trigger="ohwx man") == "by ohwx man, x"
    assert clean_caption("a tok cat", params(trigger="tok")).rules_fired == ()


def test_the_trigger_does_not_stand_twice_in_two_cases() -> None:
    assert cleaned("Tok, a cat", trigger="tok") == "tok, a cat"
    assert cleaned("Tok, a cat, tok", trigger="tok") == "Tok, a cat, tok"  # it is there: nothing to put in front


def test_rules_leave_the_trigger_alone() -> None:
    assert cleaned("my_style_v2, a_red_cat, foo_v2", trigger="my_style_v2") == "my_style_v2, a red cat"
    assert cleaned("a_red_cat", trigger="a_red_cat", rules=["underscores"]) == "a_red_cat"


def test_prefix_and_suffix_stand_as_written_around_each_variant() -> None:
    result = clean_caption("a, b", params(prefix="photo of ", suffix=" --x", variants=2, shuffle_tags=True))
    assert result.text == "photo of a, b --x"
    assert sorted(result.variants) == ["photo of a, b --x", "photo of b, a --x"]
    assert cleaned("a cat", prefix="tok style, ", trigger="tok") == "tok style, a cat"
    assert cleaned(None, prefix="a tok ", trigger="tok", class_word="toy") == "a tok toy"


@pytest.mark.parametrize("raw", [None, "", " \r\n", ",, .", "IMG_2031.JPG", "一只猫"])
def test_without_a_caption_trigger_and_class_word_stand_in(raw: str | None) -> None:
    assert cleaned(raw, trigger="tok", class_word="toy") == "tok toy"
    assert cleaned(raw, trigger="tok") == "tok"
    assert cleaned(raw, class_word="toy") == "toy"
    fired = clean_caption(raw, params(rules=ALL, trigger="tok", class_word="toy")).rules_fired
    assert fired[-2:] == ("trigger", "class_word")


def test_pictures_of_which_nothing_is_said_are_refused() -> None:
    pictures = [picture("b.png"), picture("a.png", "fine"), picture("c/d.png", "IMG_1234.JPG"), picture("e.png", "")]
    with pytest.raises(DataError) as caught:
        captions_rows(pictures, params(rules=ALL))
    assert str(caught.value) == (
        "pictures without a caption, or with one of which the rules leave nothing. Add a caption to each "
        "(cat.txt for cat.png), or set captions.trigger or captions.class_word:"
        "\n       b.png\n       c/d.png: 'IMG_1234.JPG'\n       e.png"
    )


TAGS = "tok, a, b, c, d, e, f"


def test_variants_are_distinct_orders_of_the_same_tags() -> None:
    chosen = params(variants=50, shuffle_tags=True, keep_tokens=2)
    variants = caption_variants(TAGS, chosen)
    assert len(set(variants)) == len(variants) == 50
    assert all(variant.startswith("tok, a, ") for variant in variants)
    assert {tuple(sorted(variant.split(", "))) for variant in variants} == {tuple(sorted(TAGS.split(", ")))}


def test_variants_depend_on_seed_and_text_alone() -> None:
    four = params(variants=4, shuffle_tags=True)
    assert caption_variants(TAGS, four) == caption_variants(TAGS, four)
    assert caption_variants(TAGS, params(variants=9, shuffle_tags=True))[:4] == caption_variants(TAGS, four)
    assert caption_variants(TAGS, params(variants=4, shuffle_tags=True, seed=1)) != caption_variants(TAGS, four)
    before = captions_rows([picture("a", TAGS), picture("b", "x, y, z")], four)
    after = captions_rows([picture("a", TAGS), picture("b", "x, y, w, z")], four)
    assert before[0] == after[0] and before[1] != after[1]


def test_variants_are_the_same_on_every_machine() -> None:
    assert caption_variants(TAGS, params(variants=3, shuffle_tags=True, keep_tokens=1)) == (
        "tok, b, f, e, d, c, a",
        "tok, c, f, a, d, e, b",
        "tok, a, e, d, f, b, c",
    )


@pytest.mark.parametrize(("text", "count"), [("a", 1), ("a, b", 2), ("a, b, c", 6), ("a, a, b", 3), ("", 1)])
def test_short_captions_have_as_many_variants_as_orders(text: str, count: int) -> None:
    assert len(caption_variants(text, params(variants=20, shuffle_tags=True))) == count


def test_twenty_thousand_tags_take_linear_time() -> None:
    tags = [f"tag {number}" for number in range(10_000)] * 2
    start = time.process_time()
    assert cleaned(", ".join(tags)) == ", ".join(tags[:10_000])
    assert caption_variants(", ".join(["x"] * 20_000), params(variants=1000, shuffle_tags=True)) == (
        ", ".join(["x"] * 20_000),
    )
    assert len(caption_variants(", ".join(tags), params(variants=3, shuffle_tags=True))) == 3
    assert time.process_time() - start < 10


@pytest.mark.parametrize(
    ("tags", "orders"), [("aab", 3), ("aabb", 6), ("a" * 70, 1), ("aaaabbbb", 70), ("aaabbbccc", 1000)]
)
def test_orders_of_equal_tags_are_counted(tags: str, orders: int) -> None:
    text = ", ".join(tags)
    assert len(caption_variants(text, params(variants=1000, shuffle_tags=True))) == orders


def test_what_stands_for_the_trigger_inside_says_nothing_in_a_caption() -> None:
    assert cleaned("a \ufdd0 cat", trigger="tok", rules=["whitespace"]) == "tok, a cat"


def test_without_shuffling_the_caption_is_its_only_variant() -> None:
    assert clean_caption("b,  a", params()).variants == ("b, a",)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"trigger": "a, b"}, "'captions.trigger' is 'a, b': must be a word or words, without commas"),
        ({"trigger": ""}, "'captions.trigger' is ''"),
        ({"class_word": " toy"}, "'captions.class_word' is ' toy'"),
        ({"regularisation": ["plain/"]}, "'captions.regularisation.0' is 'plain/': must be a folder below data/raw"),
        ({"regularisation": ["/plain"]}, "is '/plain': must be"),
        ({"regularisation": ["a/../b"]}, "is 'a/../b': must be"),
        ({"regularisation": ["."]}, "is '.': must be"),
        ({"regularisation": [""]}, "is '': must be"),
        ({"variants": 4}, "'captions.shuffle_tags' is False: 4 variants would be equal"),
        ({"variants": 0}, "'captions.variants' is 0"),
        ({"rules": ["underscore"]}, "which is none of its choices. Did you mean 'underscores'?"),
        ({"triger": "x"}, "unknown key 'captions.triger' (value 'x'). Did you mean 'trigger'?"),
    ],
)
def test_wrong_params_are_named(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        params(**values)
    assert words in str(caught.value)


def test_lines_are_alternatives_where_params_say_so() -> None:
    """Each line by itself, with its own variants; one line alone, or the param left out, is as ever."""
    raw = "a fox, red, small\n\na red fox on snow\na fox, red, small\n"
    (row,) = captions_rows([picture("a.png", raw)], params(alternatives=True, trigger="trg"))
    assert row["variants"] == ["trg, a fox, red, small", "trg, a red fox on snow"]
    assert (row["clean"], row["rules"]) == (", ".join(row["variants"]), ["trigger"])
    (row,) = captions_rows(
        [picture("a.png", raw)], params(alternatives=True, variants=2, shuffle_tags=True, keep_tokens=1)
    )
    assert [text.split(", ")[0] for text in row["variants"]] == ["a fox", "a fox", "a red fox on snow"]
    joined = "a fox, red, small, a red fox on snow, a fox, red, small"
    assert captions_rows([picture("a.png", raw)], params())[0]["variants"] == [joined]
    assert captions_rows([picture("a.png", "a fox, red")], params(alternatives=True))[0]["variants"] == ["a fox, red"]


def test_tables_hold_each_their_own_columns(tmp_path: Path) -> None:
    pictures = [picture("b.png", "x", repeats=2), picture("a.png", None, orientation=6)]
    images = images_rows(pictures)
    assert images[0] == {
        "path": "a.png", "file_digest": "a.png", "width": 4, "height": 3, "orientation": 6, "repeats": 1,
    }  # fmt: skip
    captions = captions_rows(pictures, params(trigger="tok"))
    assert captions == [
        {"path": "a.png", "raw": "", "clean": "tok", "variants": ["tok"], "rules": ["trigger"]},
        {"path": "b.png", "raw": "x", "clean": "tok, x", "variants": ["tok, x"], "rules": ["trigger"]},
    ]
    for rows, columns in ((images, IMAGE_COLUMNS), (captions, CAPTION_COLUMNS)):
        write_table(tmp_path / "t.parquet", rows, columns)
        assert read_table(tmp_path / "t.parquet")[0] == rows


REGULARISING = params(rules=ALL, trigger="tok", class_word="toy", prefix="photo of ", regularisation=["plain", "b/c"])


def test_regularisation_pictures_get_neither_trigger_nor_class_word() -> None:
    paths = ("a.png", "b/a.png", "b/c/a.png", "b/cc/a.png", "plain/a.png", "plain/2_x/d/a.png", "plainer/a.png")
    pictures = [picture(path, "a_fox") for path in paths]
    rows = captions_rows(pictures, REGULARISING)
    told, plain = "photo of tok, a fox", "photo of a fox"
    assert [row["clean"] for row in rows] == [told, told, plain, told, plain, plain, told]
    assert [row["variants"] for row in rows] == [[row["clean"]] for row in rows]
    assert [row["rules"] for row in rows][2:4] == [["underscores"], ["underscores", "trigger"]]
    last = report(pictures, rows, [], REGULARISING).splitlines()[1]
    assert last == "regularisation: 3 pictures without the trigger"


def test_regularisation_pictures_without_a_caption_are_refused() -> None:
    pictures = [picture("plain/a.png", "IMG_1234.JPG"), picture("b/c/a.png", "x"), picture("a.png")]
    with pytest.raises(DataError) as caught:
        captions_rows(pictures, params(rules=ALL, trigger="tok", class_word="toy", regularisation=["plain"]))
    assert str(caught.value) == (
        "pictures without a caption, or with one of which the rules leave nothing. Regularisation pictures "
        "(captions.regularisation) get neither trigger nor class word, so each needs a caption of its own "
        "(cat.txt for cat.png):\n       plain/a.png: 'IMG_1234.JPG'"
    )


def test_regularisation_pictures_with_the_trigger_are_refused() -> None:
    pictures = [picture("plain/a.png", "a token"), picture("plain/b.png", "by tok"), picture("b/c/a.png", "x")]
    with pytest.raises(DataError, match=r"with the trigger 'tok'.*:\n       plain/b.png: 'photo of by tok'$"):
        captions_rows(pictures, REGULARISING)
    with pytest.raises(DataError, match=r"plain/a.png: 'tok style, x'$"):
        captions_rows(
            [picture("plain/a.png", "x")], params(trigger="tok", prefix="tok style, ", regularisation=["plain"])
        )


def test_a_regularisation_folder_without_pictures_is_refused() -> None:
    with pytest.raises(DataError) as caught:
        captions_rows([picture("plain/x/a.png", "y"), picture("bc/a.png", "x")], REGULARISING)
    assert str(caught.value) == (
        "params.yaml: captions.regularisation names 'b/c', which holds no picture. "
        "Folders with pictures: bc, plain, plain/x."
    )
    with pytest.raises(DataError, match=r"names 'plain', which holds no picture. No folder holds pictures."):
        captions_rows([picture("a.png", "y")], REGULARISING)


def test_mistakes_of_every_kind_are_named_at_once() -> None:
    options = params(trigger=None, class_word=None, regularisation=["plain"])
    with pytest.raises(
        DataError, match=r"names 'plain', which holds no picture(.|\n)*\nerror: pictures without a caption"
    ):
        captions_rows([picture("b.png", None)], options)


def test_report_says_how_many_have_no_caption() -> None:
    pictures = [picture("a.png", "a cat"), picture("b.png", None), picture("c.png", " \n")]
    lines = report(pictures, captions_rows(pictures, params(trigger="tok")), [], params(trigger="tok")).splitlines()
    assert lines[1] == "without a caption of their own: 2 of them, such as b.png"


def test_report_counts_rules_and_names_what_is_ignored() -> None:
    pictures = [
        picture("2_x/a.png", "a_red_cat", repeats=2, file_digest="same"),
        picture("2_x/b.png", "a_red_dog,, tok", repeats=2),
        picture("c.png", "tok", file_digest="same"),
    ]
    rows = captions_rows(pictures, params(rules=ALL, trigger="tok"))
    assert report(pictures, rows, [Ignored(path="notes.md", reason="neither a picture nor a caption")], params()) == (
        "captions: 3 pictures; underscores 2, punctuation 1, trigger 1\n"
        "repeats: 2_x/: 2 times each of 2 pictures\n"
        "same picture: 2_x/a.png, c.png\n"
        "ignored: notes.md: neither a picture nor a caption"
    )
    many = [Ignored(path=f"{number:02}.md", reason=f"no: {number}") for number in range(25)]
    assert report(pictures, rows, many, params()).splitlines()[-2:] == ["ignored: 19.md: no: 19", "ignored: 5 more: no"]
    last = report(pictures, rows, [Ignored(path="\x1b[31m\nerror: x", reason="no")], params()).splitlines()[-1]
    assert last.startswith("ignored: ") and last.endswith("error: x: no") and last.isprintable()
    assert report(pictures[2:], rows[2:], [], params()) == "captions: 1 pictures; no rule changed anything"


def test_the_report_of_thousands_of_files_is_read_by_a_person() -> None:
    """600 equal pictures with masks and captions of these, each in a folder of its own: a line of each kind."""
    pictures = [picture(f"2_{n}/a.png", "tok", repeats=2, file_digest=str(n % 300)) for n in range(600)]
    gone = [Ignored(path=f"{n}-mask.txt", reason=f"left out with its picture: {n}-mask.png") for n in range(600)]
    gone += [Ignored(path=f"{n}-mask.png", reason=f"a mask of {n}.png: rename it", kind="mask") for n in range(600)]
    lines = report(pictures, captions_rows(pictures, params(trigger="tok")), gone, params()).splitlines()
    assert len(lines) == 1 + 4 * 21
    assert lines[21] == "repeats: 580 more" and lines[42] == "same picture: 280 more"
    assert lines[-2:] == ["ignored: 580 more: left out with its picture", "ignored: 580 more: mask"]


STRICT = params(rules=ALL, trigger="tok_v2", class_word="toy")


@given(st.text(max_size=40))
def test_a_cleaned_caption_always_holds_the_trigger(raw: str) -> None:
    result = clean_caption(raw, STRICT)
    assert "tok_v2" in result.text and result.variants
    assert unicodedata.is_normalized("NFC", result.text)
    assert "\n" not in result.text and ",," not in result.text and result.text == result.text.strip()
