"""Results that only CUDA gives, on the small bases: tests/golden/cuda.json says when and on what they last passed.

    python -m tests.gpugoldens    on a machine with a CUDA device: compares and notes it, or records what has another
                                  version or was never recorded

Cards and kernels round otherwise, so values are compared within two percent.
"""

import datetime
import json
import os
import sys
import tempfile
from contextlib import chdir
from pathlib import Path
from typing import Any

from eridiff.family import family_names, load_family
from eridiff.models.load import load_text_encoders, load_vae
from eridiff.versions import code_versions
from tests.goldens import moved, plain

RECORD = Path(__file__).parent / "golden" / "cuda.json"
ROUNDING = 2e-2
NEVER: dict[str, Any] = {"passed": "never", "on": None, "versions": None, "outs": None}
RUNS: dict[str, dict[str, Any]] = {
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "fp8": {"precision": "bf16", "quantise": "fp8"},
    "int8": {"precision": "bf16", "quantise": "int8"},
    "nf4": {"precision": "bf16", "quantise": "nf4"},
    "8-bit AdamW": {"precision": "bf16", "optimizer": {"name": "adamw8bit", "lr": 1e-3}},
}


def numbers(family: str) -> dict[str, int]:
    """The versions that these results are of."""
    known = code_versions().numbers | load_family(family).VERSIONS.numbers
    names = ("stages.train", "stages.latents", "stages.text", "family.train", "family.vae_encode", "family.text_encode")
    return {name: known[name] for name in names}


def outs(family: str, folder: Path) -> dict[str, Any]:
    """Losses of short trainings in the formats that CUDA alone computes in, and encoders in bf16."""
    import torch

    from eridiff.caching.latents.vae import encode, prepare_vae
    from eridiff.params.latents import LatentParams
    from eridiff.training.run import Machine, prepare_run
    from eridiff.training.train import train
    from tests.goldenouts import tensor_facts
    from tests.support.bases import source
    from tests.support.training import params_of, random_set

    cuda, module, base = torch.device("cuda"), load_family(family), source(family)
    found: dict[str, Any] = {}
    for name, changes in RUNS.items():
        params, place = params_of(changes), folder / name
        run = prepare_run(params, module, base, base.config("vae"), Machine(device=cuda))
        found[name] = train(run, random_set(family, place, params), place / "state", 50)[0]["loss"]
    params = LatentParams(batch_size=1, dtype="bf16")
    vae = prepare_vae(load_vae(module, base, torch.bfloat16), params, cuda)
    ramp = torch.linspace(-1, 1, 64).repeat(64, 1)
    tensors = encode(vae, torch.stack([ramp, ramp.T, (ramp * 7).sin()])[None].to(cuda), params)
    found["latents"] = {name: tensor_facts(tensor.float().cpu()) for name, tensor in tensors.items()}
    encoders = load_text_encoders(module, base, torch.bfloat16).to(cuda)
    with torch.inference_mode():
        texts = module.encode_text(encoders, ["eridraw, a red fox"], module.MAX_TOKENS[-1])
    facts = {name: tensor_facts(tensor.float().cpu()) for name, tensor in texts.items()}
    found["text"] = {name: {"mean": fact["mean"], "std": fact["std"]} for name, fact in facts.items()}
    return dict(plain(found))


def read_record() -> dict[str, Any]:
    """Family -> when its results last passed, on what, the versions that they are of, and the results."""
    record: dict[str, Any] = json.loads(RECORD.read_text("utf-8"))
    return record


def differing(family: str, now: dict[str, Any]) -> list[str]:
    """Where results moved and no version did; [] where nothing is recorded at these versions."""
    entry = read_record()[family]
    return moved(entry["outs"], now, ROUNDING) if entry["versions"] == numbers(family) else []


def main() -> int:
    """Compare and note, or record, for every family."""
    import torch

    from tests.support.checkouts import link_bases

    code = 0
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {
            "ERIDIFF_STORE": f"{folder}/store",
            "ERIDIFF_DEVICE": "cuda",
            "XDG_CACHE_HOME": f"{folder}/cache",
        }
        os.environ |= {"XDG_CONFIG_HOME": f"{folder}/config", "HF_HUB_OFFLINE": "1"}
        link_bases(Path(folder))
        record = read_record()
        with chdir(folder):
            for family in family_names():
                now, entry = outs(family, Path(folder) / family), record.get(family, NEVER)
                if wrong := differing(family, now):
                    print(f"{family}: results moved and no version did: {'; '.join(wrong[:3])}", file=sys.stderr)
                    code = 1
                    continue
                kept = entry["outs"] if entry["versions"] == numbers(family) else now
                day = datetime.datetime.now(datetime.UTC).date().isoformat()
                on = f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
                record[family] = {"passed": day, "on": on, "versions": numbers(family), "outs": kept}
        RECORD.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", "utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
