"""Results of the stages on small inputs, as plain values: what tests/goldens.py records and compares.

Inputs of captions and buckets are a corpus of their own (tests/golden/corpus.json): 200 texts and 150 sizes that were
drawn from a seed once and recorded, so that no change of a generator moves them.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from eridiff.caching.fill import Resources
from eridiff.caching.latents.plan import common_key_fields, plan_samples
from eridiff.caching.text import plan_captions
from eridiff.check import check_params
from eridiff.core.config import validate
from eridiff.dataset.buckets import BUCKET_COLUMNS, plan_buckets, report, summary
from eridiff.dataset.captions import CAPTION_COLUMNS, IMAGE_COLUMNS, captions_rows, clean_alternatives, images_rows
from eridiff.dataset.image.decode import crop_picture, load_pixels, pixel_digest
from eridiff.dataset.pictures import scan_pictures
from eridiff.family import load_family
from eridiff.formats.tables import Row
from eridiff.machine.filedigests import FileDigests
from eridiff.models.load import load_text_encoders, load_vae
from eridiff.params.buckets import BucketParams
from eridiff.params.captions import CaptionParams
from eridiff.params.inherited import inherited_text
from eridiff.params.latents import LatentParams
from eridiff.params.text import TextParams
from eridiff.store.pixels import PixelDigests
from tests.support.checkouts import SMALL

CORPUS = Path(__file__).parent / "golden" / "corpus.json"
PLACE: dict[str, Any] = {"resize": (80, 72), "crop": (9, 5), "size": (64, 64)}
PICTURES = ("fox.png", "cat.jpg")
PROMPTS = ("eridraw, a red fox", "ünïcode, 日本語 & 12.5 %", "one two three " * 60)


def corpus() -> dict[str, Any]:
    """`captions`: texts and params; `images`: rows and params."""
    record: dict[str, Any] = json.loads(CORPUS.read_text("utf-8"))
    return record


def checks(folder: Path) -> dict[str, str]:
    """data/choices.json of each params file of the tests."""
    files = sorted((SMALL / "params").glob("*.yaml"))
    return {path.name: inherited_text(check_params(path)) for path in files}


def captions(folder: Path) -> dict[str, Any]:
    """Every text of the corpus under each of its params, and the tables of the tests' pictures."""
    found: dict[str, Any] = {}
    for name, given in corpus()["captions"]["params"].items():
        params = validate(CaptionParams, given, where="corpus", prefix="captions")
        cleaned = [clean_alternatives(text, params) for text in corpus()["captions"]["texts"]]
        found[name] = [[one.text, list(one.variants), list(one.rules_fired)] for one in cleaned]
    with FileDigests() as digests:
        pictures, _ = scan_pictures(SMALL / "raw", digests)
    rows, params = images_rows(pictures), CaptionParams(trigger="eridraw", class_word="toy")
    found["images.parquet"] = [[row[name] for name in IMAGE_COLUMNS] for row in rows]
    found["captions.parquet"] = [[row[name] for name in CAPTION_COLUMNS] for row in captions_rows(pictures, params)]
    return found


def buckets(folder: Path) -> dict[str, Any]:
    """Bucket, resize and crop of every size of the corpus under each of its params, and the report."""
    found: dict[str, Any] = {}
    rows = [dict(zip(("path", "file_digest", *SIZES), row, strict=True)) for row in corpus()["images"]["rows"]]
    for name, given in corpus()["images"]["params"].items():
        planned, left_out = plan_buckets(rows, validate(BucketParams, given, where="corpus", prefix="buckets"))
        assert all(row["file_digest"] == f"{int(row['path'][:3]):064x}" for row in planned)
        columns = [column for column in BUCKET_COLUMNS if column != "file_digest"]
        found[name] = [" ".join(str(row[column]) for column in columns) for row in planned]
        found[f"{name}: report"] = [report(planned, left_out), summary(planned, left_out)]
    return found


SIZES = ("width", "height", "orientation", "repeats")


