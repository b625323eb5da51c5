"""What an exported file says of itself: modelspec, the `ss_*` keys that other programs read, and the lineage.

Everything comes from the checkpoint and the export's params: no clock, no path, no commit.
"""

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from eridiff.families import Keys
from eridiff.files import CHUNK_BYTES, canonical_json, open_file
from eridiff.licences import Licence, notices_of, terms
from eridiff.tensorfile import RawTensor, write_tensors

LEGACY_START, LEGACY_BYTES = 0x100000, 0x10000


def resolution(buckets: list[list[int]]) -> tuple[int, int]:
    """The nominal resolution (width, height): the square nearest to the largest bucket, in steps of 64."""
    area = max((width * height for width, height, _ in buckets), default=1024 * 1024)
    side = max(64, round(math.sqrt(area) / 64) * 64)
    return side, side


def training_metadata(lineage: Mapping[str, Any], keys: Keys, name: str) -> dict[str, str]:
    """The `ss_*` keys as sd-scripts writes them, read by A1111, managers and Civitai."""
    params = lineage["params"]
    config = lineage["denoiser_config"]
    content = next((p["content"] for c, p in sorted(lineage["pointer"].items()) if c != "scheduler"), None)
    buckets, tags, pictures = lineage["buckets"], lineage["tag_frequency"], lineage["num_pictures"]
    bucket_info = {
        "buckets": {str(i): {"resolution": [w, h], "count": count} for i, (w, h, count) in enumerate(buckets)}
    }
    facts: dict[str, Any] = {
        "ss_output_name": name,
        "ss_base_model_version": keys.base_version(config),
        "ss_sd_model_name": lineage["base"],
        # Of the denoiser's tensors, not of a file: the same in every file that holds them.
        "ss_sd_model_hash": content and content[:8],
        "ss_new_sd_model_hash": content,
        "ss_network_module": keys.NETWORK_MODULE,
        "ss_network_dim": params["lora"]["rank"],
        "ss_network_alpha": params["lora"]["alpha"],
        "ss_steps": lineage["step"],
        "ss_max_train_steps": params["steps"],
        "ss_num_train_images": pictures,
        "ss_resolution": resolution(buckets),
        "ss_enable_bucket": True,
        "ss_bucket_info": canonical_json(bucket_info),
        "ss_tag_frequency": canonical_json({"dataset": tags}),
        "ss_dataset_dirs": canonical_json({"dataset": {"n_repeats": 1, "img_count": pictures}}),
        "ss_cache_latents": True,
        **_loop_facts(params, lineage),
        **_objective_facts(params),
    }
    return {key: str(value) for key, value in facts.items() if value is not None}


def _loop_facts(params: Mapping[str, Any], lineage: Mapping[str, Any]) -> dict[str, Any]:
    """Batches, optimizer, precision."""
    optimizer = params.get("optimizer", {})
    batch, accumulation = params.get("batch_size", 1), params.get("accumulation", 1)
    seen = lineage["step"] * batch * accumulation
    return {
        "ss_batch_size_per_device": batch,
        "ss_gradient_accumulation_steps": accumulation,
        "ss_total_batch_size": batch * accumulation,
        "ss_epoch": math.ceil(seen / max(1, lineage["num_pictures"])),
        "ss_seed": params.get("seed"),
        "ss_learning_rate": optimizer.get("lr"),
        "ss_unet_lr": optimizer.get("lr"),
        "ss_optimizer": optimizer.get("name"),
        "ss_lr_scheduler": optimizer.get("schedule"),
        "ss_lr_warmup_steps": optimizer.get("warmup_steps"),
        "ss_max_grad_norm": optimizer.get("max_grad_norm"),
        "ss_mixed_precision": {"fp32": "no"}.get(params.get("precision", ""), params.get("precision")),
        "ss_caption_dropout_rate": params.get("caption_dropout"),
    }


def _objective_facts(params: Mapping[str, Any]) -> dict[str, Any]:
    """Noise, weights and loss under sd-scripts' names."""
    ddpm, flow, loss = params.get("ddpm") or {}, params.get("flow") or {}, params.get("loss")
    weight = ddpm.get("loss_weight")
    return {
        "ss_loss_type": {"mse": "l2"}.get(loss or "", loss),
        "ss_huber_c": params.get("huber_delta") if loss in ("huber", "smooth_l1") else None,
        "ss_min_snr_gamma": ddpm.get("min_snr_gamma") if weight == "min_snr" else None,
        "ss_debiased_estimation": weight == "debiased" if ddpm else None,
        "ss_noise_offset": ddpm.get("noise_offset"),
        "ss_ip_noise_gamma": ddpm.get("input_perturbation"),
        "ss_guidance_scale": params.get("guidance"),
        "ss_timestep_sampling": flow.get("density"),
        "ss_weighting_scheme": flow.get("loss_weight"),
        "ss_logit_mean": flow.get("logit_mean"),
        "ss_logit_std": flow.get("logit_std"),
        "ss_mode_scale": flow.get("mode_scale"),
        "ss_discrete_flow_shift": flow.get("shift"),
    }


def modelspec(
    lineage: Mapping[str, Any], keys: Keys, stated: Mapping[str, str | None], licences: tuple[Licence, ...] = ()
) -> dict[str, str]:
    """The `modelspec.*` keys (ModelSpec 1.0.1) less the hash; `stated` are those that the user gives.

    The spec wants any terms that a model is under named in `license`, and managers show that key alone: so the base's
    stand there too, after the user's own.
    """
    base = f"base {lineage['base']}: {terms(licences)}" if licences else None
    width, height = resolution(lineage["buckets"])
    kinds = {"epsilon": "epsilon", "v_prediction": "v"}  # of diffusion; flows have no entry in the spec
    facts: dict[str, str | None] = {
        "sai_model_spec": "1.0.1",
        "architecture": f"{keys.architecture(lineage['denoiser_config'])}/lora",
        "implementation": keys.IMPLEMENTATION,
        "resolution": f"{width}x{height}",
        "prediction_type": kinds.get(lineage["scheduler_config"].get("prediction_type", "")),
        "trigger_phrase": lineage.get("trigger"),
        **stated,
        "license": "; ".join(filter(None, [stated.get("license"), base])),
    }
    return {f"modelspec.{key}": value for key, value in facts.items() if value}


def base_notice(licences: tuple[Licence, ...]) -> dict[str, str]:
    """What the base's licences want to be said, in full; a key of ours, since the spec has none."""
    notices = notices_of(licences)
    return {"base_notice": "\n".join(notices)} if notices else {}


def hashes(folder: Path, tensors: Mapping[str, RawTensor], training: Mapping[str, str]) -> dict[str, str]:
    """Hashes of the tensors: modelspec's, and sd-scripts' `sshs_*`, of a file with only `ss_*` keys.

    So a later edit of the other metadata does not change them.
    """
    path = folder / "hashes.safetensors"
    write_tensors(path, tensors, training)
    with open_file(path) as file:
        file.seek(LEGACY_START)
        legacy = hashlib.sha256(file.read(LEGACY_BYTES)).hexdigest()[:8]
        whole = _digest_data(file)
    path.unlink()
    return {"modelspec.hash_sha256": f"0x{whole}", "sshs_model_hash": whole, "sshs_legacy_hash": legacy}


def _digest_data(file: BinaryIO) -> str:
    """sha256 (hex) of a safetensors file after its header."""
    digest = hashlib.sha256()
    file.seek(0)
    file.seek(8 + int.from_bytes(file.read(8), "little"))
    while chunk := file.read(CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()
