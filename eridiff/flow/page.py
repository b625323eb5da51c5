"""What the page of a run shows: Markdown with the pictures inside it, since the page loads nothing from elsewhere."""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from eridiff.core.files import digest_file, read_file, read_text
from eridiff.flow.outcomes import Outcome

MAX_PIXELS = 1600 * 1600  # of a picture on the page: of a long grid every row can still be seen
MAX_BYTES = 400_000  # of a picture as it stands; a larger one becomes a JPEG
CACHE_LINE = re.compile(r"^(\w+): (\d+) samples, (\d+) encoded, (\d+) reused.*$")


def pages(
    outcomes: Mapping[str, Outcome], lines: Mapping[str, Sequence[str]], files: Mapping[str, Path]
) -> dict[str, str]:
    """Key of an artifact -> Markdown; a page for which there is nothing to show is left out.

    lines: what each stage printed. files: what the project's outs hold, by path.
    """
    found = {
        "samples": samples_page(files),
        "loss": loss_page(files),
        "cache": cache_page(outcomes, lines),
        "export": export_page(files),
    }
    return {key: text for key, text in found.items() if text}


def samples_page(files: Mapping[str, Path]) -> str:
    """The labelled grid of samples."""
    grid = files.get("data/samples/grid.png")
    return f"![samples]({picture(grid)})\n\n`data/samples/grid.png`\n" if grid else ""


def picture(path: Path) -> str:
    """A picture as a `data:` address: as it is where it is small, else smaller and as a JPEG."""
    from PIL import Image

    content = read_file(path)
    with Image.open(io.BytesIO(content)) as image:
        scale = min(1, (MAX_PIXELS / (image.width * image.height)) ** 0.5)
        if len(content) <= MAX_BYTES and scale == 1:
            return _address("image/png", content)
        image.thumbnail((image.width * scale, image.height * scale))
        small = io.BytesIO()
        image.convert("RGB").save(small, "JPEG", quality=85)
    return _address("image/jpeg", small.getvalue())


def _address(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _drawing(svg: str) -> str:
    return _address("image/svg+xml", svg.encode())


def loss_page(files: Mapping[str, Path]) -> str:
    """The curve of the loss by step."""
    table = files.get("data/loss.tsv")
    if table is None:
        return ""
    header, *rows = [line.split("\t") for line in read_text(table).splitlines()]
    step, loss = header.index("step"), header.index("loss")
    points = [(float(row[step]), float(row[loss])) for row in rows]
    if not points:
        return ""
    last = points[-1]
    return f"![loss by step]({_drawing(curve(points))})\n\nStep {last[0]:.0f}: loss {last[1]:.4f}.\n"


def curve(points: Sequence[tuple[float, float]], size: tuple[int, int] = (760, 300)) -> str:
    """A drawing (SVG) of values by step, with their running mean."""
    (width, height), (left, bottom, top) = size, (56, 30, 14)
    x0, x1 = points[0][0], max(points[-1][0], points[0][0] + 1)
    low, high = min(y for _, y in points), max(y for _, y in points)
    high = high if high > low else low + 1

    def place(x: float, y: float) -> str:
        across = left + (x - x0) / (x1 - x0) * (width - left - 16)
        return f"{across:.1f},{top + (high - y) / (high - low) * (height - top - bottom):.1f}"

    raw = " ".join(place(x, y) for x, y in points)
    smooth = " ".join(place(x, y) for (x, _), y in zip(points, running_mean([y for _, y in points]), strict=True))
    labels = "".join(
        f'<text x="{left - 6}" y="{top + (high - y) / (high - low) * (height - top - bottom) + 4:.1f}" '
        f'text-anchor="end">{y:.3g}</text>'
        for y in (low, (low + high) / 2, high)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
        f'font-size="12"><rect width="{width}" height="{height}" fill="#fff"/>'
        f'<path d="M{left} {top}V{height - bottom}H{width - 16}" fill="none" stroke="#9ca3af"/>{labels}'
        f'<text x="{left}" y="{height - 10}">{x0:.0f}</text>'
        f'<text x="{width - 16}" y="{height - 10}" text-anchor="end">step {x1:.0f}</text>'
        f'<polyline points="{raw}" fill="none" stroke="#93c5fd"/>'
        f'<polyline points="{smooth}" fill="none" stroke="#1d4ed8" stroke-width="2"/></svg>'
    )


def running_mean(values: Sequence[float]) -> list[float]:
    """An exponential mean over about a tenth of the values, free of its start's bias."""
    keep, mean, weight, found = 1 - 1 / max(1.0, len(values) / 10), 0.0, 0.0, []
    for value in values:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + 1 - keep
        found.append(mean / weight)
    return found


def cache_page(outcomes: Mapping[str, Outcome], lines: Mapping[str, Sequence[str]]) -> str:
    """What the caching stages encoded and reused in this run."""
    found = [match for said in lines.values() for line in said if (match := CACHE_LINE.match(line))]
    rows = [f"| {match[1]} | {match[2]} | {match[3]} | {match[4]} | `{match[0]}` |" for match in found]
    said = {match[1] for match in found}
    spared = {"Cached": "not started", "Restored": "taken from the run-cache"}
    rows += [
        f"| {name} | | 0 | all | {spared[outcomes[name].state]} |"
        for name in ("latents", "text")
        if name in outcomes and name not in said and outcomes[name].state in spared
    ]
    head = "| | samples | encoded | reused | |\n|---|---|---|---|---|\n"
    return head + "\n".join(rows) + "\n" if rows else ""


def export_page(files: Mapping[str, Path]) -> str:
    """The exported files with their digests."""
    found = {path: place for path, place in files.items() if path.startswith("data/export/")}
    rows = [
        f"| `{path}` | {place.stat().st_size:,} | `{sha256(place)}` |"
        for path, place in sorted(found.items())
        if path.endswith(".safetensors")
    ]
    return "| file | bytes | SHA-256 |\n|---|---|---|\n" + "\n".join(rows) + "\n" if rows else ""


def sha256(path: Path) -> str:
    """The digest of a file's bytes."""
    return digest_file(path)