def pixels(folder: Path) -> dict[str, Any]:
    """Pictures of several formats as they are decoded, cropped and resized by each filter."""
    found: dict[str, Any] = {}
    for path in sorted((SMALL / "raw").rglob("*")):
        if path.suffix not in (".png", ".jpg", ".webp"):
            continue
        image = load_pixels(path)
        name = path.relative_to(SMALL / "raw").as_posix()
        cut: dict[str, Any] = {"digest": pixel_digest(image)}
        for resample in ("lanczos", "bicubic", "area"):
            cropped = crop_picture(
                image,
                alpha="grey",
                resample=resample,
                resize=(80, 72),
                crop=(9, 5),
                size=(64, 64),
                flip=resample == "area",
            )
            cut[resample] = hashlib.sha256(cropped.tobytes()).hexdigest()
        found[name] = cut
    return found


def tensor_facts(tensor: Any) -> dict[str, Any]:
    """A few numbers that move when the tensor does."""
    import torch

    flat = tensor.double().flatten()
    places = torch.linspace(0, flat.numel() - 1, 8).long()
    values = {"mean": flat.mean().item(), "std": flat.std(correction=0).item(), "values": flat[places].tolist()}
    return {"shape": list(tensor.shape), **values}


def _bucket_rows() -> list[Row]:
    with FileDigests() as digests:
        found, _ = scan_pictures(SMALL / "raw", digests)
    rows = images_rows(picture for picture in found if picture.path in PICTURES)
    return plan_buckets(rows, BucketParams(resolution=96, step=32, upscale=True))[0]


def latents(family: str, folder: Path) -> dict[str, Any]:
    """The stage's index, keys included, and what its VAE gives for some crops and for a made-up picture."""
    import torch

    from eridiff.caching.latents.encode import cache_latents
    from eridiff.caching.latents.vae import encode, prepare_vae
    from eridiff.store.reader import Cache
    from tests.support.bases import source

    module, base = load_family(family), source(family)
    params = LatentParams(batch_size=2, crops=2, crop_zoom=1.5)
    identity = base.pointers["vae"].components["vae"].identity()
    raw, common = SMALL / "raw", common_key_fields(params, identity, module.VERSIONS.family.vae_encode)
    samples = plan_samples(_bucket_rows(), params, common, module.SIDE_MULTIPLE, raw, PixelDigests(folder))
    vae = load_vae(module, base, torch.float32)
    cpu, out = torch.device("cpu"), folder / "out"
    resources = Resources(root=folder, load=lambda: (vae, cpu))
    index, _ = cache_latents(samples, params, raw, resources, out)
    rows = sorted((dict(row) for row in index), key=lambda row: str(row["key"]))
    cache, some = Cache(out), [str(row["key"]) for row in rows[::2]]
    encoded = {key: {name: tensor_facts(tensor) for name, tensor in cache.tensors(key).items()} for key in some}
    ramp = torch.linspace(-1, 1, 64).repeat(64, 1)
    made_up = encode(prepare_vae(vae, params, cpu), torch.stack([ramp, ramp.T, (ramp * 7).sin()])[None], params)
    plain = [{name: value for name, value in row.items() if name != "shard"} for row in rows]
    return {"index": plain, "crops": encoded, "ramp": {name: tensor_facts(tensor) for name, tensor in made_up.items()}}


def texts(family: str, folder: Path) -> dict[str, Any]:
    """Keys, lost tokens and embeddings of some captions."""
    import torch

    from tests.support.bases import source

    module, base = load_family(family), source(family)
    encoders = load_text_encoders(module, base, torch.float32)
    limit = module.MAX_TOKENS[-1]
    planned = plan_captions([{"variants": PROMPTS}], TextParams(), module, base.pointers["text"].identity())
    with torch.inference_mode():
        values = module.encode_text(encoders, ["eridraw, a red fox", ""], limit)
        more = module.encode_text(encoders, [PROMPTS[1]], module.MAX_TOKENS[0])
    return {
        "keys": {caption.text: caption.key for caption in planned},
        "lost": {prompt: module.tokens_lost(encoders, prompt, limit) for prompt in PROMPTS},
        "embeddings": {name: tensor_facts(tensor) for name, tensor in values.items()},
        "unicode": {name: tensor_facts(tensor) for name, tensor in more.items()},
    }


