"""Fixtures of these tests."""

import pytest

from eridiff.training.data import TrainingSet
from tests.support import training
from tests.support.bases import FAMILIES


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrainingSet]:
    params = training.params_of()
    return {name: training.random_set(name, tmp_path_factory.mktemp(name), params, ((64, 64),)) for name in FAMILIES}
