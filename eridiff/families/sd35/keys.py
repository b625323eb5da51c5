"""SD 3.5's names in other programs.

No single file loads everywhere: diffusers reads only its own names (PEFT), Forge and sd-scripts only
Stability's with joined projections (kohya), ComfyUI either.
"""

from functools import partial

from eridiff.weights.lora_keys import Config, Dialect, Row, peft, place, renamed, swap_halves
from eridiff.weights.shared_keys import CLIP_G_PROJECTED, CLIP_L_PROJECTED, OLD_CLIP, OLD_T5, T5, VAE
from eridiff.weights.signatures import Look, Mark
from eridiff.weights.tensor_keys import ComponentKeys, as_diffusers, leaves

RENAMES = {"text_encoder": OLD_CLIP, "text_encoder_2": OLD_CLIP, "text_encoder_3": OLD_T5}

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
# The text stream's way out of a block, which the last block does not have.
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
_X, _CONTEXT = "joint_blocks.{i}.x_block.", "joint_blocks.{i}.context_block."
NORMS = (
    Row(_X + "attn.ln_q", (_BLOCK + "attn.norm_q",)),
    Row(_X + "attn.ln_k", (_BLOCK + "attn.norm_k",)),
    Row(_CONTEXT + "attn.ln_q", (_BLOCK + "attn.norm_added_q",)),
    Row(_CONTEXT + "attn.ln_k", (_BLOCK + "attn.norm_added_k",)),
)
DUAL_NORMS = (
    Row(_X + "attn2.ln_q", (_BLOCK + "attn2.norm_q",)),
    Row(_X + "attn2.ln_k", (_BLOCK + "attn2.norm_k",)),
)
ENDS = (
    Row("x_embedder.proj", ("pos_embed.proj",)),
    Row("context_embedder", ("context_embedder",)),
    Row("t_embedder.mlp.0", ("time_text_embed.timestep_embedder.linear_1",)),
    Row("t_embedder.mlp.2", ("time_text_embed.timestep_embedder.linear_2",)),
    Row("y_embedder.mlp.0", ("time_text_embed.text_embedder.linear_1",)),
    Row("y_embedder.mlp.2", ("time_text_embed.text_embedder.linear_2",)),
    Row("final_layer.linear", ("proj_out",)),
    Row("final_layer.adaLN_modulation.1", ("norm_out.linear",), (), swap_halves),
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
    return tuple(Row(name, (name,)) for row in table(config) for name in row.slices)


def transformer_rows(layout: str, config: Config) -> tuple[Row, ...]:
    """Every tensor of an MMDiT: Stability's names (`original`), or diffusers'."""
    norms: list[Row] = []
    for i in range(config["num_layers"] if config.get("qk_norm") else 0):
        dual = i in config.get("dual_attention_layers", ())
        norms += place((*NORMS, *(DUAL_NORMS if dual else ())), i=i)
    positions = Row("pos_embed", ("pos_embed.pos_embed",))
    rows = (positions, *leaves((*ENDS, *table(config))), *leaves(norms, "weight"))
    return rows if layout == "original" else as_diffusers(rows)


def _transformer_sizes(config: Config) -> dict[str, Mark]:
    width = config["num_attention_heads"] * config["attention_head_dim"]
    return {"pos_embed.pos_embed": (1, config["pos_embed_max_size"] ** 2, width)}


COMPONENTS = {
    "transformer": ComponentKeys(kind="denoiser", rows=transformer_rows, sizes=_transformer_sizes),
    "vae": VAE,
    "text_encoder": CLIP_L_PROJECTED,
    "text_encoder_2": CLIP_G_PROJECTED,
    "text_encoder_3": T5,
}


def _looks(layout: str, query: str, dual: str, norm: str, last: str, positions: str) -> tuple[Look, ...]:
    """The MMDiTs of one layout: those that are trained, and what is taken for them."""
    first = query.format(i=0)
    look = partial(Look, kind="denoiser", layout=layout)
    medium = {dual: None, query.format(i=23): None, positions: (1, 384 * 384, 1536)}
    large = {query.format(i=37): None, positions: (1, 192 * 192, 2432)}
    return (
        look(
            what="SD 3 Medium's transformer (of 2024, before 3.5)",
            marks={first: None, positions: (1, 192 * 192, 1536)},
            absent=(norm,),
            refusal="it is not SD 3.5: its attention has no norms. Take SD 3.5 Medium",
        ),
        look(what="SD 3.5 Medium's transformer", marks=medium, absent=(last,), model="sd35-medium"),
        look(what="SD 3.5 Large's transformer", marks=large, absent=(dual,), model="sd35-large"),
        look(what="SD 3.5 transformer of another size", marks={first: None, norm: None}),
    )


_ORIGINAL, _DIFFUSERS = "joint_blocks.{i}.x_block.attn.qkv.weight", "transformer_blocks.{i}.attn.to_q.weight"
LOOKS = (
    *_looks(
        "original",
        _ORIGINAL,
        "joint_blocks.0.x_block.attn2.qkv.weight",
        "joint_blocks.0.x_block.attn.ln_q.weight",
        _ORIGINAL.format(i=24),
        "pos_embed",
    ),
    *_looks(
        "diffusers",
        _DIFFUSERS,
        "transformer_blocks.0.attn2.to_q.weight",
        "transformer_blocks.0.attn.norm_q.weight",
        _DIFFUSERS.format(i=24),
        "pos_embed.pos_embed",
    ),
)

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
