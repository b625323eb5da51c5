"""Signatures of components: the names and shapes in a header by which each is recognised, without its weights."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]  # tensor name, its prefix taken off -> shape
Mark = tuple[int | None, ...] | None  # sizes that a tensor must have; None: any


@dataclass(frozen=True, kw_only=True)
class Look:
    """The signature of one component in one layout. Of several that fit, the first counts: special ones come first."""

    kind: str  # of component: denoiser, vae, clip-l, clip-g, clip (either), t5
    layout: str  # whose names: `original` or `diffusers`
    what: str  # in words
    marks: Mapping[str, Mark]  # tensors that must be there
    absent: tuple[str, ...] = ()  # tensors that must not
    model: str = ""  # in published.json; empty: sizes that nobody published
    refusal: str = ""  # why this is no base, where it is none
    spare: tuple[str, ...] = field(default=())  # beginnings of names that may be there and are not read

    def fits(self, shapes: Shapes) -> bool:
        """Whether these tensors show it."""
        return all(name in shapes and fits(shapes[name], mark) for name, mark in self.marks.items()) and not any(
            name in shapes for name in self.absent
        )


def fits(shape: Shape, mark: Mark) -> bool:
    """Whether a shape is what a mark asks for."""
    if mark is None:
        return True
    return len(shape) == len(mark) and all(want in (None, size) for size, want in zip(shape, mark, strict=True))


def first_look(looks: Iterable[Look], shapes: Shapes) -> Look | None:
    """The first look that fits."""
    return next((look for look in looks if look.fits(shapes)), None)
