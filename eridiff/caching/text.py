"""The text cache: the embedding of every distinct caption, encoded once for everything that it depends on."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eridiff.caching.early_shards import EarlyShards, Puts
from eridiff.caching.fill import CacheCounts, Resources, fill
from eridiff.caching.pipeline import Transfers, entry_writer, with_finite
from eridiff.caching.processes import encode_together
from eridiff.core.errors import DataError
from eridiff.core.progress import track
from eridiff.core.threads import WriteBehind
from eridiff.family import Family, TextEncoders
from eridiff.formats.safetensors import MAX_SHARD_HEADER_BYTES, RawTensor, TensorFile, raw_tensors
from eridiff.formats.tables import ColumnRows, Row
from eridiff.params.text import TextParams, choose_max_tokens
from eridiff.store.entries import KeyFields, entry_key
from eridiff.store.entry_table import sorted_keys
from eridiff.store.store import Store
from eridiff.weights.nonfinite import blame

if TYPE_CHECKING:
    import torch
    from torch import Tensor

INDEX_COLUMNS = {"text": "str", "tokens_lost": "int", "key": "str", "shard": "str"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Caption:
    """One distinct caption to encode."""

    text: str
    key: str
    common: KeyFields  # of the key's fields those that all captions share

    @property
    def key_fields(self) -> KeyFields:
        """Everything that the value depends on."""
        return {**self.common, "text": self.text}


def distinct_texts(rows: Iterable[Row]) -> list[str]:
    """Every distinct caption of captions.parquet, all variants, and the empty caption, sorted."""
    return sorted({"", *(text for row in rows for text in row["variants"])})


def plan_captions(
    rows: Iterable[Row],
    params: TextParams,
    family: Family,
    encoders: Mapping[str, Mapping[str, str]],
    drift_id: str = "",
) -> list[Caption]:
    """The distinct captions with their keys.

    encoders: component -> digests of the text encoders and tokenizers. drift_id: of their numbers
    (eridiff/caching/drift_records.py); the first is in no key.
    """
    max_tokens = choose_max_tokens(params, family)
    shared = params.model_dump(exclude=set() if params.compile else {"compile"})  # keys from before it was there
    common: KeyFields = {
        "encoders": {name: dict(digests) for name, digests in encoders.items()},
        "params": {**shared, "max_tokens": max_tokens},
        "version": family.VERSIONS.family.text_encode,
    }
    common |= {"probe": drift_id} if drift_id else {}
    return [Caption(text=text, key=entry_key({**common, "text": text}), common=common) for text in distinct_texts(rows)]


def batch_by_key(captions: Iterable[Caption], batch_size: int) -> list[list[Caption]]:
    """Captions in the order of their keys: history decides nothing, and shards are complete one after the other.

    Not by length: every family pads all captions to one.
    """
    ordered = sorted(captions, key=lambda caption: caption.key)
    return [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]


def prepare_encoders(encoders: TextEncoders, params: TextParams, device: "torch.device") -> TextEncoders:
    """Move the encoders to the device and set what the params ask for. Compiled are the repeated layers, one by one."""
    from eridiff.models.precision import compile_fixed_shapes, fix_threads, repeated_layers, use_tf32

    fix_threads(device)
    use_tf32(params.tf32)
    encoders.to(device)
    if params.compile:
        compile_fixed_shapes(layer for encoder in encoders.encoders.values() for layer in repeated_layers(encoder))
    return encoders


class CaptionEncoder:
    """The text encoders between the tokenizers and the writer behind them: a device waits for neither.

    writer: of `entry_writer`.
    """

    def __init__(
        self,
        store: Puts,
        params: TextParams,
        family: Family,
        encoders: TextEncoders,
        device: "torch.device",
        writer: WriteBehind,
    ) -> None:
        self.store, self.params, self.family = store, params, family
        self._encoders, self._moves = prepare_encoders(encoders, params, device), Transfers(device)
        self._max_tokens = choose_max_tokens(params, family)
        self._writer = writer

    def encode(self, batch: Sequence[Caption]) -> None:
        """Encode one batch, padded with empty captions; its entries are put by threads, the next may come meanwhile."""
        import torch

        texts = [caption.text for caption in batch] + [""] * (self.params.batch_size - len(batch))
        with torch.inference_mode():
            embeddings = self.family.encode_text(self._encoders, texts, self._max_tokens)
        arrived = self._moves.download(with_finite(embeddings))
        for place, caption in enumerate(batch):
            lost = self.family.tokens_lost(self._encoders, caption.text, self._max_tokens)
            self._writer.submit(partial(put_caption, self.store, caption, lost, place, arrived, self._why))

    def _why(self) -> str:
        """Why the encoders gave numbers that are not finite."""
        return blame(self._encoders.encoders, "text.dtype", self.params.dtype)


def encode_batches(batches: Sequence[Sequence[Caption]], encoder: CaptionEncoder, what: str = "text") -> None:
    """Encode and put whole batches."""
    for batch in track(batches, what=what, total=len(batches), unit="batches"):
        encoder.encode(batch)


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
    store.put(caption.key, caption.key_fields, tensors)


def cache_texts(
    captions: list[Caption], params: TextParams, family: Family, resources: Resources, out: Path
) -> tuple[Sequence[Row], CacheCounts]:
    """Look up, import, encode what is missing, publish the shards into `out`; returns the index's rows.

    Of several processes this is the first: `help_texts` is what the others do.
    """
    store = Store(resources.root, "texts")
    keys = [caption.key for caption in captions]

    def encode() -> int:
        return _encode(captions, store, params, family, resources)

    shards, counts = fill(store, keys, resources.earlier, encode, out, what="text")
    return _index(captions, shards, out), counts


def help_texts(captions: list[Caption], params: TextParams, family: Family, resources: Resources) -> int:
    """What a process other than the first does: encode its share into the store; returns how many it encoded."""
    return _encode(captions, Store(resources.root, "texts"), params, family, resources)


def _encode(captions: list[Caption], store: Store, params: TextParams, family: Family, resources: Resources) -> int:
    """Encode what is missing, alone or together with others."""
    ranks, by_key = resources.ranks, {caption.key: caption for caption in captions}

    def form(keys: set[str]) -> list[list[Caption]]:
        return batch_by_key((by_key[key] for key in keys), params.batch_size)

    def encode(batches: Sequence[Sequence[Caption]]) -> None:
        if not batches:
            return
        encoders, device = resources.load()
        own = {caption.key for batch in batches for caption in batch}
        keys = sorted_keys(by_key)
        with EarlyShards(store, keys, np.ones(len(keys), np.int64), own, device) as shards:
            puts = store if ranks.index else shards  # the first process alone writes shards
            with entry_writer(device, params.batch_size) as writer:
                encoder = CaptionEncoder(puts, params, family, encoders, device, writer)
                encode_batches(batches, encoder, what=f"text{ranks.label}")

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
