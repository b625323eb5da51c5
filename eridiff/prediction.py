"""What the next `dvc repro` would do, as data, as JSON and as text."""

from dataclasses import asdict, dataclass, field

from eridiff.files import canonical_json

RUNS, RESTORED, UP_TO_DATE = "runs", "restored", "-"


@dataclass(kw_only=True)
class StagePlan:
    """What happens to one stage."""

    state: str  # RUNS, RESTORED or UP_TO_DATE
    reasons: list[str] = field(default_factory=list)
    encoded: int | None = None  # of the caching stages, when they run
    reused: int | None = None


@dataclass(kw_only=True)
class SamplePlan:
    """One sample that would be encoded, and why its key is new."""

    stage: str
    name: str  # picture or caption
    reason: str


@dataclass(kw_only=True)
class Prediction:
    """The next `dvc repro`."""

    stages: dict[str, StagePlan] = field(default_factory=dict)
    samples: list[SamplePlan] = field(default_factory=list)
    error: str | None = None  # what the check stage would say

    def to_json(self) -> str:
        """The prediction as JSON."""
        return canonical_json(asdict(self))


def render(prediction: Prediction) -> str:
    """The prediction as text: a line a stage, its reasons, the samples to encode."""
    lines = [f"error: {prediction.error}"] if prediction.error else []
    for name, plan in prediction.stages.items():
        counts = "" if plan.encoded is None else f"{plan.encoded} to encode, {plan.reused} reused; "
        lines.append(f"{name:9} {plan.state:9} {counts}{_shorten(plan.reasons)}".rstrip())
    for sample in prediction.samples[:20]:
        lines.append(f"  {sample.stage}: {sample.name!r}: {sample.reason}")
    if len(prediction.samples) > 20:
        lines.append(f"  and {len(prediction.samples) - 20} more")
    if not any(plan.state == RUNS for plan in prediction.stages.values()):
        lines.append("nothing runs")
    return "\n".join(lines)


def _shorten(reasons: list[str], most: int = 4) -> str:
    """The first few reasons in one line."""
    more = f"; and {len(reasons) - most} more" if len(reasons) > most else ""
    return "; ".join(reasons[:most]) + more
