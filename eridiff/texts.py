"""The text cache: the embedding of every distinct caption, encoded once for everything that it depends on."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from eridiff.caching import CacheCounts, fill
from eridiff.config import Section
from eridiff.earlyshards import EarlyShards, Puts
from eridiff.encodepipe import BATCHES_BEHIND, Transfers, WriteBehind, with_finite, writer_threads
from eridiff.entries import Parts, entry_key
from eridiff.entrytable import sorted_keys
from eridiff.errors import ConfigError, DataError
from eridiff.families import Family, TextEncoders
from eridiff.nonfinite import blame
from eridiff.progress import track
from eridiff.ranks import Ranks, encode_together
from eridiff.store import Store
from eridiff.tables import ColumnRows, Row
from eridiff.tensorfile import MAX_SHARD_HEADER_BYTES, RawTensor, TensorFile, raw_tensors

if TYPE_CHECKING:
    import torch
    from torch import Tensor

INDEX_COLUMNS = {"text": "str", "tokens_lost": "int", "key": "str", "shard": "str"}
Load = Callable[[], "tuple[TextEncoders, torch.device]"]


class TextParams(Section):
    """How captions become embeddings. Every key here is part of an embedding's key in the store."""

    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Number format of the text encoders."""
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 8
    """Captions encoded together. Fixed; the last batch is padded with the empty caption."""
    max_tokens: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Tokens of the T5 encoder, where the family has one; null: the family's default."""
    tf32: bool = False
    """Let fp32 products on CUDA use TF32: faster, rounded."""
    compile: bool = False
    """Compile the encoders' layers with torch.compile: faster for many captions, rounded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Caption:
    """One distinct caption to encode."""

    text: str
    key: str
    common: Parts  # of the key's parts those that all captions share

    @property
    def parts(self) -> Parts:
        """Everything that the value depends on."""
        return {**self.common, "text": self.text}


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
    shared = params.model_dump(exclude=set() if params.compile else {"compile"})  # keys from before it was there
    common: Parts = {
        "encoders": {name: dict(digests) for name, digests in encoders.items()},
        "params": {**shared, "max_tokens": max_tokens},
        "version": family.TEXT_ENCODE,
    }
    common |= {"probe": generation} if generation else {}
    return [Caption(text=text, key=entry_key({**common, "text": text}), common=common) for text in sorted(texts)]


def batch_by_key(captions: Iterable[Caption], batch_size: int) -> list[list[Caption]]:
    """Captions in the order of their keys: history decides nothing, and shards are complete one after the other.

    Not by length: every family pads all captions to one.
    """
    ordered = sorted(captions, key=lambda caption: caption.key)
    return [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]


def prepare_encoders(encoders: TextEncoders, params: TextParams, device: "torch.device") -> TextEncoders:
    """Move the encoders to the device and set what the params ask for. Compiled are the repeated layers, one by one."""
    from eridiff.precision import compile_fixed_shapes, fix_threads, repeated_layers, use_tf32

    fix_threads(device)
    use_tf32(params.tf32)
    encoders.to(device)
    if params.compile:
        compile_fixed_shapes(layer for encoder in encoders.encoders.values() for layer in repeated_layers(encoder))
    return encoders


def encode_batches(
    batches: Sequence[Sequence[Caption]],
    store: Puts,
    params: TextParams,
    family: Family,
    encoders: TextEncoders,
    device: "torch.device",
    what: str = "text",
) -> None:
    """Encode and put whole batches; entries are written behind the encoder.

    Captions are cut into tokens between, while a device still has the batches before: up to BATCHES_BEHIND of them.
    """
    import torch

    prepare_encoders(encoders, params, device)
    max_tokens = choose_max_tokens(params, family)
    moves = Transfers(device)

    def why() -> str:
        return blame(encoders.encoders, "text.dtype", params.dtype)

    with WriteBehind(threads=writer_threads(device), depth=BATCHES_BEHIND * params.batch_size) as writer:
        for batch in track(batches, what=what, total=len(batches), unit="batches"):
            texts = [caption.text for caption in batch] + [""] * (params.batch_size - len(batch))
            with torch.inference_mode():
                embeddings = family.encode_text(encoders, texts, max_tokens)
            arrived = moves.download(with_finite(embeddings))
            for place, caption in enumerate(batch):
                lost = family.tokens_lost(encoders, caption.text, max_tokens)
                writer.submit(partial(put_caption, store, caption, lost, place, arrived, why))


def put_caption(
    store: Puts,
    caption: Caption,
    lost: int,
    place: int,
    arrived: "Callable[[], dict[str, Tensor]]",
    why: Callable[[], str],
) -> None:
    """Put one caption of an encoded batch, with the count of its tokens that no encoder saw.

    why: says why numbers are not finite.

    Raises: DataError that names the caption where its numbers are not finite.
    """
    embeddings = {name: tensor[place] for name, tensor in arrived().items()}
    if not embeddings.pop("finite"):
        raise DataError(f"caption {caption.text!r}: the text encoders gave numbers that are not finite. {why()}")
    tensors = raw_tensors(embeddings)
    tensors["tokens_lost"] = RawTensor("I32", (), lost.to_bytes(4, "little"))
    store.put(caption.key, caption.parts, tensors)


def cache_texts(
    captions: list[Caption],
    params: TextParams,
    family: Family,
    load: Load,
    store_root: Path,
    earlier: Callable[[], Iterable[Path]],
    out: Path,
    *,
    ranks: Ranks | None = None,
) -> tuple[Sequence[Row], CacheCounts]:
    """Look up, import, encode what is missing, publish the shards into `out`; returns the index's rows.

    load() gives the encoders and their device and is called only where something has to be encoded; earlier()
    gives the shards of this stage's own last output, read only where the store lacks a key. ranks: the processes that
    share the encoding, of which this is the first: `help_texts` is what the others do.
    """
    store, ranks = Store(store_root, "texts"), ranks or Ranks()
    keys = [caption.key for caption in captions]
    shards, counts = fill(
        store, keys, earlier, lambda: _encode(captions, store, params, family, load, ranks), out, what="text"
    )
    return _index(captions, shards, out), counts


def help_texts(
    captions: list[Caption], params: TextParams, family: Family, load: Load, store_root: Path, ranks: Ranks
) -> int:
    """What a process other than the first does: encode its share into the store; returns how many it encoded."""
    return _encode(captions, Store(store_root, "texts"), params, family, load, ranks)


def _encode(captions: list[Caption], store: Store, params: TextParams, family: Family, load: Load, ranks: Ranks) -> int:
    """Encode what is missing, alone or together with others."""
    by_key = {caption.key: caption for caption in captions}

    def form(keys: set[str]) -> list[list[Caption]]:
        return batch_by_key((by_key[key] for key in keys), params.batch_size)

    def encode(batches: Sequence[Sequence[Caption]]) -> None:
        if not batches:
            return
        encoders, device = load()
        own = {caption.key for batch in batches for caption in batch}
        keys = sorted_keys(by_key)
        with EarlyShards(store, keys, np.ones(len(keys), np.int64), own, device) as shards:
            puts = store if ranks.index else shards  # the first process alone writes shards
            encode_batches(batches, puts, params, family, encoders, device, what=f"text{ranks.label}")

    return encode_together(ranks, store, by_key, form, encode, "text")


def _index(captions: Sequence[Caption], shards: Mapping[str, str], out: Path) -> Sequence[Row]:
    """Rows of the index; the count of lost tokens stands in each entry, so that reuse reports it too."""
    lost: dict[str, int] = {}  # where it is not 0
    for name, members in groupby(sorted(caption.key for caption in captions), key=lambda key: shards[key]):
        file = TensorFile(
            out / name, max_header=MAX_SHARD_HEADER_BYTES
        )  # keys of one shard have one prefix, so they stand together
        for key in members:
            if count := int.from_bytes(bytes(file.raw(f"{key}.tokens_lost").data), "little"):
                lost[key] = count

    def columns_of(places: range) -> dict[str, list[Any]]:
        some = captions[places.start : places.stop]
        keys = [caption.key for caption in some]
        columns: dict[str, list[Any]] = {"text": [caption.text for caption in some], "key": keys}
        return columns | {"tokens_lost": [lost.get(key, 0) for key in keys], "shard": [shards[key] for key in keys]}

    return ColumnRows(len(captions), columns_of)


def report_lost(index: Iterable[Row]) -> list[str]:
    """One line for each caption that is longer than the encoders' limit: nothing is cut off in silence."""
    return [
        f"text: {row['tokens_lost']} tokens beyond the limit are lost of {row['text']!r}"
        for row in index
        if row["tokens_lost"]
    ]
