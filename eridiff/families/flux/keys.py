"""Flux.1's names in other programs: Black Forest Labs' transformer, whose projections are joined."""

from functools import partial

from eridiff.weights.lora_keys import Config, Dialect, Row, place, renamed, swap_halves
from eridiff.weights.shared_keys import CLIP_L, OLD_CLIP, OLD_T5, T5, VAE
from eridiff.weights.signatures import Look, Mark
from eridiff.weights.tensor_keys import ComponentKeys, as_diffusers, leaves

RENAMES = {"text_encoder": OLD_CLIP, "text_encoder_2": OLD_T5}

_BLOCK = "transformer_blocks.{i}."
DOUBLE = (
    Row(
        "double_blocks.{i}.img_attn.qkv",
        (_BLOCK + "attn.to_q", _BLOCK + "attn.to_k", _BLOCK + "attn.to_v"),
        (1, 1, 1),
    ),
    Row(
        "double_blocks.{i}.txt_attn.qkv",
        (_BLOCK + "attn.add_q_proj", _BLOCK + "attn.add_k_proj", _BLOCK + "attn.add_v_proj"),
        (1, 1, 1),
    ),
    Row("double_blocks.{i}.img_attn.proj", (_BLOCK + "attn.to_out.0",)),
    Row("double_blocks.{i}.txt_attn.proj", (_BLOCK + "attn.to_add_out",)),
    Row("double_blocks.{i}.img_mlp.0", (_BLOCK + "ff.net.0.proj",)),
    Row("double_blocks.{i}.img_mlp.2", (_BLOCK + "ff.net.2",)),
    Row("double_blocks.{i}.txt_mlp.0", (_BLOCK + "ff_context.net.0.proj",)),
    Row("double_blocks.{i}.txt_mlp.2", (_BLOCK + "ff_context.net.2",)),
    Row("double_blocks.{i}.img_mod.lin", (_BLOCK + "norm1.linear",)),
    Row("double_blocks.{i}.txt_mod.lin", (_BLOCK + "norm1_context.linear",)),
)
_SINGLE = "single_transformer_blocks.{i}."
SINGLE = (
    Row(
        "single_blocks.{i}.linear1",
        (_SINGLE + "attn.to_q", _SINGLE + "attn.to_k", _SINGLE + "attn.to_v", _SINGLE + "proj_mlp"),
        (1, 1, 1, 4),
    ),
    Row("single_blocks.{i}.linear2", (_SINGLE + "proj_out",)),
    Row("single_blocks.{i}.modulation.lin", (_SINGLE + "norm.linear",)),
)
# Whole tensors, which are called `scale` there and `weight` here.
_DOUBLE_NORMS = {
    "img_attn.norm.query_norm": "norm_q",
    "img_attn.norm.key_norm": "norm_k",
    "txt_attn.norm.query_norm": "norm_added_q",
    "txt_attn.norm.key_norm": "norm_added_k",
}
DOUBLE_NORMS = tuple(
    Row("double_blocks.{i}." + theirs + ".scale", (_BLOCK + f"attn.{ours}.weight",))
    for theirs, ours in _DOUBLE_NORMS.items()
)
SINGLE_NORMS = tuple(
    Row("single_blocks.{i}.norm." + theirs + ".scale", (_SINGLE + f"attn.{ours}.weight",))
    for theirs, ours in {"query_norm": "norm_q", "key_norm": "norm_k"}.items()
)
ENDS = (
    Row("img_in", ("x_embedder",)),
    Row("txt_in", ("context_embedder",)),
    Row("final_layer.linear", ("proj_out",)),
    Row("final_layer.adaLN_modulation.1", ("norm_out.linear",), (), swap_halves),
)
EMBEDDER = (
    Row("{theirs}.in_layer", ("time_text_embed.{ours}.linear_1",)),
    Row("{theirs}.out_layer", ("time_text_embed.{ours}.linear_2",)),
)
EMBEDDERS = {"time_in": "timestep_embedder", "vector_in": "text_embedder", "guidance_in": "guidance_embedder"}

IMPLEMENTATION = "https://github.com/black-forest-labs/flux"
NETWORK_MODULE = "networks.lora_flux"


