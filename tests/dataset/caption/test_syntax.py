"""Syntax of other programs in captions: each rule, what it leaves alone, and that plain captions stay as they are."""

import re
import time
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eridiff.core.config import load_section, validate
from eridiff.core.errors import ConfigError, DataError
from eridiff.dataset.caption.rules import RULES
from eridiff.dataset.caption.syntax import MAX_CHOICES, SYNTAX, left_over, versions
from eridiff.dataset.caption_report import report
from eridiff.dataset.captions import captions_rows, clean_alternatives
from eridiff.dataset.pictures import Picture
from eridiff.params.captions import CaptionParams, SyntaxName
from eridiff.params.trigger import HIDDEN

ROOT = Path(__file__).parent.parent.parent.parent
BIG = 1 << 16  # bytes; where time grows with the square, minutes


def params(**values: Any) -> CaptionParams:
    return validate(CaptionParams, values, where="params.yaml", prefix="captions")


def picture(path: str, caption: str) -> Picture:
    return Picture(
        path=path, file_digest=path, width=4, height=3, orientation=1, repeats=1, caption=caption, caption_source=None
    )


def variants(raw: str, **values: Any) -> tuple[str, ...]:
    return clean_alternatives(raw, params(**values)).variants


def test_the_table_holds_every_named_rule_and_all_are_on() -> None:
    assert tuple(SYNTAX) == get_args(SyntaxName) == CaptionParams().syntax
    assert not set(SYNTAX) & set(RULES)


@pytest.mark.parametrize(
    ("rule", "raw", "text"),
    [
        ("json_captions", '{"caption": "a cat", "tags": ["sofa", "1cat"]}', "a cat, sofa, 1cat"),
        ("json_captions", ' {"text": "a cat",\n "score": 0.3}\n', "a cat"),
        ("json_captions", '["a cat", "sofa"]', "a cat, sofa"),
        ("json_captions", '{"tag_string": "1cat sofa"}', "1cat, sofa"),
        ("json_captions", '{"tags": "1cat ganyu_(genshin_impact) sofa"}', "1cat, ganyu_(genshin_impact), sofa"),
        ("json_captions", '{"tags": "red sofa"}', "red sofa"),
        ("json_captions", '{"tags": "red_sofa, a cat"}', "red_sofa, a cat"),
        ("json_captions", '{"tags": {"general": ["1cat", "sofa"], "artist": [], "x": ["y"]}}', "1cat, sofa, y"),
        ("json_captions", '{"caption": ["one", "two"]}', "one\ntwo"),
        ("json_captions", '{"<CAPTION>": "a cat"}', "a cat"),
        ("trigger_places", "[trigger], a {trigger_word} by {{trigger}}", f"{HIDDEN}, a {HIDDEN} by {HIDDEN}"),
        ("trigger_places", "[Trigger Words] <trigger> {triggerword}", f"{HIDDEN} {HIDDEN} {HIDDEN}"),
        ("networks", "a cat, <lora:my cat v1:0.8>, sofa", "a cat, sofa"),
        ("networks", "<lyco:x:1> a <LoRA:y:1:1>cat <hypernet:z:1>", " acat"),
        ("embeddings", "a cat, embedding:bad_hands.pt, sofa", "a cat, sofa"),
        ("embeddings", "(embedding:sdxl\\bad:1.2), a embedding:x:0.5 cat", " a cat"),
        ("separators", "ohwx, 1cat ||| sofa, red", "ohwx, 1cat, sofa, red"),
        ("separators", "a,|||,b;;;c", "a, b, c"),
        ("choices", "a {red|blue} cat", "a red cat"),
        ("choices", "a [red|blue] cat", "a red cat"),
        ("choices", "{0.7::red|blue} cat", "red cat"),
        ("breaks", "a cat BREAK a dog", "a cat, a dog"),
        ("breaks", "a cat, BREAK, a dog", "a cat, a dog"),
        ("breaks", "a cat\nBREAK\na dog", "a cat\n\na dog"),
        ("weights", "(a cat:1.3), (red :0.8), (b:.5), (c:2)", "a cat, red , b, c"),
        ("weights", "((a cat)), [[red]], {{{blue}}}", "a cat, red, blue"),
        ("weights", "((a), b:1.2)", "(a), b"),
        ("weights", r"(ganyu \(genshin impact\):1.2)", r"ganyu \(genshin impact\)"),
        ("escapes", r"ganyu \(genshin impact\), \[a\], \{b\}", "ganyu (genshin impact), [a], {b}"),
        ("spaced_tags", "1girl long_hair blue_eyes", "1girl, long_hair, blue_eyes"),
        (
            "spaced_tags",
            "tok, 1girl ganyu_(x) :3 solo\n2boys  red_tie",
            "tok, 1girl, ganyu_(x), :3, solo\n2boys, red_tie",
        ),
        ("wide_commas", "猫，红色、沙发", "猫, 红色, 沙发"),
        ("wide_commas", "a， b，\nc、", "a, b,\nc,"),
    ],
)
def test_each_rule(rule: SyntaxName, raw: str, text: str) -> None:
    assert SYNTAX[rule](raw) == text


