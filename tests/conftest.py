import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.costs import pytest_runtest_protocol as pytest_runtest_protocol
from tests.e2e import prefork
from tests.support.checkouts import link_bases

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as run_main does: threads that wait leave the cores to others
os.environ["DVC_NO_ANALYTICS"] = "1"
for name in ("MAKELEVEL", "MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES"):  # `make test` started the tests, not what they start
    os.environ.pop(name, None)

settings.register_profile("tests", deadline=None)  # a busy machine is no fault; each test has a limit
settings.load_profile("tests")
MACHINES = itertools.count()
ROOT = Path(__file__).parent.parent
# Seconds that a test of a kind may take, several times what it takes on two busy cores: what hangs ends, and is named.
LIMITS = {"slow": 300, "gpu": 300, "e2e": 900, "flow": 900}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test the longest limit of its marks, unless it states its own."""
    for item in items:
        seconds = [limit for mark, limit in LIMITS.items() if item.get_closest_marker(mark)]
        if seconds and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(max(seconds)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(specs: list[Any]) -> None:
    """Workers are forked from one process that has imported the libraries."""
    server = prefork.start()
    os.environ[prefork.SESSION] = str(server.folder)
    for spec in specs:
        spec.python = str(server.worker)


@pytest.fixture(autouse=True, scope="session")
def small_checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A checkout whose bases are the tests' own, and the current folder: fixtures of modules open bases too."""
    folder = tmp_path_factory.mktemp("small")
    link_bases(folder)
    with contextlib.chdir(folder):
        yield folder


@pytest.fixture(autouse=True)
def machine(small_checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test runs in that checkout, with a store and caches of its own and no settings of this machine."""
    # Counted, not by mktemp: that one lists all folders of before, each time.
    place = small_checkout.with_name(f"{small_checkout.name}-machines") / str(next(MACHINES))
    place.mkdir(parents=True)
    monkeypatch.chdir(small_checkout)
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(place / "config"))
    monkeypatch.setenv("ERIDIFF_STORE", str(place / "store"))
    monkeypatch.setenv("ERIDIFF_DEVICE", "cpu")  # gpu tests name their device themselves
    monkeypatch.setenv("HOME", str(place))  # where ComfyUI is looked for
    for name in ("ERIDIFF_MODELS", "ERIDIFF_COMFYUI", "HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
