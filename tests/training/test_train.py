"""The train step against diffusers' training scripts, its gradients; its losses over time are in tests/goldens.py."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, FluxPipeline
from diffusers.training_utils import compute_loss_weighting_for_sd3, compute_snr
from torch import Tensor

from eridiff.acceleration.levels import next_level
from eridiff.core.errors import TrainError
from eridiff.core.noise import normal, uniform
from eridiff.family import load_family
from eridiff.machine.local import Checkpointing
from eridiff.models.lora import add_adapter, target_modules
from eridiff.params.train import LoraParams
from eridiff.training.data import Batch, TrainingSet, plan_batches
from eridiff.training.resume import checkpoint_path, load_adapters
from eridiff.training.run import Run
from eridiff.training.train import train
from tests.support import training
from tests.support.bases import FAMILIES, source
from tests.support.training import shaken

DDPM = [f for f in FAMILIES if load_family(f).OBJECTIVE == "ddpm"]
OPTIONS = {
    "ddpm": {"ddpm": {"loss_weight": "min_snr"}},
    "flow": {"flow": {"loss_weight": "cosmap", "logit_mean": 0.5, "logit_std": 0.8}},
}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrainingSet]:
    """One set of made-up pictures a family, in a wide and a square bucket."""
    sizes = ((128, 96), (96, 96))
    return {
        family: training.random_set(family, tmp_path_factory.mktemp(family), training.params_of(), sizes)
        for family in FAMILIES
    }


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_step_equals_the_training_script(family: str, sets: dict[str, TrainingSet]) -> None:
    """Loss and gradients of train_step against diffusers' script, written out again below."""
    params = training.params_of({"seed": 11, **OPTIONS[load_family(family).OBJECTIVE]})
    run = shaken(training.start(family, params))
    batch = sets[family].batch([0, 2], step=3, first_index=2)
    assert batch.indices == [2, 3]
    loss = training.do_step(run, batch, step=3)
    ours = {name: tensor.grad.clone() for name, tensor in run.adapters.items() if tensor.grad is not None}
    for tensor in run.adapters.values():
        tensor.grad = None
    theirs = script_loss(family, run, batch, 3)
    theirs.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-6)
    assert set(ours) == set(run.adapters)
    for name, tensor in run.adapters.items():
        assert tensor.grad is not None
        assert torch.allclose(ours[name], tensor.grad, rtol=1e-4, atol=1e-7), name


def script_loss(family: str, run: Run, batch: Batch, step: int) -> Tensor:
    """One step as examples/dreambooth and examples/text_to_image do it, with the draws given."""
    vae, scheduler = source(family).config("vae"), source(family).config("scheduler")
    seed, shape = run.params.seed, batch.mean.shape[1:]
    z = batch.mean + batch.std * normal(seed, step, batch.indices, shape, "posterior")
    model_input = (z - (vae["shift_factor"] or 0)) * vae["scaling_factor"]
    noise = normal(seed, step, batch.indices, shape, "noise")
    u = uniform(seed, step, batch.indices, "level")
    if load_family(family).OBJECTIVE == "ddpm":
        return script_ddpm(run, batch, model_input, noise, (u * 1000).long(), scheduler)
    sigmas = torch.sigmoid(0.5 + 0.8 * torch.special.ndtri(u)).float()
    return script_flow(run, batch, model_input, noise, sigmas)


def script_ddpm(run: Run, batch: Batch, x0: Tensor, noise: Tensor, timesteps: Tensor, config: dict[str, Any]) -> Tensor:
    """train_text_to_image_lora_sdxl.py, with --snr_gamma 5."""
    scheduler = DDPMScheduler.from_config({k: v for k, v in config.items() if k != "_class_name"})
    noisy = scheduler.add_noise(x0, noise, timesteps)
    width, height = batch.sizes.target
    rows = [
        [original[1], original[0], crop[1], crop[0], height, width]
        for original, crop in zip(batch.sizes.original.tolist(), batch.sizes.crop.tolist(), strict=True)
    ]
    conditions = {"time_ids": torch.tensor(rows), "text_embeds": batch.text["pooled_prompt_embeds"]}
    embeds = batch.text["prompt_embeds"]
    model_pred = run.denoiser(noisy, timesteps, embeds, added_cond_kwargs=conditions, return_dict=False)[0]
    snr = compute_snr(scheduler, timesteps)
    weights = torch.stack([snr, 5.0 * torch.ones_like(timesteps)], dim=1).min(dim=1)[0] / snr
    loss = torch.nn.functional.mse_loss(model_pred.float(), noise.float(), reduction="none")
    return (loss.mean(dim=list(range(1, len(loss.shape)))) * weights).mean()


