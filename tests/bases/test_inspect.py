"""What a file is, from its header: the real models' names and sizes, in files whose data is a hole."""

import pickle
from pathlib import Path

import pytest
import torch

from eridiff.bases.add import add_base
from eridiff.bases.inspect import inspect_path
from eridiff.bases.pointer_report import WHAT
from eridiff.bases.recognise import components_in
from eridiff.bases.wanted import write_wanted
from eridiff.core.errors import BaseError, DataError
from eridiff.weights.files import open_weights
from tests.support.checkouts import SMALL, make_checkout
from tests.support.originals import CHECKPOINT, WITH_CLIPS, Header, header, layout_in_checkpoint, write_header


def checkpoint(family: str, variant: str, places: dict[str, str], dtype: str = "F16") -> Header:
    """An all-in-one file."""
    found: Header = {}
    for component, prefix in places.items():
        found |= header(family, variant, component, layout_in_checkpoint(prefix), dtype, prefix)
    return found


def sdxl() -> Header:
    return checkpoint("sdxl", "sdxl", CHECKPOINT)


def kinds(path: Path) -> list[tuple[str, str, str]]:
    parts, _ = components_in(open_weights(path))
    return [(part.kind, part.family, part.look.model) for part in parts]


def told(path: Path, tensors: Header) -> str:
    return "\n".join(inspect_path(write_header(path, tensors)))


@pytest.mark.slow
def test_an_sdxl_checkpoint(tmp_path: Path) -> None:
    tensors = sdxl()
    clip = CHECKPOINT["text_encoder"] + "text_model.embeddings.position_ids"
    tensors[clip] = ("I64", (1, 77))
    tensors["model_ema.decay"] = ("F32", ())
    text = told(tmp_path / "sd_xl_base_1.0.safetensors", tensors)
    assert text.splitlines() == [
        "sd_xl_base_1.0.safetensors: 2515 tensors, 6.46 GiB",
        "  sdxl: SDXL UNet: its makers' names below model.diffusion_model.; F16 x 1680; 4.78 GiB",
        "  VAE: its makers' names below first_stage_model.; F16 x 248; 159.56 MiB",
        "    fits sdxl (vae)",
        "  CLIP-L: diffusers' names below conditioner.embedders.0.transformer.; F16 x 196, I64 x 1; 234.72 MiB",
        "    fits flux (text_encoder), sdxl (text_encoder)",
        "  OpenCLIP-G: its makers' names below conditioner.embedders.1.model.; F16 x 389; 1.29 GiB",
        "    fits sd35 (text_encoder_2), sdxl (text_encoder_2)",
    ]


def test_extra_and_missing_tensors_are_named(tmp_path: Path) -> None:
    tensors = sdxl()
    del tensors["model.diffusion_model.out.2.bias"]
    tensors["model.diffusion_model.extra.lora_alpha"] = ("F32", ())
    tensors["unheard.of"] = ("F32", (3,))
    text = told(tmp_path / "tuned.safetensors", tensors)
    assert "    missing: 1 tensors: out.2.bias\n" in text
    assert "    not read: 1 tensors: extra.lora_alpha\n" in text
    assert text.endswith("  of no component: 1 tensors: unheard.of")


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["sd35-medium", "sd35-large"])
@pytest.mark.parametrize("whole", [True, False])
def test_sd35_with_and_without_text_encoders(variant: str, whole: bool, tmp_path: Path) -> None:
    places = WITH_CLIPS if whole else {name: WITH_CLIPS[name] for name in ("transformer", "vae")}
    path = write_header(tmp_path / "m.safetensors", checkpoint("sd35", variant, places))
    encoders = [("clip-l", "", ""), ("clip-g", "", ""), ("t5", "", "")] if whole else []
    assert kinds(path) == [("denoiser", "sd35", variant), ("vae", "", ""), *encoders]
    assert not any(
        word in "\n".join(inspect_path(path)) for word in ("missing", "not read", "no base", "of no component")
    )


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3"])
@pytest.mark.parametrize("layout", ["original", "diffusers"])
@pytest.mark.parametrize("variant", ["flux-dev", "flux-schnell"])
def test_flux_transformers(variant: str, layout: str, dtype: str, prefix: str, tmp_path: Path) -> None:
    path = write_header(tmp_path / "f.safetensors", header("flux", variant, "transformer", layout, dtype, prefix))
    assert kinds(path) == [("denoiser", "flux", variant)]
    lines = inspect_path(path)
    assert len(lines) == 2
    assert f"Flux.1 {variant[5:]}'s transformer" in lines[1] and f"; {dtype} x " in lines[1]


