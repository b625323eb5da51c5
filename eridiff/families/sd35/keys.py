"""SD 3.5's names in other programs.

No single file loads everywhere: diffusers reads only its own names (PEFT), Forge and sd-scripts only
Stability's with joined projections (kohya), ComfyUI either.
"""

from eridiff.keytables import Config, Dialect, Row, peft, place, renamed, swap_halves

# Names that differ with the version of the library that wrote a file; canonical is the published base's.
# transformers 5 drops the level `text_model`.
_CLIP = ((r"(embeddings|encoder|final_layer_norm)\..+", r"text_model.\g<0>"),)
_T5 = ((r"encoder\.embed_tokens\.weight", "shared.weight"),)  # one tied tensor under either name
RENAMES = {"text_encoder": _CLIP, "text_encoder_2": _CLIP, "text_encoder_3": _T5}

_BLOCK = "transformer_blocks.{i}."
EVERY = (
    Row(
        "joint_blocks.{i}.x_block.attn.qkv",
        (_BLOCK + "attn.to_q", _BLOCK + "attn.to_k", _BLOCK + "attn.to_v"),
        (1, 1, 1),
    ),
    Row(
        "joint_blocks.{i}.context_block.attn.qkv",
        (_BLOCK + "attn.add_q_proj", _BLOCK + "attn.add_k_proj", _BLOCK + "attn.add_v_proj"),
        (1, 1, 1),
    ),
    Row("joint_blocks.{i}.x_block.attn.proj", (_BLOCK + "attn.to_out.0",)),
    Row("joint_blocks.{i}.x_block.mlp.fc1", (_BLOCK + "ff.net.0.proj",)),
    Row("joint_blocks.{i}.x_block.mlp.fc2", (_BLOCK + "ff.net.2",)),
    Row("joint_blocks.{i}.x_block.adaLN_modulation.1", (_BLOCK + "norm1.linear",)),
)
# The text stream's way out of a block, which the last block lacks.
ALL_BUT_LAST = (
    Row("joint_blocks.{i}.context_block.attn.proj", (_BLOCK + "attn.to_add_out",)),
    Row("joint_blocks.{i}.context_block.mlp.fc1", (_BLOCK + "ff_context.net.0.proj",)),
    Row("joint_blocks.{i}.context_block.mlp.fc2", (_BLOCK + "ff_context.net.2",)),
    Row("joint_blocks.{i}.context_block.adaLN_modulation.1", (_BLOCK + "norm1_context.linear",)),
)
LAST = (
    Row(
        "joint_blocks.{i}.context_block.adaLN_modulation.1",
        (_BLOCK + "norm1_context.linear",),
        (),
        swap_halves,
    ),
)
DUAL = (  # Medium's second attention, of the image stream alone
    Row(
        "joint_blocks.{i}.x_block.attn2.qkv",
        (_BLOCK + "attn2.to_q", _BLOCK + "attn2.to_k", _BLOCK + "attn2.to_v"),
        (1, 1, 1),
    ),
    Row("joint_blocks.{i}.x_block.attn2.proj", (_BLOCK + "attn2.to_out.0",)),
)

IMPLEMENTATION = "https://github.com/Stability-AI/sd3.5"
NETWORK_MODULE = "networks.lora_sd3"


def canonical(component: str, name: str) -> str:
    """The canonical name of a tensor of a component's file."""
    return renamed(RENAMES, component, name)


def table(config: Config) -> tuple[Row, ...]:
    """Every linear module of the joint blocks: original name <- diffusers names."""
    count, width = config["num_layers"], config["num_attention_heads"] * config["attention_head_dim"]
    rows: list[Row] = []
    for i in range(count):
        dual = DUAL if i in config.get("dual_attention_layers", ()) else ()
        rest = ALL_BUT_LAST if i < count - 1 else LAST
        rows += place((*EVERY, *rest, *dual), width=width, i=i)
    return tuple(rows)


def split_table(config: Config) -> tuple[Row, ...]:
    """The same modules under diffusers' own names."""
    return tuple(Row(part, (part,)) for row in table(config) for part in row.parts)


DIALECTS = (
    peft(table=split_table, prefix="transformer.", readers="ComfyUI and diffusers"),
    Dialect(table=table, prefix="lora_unet_", ending="-kohya", readers="Forge, sd-scripts and ComfyUI"),
)


def _size(config: Config) -> str:
    """Medium has blocks with a second attention, Large has none."""
    return "medium" if config.get("dual_attention_layers") else "large"


def architecture(config: Config) -> str:
    """The base's name in modelspec, as kohya writes it."""
    return f"stable-diffusion-3-5-{_size(config)}"


def base_version(config: Config) -> str:
    """The base's name in `ss_base_model_version`."""
    return f"sd3.5_{_size(config)}"
