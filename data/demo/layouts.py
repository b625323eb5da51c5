"""The demo's bases before training: real diffusers folders of the real classes, only narrow and shallow.

Heads are 64 wide, time ids 256, captions 77 tokens, as the real models have them; SD 3.5 has as many heads as
layers, since other tools tell its depth from its width.
"""

from __future__ import annotations

import copy
import gzip
import json
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import safetensors.torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from data.demo.captions import corpus
from data.demo.drawings import SUBJECTS
from eridiff.bases.tokenizers import MERGES, clip_tokens

SEED, CLIP_MERGES = 20240601, 1500
CLIP_BOS, CLIP_EOS = "<|startoftext|>", "<|endoftext|>"
CLIP_WIDTH, T5_WIDTH = 64, 192  # T5 wider than both CLIPs joined, as in SD 3.5
# fmt: off
LATENT_CHANNELS = {"sdxl": 4, "sd35": 16, "flux": 16}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
SCHEDULERS: dict[str, dict[str, Any]] = {  # the real files; but SDXL starts at its last, noisiest step
    "sdxl": {"_class_name": "EulerDiscreteScheduler", "num_train_timesteps": 1000, "use_karras_sigmas": False,
        "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "trained_betas": None,
        "timestep_spacing": "trailing", "steps_offset": 1, "prediction_type": "epsilon",
        "interpolation_type": "linear", "sample_max_value": 1.0, "set_alpha_to_one": False,
        "clip_sample": False, "skip_prk_steps": True},
    "sd35": FLOW,
    "flux": {**FLOW, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15,
        "base_image_seq_len": 256, "max_image_seq_len": 4096},
}
SHAPES: dict[str, dict[str, Any]] = {
    "vae": {"block_out_channels": (32, 64, 96, 96), "layers_per_block": 1, "norm_num_groups": 16,
        "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
        "sample_size": 128, "force_upcast": False},
    "clip": {"hidden_size": CLIP_WIDTH, "intermediate_size": 4 * CLIP_WIDTH, "projection_dim": CLIP_WIDTH,
        "num_hidden_layers": 3, "num_attention_heads": CLIP_WIDTH // 64},
    "t5": {"d_model": T5_WIDTH, "d_kv": 64, "d_ff": 256, "num_layers": 2, "num_heads": 3,
        "feed_forward_proj": "gated-gelu", "dropout_rate": 0.0},
    "sdxl": {
        "sample_size": 16, "block_out_channels": (64, 128, 128), "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "norm_num_groups": 16,
        "transformer_layers_per_block": (1, 1, 2), "use_linear_projection": True,
        "attention_head_dim": (1, 2, 2),  # of this class: the number of heads
        "cross_attention_dim": 2 * CLIP_WIDTH, "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": CLIP_WIDTH + 6 * 256},
    "sd35": {
        "sample_size": 16, "in_channels": 16, "num_layers": 3, "num_attention_heads": 3, "attention_head_dim": 64,
        "caption_projection_dim": 192, "pooled_projection_dim": 2 * CLIP_WIDTH, "qk_norm": "rms_norm",
        "joint_attention_dim": T5_WIDTH, "pos_embed_max_size": 32, "dual_attention_layers": (0, 1)},
    "flux": {"in_channels": 64, "num_layers": 2, "num_single_layers": 4, "num_attention_heads": 3,
        "attention_head_dim": 64, "axes_dims_rope": (8, 28, 28), "guidance_embeds": True,
        "joint_attention_dim": T5_WIDTH, "pooled_projection_dim": CLIP_WIDTH},
}
PARTS = {  # pipeline, kinds of its CLIPs, the T5's number, denoiser
    "sdxl": ("StableDiffusionXL", ("", "WithProjection"), "", "unet", "UNet2DConditionModel"),
    "sd35": ("StableDiffusion3", ("WithProjection",) * 2, "_3", "transformer", "SD3Transformer2DModel"),
    "flux": ("Flux", ("",), "_2", "transformer", "FluxTransformer2DModel"),
}
# fmt: on
# The T5 vocabulary also holds every character of Latin-1, so that no western caption becomes <unk>.
ALPHABET = [chr(c) for c in [*range(0x21, 0x7F), *range(0xA1, 0x100)] if c != 0xAD]


@dataclass
class Layout:
    """A base's folder before training: configs, tokenizers and model_index.json, no weights."""

    family: str
    folder: Path
    merges: list[str]
    index: dict[str, Any] = field(default_factory=dict)

    def add_model(self, part: str, model: Any) -> None:
        library = "diffusers" if isinstance(model, diffusers.ModelMixin) else "transformers"
        if library == "diffusers":
            model.save_config(self.folder / part)
        else:
            model.config.save_pretrained(self.folder / part)
        clean_config(self.folder / part)
        self.index[part] = [library, type(model).__name__]

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
        """CLIP-L, then CLIP-G."""
        vocabulary = clip_tokens(self.merges)
        ids = {"bos_token_id": vocabulary[CLIP_BOS], "vocab_size": len(vocabulary)}
        ids["eos_token_id"] = vocabulary[CLIP_EOS]  # the pooled output is taken at the first of these
        roles = (("", "quick_gelu", CLIP_EOS), ("_2", "gelu", "!"))
        for kind, (tail, act, pad) in zip(kinds, roles, strict=False):
            self.add_clip_tokenizer(f"tokenizer{tail}", pad)
            shape = SHAPES["clip"] | ids | {"pad_token_id": vocabulary[pad], "hidden_act": act}
            model = getattr(transformers, f"CLIPTextModel{kind}")(transformers.CLIPTextConfig(**shape))
            self.add_model(f"text_encoder{tail}", model)

    def add_t5(self, tail: str) -> None:
        size = write_t5_tokenizer(self.folder / f"tokenizer{tail}")
        self.index[f"tokenizer{tail}"] = ["transformers", "T5TokenizerFast"]
        config = transformers.T5Config(**SHAPES["t5"], vocab_size=size)
        self.add_model(f"text_encoder{tail}", transformers.T5EncoderModel(config))

    def make(self) -> None:
        """Write the folder."""
        pipeline, clips, t5, denoiser, kind = PARTS[self.family]
        self.add_clips(clips)
        if t5:
            self.add_t5(t5)
        self.add_model(denoiser, getattr(diffusers, kind)(**SHAPES[self.family]))
        self.add_model("vae", make_vae(self.family))
        write(self.folder / "scheduler" / "scheduler_config.json", SCHEDULERS[self.family])
        self.index["_class_name"] = f"{pipeline}Pipeline"
        self.index["scheduler"] = ["diffusers", SCHEDULERS[self.family]["_class_name"]]
        if self.family == "sdxl":
            self.index["force_zeros_for_empty_prompt"] = True
        write(self.folder / "model_index.json", self.index)


def make_vae(family: str) -> diffusers.AutoencoderKL:
    """An untrained VAE: 4 channels and quantising convolutions for SDXL, 16 and none for the others."""
    quant = {"use_quant_conv": family == "sdxl", "use_post_quant_conv": family == "sdxl"}
    return diffusers.AutoencoderKL(**SHAPES["vae"], latent_channels=LATENT_CHANNELS[family], **quant)


def save_model(model: Any, folder: Path) -> None:
    """Write a model in fp16, as the real repositories hold it and without what varies from run to run."""
    model = copy.deepcopy(model).half().cpu()
    model.save_pretrained(folder)
    (path,) = folder.glob("*.safetensors")
    if isinstance(model, transformers.CLIPTextModel):  # transformers 5 drops a level that real files have
        weights = {f"text_model.{name}": tensor for name, tensor in model.state_dict().items()}
        path.write_bytes(safetensors.torch.save(weights, {"format": "pt"}))
    path.chmod(0o644)  # safetensors lets only the owner read
    clean_config(folder)


def clean_config(folder: Path) -> None:
    """Drop what names the libraries that wrote a config: else their upgrade changes every file."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    dropped = ("_diffusers_version", "transformers_version", "_name_or_path")
    write(folder / "config.json", {key: value for key, value in config.items() if key not in dropped})


def write(path: Path, value: str | dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = value if isinstance(value, str) else json.dumps(value, indent=2, sort_keys=True) + "\n"
    path.write_text(text, encoding="utf-8", newline="\n")


def clip_merges() -> list[str]:
    """The first merges of CLIP's vocabulary, which comes with the package."""
    return gzip.decompress(MERGES.read_bytes()).decode("utf-8").split("\n")[1 : CLIP_MERGES + 1]  # 0: a version


def write_t5_tokenizer(folder: Path) -> int:
    """Train a Unigram vocabulary on the captions; returns its size."""
    tokenizer = Tokenizer(models.Unigram())
    metaspace = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])
    special = ["<pad>", "</s>", "<unk>"]  # T5's numbers 0, 1, 2
    trainer = trainers.UnigramTrainer(vocab_size=768, special_tokens=special, show_progress=False)
    captions = corpus(SUBJECTS, 4000, SEED)
    tokenizer.train_from_iterator(captions, trainer)
    learned = dict(json.loads(tokenizer.to_str())["model"]["vocab"])
    # The trainer's tables are hashed: equal scores change places and last digits differ from run to run.
    pieces = dict.fromkeys(ALPHABET, -12.0) | {p: round(score, 3) for p, score in learned.items()}
    # It also takes no piece that stands in one word only: real T5 knows such common words whole.
    words = Counter("▁" + word.strip(",") for caption in captions for word in caption.split())
    pieces |= {word: round(math.log(count / words.total()), 3) for word, count in words.items()}
    ordered = sorted(pieces.items(), key=lambda piece: (-piece[1], piece[0]))
    vocabulary = [(token, 0.0) for token in special] + [p for p in ordered if p[0] not in special]
    transformers.T5TokenizerFast(vocab=vocabulary, extra_ids=0, model_max_length=512).save_pretrained(folder)
    return len(vocabulary)