SPLIT = [
    ("ae.safetensors", "flux", "vae", "original", "  VAE: its makers' names", "fits flux (vae), sd35 (vae)"),
    ("vae.safetensors", "sdxl", "vae", "diffusers", "  VAE: diffusers' names", "fits sdxl (vae)"),
    ("clip_l.safetensors", "sd35", "text_encoder", "diffusers", "  CLIP-L", "flux (text_encoder), sd35 (text_encoder)"),
    ("clip_g.safetensors", "sd35", "text_encoder_2", "diffusers", "  OpenCLIP-G", "sd35 (text_encoder_2), sdxl"),
    ("t5xxl_fp16.safetensors", "flux", "text_encoder_2", "original", "  T5-XXL", "flux (text_encoder_2), sd35 (text_"),
]


@pytest.mark.parametrize(("name", "family", "component", "layout", "what", "fit"), SPLIT)
def test_split_files(name: str, family: str, component: str, layout: str, what: str, fit: str, tmp_path: Path) -> None:
    variant = {"sdxl": "sdxl", "sd35": "sd35-large", "flux": "flux-dev"}[family]
    text = told(tmp_path / name, header(family, variant, component, layout))
    assert what in text and fit in text


@pytest.mark.parametrize("end", ["scale_weight", "weight_scale"])
def test_scaled_fp8(end: str, tmp_path: Path) -> None:
    tensors = header("flux", "flux-dev", "text_encoder_2", dtype="F8_E4M3")
    scales = {f"{name[:-6]}{end}": ("F32", ()) for name in tensors if ".SelfAttention." in name}
    text = told(tmp_path / "t5xxl_fp8_scaled.safetensors", {**tensors, **scales, "scaled_fp8": ("F8_E4M3", (0,))})
    assert "T5-XXL's encoder: diffusers' names without a prefix; F8_E4M3 x 219, scaled fp8" in text
    plain = told(tmp_path / "t5xxl_fp8_e4m3fn.safetensors", tensors)
    assert "F8_E4M3 x 219; " in plain


def test_formats_that_would_be_read_wrongly_are_refused(tmp_path: Path) -> None:
    """ComfyUI's newer files may hold blocks of 4 or 8 bits with a scale each."""
    tensors = header("flux", "flux-dev", "transformer", dtype="F8_E4M3")
    stem = "double_blocks.0.img_attn.qkv."
    rows = {**tensors, stem + "weight_scale": ("F32", (9216, 1))}
    with pytest.raises(
        BaseError, match=r"qkv\.weight_scale \[9216, 1\] scales something else than a whole matrix of fp8"
    ):
        told(tmp_path / "a.safetensors", rows)
    whole = {**tensors, stem + "weight_scale": ("F32", (1,)), stem + "comfy_quant": ("U8", (40,))}
    assert "scaled fp8" in told(tmp_path / "b.safetensors", whole)
    with pytest.raises(BaseError, match="scales something else"):
        told(tmp_path / "c.safetensors", {**whole, stem + "weight": ("I8", (9216, 3072))})


def test_shards_are_one_part(tmp_path: Path) -> None:
    tensors = list(header("flux", "flux-dev", "text_encoder_2").items())
    paths = [tmp_path / f"model-{n:05}-of-00002.safetensors" for n in (1, 2)]
    write_header(paths[0], dict(tensors[:100]))
    with pytest.raises(
        BaseError, match=r"is missing model-00002-of-00002\.safetensors: the model was copied incompletely"
    ):
        inspect_path(paths[0])
    write_header(paths[1], dict(tensors[100:]))
    for path in (*paths, tmp_path):
        lines = inspect_path(path)
        assert lines[0].startswith("model-00001-of-00002.safetensors and 1 more shards: 219 tensors")
        assert "fits flux (text_encoder_2)" in lines[2]


def changed(tensors: Header, name: str, shape: tuple[int, ...]) -> Header:
    return {**tensors, name: (tensors[name][0], shape)}


