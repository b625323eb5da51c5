"""What reuse saves: how long an encoder takes for a sample, as measured in earlier runs.

Files STORE/rates/ENCODER.json; a convenience, in no out. Times hold for the machine that measured them.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eridiff.caching import CacheCounts
from eridiff.files import canonical_json, digest_json, write_text
from eridiff.jsonfiles import load_json

ENOUGH = 32  # samples that make a measurement as good as any: fewer are mostly the encoder's first batch


@dataclass(frozen=True)
class Rate:
    """seconds: for one sample of one unit; samples: how many were encoded when it was measured."""

    seconds: float
    samples: int


class TimedLoad:
    """Loads an encoder once, when first called, and keeps how many seconds that took."""

    def __init__(self, load: Callable[[], Any]) -> None:
        self.seconds = 0.0
        self._load, self._loaded = load, None

    def __call__(self) -> Any:
        """What was loaded."""
        if self._loaded is None:
            start = time.monotonic()
            self._loaded = self._load()
            self.seconds += time.monotonic() - start
        return self._loaded


def count_saving(
    counts: CacheCounts, root: Path, identity: Mapping[str, Any], units: float = 1.0, *, loading: float = 0.0
) -> CacheCounts:
    """The counts with what was saved, as far as a rate is known; a better measurement is remembered.

    identity: what is timed. units: of a sample, pixels for instance, to which its time is proportional. loading:
    seconds of the encoding that went into loading the encoder.
    """
    path = root / "rates" / f"{digest_json(dict(identity))}.json"
    rate = _read(path)
    if counts.encoded and (rate is None or counts.encoded >= min(ENOUGH, rate.samples)):
        rate = Rate(max(counts.encode_seconds - loading, 0.0) / counts.encoded / units, counts.encoded)
        with suppress(OSError):  # a store that may only be read
            write_text(path, canonical_json({"seconds": rate.seconds, "samples": rate.samples}) + "\n")
    reused = counts.samples - counts.encoded
    return replace(counts, saved=rate.seconds * units * reused) if rate and reused else counts


def _read(path: Path) -> Rate | None:
    """A remembered rate; None where there is none that can be read."""
    try:
        record = load_json(path)
        return Rate(float(record["seconds"]), int(record["samples"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