def canonical(component: str, name: str) -> str:
    """The canonical name of a tensor of a component's file."""
    return renamed(RENAMES, component, name)


def table(config: Config) -> tuple[Row, ...]:
    """Every linear module of the double and single blocks: original name <- diffusers names."""
    width = config["num_attention_heads"] * config["attention_head_dim"]
    double = [row for i in range(config["num_layers"]) for row in place(DOUBLE, width=width, i=i)]
    single = [row for i in range(config["num_single_layers"]) for row in place(SINGLE, width=width, i=i)]
    return (*double, *single)


def transformer_rows(layout: str, config: Config) -> tuple[Row, ...]:
    """Every tensor of a transformer: Black Forest Labs' names (`original`), or diffusers'."""
    modules = [*ENDS, *table(config)]
    for theirs, ours in EMBEDDERS.items():
        if theirs != "guidance_in" or config["guidance_embeds"]:
            modules += place(EMBEDDER, theirs=theirs, ours=ours)
    norms = [row for i in range(config["num_layers"]) for row in place(DOUBLE_NORMS, i=i)]
    norms += [row for i in range(config["num_single_layers"]) for row in place(SINGLE_NORMS, i=i)]
    rows = (*leaves(modules), *norms)
    return rows if layout == "original" else as_diffusers(rows)


def _transformer_sizes(config: Config) -> dict[str, Mark]:
    width = config["num_attention_heads"] * config["attention_head_dim"]
    return {"x_embedder.weight": (width, config["in_channels"])}


COMPONENTS = {
    "transformer": ComponentKeys(kind="denoiser", rows=transformer_rows, sizes=_transformer_sizes),
    "vae": VAE,
    "text_encoder": CLIP_L,
    "text_encoder_2": T5,
}


def _looks(layout: str, block: str, last: str, image: str, guidance: str, chroma: str) -> tuple[Look, ...]:
    """The transformers of one layout: those that are trained, and what is taken for them."""
    look = partial(Look, kind="denoiser", layout=layout)
    whole = {last: None, image: (3072, 64)}
    return (
        look(
            what="Chroma's transformer",
            marks={chroma: None},
            refusal="it is another architecture, made out of Flux.1 schnell. Take Flux.1 itself",
        ),
        look(
            what="Flux.1 Fill's transformer",
            marks={block: None, image: (3072, 384)},
            refusal="it paints into holes: its input has 384 channels. Take Flux.1 dev",
        ),
        look(
            what="transformer of Flux.1 Canny or Depth",
            marks={block: None, image: (3072, 128)},
            refusal="it follows a drawing: its input has 128 channels. Take Flux.1 dev",
        ),
        look(what="Flux.1 dev's transformer", marks={**whole, guidance: (3072, 256)}, model="flux-dev"),
        look(what="Flux.1 schnell's transformer", marks=whole, absent=(guidance,), model="flux-schnell"),
        look(what="Flux.1 transformer of another size", marks={block: None, image: None}),
    )


LOOKS = (
    *_looks(
        "original",
        "double_blocks.0.img_attn.norm.query_norm.scale",
        "single_blocks.37.linear1.weight",
        "img_in.weight",
        "guidance_in.in_layer.weight",
        "distilled_guidance_layer.in_proj.weight",
    ),
    *_looks(
        "diffusers",
        "single_transformer_blocks.0.proj_mlp.weight",
        "single_transformer_blocks.37.proj_mlp.weight",
        "x_embedder.weight",
        "time_text_embed.guidance_embedder.linear_1.weight",
        "distilled_guidance_layer.in_proj.weight",
    ),
)

DIALECTS = (Dialect(table=table, prefix="lora_unet_", readers="ComfyUI, Forge, sd-scripts and diffusers"),)


def architecture(config: Config) -> str:
    """The base's name in modelspec: dev has embedded guidance, schnell has not."""
    return "flux-1-dev" if config["guidance_embeds"] else "flux-1-schnell"


def base_version(config: Config) -> str:
    """The base's name in `ss_base_model_version`, as kohya writes it for both."""
    return "flux1"
