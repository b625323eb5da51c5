"""SDXL's names in other programs: Stability's sgm UNet under kohya's prefixes."""

from eridiff.keytables import Config, Dialect, Row, place, renamed

# Names that differ with the version of the library that wrote a file; canonical is the published base's.
# transformers 5 drops the level `text_model`.
_CLIP = ((r"(embeddings|encoder|final_layer_norm)\..+", r"text_model.\g<0>"),)
_VAE = tuple(  # diffusers before 0.18
    (rf"(.+\.attentions\.\d+)\.{old}\.(weight|bias)", rf"\g<1>.{new}.\g<2>")
    for old, new in {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}.items()
)
RENAMES = {"vae": _VAE, "text_encoder": _CLIP, "text_encoder_2": _CLIP}

# Inside a spatial transformer both programs use the same names.
SPATIAL = tuple(Row("{sgm}." + name, ("{diffusers}." + name,)) for name in ("proj_in", "proj_out"))
_INNER = [f"attn{n}.{name}" for n in (1, 2) for name in ("to_q", "to_k", "to_v", "to_out.0")]
INNER = tuple(
    Row("{sgm}.transformer_blocks.{i}." + name, ("{diffusers}.transformer_blocks.{i}." + name,))
    for name in (*_INNER, "ff.net.0.proj", "ff.net.2")
)

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


DIALECTS = (Dialect(table=table, prefix="lora_unet_", readers="ComfyUI, A1111, Forge, sd-scripts and diffusers"),)


def architecture(config: Config) -> str:
    """The base's name in modelspec."""
    return "stable-diffusion-xl-v1-base"


def base_version(config: Config) -> str:
    """The base's name in `ss_base_model_version`; A1111 looks for `sdxl_`."""
    return "sdxl_base_v1-0"