@pytest.mark.parametrize(
    ("rule", "raw"),
    [
        ("json_captions", "[1920s]"),
        ("json_captions", "{a cat}"),
        ("json_captions", '{"width": 3}'),
        ("json_captions", '{"a": 1, "a": 2}'),
        ("json_captions", '{"caption": "\\ud800"}'),
        ("json_captions", "[" * 100_000),
        ("json_captions", '{"caption": ' + "9" * 5_000 + "}"),
        ("trigger_places", "a trigger, [triggers], {trigger warning}, (trigger)"),
        ("networks", "I <3 it, <b>, a < b : c >"),
        ("embeddings", "embedding: a book, word embedding:5, pre-embedding:x, an embedding"),
        ("separators", "a | b || c; d"),
        ("choices", "a | b, {a}, [b], {2$$a|b}, {a|b"),
        ("breaks", 'a sign "BREAK GLASS", COFFEE BREAK, "BREAK", breaks, Break, it says BREAK'),
        ("weights", "(a), [b], {c}, (ratio 16:9), (at 4:3.5), (part: 2), (10:30), :), ((a) (b)), f(g(x))"),
        ("weights", r"\((a)\), (a:b), (a:1.3"),
        ("escapes", r"a\b \n ( ), \(^o^)/, \m/, \["),
        ("spaced_tags", "a photo of sks_man in my_style\nSks_man my_style\nsks_man my_style. red\nred_tie, blue_tie"),
        ("spaced_tags", "1girl solo smile, red_tie cat, cat_1.png dog_2.png cow, o_o t_t x, __a_b__ __c_d__ x"),
        ("wide_commas", "猫。红色, 1,000"),
    ],
)
def test_what_is_not_certainly_syntax_stays(rule: SyntaxName, raw: str) -> None:
    assert SYNTAX[rule](raw) == raw


def test_places_of_the_trigger_are_filled() -> None:
    assert variants("a [trigger] cat", trigger="ohwx man") == ("a ohwx man cat",)
    assert variants("{trigger_word}, a cat", trigger="{x}") == ("{x}, a cat",)
    assert variants('{"caption": "[trigger] sits"}', trigger="tok") == ("tok sits",)
    assert clean_alternatives("[trigger], a", params(trigger="tok")).rules_fired == ("trigger_places",)


