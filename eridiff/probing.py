"""When a caching stage probes its encoder, and how what it finds is told."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from eridiff.entrytable import sorted_keys
from eridiff.errors import BaseError, ConfigError
from eridiff.placement import Keys
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
)
from eridiff.progress import say
from eridiff.store import Store
from eridiff.tables import read_facts


def entries_lacking(root: Path, kind: str, keys: Iterable[str] | Keys, earlier: Callable[[], Iterable[Path]]) -> bool:
    """Whether something has to be encoded: neither the store nor the stage's own last output has all keys."""
    store, wanted = Store(root, kind), sorted_keys(keys)
    if store.missing(wanted):
        store.adopt(earlier())
    return bool(store.missing(wanted))


def index_reference(index: Path | None) -> Reference | None:
    """The reference that an index carries; None without an index, or in one made before any probe."""
    return reference_of(read_facts(index)) if index else None


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
