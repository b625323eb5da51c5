"""Flux.1's names in other programs: Black Forest Labs' transformer, whose projections are joined."""

from eridiff.keytables import Config, Dialect, Row, place, renamed

# Names that differ with the version of the library that wrote a file; canonical is the published base's.
# transformers 5 drops the level `text_model`.
_CLIP = ((r"(embeddings|encoder|final_layer_norm)\..+", r"text_model.\g<0>"),)
_T5 = ((r"encoder\.embed_tokens\.weight", "shared.weight"),)  # one tied tensor under either name
RENAMES = {"text_encoder": _CLIP, "text_encoder_2": _T5}

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


DIALECTS = (Dialect(table=table, prefix="lora_unet_", readers="ComfyUI, Forge, sd-scripts and diffusers"),)


def architecture(config: Config) -> str:
    """The base's name in modelspec: dev has embedded guidance, schnell has not."""
    return "flux-1-dev" if config["guidance_embeds"] else "flux-1-schnell"


def base_version(config: Config) -> str:
    """The base's name in `ss_base_model_version`, as kohya writes it for both."""
    return "flux1"