def test_places_that_nothing_fills_are_refused() -> None:
    pictures = [picture("a.png", "[trigger], a cat"), picture("b.png", "a cat"), picture("c.png", "{{trigger}}")]
    with pytest.raises(DataError) as caught:
        captions_rows(pictures, params())
    assert str(caught.value) == (
        "captions hold a place for the trigger, and captions.trigger is not set. Set it, or take `trigger_places` out "
        "of captions.syntax to train these:\n       a.png: '[trigger]'\n       c.png: '{{trigger}}'"
    )
    kept = tuple(name for name in SYNTAX if name != "trigger_places")
    assert captions_rows(pictures, params(syntax=kept))[0]["clean"] == "[trigger], a cat"
    with pytest.raises(DataError, match=r"a place for the trigger, in regularisation pictures(.|\n)*x/a.png: '\[trig"):
        captions_rows(
            [picture("x/a.png", "[trigger]"), picture("b.png", "b")], params(trigger="t", regularisation=["x"])
        )


@pytest.mark.parametrize("key", ["trigger", "class_word", "prefix", "suffix"])
def test_places_in_params_are_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"'captions.{key}' .*holds '\[trigger\]', which is filled in captions only"):
        params(**{key: "[trigger] x"})


def test_choices_are_versions_of_the_caption() -> None:
    assert variants("a {red|blue} {cat|dog}", trigger="t") == (
        "t, a red cat", "t, a red dog", "t, a blue cat", "t, a blue dog",
    )  # fmt: skip
    assert versions("{a|{b|c}} x") == ("a x", "b x", "c x")
    result = clean_alternatives("a {red|blue} cat", params())
    assert (result.text, result.rules_fired) == ("a red cat, a blue cat", ("choices",))
    assert variants("a {red|blue}\nb", alternatives=True) == ("a red", "a blue", "b")
    assert variants("{a|b} c", syntax=[]) == ("{a|b} c",)


def test_many_choices_are_few_versions_with_each_option() -> None:
    some = versions("{a|b|c} " * 12)
    assert len(some) == len(set(some)) and len(some) <= MAX_CHOICES
    assert {word for text in some for word in text.split()} == {"a", "b", "c"}
    assert len(versions("{" + "|".join(map(str, range(40))) + "}")) == MAX_CHOICES


def test_rules_run_in_the_table_s_order() -> None:
    raw = r"(ganyu \(genshin\):1.2), {{trigger}}, <lora:x:1>, red，blue BREAK sofa ||| 1cat"
    result = clean_alternatives(raw, params(trigger="tok"))
    assert result.variants == ("ganyu (genshin), tok, red, blue, sofa, 1cat",)
    assert result.rules_fired == (
        "trigger_places", "networks", "separators", "breaks", "weights", "escapes", "wide_commas",
    )  # fmt: skip


PLAIN = st.text(alphabet=st.characters(exclude_characters="[]{}<>|\\;:，、､﹐﹑" + HIDDEN), max_size=80)


@given(PLAIN.filter(lambda text: "BREAK" not in text and "((" not in text and "))" not in text), st.booleans())
def test_plain_captions_stay_to_the_byte(raw: str, alternatives: bool) -> None:
    for trigger in (None, "tok"):
        on = params(trigger=trigger, alternatives=alternatives)
        assert clean_alternatives(raw, on) == clean_alternatives(raw, on.model_copy(update={"syntax": ()}))
    assert all(rule(raw) == raw for rule in SYNTAX.values())


