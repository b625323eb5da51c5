"""What the store remembers of pictures: file digest -> pixel digest, so that a rename decodes nothing.

STORE/pixels/ID.tsv    file digest, space, RULES <tab> pixel digest, one immutable file a batch, named by its content

Lines without RULES are from before colour profiles were converted. They hold for a picture whose numbers are sRGB's, so
they are taken over after a look at its header (eridiff/latents.py), and nobody decodes all pictures again.
"""

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from pathlib import Path

from eridiff.entries import WAY_OUT
from eridiff.files import digest_file, open_file, write_text
from eridiff.progress import warn

RULES = "2"  # how a file becomes pixels; raised when some file's pixels change. 2: colours in sRGB
AT_A_TIME = 1024  # remembered, while pictures are read for the first time


class PixelDigests:
    """What the store remembers of pictures: file digest -> pixel digest, so that a rename decodes nothing.

    wanted: digests of files; without it, whatever all projects of the store have.
    """

    def __init__(self, root: Path, wanted: Set[str] | None = None) -> None:
        self.folder = root / "pixels"
        self.wanted = wanted
        self.known: dict[str, str] = {}
        self.before: dict[str, str] = {}  # by the rules of before: true for pictures that are sRGB already
        self.look_again()

    def look_again(self) -> None:
        """Read what other processes have learned, too."""
        wanted = self.wanted
        for path in sorted(self.folder.glob("*.tsv")) if wanted is None or wanted else ():
            with suppress(FileNotFoundError):  # gc joins small files
                if path.name != f"{digest_file(path)}.tsv":
                    warn(f"{path} is damaged: its pictures are read again. {WAY_OUT}")
                    continue
                with io.TextIOWrapper(open_file(path), encoding="utf-8") as file:
                    pairs = (line.rstrip("\n").split("\t") for line in file)
                    for key, value in pairs:
                        digest, _, rules = key.partition(" ")
                        if rules in ("", RULES) and (wanted is None or digest in wanted):
                            (self.known if rules else self.before)[digest] = value

    @property
    def unknown(self) -> set[str]:
        """Those of the wanted that are not known."""
        return set((self.wanted or frozenset()) - self.known.keys())

    @staticmethod
    def file_name(text: str) -> str:
        """The name of a file with this content."""
        return f"{hashlib.sha256(text.encode()).hexdigest()}.tsv"

    def learn(self, digests: Mapping[str, str]) -> None:
        """Remember new digests in one immutable file, named by its content."""
        new = {key: value for key, value in digests.items() if key not in self.known}
        if new:
            text = "".join(f"{key} {RULES}\t{value}\n" for key, value in sorted(new.items()))
            write_text(self.folder / self.file_name(text), text)
            self.known |= new

    @contextmanager
    def learning(self) -> Iterator[Callable[[str, str], None]]:
        """Takes digests one by one; they are remembered some at a time, and at the end, however that comes."""
        some: dict[str, str] = {}

        def learn(file: str, pixels: str) -> None:
            some[file] = pixels
            if len(some) == AT_A_TIME:
                self.learn(some)
                some.clear()

        try:
            yield learn
        finally:
            self.learn(some)
