"""The drift check of a caching stage: when its encoder is measured again, and how the result is reported."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from eridiff.caching.drift_records import (
    NO_DRIFT,
    Difference,
    DriftRecords,
    Encoder,
    Reference,
    Values,
    compare,
    library_versions,
    name_upgrade,
    reference_of,
)
from eridiff.core.errors import BaseError, ConfigError
from eridiff.core.progress import say
from eridiff.formats.tables import read_facts
from eridiff.store.entry_table import sorted_keys
from eridiff.store.sharding import Keys
from eridiff.store.store import Store


def any_missing(root: Path, kind: str, keys: Iterable[str] | Keys, earlier: Callable[[], Iterable[Path]]) -> bool:
    """Whether something has to be encoded: neither the store nor the stage's own last output has all keys."""
    store, wanted = Store(root, kind), sorted_keys(keys)
    if store.missing(wanted):
        store.adopt(earlier())
    return bool(store.missing(wanted))


def index_reference(index: Path | None) -> Reference | None:
    """The reference that an index carries; None without an index, or in one from before the first drift check."""
    return reference_of(read_facts(index)) if index else None


def drift_id_of(reference: Reference | None) -> str:
    """The drift id that enters the keys: empty for the numbers of the first check."""
    return reference.drift_id if reference else NO_DRIFT


@dataclass(frozen=True, kw_only=True)
class DriftCheck:
    """How one stage checks its encoder for drift.

    measure: gives some of the encoder's numbers on a fixed input, and loads it for that. incomplete: whether entries
    are missing under the keys of a drift id. earlier: the reference in the stage's own last output. report: gets a
    line on the result, and whether the numbers are the same up to rounding.
    """

    encoder: Encoder
    root: Path
    measure: Callable[[], Values]
    incomplete: Callable[[str], bool]
    earlier: Callable[[], Reference | None]
    report: Callable[[str, bool], None] = lambda text, same: say(text)

    def own(self, reference: Reference | None) -> Reference | None:
        """A reference, if it is this encoder's: the stage's last output may be another's."""
        return reference if reference and reference.encoder == self.encoder.digest else None


def check_drift(check: DriftCheck) -> Reference | None:
    """The reference of an encoder's numbers with this machine's libraries; measures them where that is not known.

    The encoder is loaded only after an upgrade, or where something has to be encoded. None: nothing is known, and
    nothing has to be encoded.
    """
    memory, versions = DriftRecords(check.root, check.encoder), library_versions()
    drift_id = memory.at(versions)
    if drift_id is None:
        drift_id = _unknown(check, memory)
    return memory.references.get(drift_id)


def _unknown(check: DriftCheck, memory: DriftRecords) -> str:
    """The drift id with versions that the store has no record of."""
    if not memory.references and (earlier := check.own(check.earlier())):
        memory.adopt(earlier)
    last = memory.last
    assumed = last[0] if last else next(iter(memory.references), NO_DRIFT)
    if last is None and not check.incomplete(assumed):
        return assumed
    versions = library_versions()
    if last:
        say(f"{check.encoder.stage}: {name_upgrade(last[1], versions)}: drift check of {check.encoder.name}")
    try:
        values = check.measure()
    except (BaseError, ConfigError) as error:  # no weights here, or no device: only what has to be encoded needs them
        if check.incomplete(assumed):
            raise
        check.report(f"{check.encoder.stage}: no drift check, existing entries are used: {error}", True)
        return assumed
    verdict = memory.learn(values, versions)
    if verdict.difference:
        same = verdict.drift_id == assumed
        told = describe_same if same else describe
        check.report(f"{check.encoder.stage}: {told(check.encoder.name, verdict.upgrade, verdict.difference)}", same)
    return verdict.drift_id


def check_known_drift(check: DriftCheck) -> Reference | None:
    """`check_drift` for `eridiff why`: the same, but the first check of an encoder is left to its stage.

    Raises: BaseError, ConfigError where the check cannot run here although something has to be encoded.
    """
    memory = DriftRecords(check.root, check.encoder)
    return check_drift(check) if memory.references or check.own(check.earlier()) else None


def compare_with_output(check: DriftCheck, now: Reference | None, output: Reference | None) -> str | None:
    """How an encoder's numbers differ from those that a stage's last output was made with; None where they do not.

    An output without a reference has no drift; one of another encoder is not compared.
    """
    before = drift_id_of(output)
    if now is None or now.drift_id == before or (output and not check.own(output)):
        return None
    memory = DriftRecords(check.root, check.encoder)
    reference = output or memory.references.get(NO_DRIFT)
    upgrade = name_upgrade(memory.versions_of(before), library_versions())
    difference = compare(reference.values, now.values, check.encoder.precision) if reference else None
    return describe(check.encoder.name, upgrade, difference)


def describe(name: str, upgrade: str, difference: Difference | None) -> str:
    """A check that found drift, in words."""
    since = f" since {upgrade}" if upgrade else ""
    return f"{name} gives other numbers{since}" + (f": {difference}" if difference else "")


def describe_same(name: str, upgrade: str, difference: Difference) -> str:
    """A check that found no drift, in words."""
    return f"{name} gives the same numbers with {upgrade or 'these libraries'}, but for rounding: {difference}"
