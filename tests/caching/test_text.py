"""The text cache: one encode of every distinct caption, the empty one always there, nothing cut in silence."""

from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from eridiff.caching.fill import Resources
from eridiff.caching.text import Caption, batch_by_key, cache_texts, plan_captions, report_lost
from eridiff.core.errors import ConfigError, DataError
from eridiff.family import Family, TextEncoders, load_family
from eridiff.formats.safetensors import TensorFile
from eridiff.models.load import load_text_encoders
from eridiff.models.precision import repeated_layers
from eridiff.params.text import TextParams, choose_max_tokens
from eridiff.store.reader import Cache
from eridiff.store.store import Store
from tests.support import processes
from tests.support.bases import FAMILIES, raised, source
from tests.support.compiling import compiling_here

CPU = torch.device("cpu")
LONG = [family for family in FAMILIES if len(load_family(family).MAX_TOKENS) > 1]
FAMILY = LONG[0]
LIMIT = load_family(FAMILY).MAX_TOKENS[-1]
PARAMS = TextParams(batch_size=4, max_tokens=LIMIT)
ENCODERS = {
    "text_encoder": {"content": "a" * 64, "config": "b" * 64},
    "tokenizer": {"content": "c" * 64, "config": "d" * 64},
}
ROWS = [
    {"path": "1.png", "variants": ["a red fox", "fox, red"]},
    {"path": "2.png", "variants": ["a red fox"]},
    {"path": "3.png", "variants": ["a teapot", "", "ein Fuchs, größer"]},
]
TEXTS = ["", "a red fox", "a teapot", "ein Fuchs, größer", "fox, red"]


@cache
def encoders() -> TextEncoders:
    return load_text_encoders(load_family(FAMILY), source(FAMILY), torch.float32)


def run(captions: list[Caption], folder: Path, params: TextParams = PARAMS, family: Family | None = None) -> Any:
    """(index, counts) of the stage's work."""
    resources = Resources(root=folder / "store", load=lambda: (encoders(), CPU))
    return cache_texts(captions, params, family or load_family(FAMILY), resources, folder / "text")


def plan(rows: list[dict[str, Any]] = ROWS, params: TextParams = PARAMS) -> list[Caption]:
    return plan_captions(rows, params, load_family(FAMILY), ENCODERS)


def test_every_distinct_caption_is_encoded_once(tmp_path: Path) -> None:
    captions = plan()
    assert [caption.text for caption in captions] == TEXTS
    index, counts = run(captions, tmp_path)
    assert counts.line().startswith("text: 5 samples, 5 encoded, 0 reused, 1 shard written")
    assert [(line["text"], line["tokens_lost"], line["shard"]) for line in index] == [
        (text, 0, "shard-all.safetensors") for text in TEXTS
    ]
    assert [caption.text for caption in plan([])] == [""]


def test_embeddings_equal_the_familys(tmp_path: Path) -> None:
    """In whatever batch: a caption with its neighbours, and one beside the padding."""
    index, _ = run(plan(), tmp_path)
    file = TensorFile(tmp_path / "text" / "shard-all.safetensors")
    module = load_family(FAMILY)
    for line in index:
        with torch.inference_mode():
            expected = module.encode_text(encoders(), [line["text"], *["other"] * 3], LIMIT)
        for name, tensor in expected.items():
            assert torch.equal(file.raw(f"{line['key']}.{name}").torch(), tensor[0]), (line["text"], name)


AGAIN = """
import pickle, sys
from pathlib import Path
from eridiff.family import load_family
from eridiff.caching.fill import Resources
from eridiff.params.text import TextParams
from eridiff.caching.text import cache_texts, plan_captions
folder, name = Path(sys.argv[1]), sys.argv[2]
rows, params, encoders = pickle.loads((folder / "given.pickle").read_bytes())
params, family = TextParams(**params), load_family(name)
def load():
    raise AssertionError("nothing has to be encoded")
captions = plan_captions(rows, params, family, encoders)
resources = Resources(root=folder / "store", load=load, earlier=load)
index, counts = cache_texts(captions, params, family, resources, folder / "again")
print(counts.line().rsplit(",", 1)[0])
print(sorted({"torch", "diffusers", "transformers", "peft"} & set(sys.modules)))
"""


