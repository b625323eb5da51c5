"""What files say of the objective: every mark is honoured for training and sampling, or refused by its name."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDPMScheduler

from eridiff.bases import collect as collecting
from eridiff.bases.add import add_base
from eridiff.bases.find import find_source
from eridiff.bases.inspect import inspect_path
from eridiff.bases.marks import EDM, PREDICTION_KEYS, SWITCHES, TENSORS, denoiser_marks, find_marks, settle_scheduler
from eridiff.bases.pointer_files import pointers_of, read_pointer
from eridiff.bases.recognise import components_in
from eridiff.core.errors import BaseError
from eridiff.family import load_family, published
from eridiff.formats.safetensors import RawTensor, TensorFile, write_tensors
from eridiff.models.samplers import make_scheduler
from eridiff.params.train import DdpmParams
from eridiff.training.objectives import Ddpm, alphas_cumprod
from eridiff.weights.files import open_weights
from eridiff.weights.pointers import UNSEALED_FORMAT
from eridiff.weights.schedules import refuse_schedule
from tests.support.checkouts import SMALL, make_checkout
from tests.support.originals import CHECKPOINT, small_original, write_checkpoint, write_split

EMPTY = RawTensor("F32", (0,), b"")
NUMBER = RawTensor("F32", (), b"\0\0\xf0\x42")  # 120.0
PUBLISHED: dict[str, Any] = published("sdxl").models["sdxl"]["scheduler"]
V_ZERO_SNR = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_checkout(tmp_path / "checkout", monkeypatch)


def marked(
    folder: Path, tensors: Mapping[str, RawTensor] | None = None, metadata: Mapping[str, str] | None = None
) -> Path:
    """The small SDXL in one file, with marks."""
    path = write_checkpoint(folder / "noob.safetensors", "sdxl", CHECKPOINT)
    file = TensorFile(path)
    write_tensors(path, {**{name: file.raw(name) for name in file.names}, **(tensors or {})}, metadata or {})
    return path


def add(path: Path, config: Path | None = None) -> dict[str, Any]:
    """The scheduler's config that `base add` makes of a file."""
    add_base("b", [path], config=config or SMALL / "bases" / "tiny-sdxl")
    return read_pointer("b", "denoiser").components["scheduler"].config


