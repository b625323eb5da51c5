"""Names of the parts that several families share: the autoencoder, the CLIP text encoders and T5, file by file."""

from collections.abc import Iterator
from functools import partial

from eridiff.weights.lora_keys import Config, Row, place
from eridiff.weights.signatures import Look, Mark
from eridiff.weights.tensor_keys import ComponentKeys, as_diffusers, conv_or_linear, leaves, same, transposed

# Names that differ with the version of the library that wrote a file; canonical is the published base's.
# transformers 5 drops the level `text_model`.
OLD_CLIP = ((r"(embeddings|encoder|final_layer_norm)\..+", r"text_model.\g<0>"),)
OLD_T5 = ((r"encoder\.embed_tokens\.weight", "shared.weight"),)  # one tied tensor under either name
OLD_VAE = tuple(  # diffusers before 0.18
    (rf"(.+\.attentions\.\d+)\.{old}\.(weight|bias)", rf"\g<1>.{new}.\g<2>")
    for old, new in {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}.items()
)

RESNET = tuple(Row(f"{{old}}.{name}", (f"{{new}}.{name}",)) for name in ("norm1", "conv1", "norm2", "conv2"))
SHORTCUT = (Row("{old}.nin_shortcut", ("{new}.conv_shortcut",)),)
ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def vae_rows(layout: str, config: Config) -> tuple[Row, ...]:
    """The autoencoder: Stability's and Black Forest Labs' names (`original`), or diffusers'."""
    channels, layers = tuple(config["block_out_channels"]), config["layers_per_block"]
    rows = [*_vae_half("encoder", "down", channels, layers), *_vae_half("decoder", "up", channels[::-1], layers + 1)]
    for name, flag in (("quant_conv", "use_quant_conv"), ("post_quant_conv", "use_post_quant_conv")):
        rows += leaves(same([name] if config.get(flag, True) else []))
    return tuple(rows) if layout == "original" else as_diffusers(rows)


def _vae_half(half: str, way: str, channels: tuple[int, ...], layers: int) -> Iterator[Row]:
    """Encoder or decoder. The original numbers a decoder's blocks from the picture's side."""
    last = len(channels) - 1
    yield from leaves(same([f"{half}.conv_in", f"{half}.conv_out"]))
    yield from leaves([Row(f"{half}.norm_out", (f"{half}.conv_norm_out",))])
    for i, width in enumerate(channels):
        old, new = f"{half}.{way}.{i if way == 'down' else last - i}", f"{half}.{way}_blocks.{i}"
        for layer in range(layers):
            yield from leaves(place(RESNET, old=f"{old}.block.{layer}", new=f"{new}.resnets.{layer}"))
        if i and channels[i - 1] != width:
            yield from leaves(place(SHORTCUT, old=f"{old}.block.0", new=f"{new}.resnets.0"))
        if i < last:
            yield from leaves([Row(f"{old}.{way}sample.conv", (f"{new}.{way}samplers.0.conv",))])
    for i in (0, 1):
        yield from leaves(place(RESNET, old=f"{half}.mid.block_{i + 1}", new=f"{half}.mid_block.resnets.{i}"))
    old, new = f"{half}.mid.attn_1", f"{half}.mid_block.attentions.0"
    yield from leaves([Row(f"{old}.norm", (f"{new}.group_norm",))])
    for theirs, ours in ATTENTION.items():
        yield from leaves([Row(f"{old}.{theirs}", (f"{new}.{ours}",), (), conv_or_linear)], "weight")
        yield from leaves([Row(f"{old}.{theirs}", (f"{new}.{ours}",))], "bias")


_LAYER = "text_model.encoder.layers.{i}."
_PROJECTIONS = [f"self_attn.{part}_proj" for part in ("q", "k", "v", "out")]
CLIP_LAYER = tuple(
    Row(_LAYER + name, (_LAYER + name,)) for name in ("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2", *_PROJECTIONS)
)
OPEN_CLIP_LAYER = tuple(
    Row("transformer.resblocks.{i}." + theirs, (_LAYER + ours,))
    for theirs, ours in {
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
        "attn.out_proj": "self_attn.out_proj",
    }.items()
)


