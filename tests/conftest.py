import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as run_main does: threads that wait leave the cores to others
os.environ["DVC_NO_ANALYTICS"] = "1"
# Threads that wait sleep: several test processes on few cores are else many times slower. No bit changes.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def machine(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test runs in the checkout, with a store and caches of its own and no settings of this machine."""
    place = tmp_path_factory.mktemp("machine")
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(place / "config"))
    monkeypatch.setenv("ERIDIFF_STORE", str(place / "store"))
    monkeypatch.setenv("ERIDIFF_DEVICE", "cpu")  # gpu tests name their device themselves
    for name in ("ERIDIFF_MODELS",):
        monkeypatch.delenv(name, raising=False)