def lookalikes() -> dict[str, tuple[Header, str]]:
    """File that is taken for a base -> what is said of it."""
    unet = header("sdxl", "sdxl", "unet", prefix="model.diffusion_model.")
    flux = header("flux", "flux-dev", "transformer")
    first = "model.diffusion_model.input_blocks.0.0.weight"
    no_labels = {name: value for name, value in unet.items() if "label_emb" not in name}
    medium = header("sd35", "sd35-medium", "transformer")
    old = {name: value for name, value in medium.items() if ".ln_" not in name and "attn2" not in name}
    old = changed(old, "pos_embed", (1, 192 * 192, 1536))
    cross = "model.diffusion_model.label_emb.0.0.weight"
    return {
        "inpainting": (changed(unet, first, (320, 9, 3, 3)), "SDXL inpainting UNet"),
        "pix2pix": (changed(unet, first, (320, 8, 3, 3)), "InstructPix2Pix"),
        "refiner": (changed(unet, cross, (1536, 2560)), "SDXL refiner UNet"),
        "sd15": (no_labels, "Stable Diffusion 1 or 2"),
        "fill": (changed(flux, "img_in.weight", (3072, 384)), "Flux.1 Fill"),
        "canny": (changed(flux, "img_in.weight", (3072, 128)), "Flux.1 Canny or Depth"),
        "chroma": ({**flux, "distilled_guidance_layer.in_proj.weight": ("F16", (5120, 64))}, "Chroma"),
        "sd3": (old, "SD 3 Medium's transformer (of 2024, before 3.5)"),
    }


@pytest.mark.parametrize("name", ["inpainting", "pix2pix", "refiner", "sd15", "fill", "canny", "chroma", "sd3"])
def test_what_is_taken_for_a_base(name: str, tmp_path: Path) -> None:
    tensors, what = lookalikes()[name]
    text = told(tmp_path / "m.safetensors", tensors)
    assert what in text
    assert "    no base: " in text


OTHER = {
    "control_model.input_blocks.0.0.weight": "a ControlNet",
    "emb_params": "an embedding",
    "image_proj.proj.weight": "an IP-Adapter",
    "double_blocks.0.img_attn.qkv.weight.quant_state.bitsandbytes__nf4": "a model in 4 bits",
}


@pytest.mark.parametrize("name", OTHER)
def test_files_that_are_no_model(name: str, tmp_path: Path) -> None:
    with pytest.raises(BaseError, match=rf"x\.safetensors is {OTHER[name]}"):
        told(tmp_path / "x.safetensors", {name: ("F16", (4, 4)), "other.weight": ("F16", (4,))})


def test_files_that_are_nothing(tmp_path: Path) -> None:
    assert told(tmp_path / "n.safetensors", {"a.b": ("F32", (2,))}).endswith("no component of a known model: a.b")
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(20))
    with pytest.raises(BaseError, match=r"m\.gguf is a GGUF file"):
        inspect_path(tmp_path / "m.gguf")
    (tmp_path / "broken.safetensors").write_bytes(b"\xff" * 30)
    with pytest.raises(DataError, match="no whole safetensors file"):
        inspect_path(tmp_path / "broken.safetensors")
    with pytest.raises(BaseError, match="is no file"):
        inspect_path(tmp_path / "missing.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BaseError, match=r"holds no weight file: no \.safetensors, \.sft, \.gguf, \.ckpt"):
        inspect_path(tmp_path / "empty")


def test_a_folder_is_told_file_by_file(tmp_path: Path) -> None:
    write_header(tmp_path / "loras" / "mine.safetensors", {"a.lora_up.weight": ("F16", (4, 4))})
    write_header(tmp_path / "vae" / "ae.safetensors", header("flux", "flux-dev", "vae"))
    (tmp_path / "a.safetensors").write_bytes(b"cut")
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "flux1-dev-Q4_K_S.gguf").write_bytes(b"GGUF" + bytes(20))
    (tmp_path / "unet" / "old.CKPT").write_bytes(b"PK")
    (tmp_path / "unet" / "notes.txt").write_text("x")
    text = "\n".join(inspect_path(tmp_path))
    cut, *lines = text.splitlines()
    assert cut.startswith("a.safetensors: ") and "is no whole safetensors file (3 bytes)" in cut
    assert lines[:2] == ["loras/mine.safetensors: 1 tensors, 0.00 MiB", "  LoRA: names without a prefix; F16 x 1"]
    assert "\nvae/ae.safetensors: 244 tensors" in text and "notes" not in text
    assert "\nunet/flux1-dev-Q4_K_S.gguf: " in text and "Q4_K_S.gguf is a GGUF file" in text
    assert "\nunet/old.CKPT: " in text and "old.CKPT is a pickle" in text