def clip_rows(layout: str, config: Config, *, projected: bool) -> tuple[Row, ...]:
    """A CLIP text encoder, with its projection or without: OpenCLIP's names (`original`), or transformers'."""
    layers, width = config["num_hidden_layers"], config["hidden_size"]
    tokens, places, end = (
        "text_model.embeddings.token_embedding.weight",
        "text_model.embeddings.position_embedding.weight",
        "text_model.final_layer_norm",
    )
    projection = "text_projection.weight"
    if layout == "diffusers":
        rows = [*same([tokens, places]), *leaves(same([end]))]
        rows += leaves(row for i in range(layers) for row in place(CLIP_LAYER, i=i))
        return (*rows, *same([projection] if projected else []))
    rows = [Row("token_embedding.weight", (tokens,)), Row("positional_embedding", (places,))]
    rows += leaves([Row("ln_final", (end,))])
    for i in range(layers):
        rows += leaves(place(OPEN_CLIP_LAYER, i=i))
        for leaf in ("weight", "bias"):
            slices = tuple(f"{_LAYER}self_attn.{name}_proj.{leaf}".format(i=i) for name in ("q", "k", "v"))
            rows.append(Row(f"transformer.resblocks.{i}.attn.in_proj_{leaf}", slices, (width,) * 3))
    return (*rows, *([Row("text_projection", (projection,), (), transposed)] if projected else []))


def t5_rows(layout: str, config: Config) -> tuple[Row, ...]:
    """T5's encoder: transformers' names, in every file."""
    names = ["shared", "encoder.final_layer_norm", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias"]
    for i in range(config["num_layers"]):
        block = f"encoder.block.{i}.layer."
        names += [f"{block}0.SelfAttention.{part}" for part in "qkvo"]
        names += [f"{block}1.DenseReluDense.{part}" for part in ("wi_0", "wi_1", "wo")]
        names += [f"{block}{layer}.layer_norm" for layer in (0, 1)]
    return tuple(leaves(same(names), "weight"))


def _vae_sizes(config: Config) -> dict[str, Mark]:
    return {"encoder.conv_out.weight": (2 * config["latent_channels"], config["block_out_channels"][-1], 3, 3)}


def _clip_sizes(config: Config) -> dict[str, Mark]:
    return {_TOKENS: (config["vocab_size"], config["hidden_size"])}


def _t5_sizes(config: Config) -> dict[str, Mark]:
    return {"shared.weight": (config["vocab_size"], config["d_model"])}


VAE = ComponentKeys(kind="vae", rows=vae_rows, sizes=_vae_sizes)
CLIP_L = ComponentKeys(kind="clip-l", rows=partial(clip_rows, projected=False), sizes=_clip_sizes)
CLIP_L_PROJECTED = ComponentKeys(kind="clip-l", rows=partial(clip_rows, projected=True), sizes=_clip_sizes)
CLIP_G_PROJECTED = ComponentKeys(kind="clip-g", rows=partial(clip_rows, projected=True), sizes=_clip_sizes)
T5 = ComponentKeys(kind="t5", rows=t5_rows, sizes=_t5_sizes)

_TOKENS = "text_model.embeddings.token_embedding.weight"
_CLIP_SPARE = ("text_model.embeddings.position_ids", "logit_scale", "text_projection", "visual_projection")
_T5_MARK = "encoder.block.0.layer.0.SelfAttention.q.weight"
_T5_SPARE = ("encoder.embed_tokens.", "decoder.", "lm_head.")
_OPEN = "transformer.resblocks.0.attn.in_proj_weight"
LOOKS = (
    Look(kind="vae", layout="original", what="VAE", marks={"encoder.down.0.block.0.norm1.weight": None}),
    Look(kind="vae", layout="diffusers", what="VAE", marks={"encoder.down_blocks.0.resnets.0.norm1.weight": None}),
    Look(
        kind="clip-l",
        layout="diffusers",
        what="CLIP-L",
        marks={_TOKENS: (49408, 768)},
        spare=_CLIP_SPARE,
    ),
    Look(
        kind="clip-g",
        layout="diffusers",
        what="OpenCLIP-G",
        marks={_TOKENS: (49408, 1280)},
        spare=_CLIP_SPARE,
    ),
    Look(kind="clip", layout="diffusers", what="CLIP of another size", marks={_TOKENS: None}, spare=_CLIP_SPARE),
    Look(
        kind="clip-g",
        layout="original",
        what="OpenCLIP-G",
        marks={_OPEN: None},
        spare=("logit_scale", "attn_mask", "text_projection"),
    ),
    Look(
        kind="t5",
        layout="diffusers",
        what="T5-XXL's encoder",
        marks={_T5_MARK: (4096, 4096)},
        spare=_T5_SPARE,
    ),
    Look(kind="t5", layout="diffusers", what="T5 of another size", marks={_T5_MARK: None}, spare=_T5_SPARE),
)