def script_flow(run: Run, batch: Batch, x0: Tensor, noise: Tensor, sigmas: Tensor) -> Tensor:
    """train_dreambooth_lora_sd3.py (precondition_outputs=0) and train_dreambooth_lora_flux.py."""
    sigmas_4d = sigmas.view(-1, 1, 1, 1)
    noisy = (1.0 - sigmas_4d) * x0 + sigmas_4d * noise
    text = {
        "encoder_hidden_states": batch.text["prompt_embeds"],
        "pooled_projections": batch.text["pooled_prompt_embeds"],
    }
    timesteps = sigmas * 1000
    count, channels, height, width = x0.shape
    if run.family.GUIDANCE:
        answer = run.denoiser(
            hidden_states=FluxPipeline._pack_latents(noisy, count, channels, height, width),
            timestep=timesteps / 1000,
            guidance=torch.tensor([1.0]).expand(count),
            txt_ids=torch.zeros(training.TOKENS, 3),
            img_ids=FluxPipeline._prepare_latent_image_ids(count, height // 2, width // 2, "cpu", torch.float32),
            return_dict=False,
            **text,
        )[0]
        model_pred = FluxPipeline._unpack_latents(answer, height * 8, width * 8, 8)
    else:
        model_pred = run.denoiser(hidden_states=noisy, timestep=timesteps, return_dict=False, **text)[0]
    weighting = compute_loss_weighting_for_sd3("cosmap", sigmas=sigmas_4d)
    target = noise - x0
    return torch.mean((weighting.float() * (model_pred.float() - target.float()) ** 2).reshape(count, -1), 1).mean()


@pytest.mark.slow
@pytest.mark.parametrize("targets", ["attention", "all-linear"])
@pytest.mark.parametrize("family", FAMILIES)
def test_first_gradients(family: str, targets: str, sets: dict[str, TrainingSet]) -> None:
    """lora_B is 0, so lora_A's gradient is 0; every lora_B has one, but those of the unused modules, added here."""
    params = training.params_of({"lora": {"rank": 2, "targets": targets}})
    module = load_family(family)
    run = training.start(family, params)
    unused = module.unused_modules(source(family).config(module.DENOISER))
    denoiser = training.copy.deepcopy(training.base_denoiser(family))
    modules = target_modules(denoiser, module.TARGET_SETS, targets, [])
    assert {name.rsplit(".lora_", 1)[0] for name in run.adapters} == set(modules) - set(unused)
    assert set(unused) <= set(modules)
    run.denoiser, run.adapters = denoiser, add_adapter(denoiser, params.lora, modules, params.seed)
    training.do_step(run, sets[family].batch([0, 1], step=1, first_index=0), step=1)
    for name, tensor in run.adapters.items():
        path, half = name.rsplit(".lora_", 1)
        size = 0.0 if tensor.grad is None else tensor.grad.abs().max().item()
        assert (size > 0) == (half == "B.weight" and path not in unused), (name, size)


def test_every_linear_module_of_the_blocks_is_a_target() -> None:
    """`all-linear` misses no linear module of a transformer block; `attention` is a part of it."""
    for family in FAMILIES:
        module, denoiser = load_family(family), training.base_denoiser(family)
        linear = [
            n for n, m in denoiser.named_modules() if isinstance(m, torch.nn.Linear) and "transformer_blocks." in n
        ]
        chosen = set(target_modules(denoiser, module.TARGET_SETS, "all-linear", []))
        assert set(linear) <= chosen
        assert set(target_modules(denoiser, module.TARGET_SETS, "attention", [])) < chosen


def test_adapters_are_a_function_of_seed_and_name() -> None:
    denoiser = training.copy.deepcopy(training.base_denoiser(FAMILIES[0]))
    names = target_modules(denoiser, load_family(FAMILIES[0]).TARGET_SETS, "attention", [])
    one = add_adapter(denoiser, LoraParams(rank=3), names, seed=1)
    part = add_adapter(
        training.copy.deepcopy(training.base_denoiser(FAMILIES[0])), LoraParams(rank=3), names[-2:], seed=1
    )
    other = add_adapter(
        training.copy.deepcopy(training.base_denoiser(FAMILIES[0])), LoraParams(rank=3), names[-2:], seed=2
    )
    assert len(one) == 2 * len(names)
    for name, tensor in part.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, one[name])
        assert torch.equal(tensor, other[name]) == name.endswith("lora_B.weight")
    bound = one[f"{names[0]}.lora_A.weight"].shape[1] ** -0.5  # kaiming uniform, a = sqrt 5
    values = one[f"{names[0]}.lora_A.weight"].abs()
    assert 0.8 * bound < values.max() <= bound


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow
def test_activations_change_no_number(family: str, sets: dict[str, TrainingSet]) -> None:
    gradients, batch = [], sets[family].batch([0, 1], step=1, first_index=0)
    words: tuple[tuple[Checkpointing, int], ...] = (("none", 0), ("selective", 0), (1, 2), ("full", 0), ("offload", 3))
    for word, swap in words:
        run = shaken(training.start(family, training.params_of(), activation_checkpointing=word, swap=swap))
        with run.kept.step():
            training.do_step(run, batch, step=1)
        gradients.append({name: tensor.grad for name, tensor in run.adapters.items()})
    for name, gradient in gradients[0].items():
        assert gradient is not None
        assert all(torch.equal(gradient, other[name]) for other in gradients), name


