"""The text cache: the embedding of every distinct caption, encoded once for everything that it depends on."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from eridiff.caching import CacheCounts, fill
from eridiff.config import Section
from eridiff.errors import ConfigError, DataError
from eridiff.families import Family, TextEncoders
from eridiff.progress import track
from eridiff.store import Parts, Store, entry_key
from eridiff.tables import Row
from eridiff.tensorfile import RawTensor, TensorFile, raw_tensors

if TYPE_CHECKING:
    import torch

INDEX_COLUMNS = {"text": "str", "tokens_lost": "int", "key": "str", "shard": "str"}
Load = Callable[[], "tuple[TextEncoders, torch.device]"]


class TextParams(Section):
    """How captions become embeddings. Every key here is part of an embedding's key in the store."""

    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Number format of the text encoders."""
    batch_size: Annotated[int, Field(ge=1)] = 8
    """Captions encoded together. Fixed; the last batch is padded with the empty caption."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens of the T5 encoder, where the family has one; null: the family's default."""
    tf32: bool = False
    """Let fp32 products on CUDA use TF32: faster, rounded."""


@dataclass(frozen=True, kw_only=True)
class Caption:
    """One distinct caption to encode."""

    text: str
    key: str
    parts: Parts


def choose_max_tokens(params: TextParams, family: Family) -> int:
    """The token limit of the family's longest encoder.

    Raises: ConfigError for a value that the family's encoders do not take.
    """
    chosen = family.MAX_TOKENS[0] if params.max_tokens is None else params.max_tokens
    if chosen not in family.MAX_TOKENS:
        choices = ", ".join(map(str, sorted(family.MAX_TOKENS)))
        raise ConfigError(
            f"params.yaml: text.max_tokens is {chosen}, which this family does not take. Known: {choices}."
        )
    return chosen


def plan_captions(
    rows: Iterable[Row],
    params: TextParams,
    family: Family,
    encoders: Mapping[str, Mapping[str, str]],
    generation: str = "",
) -> list[Caption]:
    """Every distinct caption of captions.parquet, all variants, and the empty caption, sorted by text.

    encoders: component -> digests of the text encoders and tokenizers. generation: of their numbers
    (eridiff/probe.py); the first is in no key.
    """
    texts = {"", *(text for row in rows for text in row["variants"])}
    max_tokens = choose_max_tokens(params, family)
    captions = []
    for text in sorted(texts):
        parts: Parts = {
            "text": text,
            "encoders": {name: dict(digests) for name, digests in encoders.items()},
            "params": {**params.model_dump(), "max_tokens": max_tokens},
            "version": family.TEXT_ENCODE,
        }
        parts |= {"probe": generation} if generation else {}
        captions.append(Caption(text=text, key=entry_key(parts), parts=parts))
    return captions


def encode_missing(
    captions: list[Caption],
    store: Store,
    params: TextParams,
    family: Family,
    encoders: TextEncoders,
    device: "torch.device",
) -> int:
    """Encode every caption that the store lacks, in fixed batches by key; returns how many."""
    import torch

    from eridiff.precision import fix_threads, use_tf32

    fix_threads(device)
    use_tf32(params.tf32)
    encoders.to(device)
    max_tokens = choose_max_tokens(params, family)
    missing = set(store.missing(caption.key for caption in captions))
    todo = sorted((c for c in captions if c.key in missing), key=lambda c: c.key)
    size = params.batch_size
    batches = [todo[start : start + size] for start in range(0, len(todo), size)]
    for batch in track(batches, what="text", total=len(batches), unit="batches"):
        texts = [caption.text for caption in batch] + [""] * (size - len(batch))
        with torch.inference_mode():
            embeddings = family.encode_text(encoders, texts, max_tokens)
        for index, caption in enumerate(batch):
            lost = family.tokens_lost(encoders, caption.text, max_tokens)
            tensors = raw_tensors({name: tensor[index] for name, tensor in embeddings.items()})
            if not all(tensor[index].isfinite().all() for tensor in embeddings.values()):
                raise DataError(f"caption {caption.text!r}: the text encoders gave numbers that are not finite.")
            tensors["tokens_lost"] = RawTensor("I32", (), lost.to_bytes(4, "little"))
            store.put(caption.key, caption.parts, tensors)
    return len(todo)


def cache_texts(
    captions: list[Caption],
    params: TextParams,
    family: Family,
    load: Load,
    store_root: Path,
    earlier: Callable[[], Iterable[Path]],
    out: Path,
) -> tuple[list[Row], CacheCounts]:
    """Look up, import, encode what is missing, publish the shards into `out`; returns the index's rows.

    load() gives the encoders and their device and is called only where something has to be encoded; earlier()
    gives the shards of this stage's own last output, read only where the store lacks a key.
    """
    store = Store(store_root, "texts")
    keys = [caption.key for caption in captions]
    shards, counts = fill(
        store, keys, earlier, lambda: encode_missing(captions, store, params, family, *load()), out, what="text"
    )
    return _index(captions, shards, out), counts


def _index(captions: list[Caption], shards: Mapping[str, str], out: Path) -> list[Row]:
    """Rows of the index; the count of lost tokens stands in each entry, so that reuse reports it too."""
    files = {name: TensorFile(out / name) for name in set(shards.values())}
    rows = []
    for caption in captions:
        shard = shards[caption.key]
        lost = int.from_bytes(bytes(files[shard].raw(f"{caption.key}.tokens_lost").data), "little")
        rows.append({"text": caption.text, "tokens_lost": lost, "key": caption.key, "shard": shard})
    return rows


def report_lost(index: Iterable[Row]) -> list[str]:
    """One line for each caption that is longer than the encoders' limit: nothing is cut off in silence."""
    return [
        f"text: {row['tokens_lost']} tokens beyond the limit are lost of {row['text']!r}"
        for row in index
        if row["tokens_lost"]
    ]
