"""Damaged pictures and bombs: each is read, or refused by name, in bounded time and memory."""

from itertools import islice
from pathlib import Path

import pytest

from tests.picturefuzz import corpus, damaged, read_all_ways, sound
from tests.support import processes

READ_BOMBS = """
import resource, sys, time
from pathlib import Path
from tests.picturefuzz import read_all_ways
for path in sorted(Path(sys.argv[1]).iterdir()):
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    said = read_all_ways(path)[1]
    mebibytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    print(path.name, mebibytes, round(time.process_time() - start, 1), said[:70], sep="|")
"""
REFUSED = {  # the others are read: what would cost much in them is not looked at
    "zTXt.png": "damaged picture (Decompressed data too large",
    "iTXt.png": "damaged picture (Decompressed data too large",
    "zTXt many.png": "damaged picture (Too much memory used in text chunks",
    "iCCP.png": "damaged picture (Decompressed data too large",
    "plain.png": "", "frames.gif": "several frames or pages", "screen.gif": "65535x65535 is 4,294,836,225 pixels",
    "inner.gif": "more than 175,000,000 pixels", "tile.tif": "damaged picture",
    "strip.tif": "damaged picture", "tags.tif": "damaged picture",
    "pages.tif": "several frames or pages", "scans.jpg": "", "canvas.webp": "more than 175,000,000 pixels",
}  # fmt: skip


def test_the_pictures_are_sound_before_they_are_damaged(tmp_path: Path) -> None:
    for number, (kind, data) in enumerate(sound()):
        path = tmp_path / f"{number}.{kind}"
        path.write_bytes(data)
        assert read_all_ways(path) == ["read"] * 3, path


def test_damaged_pictures_are_read_or_refused_by_name(tmp_path: Path) -> None:
    path, refused = tmp_path / "a.png", 0
    for data in islice(damaged(16), 100):
        path.write_bytes(data)
        refused += read_all_ways(path)[1] != "read"  # anything but a DataError fails the test
    assert 10 < refused < 90


@pytest.mark.slow
def test_bombs_cost_neither_time_nor_memory(tmp_path: Path) -> None:
    (tmp_path / "bombs").mkdir()
    bombs = corpus()
    for name, data in bombs.items():
        (tmp_path / "bombs" / name).write_bytes(data)
    lines = [line.split("|") for line in processes.run(READ_BOMBS, tmp_path / "bombs").splitlines()]
    assert {name for name, *_ in lines} == bombs.keys()
    for name, mebibytes, seconds, said in lines:
        assert int(mebibytes) < 200, (name, mebibytes)
        assert float(seconds) < 5, (name, seconds)
        assert (said != "read") == (name in REFUSED), (name, said)
        assert said.startswith(REFUSED.get(name, "read")), (name, said)


@pytest.mark.slow
def test_the_driver_finds_nothing_in_some_seconds() -> None:
    code = "import sys; from tests.picturefuzz import main; main(int(sys.argv[1]), float(sys.argv[2]))"
    assert processes.run(code, 2024, 15).endswith(" files, 0 neither read nor refused by name\n")