class SmallMemory:
    """A hook of a denoiser that runs out of memory from a forward pass on, until so many levels were taken."""

    def __init__(self, run: Run, first: int, enough: int) -> None:
        self.run, self.first, self.calls = run, first, 0
        self.levels = [run.kept.level]
        while (level := next_level(self.levels[-1], len(run.kept.blocks))) is not None:
            self.levels.append(level)
        self.levels = self.levels[1:][:enough]
        run.denoiser.register_forward_pre_hook(self)

    def __call__(self, denoiser: torch.nn.Module, _: Any) -> None:
        self.calls += 1
        if self.run.kept.level != self.levels[-1] and self.calls >= self.first:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore words.")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("first", "enough"), [(1, 2), (4, 1), (4, 100)])
@pytest.mark.slow
def test_memory_that_runs_out(
    family: str,
    first: int,
    enough: int,
    sets: dict[str, TrainingSet],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In a step's second micro-batch, too: it is done again with less on the device, and no number changes."""
    params = training.params_of({"accumulation": 2})
    expected, _ = train(training.start(family, params), sets[family], tmp_path / "plenty", 100)
    run = training.start(family, params, activation_checkpointing=None)
    memory = SmallMemory(run, first, enough)
    found, _ = train(run, sets[family], tmp_path / "little", 100)
    assert found == expected
    levels, blocks = memory.levels, len(run.kept.blocks)
    assert memory.calls == 4 * 2 + (first - 1) % 2 + len(levels), "each level begins the step anew"
    step = (first + 1) // 2
    lines = [line for line in capsys.readouterr().out.splitlines() if "too little memory" in line]
    begin = f"train: cpu has too little memory at step {step}: activation checkpointing"
    assert lines == [f"{begin} {level.described(blocks)} from here on" for level in levels]


@pytest.mark.parametrize("level", [None, "none", "offload"])
def test_memory_that_is_too_small_all_the_same(
    level: Checkpointing | None, sets: dict[str, TrainingSet], tmp_path: Path
) -> None:
    """An error of one sentence that names the ways out; what was kept before stays."""
    run = training.start(FAMILIES[0], training.params_of(), activation_checkpointing=level)

    def refuse(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore words.")

    run.denoiser.register_forward_pre_hook(refuse)
    with pytest.raises(TrainError, match=r"step 1: cpu has too little memory \(CUDA out of memory\. Tried .* GiB\.\)"):
        train(run, sets[FAMILIES[0]], tmp_path, 100)


def test_micro_batches_add_up(sets: dict[str, TrainingSet]) -> None:
    """One batch of four, and two micro-batches of two of the same samples: the same loss and gradients."""
    family = FAMILIES[0]
    whole, halves = [shaken(training.start(family, training.params_of({"accumulation": n}))) for n in (1, 2)]
    data = sets[family]
    numbers = [0, 1, 2, 0]
    loss = training.do_step(whole, data.batch(numbers, step=5, first_index=0), step=5)
    sum_ = training.do_step(halves, data.batch(numbers[:2], step=5, first_index=0), step=5)
    sum_ += training.do_step(halves, data.batch(numbers[2:], step=5, first_index=2), step=5)
    assert loss.item() == pytest.approx(sum_.item(), rel=1e-6)
    for name, tensor in whole.adapters.items():
        assert tensor.grad is not None
        assert torch.allclose(tensor.grad, halves.adapters[name].grad, rtol=1e-3, atol=1e-7), name


def test_the_loop_by_hand(sets: dict[str, TrainingSet], tmp_path: Path) -> None:
    """Three steps with clipped gradients, a warm-up and an average: what is saved equals torch's own loop."""
    family = FAMILIES[0]
    optimizer = {"lr": 1e-2, "max_grad_norm": 0.02, "warmup_steps": 3}
    params = training.params_of({"steps": 3, "save_every": 3, "ema_decay": 0.9, "optimizer": optimizer})
    table, _ = train(training.start(family, params), sets[family], tmp_path, state_every=9)
    run = training.start(family, params)
    adapters = list(run.adapters.values())
    average = [tensor.detach().clone() for tensor in adapters]
    adamw = torch.optim.AdamW(adapters, weight_decay=0.01)
    plan = plan_batches(sets[family].samples, 2, 3, params.seed)
    for step in (1, 2, 3):
        loss = training.do_step(run, sets[family].batch(plan[step - 1], step, 0), step)
        norm = torch.stack([tensor.grad.norm() for tensor in adapters if tensor.grad is not None]).norm()
        assert norm > 0.02
        for tensor in adapters:
            tensor.grad = None if tensor.grad is None else tensor.grad * 0.02 / norm
        adamw.param_groups[0]["lr"] = 1e-2 * step / 3
        adamw.step()
        adamw.zero_grad()
        average = [0.9 * mean + 0.1 * tensor.detach() for mean, tensor in zip(average, adapters, strict=True)]
        row = [table[name][step - 1] for name in ("loss", "grad_norm", "lr")]
        assert row == pytest.approx([loss.item(), norm.item(), 1e-2 * step / 3], rel=1e-5)
    for group, expected in (("adapters", adapters), ("average", average)):
        saved = load_adapters(tmp_path, group, 3)
        assert all(torch.allclose(saved[n], e, atol=1e-6) for n, e in zip(run.adapters, expected, strict=True)), group


def test_a_loss_that_is_not_finite_stops(sets: dict[str, TrainingSet], tmp_path: Path) -> None:
    run = training.start(FAMILIES[0], training.params_of({"save_every": 1}))
    plain = run.family.predict

    def overflow(*arguments: Any) -> Tensor:
        answer = plain(*arguments)
        return answer * float("nan") if checkpoint_path(tmp_path, "adapters", 2).exists() else answer

    run.family.predict = overflow  # type: ignore[method-assign]
    with pytest.raises(TrainError, match=r"step 3: the loss is nan .*Nothing of this step is kept.*optimizer\.lr"):
        train(run, sets[FAMILIES[0]], tmp_path, state_every=1)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "adapters-000001.sealed.safetensors",
        "adapters-000002.sealed.safetensors",
    ]
    run.family.predict = plain  # type: ignore[method-assign]
    table, _ = train(training.start(FAMILIES[0], run.params), sets[FAMILIES[0]], tmp_path, state_every=1)
    assert len(table["loss"]) == 4


def test_the_deterministic_path_runs_twice_alike(sets: dict[str, TrainingSet], tmp_path: Path) -> None:
    tables = []
    try:
        for name in ("a", "b"):
            run = training.start(FAMILIES[0], training.params_of({"deterministic": True, "steps": 2}))
            assert torch.are_deterministic_algorithms_enabled()
            tables.append(train(run, sets[FAMILIES[0]], tmp_path / name, state_every=9)[0])
    finally:
        training.start(FAMILIES[0], training.params_of())
    assert not torch.are_deterministic_algorithms_enabled()
    assert tables[0] == tables[1]


def test_half_precision_keeps_adapters_and_loss_in_fp32(sets: dict[str, TrainingSet]) -> None:
    family, losses = FAMILIES[0], []
    for precision in ("fp32", "bf16"):
        run = shaken(training.start(family, training.params_of({"precision": precision})))
        losses.append(training.do_step(run, sets[family].batch([0, 1], step=1, first_index=0), step=1))
        assert {tensor.dtype for tensor in run.adapters.values()} == {torch.float32}
        assert {t.grad.dtype for t in run.adapters.values() if t.grad is not None} == {torch.float32}
    assert losses[1].dtype == torch.float32
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=0.02)
    assert losses[0].item() != losses[1].item()
