"""SDXL's names in other programs: Stability's sgm UNet under kohya's prefixes."""

from collections.abc import Iterator
from functools import partial

from eridiff.weights.lora_keys import Config, Dialect, Row, place, renamed
from eridiff.weights.shared_keys import CLIP_G_PROJECTED, CLIP_L, OLD_CLIP, OLD_VAE, VAE
from eridiff.weights.signatures import Look, Mark
from eridiff.weights.tensor_keys import ComponentKeys, as_diffusers, leaves

RENAMES = {"vae": OLD_VAE, "text_encoder": OLD_CLIP, "text_encoder_2": OLD_CLIP}

# Inside a spatial transformer both programs use the same names.
SPATIAL = tuple(Row("{sgm}." + name, ("{diffusers}." + name,)) for name in ("proj_in", "proj_out"))
_INNER = [f"attn{n}.{name}" for n in (1, 2) for name in ("to_q", "to_k", "to_v", "to_out.0")]
INNER = tuple(
    Row("{sgm}.transformer_blocks.{i}." + name, ("{diffusers}.transformer_blocks.{i}." + name,))
    for name in (*_INNER, "ff.net.0.proj", "ff.net.2")
)

# The rest of the UNet.
ENDS = tuple(
    Row(sgm, (diffusers,))
    for sgm, diffusers in {
        "input_blocks.0.0": "conv_in",
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "label_emb.0.0": "add_embedding.linear_1",
        "label_emb.0.2": "add_embedding.linear_2",
        "out.0": "conv_norm_out",
        "out.2": "conv_out",
    }.items()
)
RESNET = tuple(
    Row("{sgm}." + sgm, ("{diffusers}." + diffusers,))
    for sgm, diffusers in {
        "in_layers.0": "norm1",
        "in_layers.2": "conv1",
        "emb_layers.1": "time_emb_proj",
        "out_layers.0": "norm2",
        "out_layers.3": "conv2",
    }.items()
)
SHORTCUT = (Row("{sgm}.skip_connection", ("{diffusers}.conv_shortcut",)),)
NORMS = tuple(
    Row("{sgm}.transformer_blocks.{i}." + name, ("{diffusers}.transformer_blocks.{i}." + name,))
    for name in ("norm1", "norm2", "norm3")
)
NO_BIAS = (".to_q", ".to_k", ".to_v")

IMPLEMENTATION = "https://github.com/Stability-AI/generative-models"
NETWORK_MODULE = "networks.lora"


def canonical(component: str, name: str) -> str:
    """The canonical name of a tensor of a component's file."""
    return renamed(RENAMES, component, name)


def table(config: Config) -> tuple[Row, ...]:
    """Every attention and feed-forward module of a UNet: sgm name <- diffusers name."""
    rows: list[Row] = []
    for sgm, diffusers, depth in _spatial_transformers(config):
        rows += place(SPATIAL, sgm=sgm, diffusers=diffusers)
        for i in range(depth):
            rows += place(INNER, sgm=sgm, diffusers=diffusers, i=i)
    return tuple(rows)


def _spatial_transformers(config: Config) -> list[tuple[str, str, int]]:
    """(sgm name, diffusers name, transformer blocks) of each; sgm numbers layers and samplers in one row."""
    layers, downs, ups = config["layers_per_block"], config["down_block_types"], config["up_block_types"]
    depths = config["transformer_layers_per_block"]
    depths = [depths] * len(downs) if isinstance(depths, int) else list(depths)
    found = []
    for block, kind in enumerate(downs):
        for layer in range(layers if "CrossAttn" in kind else 0):
            number = 1 + block * (layers + 1) + layer  # 0 is conv_in; each block ends with its downsampler
            found.append((f"input_blocks.{number}.1", f"down_blocks.{block}.attentions.{layer}", depths[block]))
    found.append(("middle_block.1", "mid_block.attentions.0", depths[-1]))
    for block, kind in enumerate(ups):
        for layer in range(layers + 1 if "CrossAttn" in kind else 0):
            number = block * (layers + 1) + layer
            found.append((f"output_blocks.{number}.1", f"up_blocks.{block}.attentions.{layer}", depths[-1 - block]))
    return found


def unet_rows(layout: str, config: Config) -> tuple[Row, ...]:
    """Every tensor of a UNet: sgm's names (`original`), or diffusers'."""
    modules = [row for row in table(config) if not row.target.endswith(NO_BIAS)]
    plain = [row for row in table(config) if row.target.endswith(NO_BIAS)]
    modules += [*ENDS, *_resnets(config), *_samplers(config)]
    for sgm, diffusers, depth in _spatial_transformers(config):
        modules.append(Row(f"{sgm}.norm", (f"{diffusers}.norm",)))
        modules += [row for i in range(depth) for row in place(NORMS, sgm=sgm, diffusers=diffusers, i=i)]
    rows = (*leaves(modules), *leaves(plain, "weight"))
    return rows if layout == "original" else as_diffusers(rows)


