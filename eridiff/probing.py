"""Probes of the VAE and of the text encoders: their fixed inputs, and when a caching stage takes one."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from eridiff.entrytable import sorted_keys
from eridiff.errors import BaseError, ConfigError, DataError
from eridiff.families import Family, TextEncoders
from eridiff.latents import LatentParams
from eridiff.nonfinite import blame
from eridiff.placement import Keys
from eridiff.pointers import Pointer
from eridiff.probe import (
    FIRST,
    Difference,
    Encoder,
    ProbeMemory,
    Reference,
    Values,
    compare,
    library_versions,
    name_upgrade,
    reference_of,
    shorten,
)
from eridiff.progress import say
from eridiff.store import Store
from eridiff.tables import read_table
from eridiff.texts import TextParams, choose_max_tokens
from eridiff.vae import encode, prepare_vae

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

SIDE = 64  # of the probe's picture, in pixels
NUM_VALUES = 128  # numbers of each tensor that are compared
# Words that all tokenizers know, what they cut differently, and more than any limit takes.
CAPTIONS = (
    "",
    "a red fox jumps over a lazy dog, flat drawing",
    "Ünïcode, 日本語 & 12.5 % of_snake_case; (weights:1.2)",
    "one two three four five six seven eight nine ten " * 60,
)


def vae_encoder(pointer: Pointer, params: LatentParams, version: int) -> Encoder:
    """The VAE of a base, as the section `latents` runs it. version: the family's VAE_ENCODE."""
    precision = {name: getattr(params, name) for name in ("dtype", "tf32", "channels_last", "tile")}
    return Encoder(
        stage="latents",
        name=f"the VAE of {pointer.base}",
        identity={"vae": pointer.components["vae"].identity(), "params": precision, "version": version},
        precision=_precision(params.dtype, params.tf32),
    )


def text_encoder(pointer: Pointer, params: TextParams, family: Family) -> Encoder:
    """The text encoders of a base, as the section `text` runs them."""
    limit = choose_max_tokens(params, family)
    precision = {"dtype": params.dtype, "tf32": params.tf32, "max_tokens": limit}
    return Encoder(
        stage="text",
        name=f"the set of text encoders of {pointer.base}",
        identity={"encoders": pointer.identity(), "params": precision, "version": family.TEXT_ENCODE},
        precision=_precision(params.dtype, params.tf32),
    )


def _precision(dtype: str, tf32: bool) -> str:
    return "tf32" if dtype == "fp32" and tf32 else dtype


def probe_vae(params: LatentParams, vae: "nn.Module", device: "torch.device") -> Values:
    """Some numbers of the posterior of a fixed picture; not compiled, tiled where the params say so.

    Raises: DataError where they are not finite.
    """
    params = params.model_copy(update={"compile": False, "keep": "mean_std"})
    vae = prepare_vae(vae, params, device)
    width = SIDE if params.tile is None else params.tile + params.tile // 2 // SIDE * SIDE + SIDE

    def work() -> "dict[str, Tensor]":
        return encode(vae, probe_picture(width).to(device), params)

    return _values(work, "the VAE", lambda: blame({"vae": vae}, "latents.dtype", params.dtype, work))


