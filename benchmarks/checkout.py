"""Imports from a checkout of another trainer, without the libraries that its training step does not call."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType


class StandIn(ModuleType):
    """A module whose every name is an empty class."""

    __path__: Sequence[str] = ()

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        made = type(name, (), {})
        setattr(self, name, made)
        return made


class StandIns(MetaPathFinder, Loader):
    """Finds libraries of some names, and all that is in them."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def find_spec(self, fullname: str, path: object, target: object = None) -> ModuleSpec | None:
        """For one of the names alone."""
        return ModuleSpec(fullname, self, is_package=True) if fullname.partition(".")[0] in self.names else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """An empty one."""
        return StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run."""


@contextmanager
def importing(checkout: Path, unneeded: Sequence[str]) -> Iterator[None]:
    """Import from the checkout; something stands in for libraries of the names that are not installed."""
    import diffusers
    import transformers

    assert diffusers and transformers  # which look for some of them: before anything stands in
    finder = StandIns([name for name in unneeded if find_spec(name) is None])
    sys.path.insert(0, str(checkout))
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.path.remove(str(checkout))
        sys.meta_path.remove(finder)
        for name in [name for name, module in sys.modules.items() if isinstance(module, StandIn)]:
            del sys.modules[name]