def training_run(family: str, folder: Path) -> dict[str, Any]:
    """The table of a short training, and where some adapters and their average ended."""
    from eridiff.training.train import train
    from tests.support import training

    params = training.params_of({"ema_decay": 0.9, "accumulation": 2, "caption_dropout": 0.2})
    data = training.random_set(family, folder, params, ((128, 96), (96, 96)))
    run = training.start(family, params)
    table, _ = train(run, data, folder / "state", state_every=100)
    names = sorted(run.adapters)[:: max(1, len(run.adapters) // 4)]
    return {"table": dict(table), "adapters": {name: tensor_facts(run.adapters[name].detach()) for name in names}}


def samples(family: str, folder: Path) -> dict[str, Any]:
    """Pictures with and without a LoRA, as coarse grids of colours in 0..1."""
    import torch
    from PIL import Image

    from eridiff.params.sample import SampleParams
    from eridiff.sampling.sample import SampleJob, draw_samples
    from tests.support.adapters import random_adapter
    from tests.support.bases import source
    from tests.support.training import base_denoiser

    module, base = load_family(family), source(family)
    shapes = {
        name: (layer.out_features, layer.in_features)
        for name, layer in base_denoiser(family).named_modules()
        if isinstance(layer, torch.nn.Linear) and name.endswith(("to_q", "to_v"))
    }
    strong = {name: tensor * (30 if "lora_B" in name else 1) for name, tensor in random_adapter(shapes, 4).items()}
    write_trained(folder, family, strong)
    given = {"prompts": [{"prompt": "[trigger], a fox"}], "steps": 2, "size": [64, 64], "precision": "fp32"}
    params = validate(SampleParams, {**given, "strengths": [1.0]}, where="golden", prefix="sample")
    job = SampleJob(params=params, family=module, source=base, device=torch.device("cpu"))
    draw_samples(job, folder / "lora", folder / "out")
    found: dict[str, Any] = {}
    for path in sorted((folder / "out/images").iterdir()):
        with Image.open(path) as image:
            coarse = np.asarray(image.resize((4, 4), Image.Resampling.BOX), dtype=np.float64) / 255
        found[path.name] = coarse.round(4).flatten().tolist()
    return {"images": found, "metrics": json.loads((folder / "out/metrics.json").read_text("utf-8"))}


def write_trained(folder: Path, family: str, tensors: Any) -> None:
    """A checkpoint of a family's small base."""
    from tests.support.adapters import write_checkpoint
    from tests.support.bases import source

    config = source(family).config(load_family(family).DENOISER)
    write_checkpoint(folder / "lora" / "step-000120.safetensors", family, config, tensors)


def export(family: str, folder: Path) -> dict[str, Any]:
    """Files of a made-up checkpoint: names, metadata and some tensors; workflow and card as they stand."""
    from eridiff.formats.safetensors import TensorFile
    from tests.support.exports import exported

    found: dict[str, Any] = {}
    given = {"title": "Golden", "author": "x", "tags": ("a", "b"), "date": "2024-06-01"}
    for path in sorted(exported(folder, family, **given).rglob("*")):
        if path.suffix != ".safetensors":
            found[path.name] = path.read_text("utf-8")
            continue
        file = TensorFile(path)
        names = sorted(file.names)
        values = {name: tensor_facts(file.raw(name).torch().float()) for name in names[:: max(1, len(names) // 6)]}
        digest = hashlib.sha256("\n".join(names).encode()).hexdigest()
        found[path.name] = {"names": [len(names), digest], "tensors": values, "metadata": dict(file.metadata)}
    return found