@pytest.fixture
def bases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """data/bases of a checkout with one base that is here, and one that is wanted."""
    checkout = make_checkout(tmp_path / "checkout", monkeypatch)
    add_base("fox", [SMALL / "bases" / "tiny-sdxl"])
    write_wanted("sdxl", "sdxl")
    return checkout / "data" / "bases"


def test_a_pointer_is_told(bases: Path) -> None:
    first, *components, last = inspect_path(bases / "fox" / "text.json")
    assert first == f"text.json: {WHAT}: text of base 'fox' (sdxl)"
    files = (SMALL / "bases" / "tiny-sdxl" / "text_encoder").glob("*.safetensors")
    (size,) = (file.stat().st_size for file in files)
    place = SMALL / "bases" / "tiny-sdxl" / "text_encoder"
    assert f"  text_encoder: here by name and size, in {place}: model.safetensors ({size} bytes)" in components
    assert [line.partition(":")[0] for line in components] == [
        "  text_encoder", "  text_encoder_2", "  tokenizer", "  tokenizer_2"
    ]  # fmt: skip
    assert "eridiff base find fox" in last
    assert "  scheduler: its config alone, no files" in inspect_path(bases / "fox" / "denoiser.json")
    Path("local.yaml").write_text("{}\n")
    away = inspect_path(bases / "fox" / "vae.json")[1]
    assert away.startswith("  vae: not on this machine: diffusion_pytorch_model.safetensors (")


def test_a_folder_of_bases_tells_its_pointers_by_their_paths(bases: Path) -> None:
    (bases / "fox" / "text.json").write_text("{")
    lines = inspect_path(bases)
    assert f"fox/denoiser.json: {WHAT}: denoiser of base 'fox' (sdxl)" in lines
    assert f"sdxl/vae.json: {WHAT}: vae of base 'sdxl' (sdxl), which is wanted" in lines
    assert lines[lines.index(f"sdxl/vae.json: {WHAT}: vae of base 'sdxl' (sdxl), which is wanted") + 1].startswith(
        "  base 'sdxl' is not here yet: add it with `eridiff base add sdxl SOURCE`"
    )
    (damaged,) = (line for line in lines if line.startswith("fox/text.json: "))
    assert "is no pointer (" in damaged and "make it again with `eridiff base add`" in damaged


def test_a_json_that_is_no_pointer(bases: Path) -> None:
    with pytest.raises(BaseError, match=r"license\.json is neither a weight file nor a pointer of a base"):
        inspect_path(bases / "fox" / "license.json")


def test_a_fine_tune_that_predicts_v_says_so(tmp_path: Path) -> None:
    text = told(tmp_path / "v.safetensors", {**sdxl(), "v_pred": ("F32", ()), "ztsnr": ("F32", ())})
    assert text.endswith(
        "  objective: predicts v, zero terminal SNR, trailing timesteps, by tensor v_pred and tensor ztsnr"
    )
    assert "of no component" not in text


class Evil:
    """Runs code where it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("import pathlib; pathlib.Path('evil-ran').touch()",))


def test_pickles_are_read_only_where_they_are_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    weights = {name: torch.zeros(1).expand(shape) for name, (_, shape) in header("flux", "flux-dev", "vae").items()}
    torch.save({"state_dict": weights, "global_step": 3}, tmp_path / "ae.ckpt")
    with pytest.raises(BaseError, match=r"ae\.ckpt is a pickle.*allow_pickle: true.*local\.yaml"):
        inspect_path(tmp_path / "ae.ckpt")
    (tmp_path / "local.yaml").write_text("allow_pickle: true\n")
    assert "VAE: its makers' names without a prefix; F32 x 244" in inspect_path(tmp_path / "ae.ckpt")[1]
    for name, record in {"evil.pt": Evil(), "list.pt": [1], "none.pt": {"a": 1}}.items():
        torch.save(record, tmp_path / name)
        with pytest.raises(BaseError, match=r"more than tensors|no tensors by name"):
            inspect_path(tmp_path / name)
    (tmp_path / "junk.pt").write_bytes(pickle.dumps({"a": 1})[:-3])
    with pytest.raises(BaseError, match="is not read"):
        inspect_path(tmp_path / "junk.pt")
    assert not (tmp_path / "evil-ran").exists()