def test_no_rule_fires_on_the_captions_of_the_checkout() -> None:
    """The demo's and the tests' own, by the demo's rules: their keys stay."""
    files = [*ROOT.glob("data/raw/**/*.txt"), *ROOT.glob("tests/small/raw/**/*.txt")]
    texts = [path.read_text("utf-8") for path in files]
    assert len(texts) > 20
    options = load_section(CaptionParams, "captions", ROOT / "params.yaml")
    fired = {rule for text in texts for rule in clean_alternatives(text, options).rules_fired}
    assert "whitespace" in fired and not fired & set(SYNTAX)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("a {x} cat", "{x} cat"),
        ("[from:to:0.5] x", "[from:to:0.5] x"),
        ("__colour__ cat", "__colour__ cat"),
        ('{"width": 3}', '{"width": 3}'),
        ("{2$$a|b}", "{2$$a|b}"),
        (r"a\nb", r"\nb"),
        ("it says BREAK", "BREAK"),
        ("<wildcard:x>", "<wildcard:x>"),
        ("a cat, embedding:x", "embedding:x"),
        ("1girl long_hair blue_eyes", "1girl long_hair blue_eyes"),
        (", 1girl solo smile", "1girl solo smile"),
        ("solo long_hair smile", "solo long_hair smile"),
        ("1girl, solo, red_tie cat", None),
        ("1girl sits on a red_sofa", None),
        (", 0 0.5 0.5 0.1 0.1, 1 0.2 0.2 0.1 0.1", ", 0 0.5 0.5 0.1 0.1, 1 0.2 0.2"),
        ("1984, 2001", None),
        ("a cat.<|endoftext|>", "<|endoftext|>"),
        ("<|im_start|>a cat", "<|im_start|>a cat"),
        ("<s0><s1> cat", "<s0><s1> cat"),
        ("a cat</s>", "</s>"),
        ("a $trigger cat", "$trigger cat"),
        ("%trigger%, cat", "%trigger%, cat"),
        ("a cat --ar 16:9 --v 6", "--ar 16:9 --v 6"),
        ("it costs $20, 50%, a -- b, --noise, x < y > z, <3 it", None),
        ("a (red) cat: it's 3:1, I <3 it; a/b & c — “x” #1 100% _ o_o", None),
    ],
)
def test_what_no_rule_takes_is_found(text: str, left: str | None) -> None:
    assert left_over(text) == left


def test_the_stage_s_line_counts_the_rules_and_names_what_is_left() -> None:
    pictures = [picture("a.png", "(a:1.3)"), picture("b.png", "(b:1.3), {x}"), picture("c.png", "[c]")]
    options = params(trigger="{tok}")
    lines = report(pictures, captions_rows(pictures, options), [], options).splitlines()
    assert lines[0] == "captions: 3 pictures; weights 2, trigger 3"
    assert lines[1] == "unknown syntax: 2 captions with what no rule takes, trained as it stands, such as b.png: '{x}'"
    plain = [picture("a.png", "a cat")]
    assert "syntax" not in report(plain, captions_rows(plain, options), [], options)


@given(
    st.text(alphabet=st.one_of(st.sampled_from('()[]{}<>|\\:;,.1:lora BREAK"trigger$'), st.characters()), max_size=60)
)
def test_any_text_is_cleaned(raw: str) -> None:
    result = clean_alternatives(raw, params(trigger="tok", class_word="toy", rules=list(RULES)))
    assert result.variants and all(re.search(r"(?<!\w)tok(?!\w)", text) for text in result.variants)
    assert HIDDEN not in "".join(result.variants)


PIECES = [
    *(
        "(",
        "((",
        "(a:1.3)",
        "[[",
        "{a|",
        "{a|b}",
        "[",
        "<lora:",
        "<lora:>",
        "a|||",
        "embedding:",
        "1 ",
        "1.1",
        "(embedding:x",
        "a_b ",
        "a_a",
        ";;;",
        "\\(",
        "，",
        "::",
        "{{a}}",
        '[["a",',
    ),
    *(
        "<!--",
        "<a b=",
        "&#1",
        "&a",
        ",",
        "a_final_",
        "_v1",
        "🏴",
        "\u200d",
        "\ufe0f",
        "BREAK ",
        "; ",
        "tag, ",
        " ",
        "\t,",
        "\n",
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize("piece", PIECES)
def test_the_longest_captions_take_linear_time(piece: str) -> None:
    text = "x" + (piece * BIG)[:BIG] + "€"
    start = time.process_time()
    for rule in [*SYNTAX.values(), *RULES.values(), left_over]:
        rule(text)
    clean_alternatives(text, params(trigger="tok", rules=list(RULES)))
    assert time.process_time() - start < 15