def test_a_second_run_encodes_nothing_and_loads_nothing(tmp_path: Path) -> None:
    import pickle

    run(plan(), tmp_path)
    (tmp_path / "given.pickle").write_bytes(pickle.dumps((ROWS, PARAMS.model_dump(), ENCODERS)))
    out = processes.run(AGAIN, tmp_path, FAMILY)
    assert out == "text: 5 samples, 0 encoded, 5 reused, 0 shards written\n[]\n"
    name = "shard-all.safetensors"
    assert (tmp_path / "text" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_one_changed_caption_is_one_encode(tmp_path: Path) -> None:
    run(plan(), tmp_path)
    rows = [{"path": "1.png", "variants": ["a red fox", "fox, red, new"]}, *ROWS[1:]]
    index, counts = run(plan(rows), tmp_path)
    assert (counts.encoded, counts.samples) == (1, 5)
    assert "fox, red" not in [line["text"] for line in index]


def test_batches_change_no_bit(tmp_path: Path) -> None:
    """All at once, and one by one in padded batches: the same shard."""
    run(plan(), tmp_path / "a")
    for caption in plan():
        run([caption], tmp_path / "b")
    _, counts = run(plan(), tmp_path / "b")
    assert counts.encoded == 0
    name = "text/shard-all.safetensors"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_every_part_counts_in_the_key() -> None:
    def key(text: str = "a red fox", params: TextParams = PARAMS, family: Any = None, parts: Any = None) -> str:
        rows = [{"path": "x", "variants": [text]}]
        found = plan_captions(rows, params, family or load_family(FAMILY), parts or ENCODERS)
        return next(caption.key for caption in found if caption.text == text)

    same = key()
    other = load_family(FAMILY).MAX_TOKENS[0]
    changed: dict[str, Any] = {"dtype": "bf16", "batch_size": 5, "max_tokens": other, "tf32": True, "compile": True}
    assert set(changed) == set(TextParams.model_fields)
    variants = [key(params=TextParams(**{**PARAMS.model_dump(), name: value})) for name, value in changed.items()]
    variants += [key(text) for text in ("a red fox ", "a red  fox", "A red fox", "")]
    variants += [
        key(parts={**ENCODERS, name: {**ENCODERS[name], part: "e" * 64}})
        for name in ENCODERS
        for part in ("content", "config")
    ]
    variants += [key(family=raised(load_family(FAMILY), "text_encode"))]
    assert len({same, *variants}) == 1 + len(variants)
    default = TextParams(**{**PARAMS.model_dump(), "max_tokens": None})
    assert key(params=default) == key(params=TextParams(**{**PARAMS.model_dump(), "max_tokens": other}))
    assert {c.text: c.key for c in plan(ROWS[::-1])} == {c.text: c.key for c in plan()}
    renamed = [{**row, "path": f"new {row['path']}"} for row in ROWS]
    assert plan(renamed) == plan()


def test_lost_tokens_are_reported(tmp_path: Path) -> None:
    long = ", ".join(f"word{number}" for number in range(300))
    index, _ = run(plan([{"path": "1.png", "variants": [long, "short"]}]), tmp_path)
    lost = {line["text"]: line["tokens_lost"] for line in index}
    assert lost == {"": 0, "short": 0, long: load_family(FAMILY).tokens_lost(encoders(), long, LIMIT)}
    assert lost[long] > 300
    assert report_lost(index) == [f"text: {lost[long]} tokens beyond the limit are lost of {long!r}"]
    again, counts = run(plan([{"path": "1.png", "variants": [long]}]), tmp_path)
    assert counts.encoded == 0
    assert report_lost(again) == report_lost(index)  # also where nothing is encoded


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    module = SimpleNamespace(**vars(load_family(FAMILY)))

    def overflow(*arguments: Any) -> Any:
        answer = load_family(FAMILY).encode_text(*arguments)
        answer["pooled_prompt_embeds"][0, 0] = float("nan")
        return answer

    module.encode_text = overflow
    with pytest.raises(
        DataError, match=r"caption '.*': the text encoders gave numbers that are not finite\. All weights are finite"
    ):
        run(plan(), tmp_path, family=module)  # type: ignore[arg-type]
    assert batch_by_key(plan(), 4)[0][0].key not in Store(tmp_path / "store", "texts").catalogue


@pytest.mark.parametrize("family", FAMILIES)
def test_max_tokens(family: str) -> None:
    module = load_family(family)
    assert choose_max_tokens(TextParams(), module) == module.MAX_TOKENS[0]
    for tokens in module.MAX_TOKENS:
        assert choose_max_tokens(TextParams(max_tokens=tokens), module) == tokens
    known = ", ".join(map(str, sorted(module.MAX_TOKENS)))
    with pytest.raises(
        ConfigError, match=rf"text\.max_tokens is 78, which this family does not take\. Known: {known}\."
    ):
        choose_max_tokens(TextParams(max_tokens=78), module)


def test_number_formats_are_kept(tmp_path: Path) -> None:
    module = load_family(FAMILY)
    half = load_text_encoders(module, source(FAMILY), torch.bfloat16)
    params = TextParams(dtype="bf16", batch_size=4, max_tokens=LIMIT)
    resources = Resources(root=tmp_path / "store", load=lambda: (half, CPU))
    cache_texts(plan(params=params), params, module, resources, tmp_path / "text")
    file = TensorFile(tmp_path / "text" / "shard-all.safetensors")
    assert {file.raw(name).dtype for name in file.names} == {"BF16", "I32"}


def test_batches_are_in_the_order_of_keys_whatever_the_order_of_captions() -> None:
    captions = plan([{"variants": ["a" * n for n in (9, 3, 7, 1, 5)]}])
    batches = batch_by_key(captions, 2)
    assert [caption.key for batch in batches for caption in batch] == sorted(caption.key for caption in captions)
    assert [len(batch) for batch in batches] == [2, 2, 2]
    assert batch_by_key(captions[::-1], 2) == batches


@pytest.mark.parametrize("family", LONG)
def test_position_biases_are_what_fused_kernels_take(family: str) -> None:
    """Else torch computes T5's attention in fp32, with all scores in memory, and says nothing."""
    encoders = load_text_encoders(load_family(family), source(family), torch.float32).encoders.values()
    modules: list[Any] = [module for encoder in encoders for module in encoder.modules()]
    found = [module for module in modules if getattr(module, "has_relative_attention_bias", False)]
    assert len(found) == 1
    bias, plain = found[0].compute_bias(7, 7), type(found[0]).compute_bias(found[0], 7, 7)
    assert bias.is_contiguous() and not plain.is_contiguous()
    assert torch.equal(bias, plain)


def test_compile_is_in_the_key_only_where_it_is_asked_for() -> None:
    assert "compile" not in plan()[0].key_fields["params"]
    assert plan(params=PARAMS.model_copy(update={"compile": True}))[0].key_fields["params"]["compile"] is True


def test_the_repeated_layers_are_those_of_the_longest_stack() -> None:
    found = {
        name: {type(layer).__name__ for layer in repeated_layers(encoder)}
        for name, encoder in encoders().encoders.items()
    }
    assert {kind for kinds in found.values() for kind in kinds} == {"CLIPEncoderLayer", "T5Block"}
    plain = torch.nn.Linear(2, 2)
    assert repeated_layers(plain) == [plain]


@pytest.mark.e2e
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")  # torch's own compiler
def test_compiled_encoders_give_the_same_numbers_but_for_rounding(tmp_path: Path) -> None:
    run(plan(), tmp_path / "plain")
    params, module = PARAMS.model_copy(update={"compile": True}), load_family(FAMILY)
    own = load_text_encoders(module, source(FAMILY), torch.float32)
    captions = plan(params=params)
    resources = Resources(root=tmp_path / "store", load=lambda: (own, CPU))
    with compiling_here():
        cache_texts(captions, params, module, resources, tmp_path / "text")
    plain, compiled = Cache(tmp_path / "plain" / "text"), Cache(tmp_path / "text")
    differs = False
    for before, after in zip(plan(), captions, strict=True):
        for name, tensor in plain.tensors(before.key).items():
            torch.testing.assert_close(compiled.tensors(after.key)[name], tensor, rtol=1e-3, atol=1e-3)
            differs |= not torch.equal(compiled.tensors(after.key)[name], tensor)
    assert differs  # else nothing was compiled