def scheduler(**changes: Any) -> dict[str, Any]:
    return {**PUBLISHED, **changes}


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_ztsnr_beside_v_pred_is_honoured_and_said(
    prefix: str, checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = marked(tmp_path, {prefix + "v_pred": EMPTY, prefix + "ztsnr": EMPTY})
    config = add(path)
    assert {key: config[key] for key in V_ZERO_SNR} == V_ZERO_SNR
    line = "objective: predicts v, zero terminal SNR, trailing timesteps, by tensor v_pred and tensor ztsnr"
    out = capsys.readouterr()
    assert line in out.out + out.err and "are not read" not in out.out + out.err
    assert f"  {line}" in inspect_path(path)
    assert alphas_cumprod(config)[-1].item() == 0  # it was 0.0047
    assert find_source(pointers_of("b", ["denoiser"], "sdxl").values()).config("scheduler") == config


def test_training_and_sampling_end_in_pure_noise() -> None:
    """Against diffusers: the betas of its schedulers, and the timestep at which its samplers start."""
    config = scheduler(**V_ZERO_SNR)
    theirs = DDPMScheduler.from_config(config).alphas_cumprod
    ours = Ddpm(config, DdpmParams())
    assert theirs[-1].item() == 0 and (ours.alphas_cumprod - theirs).abs().max() <= 1e-6
    x0, noise, zero = torch.ones(1, 4, 2, 2), torch.full((1, 4, 2, 2), 3.0), torch.zeros(())
    last = ours.mix(x0, noise, torch.tensor([999]), zero, zero)
    assert torch.equal(last.noisy_latents, noise) and torch.equal(last.target, -x0)
    for name in (specs := load_family("sdxl").SCHEDULERS):
        made = make_scheduler(specs, name, config)
        assert made.config.prediction_type == "v_prediction", name
        assert made.alphas_cumprod[-1].item() <= 2**-24, name  # of 0, or next to it: diffusers' own choice
        made.set_timesteps(20)
        assert int(made.timesteps[0]) == 999, name
        plain = make_scheduler(specs, name, PUBLISHED)
        plain.set_timesteps(20)
        assert plain.alphas_cumprod[-1].item() == pytest.approx(0.00466, abs=1e-5), name


@pytest.mark.parametrize("name", EDM)
def test_continuous_noise_levels_are_refused_by_name(name: str, checkout: Path, tmp_path: Path) -> None:
    path = marked(tmp_path, {name: NUMBER, "v_pred": EMPTY})
    with pytest.raises(BaseError, match=rf"noob\.safetensors has the tensor {name}: .*\(EDM\)"):
        add(path)
    assert any(f"no base: noob.safetensors has the tensor {name}" in line for line in inspect_path(path))
    assert not (checkout / "data" / "bases" / "b").exists()


@pytest.mark.parametrize(
    ("metadata", "prediction"),
    [
        ({"modelspec.prediction_type": "v"}, "v_prediction"),
        ({"modelspec.predict_key": "v"}, "v_prediction"),
        ({"modelspec.prediction_type": "epsilon"}, "epsilon"),
        ({"ss_v_parameterization": "True"}, "v_prediction"),
        ({"ss_v_parameterization": "False"}, "epsilon"),
        ({"modelspec.prediction_type": "v", "ss_zero_terminal_snr": "True"}, "v_prediction"),
    ],
)
def test_metadata_count(metadata: dict[str, str], prediction: str) -> None:
    settled = settle(metadata=metadata)
    assert settled["prediction_type"] == prediction
    assert bool(settled.get("rescale_betas_zero_snr")) == ("ss_zero_terminal_snr" in metadata)


class Names:
    """Weights of which only names and metadata are looked at."""

    def __init__(self, names: tuple[str, ...], metadata: Mapping[str, str]) -> None:
        self.where = dict.fromkeys(names)
        self.files = (self,)
        self.metadata = metadata


def settle(
    *names: str, metadata: Mapping[str, str] | None = None, config: Mapping[str, Any] = PUBLISHED, stated: str = ""
) -> dict[str, Any]:
    marks = find_marks(Names(names, metadata or {}), "ddpm")  # type: ignore[arg-type]
    return settle_scheduler(config, marks, "ddpm", "m.safetensors", stated)[0]


def test_every_mark_is_tried() -> None:
    assert set(TENSORS) == {"v_pred", "ztsnr"} and set(SWITCHES) == {"ss_v_parameterization", "ss_zero_terminal_snr"}
    assert PREDICTION_KEYS[:2] == ("modelspec.prediction_type", "modelspec.predict_key")


@pytest.mark.parametrize("key", PREDICTION_KEYS)
@pytest.mark.parametrize("value", ["sample", "x0", "flow", "rectified_flow"])
def test_an_unknown_prediction_is_refused_by_its_key(key: str, value: str) -> None:
    with pytest.raises(BaseError, match=rf"m\.safetensors has the metadata {key}: {value}: .*Known: epsilon, v"):
        settle(metadata={key: value})


def test_zero_terminal_snr_needs_v() -> None:
    with pytest.raises(BaseError, match=r"m\.safetensors, by tensor ztsnr: zero terminal SNR .*'epsilon'"):
        settle("ztsnr")
    with pytest.raises(BaseError, match=r"zero terminal SNR"):
        settle(metadata={"ss_zero_terminal_snr": "true"})


def test_a_tensor_counts_before_the_config_and_that_before_the_metadata() -> None:
    metadata = {"modelspec.prediction_type": "epsilon"}
    marks = find_marks(Names(("v_pred",), metadata), "ddpm")  # type: ignore[arg-type]
    settled, lines = settle_scheduler(PUBLISHED, marks, "ddpm", "m")
    assert settled["prediction_type"] == "v_prediction"
    assert lines == [
        "objective: predicts v, by tensor v_pred",
        "objective: not heeded: metadata modelspec.prediction_type: epsilon",
    ]
    marks = find_marks(Names((), {"modelspec.prediction_type": "v"}), "ddpm")  # type: ignore[arg-type]
    settled, lines = settle_scheduler(PUBLISHED, marks, "ddpm", "m", "c.json")
    assert settled["prediction_type"] == "epsilon"
    assert lines == [
        "objective: predicts the noise (epsilon), by c.json",
        "objective: not heeded: metadata modelspec.prediction_type: v",
    ]


def test_a_scheduler_config_beside_the_file_counts(checkout: Path, tmp_path: Path) -> None:
    """Of a file whose sizes are published, without --config: tests make the small one so."""
    config = settle(config=scheduler(**V_ZERO_SNR, beta_end=0.013), stated="scheduler_config.json")
    assert config["beta_end"] == 0.013 and config["rescale_betas_zero_snr"]
    path = marked(tmp_path / "alone")
    (path.parent / "scheduler_config.json").write_text(json.dumps(scheduler(**V_ZERO_SNR)))
    said = inspect_path(path)[-1]
    assert said == "  objective: predicts v, zero terminal SNR, trailing timesteps, by scheduler_config.json"


@pytest.mark.parametrize("given", [True, False])
def test_a_scheduler_config_that_is_overruled_is_said(
    given: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By --config, or by a tensor of the file."""
    path = marked(tmp_path, {} if given else {"v_pred": EMPTY, "ztsnr": EMPTY})
    beside = tmp_path / "scheduler_config.json"
    beside.write_text(json.dumps(scheduler(**V_ZERO_SNR if given else {"prediction_type": "epsilon"})))
    (denoiser,) = (part for part in components_in(open_weights(path))[0] if part.kind == "denoiser")
    folder = SMALL / "bases" / "tiny-sdxl" if given else None
    settled = collecting._scheduler(denoiser, PUBLISHED, folder, [path])
    assert settled["prediction_type"] == ("epsilon" if given else "v_prediction")
    assert f"objective: not heeded: {beside}" in "".join(capsys.readouterr())
    beside.write_text(json.dumps(settled))
    collecting._scheduler(denoiser, PUBLISHED, folder, [path])
    assert "not heeded" not in "".join(capsys.readouterr())


def test_a_part_of_a_model_folder_has_the_folders_scheduler(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(SMALL / "bases" / "tiny-sdxl", tmp_path / "m"))
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler(**V_ZERO_SNR)))
    line = "  objective: predicts v, zero terminal SNR, trailing timesteps, by scheduler_config.json"
    assert inspect_path(folder).count(line) == 1
    (path,) = (folder / "unet").glob("*.safetensors")
    assert inspect_path(path)[-1] == line


def test_one_beside_several_models_is_refused_where_it_decides(checkout: Path, tmp_path: Path) -> None:
    path = marked(tmp_path)
    (denoiser,) = (part for part in components_in(open_weights(path))[0] if part.kind == "denoiser")
    beside = tmp_path / "scheduler_config.json"
    beside.write_text(json.dumps({"_class_name": "EulerDiscreteScheduler", **scheduler(**V_ZERO_SNR)}))
    alone = collecting._scheduler(denoiser, PUBLISHED, None, [path])
    assert alone["rescale_betas_zero_snr"] is True
    (tmp_path / "other.safetensors").write_bytes(b"")
    with pytest.raises(BaseError, match=r"scheduler_config\.json says other things .*other\.safetensors"):
        collecting._scheduler(denoiser, PUBLISHED, None, [path])
    beside.write_text(json.dumps(scheduler(timestep_spacing="trailing")))
    assert collecting._scheduler(denoiser, PUBLISHED, None, [path])["timestep_spacing"] == "trailing"


FOLDERS = {
    "EDM class": ({"_class_name": "EDMEulerScheduler", "sigma_data": 0.5}, r"its scheduler is a EDMEulerScheduler"),
    "flow class": ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, r"a FlowMatchEulerDiscreteScheduler"),
    "flow sigmas": ({"use_flow_sigmas": True}, r"use_flow_sigmas True"),
    "continuous": ({"timestep_type": "continuous"}, r"timestep_type 'continuous'"),
    "sigma_max": ({"sigma_max": 120.0}, r"sigma_max 120\.0"),
    "sample": ({"prediction_type": "sample"}, r"predicts 'sample'"),
    "cosine": ({"beta_schedule": "squaredcos_cap_v2"}, r"beta_schedule 'squaredcos_cap_v2'"),
    "epsilon and zero SNR": ({"rescale_betas_zero_snr": True}, r"zero terminal SNR"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_schedulers_that_are_not_trained_are_refused(case: str) -> None:
    changes, message = FOLDERS[case]
    with pytest.raises(BaseError, match=rf"^here: .*{message}"):
        refuse_schedule(scheduler(**changes), "ddpm", "here")
    with pytest.raises(BaseError, match=r"is a DDIMScheduler, .*rectified flow"):
        refuse_schedule({"_class_name": "DDIMScheduler"}, "flow", "here")
    refuse_schedule({"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True}, "flow", "here")


@pytest.mark.parametrize("kind", ["EulerDiscreteScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler"])
def test_what_diffusers_saves_itself_is_read(kind: str) -> None:
    config = getattr(diffusers, kind).from_config(PUBLISHED).config
    refuse_schedule(dict(config), "ddpm", "here")


def test_a_folders_scheduler_is_honoured_or_refused(checkout: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(SMALL / "bases" / "tiny-sdxl", tmp_path / "m"))
    path = folder / "scheduler" / "scheduler_config.json"
    plain = json.loads(path.read_text())
    path.write_text(json.dumps({**plain, **V_ZERO_SNR}))
    add_base("v", [folder])
    config = read_pointer("v", "denoiser").components["scheduler"].config
    assert {key: config[key] for key in V_ZERO_SNR} == V_ZERO_SNR
    path.write_text(json.dumps({**plain, "_class_name": "EDMDPMSolverMultistepScheduler"}))
    with pytest.raises(BaseError, match=r"m, by .*: its scheduler is a EDMDPMSolverMultistepScheduler"):
        add_base("w", [folder])
    path.unlink()
    with pytest.raises(BaseError, match=r"scheduler_config\.json is missing"):
        add_base("w", [folder])


@pytest.mark.parametrize("key", ["latents_mean", "latents_std"])
def test_a_vae_with_latents_of_other_scales_is_refused(key: str, checkout: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(SMALL / "bases" / "tiny-sdxl", tmp_path / "m"))
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: [0.1, 0.2, 0.3, 0.4]}))
    with pytest.raises(BaseError, match=rf"base 'b': the VAE's config has {key} \[0\.1, 0\.2"):
        add_base("b", [folder])
    assert not (checkout / "data" / "bases" / "b").exists()


def test_marks_of_a_flow(checkout: Path, tmp_path: Path) -> None:
    """Metadata of flows name epsilon by habit; a tensor says that it is another model."""
    path = write_split(tmp_path)[0]
    tensors = small_original("flux", "transformer")
    write_tensors(path, tensors, {"modelspec.prediction_type": "epsilon"})
    (part,) = components_in(open_weights(path))[0]
    assert denoiser_marks(part, "flow") == []
    write_tensors(path, {**tensors, "v_pred": EMPTY}, {})
    (part,) = components_in(open_weights(path))[0]
    with pytest.raises(BaseError, match=r"the tensor v_pred: it belongs to a diffusion model"):
        settle_scheduler({"shift": 3.0}, denoiser_marks(part, "flow"), "flow", "f.safetensors")


def test_a_pointer_from_before_the_mark_was_read_is_told(
    checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = marked(tmp_path, {"v_pred": EMPTY, "ztsnr": EMPTY})
    add(path)
    pointer = checkout / "data" / "bases" / "b" / "denoiser.json"
    record = json.loads(pointer.read_text())
    config = record["components"]["scheduler"]["config"]
    del config["rescale_betas_zero_snr"], record["seal"]
    pointer.write_text(json.dumps({**record, "format": UNSEALED_FORMAT}))
    capsys.readouterr()
    find_source(pointers_of("b", ["denoiser"], "sdxl").values())
    out = capsys.readouterr()
    assert "has the tensor ztsnr, of which the pointer of base 'b' says nothing" in out.out + out.err


@pytest.mark.parametrize("name", load_family("sdxl").SCHEDULERS)
def test_every_sampler_draws_from_the_last_level(name: str) -> None:
    """A v-predictor that knows the picture x0 leads every sampler from pure noise to it."""
    config = scheduler(**V_ZERO_SNR)
    made = make_scheduler(load_family("sdxl").SCHEDULERS, name, config)
    made.set_timesteps(20)
    abar = alphas_cumprod(config).double()
    generator = torch.Generator().manual_seed(0)
    x0 = torch.full((1, 4, 8, 8), 0.7, dtype=torch.float64)
    x = torch.randn(x0.shape, generator=generator, dtype=torch.float64) * made.init_noise_sigma
    for t in made.timesteps:
        seen = made.scale_model_input(x, t)
        root, side = abar[int(t)].sqrt(), (1 - abar[int(t)]).sqrt()
        v = (root * seen - x0) / side  # of x = root x0 + side e
        x = made.step(v, t, x, **({"generator": generator} if name == "euler_a" else {})).prev_sample.double()
    assert (x - x0).abs().max() < 0.15  # DDIM stops at the first level, whose noise is 0.03
