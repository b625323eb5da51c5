"""Drift checks: what counts as rounding, what the store records, and when a caching stage runs one."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from eridiff.caching import drift_records
from eridiff.caching.drift_check import DriftCheck, check_drift, check_known_drift, compare_with_output, drift_id_of
from eridiff.caching.drift_records import (
    NO_DRIFT,
    TOLERANCE,
    DriftRecords,
    Encoder,
    Reference,
    Values,
    compare,
    library_versions,
    name_upgrade,
    reference_of,
)
from eridiff.caching.latents.vae_drift import vae_drift_values
from eridiff.caching.text_drift import text_drift_values
from eridiff.core.errors import BaseError, DataError, StoreError
from eridiff.family import load_family
from eridiff.models.load import load_text_encoders, load_vae
from eridiff.params.latents import LatentParams
from eridiff.params.text import TextParams
from tests.support.bases import FAMILIES, source

CPU = torch.device("cpu")
ENCODER = Encoder(stage="latents", name="the VAE of here", identity={"vae": "a"}, precision="fp32")
VALUES = {"mean": [1.0, -4.0, 2.0], "std": [0.5, 0.1, 0.2]}
OLD, NEW, NEWER = ({"diffusers": version, "torch": "2.11.0"} for version in ("0.42.1", "0.43.0", "0.44.0"))


def moved(by: float) -> Values:
    """VALUES with one number moved by a part of the largest."""
    return {**VALUES, "mean": [1.0, -4.0, 2.0 + 4.0 * by]}


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """Sets the versions of the libraries."""

    def use(found: dict[str, str]) -> None:
        for module in ("eridiff.caching.drift_records", "eridiff.caching.drift_check"):
            monkeypatch.setattr(f"{module}.library_versions", lambda: found)

    return use


@pytest.mark.parametrize("precision", sorted(TOLERANCE))
def test_what_passes_for_rounding(precision: str) -> None:
    allowed = TOLERANCE[precision]
    within, beyond = compare(VALUES, moved(0.9 * allowed), precision), compare(VALUES, moved(1.1 * allowed), precision)
    assert not within.beyond_rounding and beyond.beyond_rounding
    assert within.largest == pytest.approx(4.0 * 0.9 * allowed)
    assert (within.tensor, within.allowed) == ("mean", pytest.approx(4.0 * allowed))


def test_the_tensor_furthest_out_is_named() -> None:
    other = {"mean": [1.0, -4.0, 2.0004], "std": [0.5, 0.1, 0.2001]}
    assert str(compare(VALUES, other, "fp32")) == "largest difference 0.0001 (std), rounding would be 0.0001"


@pytest.mark.parametrize("other", [{"mean": VALUES["mean"]}, {**VALUES, "std": [0.5]}])
def test_other_tensors_or_shapes_are_other_numbers(other: Values) -> None:
    assert compare(VALUES, other, "bf16").beyond_rounding


def test_no_number_is_another_number() -> None:
    assert compare(VALUES, {**VALUES, "std": [0.5, math.nan, 0.2]}, "bf16").beyond_rounding


def test_zero_is_compared_exactly() -> None:
    zero = {"std": [0.0, 0.0]}  # an autoencoder without a posterior
    assert not compare(zero, zero, "fp32").beyond_rounding
    assert compare(zero, {"std": [0.0, 1e-9]}, "fp32").beyond_rounding
    assert compare({**VALUES, **zero}, {**moved(0.01), **zero}, "fp32").tensor == "mean"


def test_drift_ids(tmp_path: Path) -> None:
    """The first, rounding, another, back to the first, and near the second again."""
    memory = DriftRecords(tmp_path, ENCODER)
    assert memory.last is None and memory.at(OLD) is None
    first = memory.learn(VALUES, OLD)
    assert (first.drift_id, first.difference) == (NO_DRIFT, None)
    assert memory.learn(moved(1e-5), NEW).drift_id == NO_DRIFT
    assert memory.references[NO_DRIFT].values == VALUES  # the original, not the last
    other = DriftRecords(tmp_path, ENCODER).learn(moved(0.01), NEWER)
    assert len(other.drift_id) == 16 and other.before == NEW and other.upgrade == "diffusers 0.43.0 -> 0.44.0"
    assert str(other.difference) == "largest difference 0.04 (mean), rounding would be 0.0008"
    again = DriftRecords(tmp_path, ENCODER)
    assert [again.at(found) for found in (OLD, NEW, NEWER)] == [NO_DRIFT, NO_DRIFT, other.drift_id]
    assert again.learn(moved(0.01001), {"diffusers": "0.45"}).drift_id == other.drift_id
    assert again.learn(moved(-1e-5), {"diffusers": "0.46"}).drift_id == NO_DRIFT
    assert set(again.references) == {NO_DRIFT, other.drift_id}
    assert again.versions_of(other.drift_id) == {"diffusers": "0.45"}
    assert again.last == (NO_DRIFT, {"diffusers": "0.46"})


def test_encoders_are_apart(tmp_path: Path) -> None:
    DriftRecords(tmp_path, ENCODER).learn(VALUES, OLD)
    for identity in ({"vae": "b"}, {"vae": "a", "dtype": "bf16"}):
        other = Encoder(stage="latents", name="another", identity=identity, precision="fp32")
        assert DriftRecords(tmp_path, other).at(OLD) is None


def test_of_two_processes_the_first_wins(tmp_path: Path) -> None:
    """Two processes after one upgrade, each with its own rounding: one drift_id."""
    DriftRecords(tmp_path, ENCODER).learn(VALUES, OLD)
    one, two = DriftRecords(tmp_path, ENCODER), DriftRecords(tmp_path, ENCODER)
    assert set(one.references) == set(two.references) == {NO_DRIFT}  # both have looked
    drift_id = one.learn(moved(0.01), NEW).drift_id
    assert two.learn(moved(0.010001), NEW).drift_id == drift_id
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    DriftRecords(tmp_path, ENCODER).learn(VALUES, OLD)
    path = next(tmp_path.rglob("versions-*.json"))
    path.write_text('{"generation": ')
    with pytest.raises(StoreError, match=path.name):
        DriftRecords(tmp_path, ENCODER).at(OLD)


def test_every_flipped_bit_of_a_record_is_found(tmp_path: Path) -> None:
    """A reference enters the keys of all that is encoded later."""
    DriftRecords(tmp_path, ENCODER).learn(VALUES, OLD)
    for path in tmp_path.rglob("*.json"):
        data = path.read_bytes()
        for place in range(len(data)):
            path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            with pytest.raises(StoreError, match=f"{path.name} is damaged. Remove it: the drift check then runs again"):
                DriftRecords(tmp_path, ENCODER).learn(VALUES, NEW)
        path.write_bytes(data)


def test_records_of_before_are_read_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    DriftRecords(tmp_path, ENCODER).learn(VALUES, OLD)
    for path in list(tmp_path.rglob("*.sealed.json")):
        record = {key: value for key, value in json.loads(path.read_text()).items() if key != "seal"}
        path.with_name(path.name.replace(".sealed", "")).write_text(json.dumps(record))
        path.unlink()
    memory = DriftRecords(tmp_path, ENCODER)
    assert (memory.at(OLD), memory.references[NO_DRIFT].values, memory.last) == (NO_DRIFT, VALUES, (NO_DRIFT, OLD))
    assert memory.learn(VALUES, NEW).drift_id == NO_DRIFT
    assert capsys.readouterr().out.count("carries no checksum, as files of before") == 2


def test_versions_are_read_without_importing() -> None:
    from importlib.metadata import version

    found = library_versions()
    assert found == {name: version(name) for name in ("torch", "diffusers", "transformers", "tokenizers")}
    assert name_upgrade({**found, "torch": "2.0"}, found) == f"torch 2.0 -> {found['torch']}"
    assert drift_records.LIBRARIES[0] == "torch"


def test_facts_go_there_and_back() -> None:
    reference = Reference(encoder="e", drift_id="0123", values=VALUES)
    assert reference_of(json.loads(json.dumps({"probe": reference.facts(), "scaling_factor": 1}))) == reference
    assert reference_of({"scaling_factor": 1}) is None
    assert drift_id_of(None) == NO_DRIFT


class Stage:
    """A caching stage with an encoder made up."""

    def __init__(self, root: Path, values: Values = VALUES) -> None:
        self.root, self.values, self.taken, self.told = root, values, 0, ""
        self.lacking, self.output, self.weights = True, None, True

    def check(self) -> DriftCheck:
        return DriftCheck(
            encoder=ENCODER,
            root=self.root,
            measure=self.take,
            incomplete=lambda drift_id: self.lacking,
            earlier=lambda: self.output,
            report=lambda text, same: setattr(self, "told", text),
        )

    def take(self) -> Values:
        if not self.weights:
            raise BaseError("the weights are not on this machine")
        self.taken += 1
        return self.values

    def settled(self) -> str:
        return drift_id_of(check_drift(self.check()))


def test_the_first_encode_runs_the_first_check(tmp_path: Path, versions: Callable[[dict[str, str]], None]) -> None:
    versions(OLD)
    stage = Stage(tmp_path)
    stage.lacking = False
    assert check_drift(stage.check()) is None and stage.taken == 0  # nothing to encode: nothing is loaded
    stage.lacking = True
    assert check_known_drift(stage.check()) is None and stage.taken == 0  # `why` leaves it to the stage
    assert (stage.settled(), stage.taken) == (NO_DRIFT, 1)
    assert (stage.settled(), stage.taken) == (NO_DRIFT, 1)  # known from now on
    assert drift_id_of(check_known_drift(stage.check())) == NO_DRIFT


def test_an_upgrade_is_checked_once(tmp_path: Path, versions: Callable[[dict[str, str]], None]) -> None:
    versions(OLD)
    Stage(tmp_path).settled()
    versions(NEW)
    stage = Stage(tmp_path, moved(1e-6))
    stage.lacking = False
    assert (stage.settled(), stage.settled(), stage.taken) == (NO_DRIFT, NO_DRIFT, 1)
    assert "the same numbers with diffusers 0.42.1 -> 0.43.0, but for rounding" in stage.told
    versions(NEWER)
    changed = Stage(tmp_path, moved(0.01))
    assert len(changed.settled()) == 16
    upgrade, difference = "diffusers 0.43.0 -> 0.44.0", "largest difference 0.04 (mean), rounding would be 0.0008"
    assert changed.told == f"latents: the VAE of here gives other numbers since {upgrade}: {difference}"
    versions(OLD)
    assert Stage(tmp_path, moved(0.5)).settled() == NO_DRIFT  # back: recorded, not measured


def test_without_weights_only_what_has_to_be_encoded_fails(
    tmp_path: Path, versions: Callable[[dict[str, str]], None]
) -> None:
    versions(OLD)
    Stage(tmp_path).settled()
    versions(NEW)
    stage = Stage(tmp_path)
    stage.weights = stage.lacking = False
    assert stage.settled() == NO_DRIFT
    stage.lacking = True
    with pytest.raises(BaseError, match="not on this machine"):
        stage.settled()
    assert DriftRecords(tmp_path, ENCODER).at(NEW) is None


def test_an_empty_store_compares_with_the_stages_own_output(
    tmp_path: Path, versions: Callable[[dict[str, str]], None]
) -> None:
    """A clone after `dvc pull`, its libraries newer than those that the output was made with."""
    versions(NEW)
    stage = Stage(tmp_path, moved(0.01))
    stage.output = Reference(encoder=ENCODER.digest, drift_id=NO_DRIFT, values=VALUES)
    stage.lacking = False
    assert (stage.settled(), stage.taken) == (NO_DRIFT, 0)
    stage.lacking = True
    assert len(stage.settled()) == 16 and stage.taken == 1
    now = check_drift(stage.check())
    message = compare_with_output(stage.check(), now, stage.output)
    assert message and message.endswith("largest difference 0.04 (mean), rounding would be 0.0008")
    assert compare_with_output(stage.check(), now, now) is None
    later = Stage(tmp_path / "other", moved(0.01001))
    later.output = now  # and one whose output was made with the newer ones
    assert later.settled() == now.drift_id if now else False


def test_another_encoders_output_is_no_comparison(tmp_path: Path, versions: Callable[[dict[str, str]], None]) -> None:
    """After a change of the VAE or of its number format the last output says nothing of the present one."""
    versions(NEW)
    stage = Stage(tmp_path, moved(0.01))
    stage.output = Reference(encoder="another", drift_id="0123456789abcdef", values=VALUES)
    assert check_known_drift(stage.check()) is None and stage.taken == 0
    assert stage.settled() == NO_DRIFT
    assert DriftRecords(tmp_path, ENCODER).references[NO_DRIFT].values == moved(0.01)
    assert stage.told == ""
    assert compare_with_output(stage.check(), check_drift(stage.check()), stage.output) is None


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_measurements_of_real_encoders(family: str) -> None:
    """Equal each time; moved by the encoder's own numbers; a changed weight is found."""
    module, params = load_family(family), LatentParams()
    vae = load_vae(module, source(family), torch.float32)
    values = vae_drift_values(params, vae, CPU)
    assert set(values) == {"mean", "std"} and {len(one) for one in values.values()} == {128}
    assert vae_drift_values(params, vae, CPU) == values
    assert not compare(values, vae_drift_values(LatentParams(channels_last=True), vae, CPU), "fp32").beyond_rounding
    with torch.no_grad():
        next(vae.parameters()).mul_(1.01)
    assert compare(values, vae_drift_values(params, vae, CPU), "fp32").beyond_rounding
    encoders = load_text_encoders(module, source(family), torch.float32)
    texts = text_drift_values(TextParams(), module, encoders, CPU)
    assert text_drift_values(TextParams(), module, encoders, CPU) == texts
    with torch.no_grad():
        next(next(iter(encoders.encoders.values())).parameters()).mul_(1.01)
    assert compare(texts, text_drift_values(TextParams(), module, encoders, CPU), "fp32").beyond_rounding


def test_a_tiled_measurement_is_tiled() -> None:
    """Its picture is wider than a tile, so the seams are in the numbers."""
    vae = load_vae(load_family(FAMILIES[0]), source(FAMILIES[0]), torch.float32)
    params = LatentParams(tile=64)
    tiled, whole = vae_drift_values(params, vae, CPU), vae_drift_values(LatentParams(tile=1024), vae, CPU)
    assert tiled != whole
    assert vae_drift_values(params, vae, CPU) == tiled


def test_numbers_that_are_not_finite_are_an_error() -> None:
    vae = load_vae(load_family(FAMILIES[0]), source(FAMILIES[0]), torch.float32)
    with torch.no_grad():
        next(vae.parameters()).fill_(math.nan)
    with pytest.raises(
        DataError, match=r"the VAE gave numbers .*The weights of vae are not finite themselves: encoder\.conv_in"
    ):
        vae_drift_values(LatentParams(), vae, CPU)
