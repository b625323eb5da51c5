"""torch's compiler in tests: in this process alone."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def compiling_here() -> Iterator[None]:
    """The compiler else starts a process for each core, each of which imports torch, to compile a few kernels."""
    from torch._inductor import compile_fx as compile_fx  # its settings are complete only then
    from torch._inductor import config

    with config.patch(compile_threads=1):
        yield