def _resnets(config: Config) -> Iterator[Row]:
    """Residual blocks; one whose input is wider or narrower than its output has a shortcut."""
    layers, widths = config["layers_per_block"], config["block_out_channels"]
    for block, width in enumerate(widths):
        for layer in range(layers):
            sgm = f"input_blocks.{1 + block * (layers + 1) + layer}.0"
            changes = layer == 0 and block > 0 and widths[block - 1] != width
            rows = (*RESNET, *(SHORTCUT if changes else ()))
            yield from place(rows, sgm=sgm, diffusers=f"down_blocks.{block}.resnets.{layer}")
        for layer in range(layers + 1):  # on the way up each also takes what its partner below put aside
            sgm = f"output_blocks.{block * (layers + 1) + layer}.0"
            yield from place((*RESNET, *SHORTCUT), sgm=sgm, diffusers=f"up_blocks.{block}.resnets.{layer}")
    for number, layer in ((0, 0), (2, 1)):
        yield from place(RESNET, sgm=f"middle_block.{number}", diffusers=f"mid_block.resnets.{layer}")


def _samplers(config: Config) -> Iterator[Row]:
    """Every block but the last ends with a sampler: on the way down one of its own, on the way up the last layer's."""
    layers, ups = config["layers_per_block"], config["up_block_types"]
    for block in range(len(ups) - 1):
        down = (block + 1) * (layers + 1)
        yield Row(f"input_blocks.{down}.0.op", (f"down_blocks.{block}.downsamplers.0.conv",))
        up, place_in = block * (layers + 1) + layers, 2 if "CrossAttn" in ups[block] else 1
        yield Row(f"output_blocks.{up}.{place_in}.conv", (f"up_blocks.{block}.upsamplers.0.conv",))


def _unet_sizes(config: Config) -> dict[str, Mark]:
    return {"conv_in.weight": (config["block_out_channels"][0], config["in_channels"], 3, 3)}


COMPONENTS = {
    "unet": ComponentKeys(kind="denoiser", rows=unet_rows, sizes=_unet_sizes),
    "vae": VAE,
    "text_encoder": CLIP_L,
    "text_encoder_2": CLIP_G_PROJECTED,
}

_SGM, _CROSS = "input_blocks.0.0.weight", "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
_DIFFUSERS, _DOWN = "conv_in.weight", "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight"
_INPAINT = "it paints into holes: its input has 9 channels. Take the plain model"
_ONE = "it is another architecture. eridiff trains SDXL, not its forerunners"


def _looks(layout: str, first: str, label: str, cross: str) -> tuple[Look, ...]:
    """The UNets of one layout: the one that is trained, and what is taken for it."""
    refiner = "it refines what the base drew, and is trained on nothing else. Take the base model"
    look = partial(Look, kind="denoiser", layout=layout)
    return (
        look(what="SDXL inpainting UNet", marks={label: None, first: (None, 9, 3, 3)}, refusal=_INPAINT),
        look(
            what="SDXL UNet of InstructPix2Pix",
            marks={label: None, first: (None, 8, 3, 3)},
            refusal="it edits pictures: its input has 8 channels. Take the plain model",
        ),
        look(what="SDXL refiner UNet", marks={label: (None, 2560)}, refusal=refiner),
        look(
            what="SDXL UNet",
            marks={label: (1280, 2816), first: (320, 4, 3, 3), cross: (640, 2048)},
            model="sdxl",
        ),
        look(what="SDXL UNet of another size", marks={label: None, first: None}),
        look(
            what="UNet of Stable Diffusion 1 or 2",
            marks={first: (320, None, 3, 3)},
            absent=(label,),
            refusal=_ONE,
        ),
    )


LOOKS = (
    *_looks("original", _SGM, "label_emb.0.0.weight", _CROSS),
    *_looks("diffusers", _DIFFUSERS, "add_embedding.linear_1.weight", _DOWN),
)

DIALECTS = (Dialect(table=table, prefix="lora_unet_", readers="ComfyUI, A1111, Forge, sd-scripts and diffusers"),)


def architecture(config: Config) -> str:
    """The base's name in modelspec."""
    return "stable-diffusion-xl-v1-base"


def base_version(config: Config) -> str:
    """The base's name in `ss_base_model_version`; A1111 looks for `sdxl_`."""
    return "sdxl_base_v1-0"