def probe_picture(width: int) -> "Tensor":
    """Pixels [1, 3, 64, width] in [-1, 1]: ramps, edges and a coarse noise, from whole numbers alone."""
    import torch

    columns, rows = torch.arange(width)[None, :], torch.arange(SIDE)[:, None]
    red = (columns * 255 // (width - 1)).expand(SIDE, width)
    green = ((rows * 37 + columns * 91 + rows * columns * 7) % 251).int()
    blue = ((rows // 8 + columns // 8) % 2 * 200 + rows % 32).int()
    return torch.stack([red.int(), green, blue])[None].float() / 127.5 - 1


def probe_text(params: TextParams, family: Family, encoders: TextEncoders, device: "torch.device") -> Values:
    """Some numbers of the embeddings of fixed captions.

    Raises: DataError where they are not finite.
    """
    import torch

    from eridiff.precision import fix_threads, use_tf32

    fix_threads(device)
    use_tf32(params.tf32)
    encoders.to(device)

    def work() -> "Mapping[str, Tensor]":
        with torch.inference_mode():
            return family.encode_text(encoders, list(CAPTIONS), choose_max_tokens(params, family))

    return _values(work, "the text encoders", lambda: blame(encoders.encoders, "text.dtype", params.dtype, work))


def _values(work: "Callable[[], Mapping[str, Tensor]]", what: str, why: Callable[[], str]) -> Values:
    """NUM_VALUES of each tensor, evenly spread."""
    import torch

    values = {}
    for name, tensor in work().items():
        flat = tensor.detach().flatten().float().cpu()
        if not flat.isfinite().all():
            raise DataError(f"{what} gave numbers that are not finite for a plain picture or caption. {why()}")
        places = torch.linspace(0, flat.numel() - 1, min(NUM_VALUES, flat.numel()), dtype=torch.float64).long()
        values[name] = [shorten(number) for number in flat[places].tolist()]
    return values


def entries_lacking(root: Path, kind: str, keys: Iterable[str] | Keys, earlier: Callable[[], Iterable[Path]]) -> bool:
    """Whether something has to be encoded: neither the store nor the stage's own last output has all keys."""
    store, wanted = Store(root, kind), sorted_keys(keys)
    if store.missing(wanted):
        store.adopt(earlier())
    return bool(store.missing(wanted))


def index_reference(index: Path | None) -> Reference | None:
    """The reference that an index carries; None without an index, or in one made before any probe."""
    return reference_of(read_table(index)[1]) if index else None


def generation_of(reference: Reference | None) -> str:
    """What enters the keys."""
    return reference.generation if reference else FIRST


@dataclass(frozen=True, kw_only=True)
class Probing:
    """How one stage probes its encoder.

    take: the probe itself, which loads the encoder. lacks: whether the store lacks entries under a generation's keys.
    earlier: the reference that the stage's own last output carries. tell: hears what a probe found, and
    whether it is the same as before but for rounding.
    """

    encoder: Encoder
    root: Path
    take: Callable[[], Values]
    lacks: Callable[[str], bool]
    earlier: Callable[[], Reference | None]
    tell: Callable[[str, bool], None] = lambda text, same: say(text)

    def own(self, reference: Reference | None) -> Reference | None:
        """A reference, if it is this encoder's: the stage's last output may be another's."""
        return reference if reference and reference.encoder == self.encoder.digest else None


def settle(probing: Probing) -> Reference | None:
    """The generation of an encoder with the libraries of this machine; probes it where that is not known.

    The encoder is loaded only after an upgrade, or where something has to be encoded. None: nothing is known, and
    nothing has to be encoded.
    """
    memory, versions = ProbeMemory(probing.root, probing.encoder), library_versions()
    generation = memory.at(versions)
    if generation is None:
        generation = _unknown(probing, memory)
    return memory.references.get(generation)


def _unknown(probing: Probing, memory: ProbeMemory) -> str:
    """The generation with versions that the store knows nothing of."""
    if not memory.references and (earlier := probing.own(probing.earlier())):
        memory.adopt(earlier)
    last = memory.last
    assumed = last[0] if last else next(iter(memory.references), FIRST)
    if last is None and not probing.lacks(assumed):
        return assumed
    versions = library_versions()
    if last:
        say(f"{probing.encoder.stage}: {name_upgrade(last[1], versions)}: probing {probing.encoder.name} once")
    try:
        values = probing.take()
    except (BaseError, ConfigError) as error:  # no weights here, or no device: only what has to be encoded needs them
        if probing.lacks(assumed):
            raise
        probing.tell(f"{probing.encoder.stage}: not probed, the entries that are there are taken: {error}", True)
        return assumed
    verdict = memory.learn(values, versions)
    if verdict.difference:
        same = verdict.generation == assumed
        told = describe_same if same else describe
        probing.tell(
            f"{probing.encoder.stage}: {told(probing.encoder.name, verdict.upgrade, verdict.difference)}", same
        )
    return verdict.generation


def foresee(probing: Probing) -> Reference | None:
    """`settle` for `eridiff why`: the same, but the very first probe of an encoder is left to its stage.

    Raises: BaseError, ConfigError where the encoder cannot be probed here although something has to be encoded.
    """
    memory = ProbeMemory(probing.root, probing.encoder)
    return settle(probing) if memory.references or probing.own(probing.earlier()) else None


def compare_with_output(probing: Probing, now: Reference | None, output: Reference | None) -> str | None:
    """How an encoder's numbers differ from those that a stage's last output was made with; None where they do not.

    An output without a reference was made with the first generation; one of another encoder is no comparison.
    """
    before = generation_of(output)
    if now is None or now.generation == before or (output and not probing.own(output)):
        return None
    memory = ProbeMemory(probing.root, probing.encoder)
    reference = output or memory.references.get(FIRST)
    upgrade = name_upgrade(memory.versions_of(before), library_versions())
    difference = compare(reference.values, now.values, probing.encoder.precision) if reference else None
    return describe(probing.encoder.name, upgrade, difference)


def describe(name: str, upgrade: str, difference: Difference | None) -> str:
    """What a probe found, in words."""
    since = f" since {upgrade}" if upgrade else ""
    return f"{name} gives other numbers{since}" + (f": {difference}" if difference else "")


def describe_same(name: str, upgrade: str, difference: Difference) -> str:
    """What a probe found that found nothing."""
    return f"{name} gives the same numbers with {upgrade or 'these libraries'}, but for rounding: {difference}"
