"""Bases in single files: the same pointers, the same models and the same answers as the folder's."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from eridiff.bases.add import add_base
from eridiff.bases.find import find_source
from eridiff.bases.pointer_files import pointers_of, read_pointer
from eridiff.core.errors import BaseError
from eridiff.family import family_names, load_family
from eridiff.formats.safetensors import TensorFile, raw_tensors, write_tensors
from eridiff.machine.local import bases_dir
from eridiff.models.load import load_denoiser, load_text_encoders, load_vae
from eridiff.models.precision import DTYPES
from eridiff.weights.pointers import PARTS, ModelSource
from tests.support.checkouts import SMALL, make_checkout
from tests.support.originals import CHECKPOINT, small_original, write_arrangement, write_checkpoint, write_split
from tests.support.tensors import load_tensors

FAMILIES = ("flux", "sd35", "sdxl")


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_checkout(tmp_path / "checkout", monkeypatch)


def small(family: str) -> Path:
    return SMALL / "bases" / f"tiny-{family}"


def configs_only(family: str, folder: Path) -> Path:
    """The small base's folder without its weights."""
    return Path(shutil.copytree(small(family), folder / "configs", ignore=shutil.ignore_patterns("*.safetensors")))


def open_base(name: str, family: str, *parts: str) -> ModelSource:
    return find_source(pointers_of(name, parts or PARTS, family).values())


def test_every_family_is_tried() -> None:
    assert set(FAMILIES) == set(family_names())


@pytest.mark.parametrize("family", FAMILIES)
def test_pointers_say_the_same_as_the_folders(family: str, checkout: Path, tmp_path: Path) -> None:
    """Configs, digests of tensors, digests of tokenizers: only the names and sizes of files differ."""
    files = write_arrangement(family, tmp_path / "models")
    add_base("files", files, config=small(family))
    add_base("folder", [small(family)])
    for part in PARTS:
        one, other = read_pointer("files", part), read_pointer("folder", part)
        assert one.identity() == other.identity()
        assert one.family == family
        assert all(set(c.files) <= {f.name for f in files} for n, c in one.components.items() if "tokenizer" not in n)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow
def test_models_are_those_of_the_folder(family: str, dtype: str, checkout: Path, tmp_path: Path) -> None:
    add_base("files", write_arrangement(family, tmp_path / "models"), config=small(family))
    add_base("folder", [small(family)])
    module, kind = load_family(family), DTYPES[dtype]
    mine, theirs = open_base("files", family), open_base("folder", family)
    assert set(mine.single_files) == {name for name in theirs.folders if "tokenizer" not in name}
    pairs = [(load_vae(module, s, kind), load_denoiser(module, s, kind)) for s in (mine, theirs)]
    encoders = [load_text_encoders(module, s, kind) for s in (mine, theirs)]
    for one, other in [*zip(*pairs, strict=True), *((e.encoders[n] for e in encoders) for n in encoders[0].encoders)]:
        equal_models(one, other)
    captions = ["a red fox, flat drawing", ""]
    with torch.no_grad():
        answers = [module.encode_text(e, captions, module.MAX_TOKENS[0]) for e in encoders]
    assert all(torch.equal(answers[0][name], tensor) for name, tensor in answers[1].items())


def equal_models(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    assert not one.training and not any(p.requires_grad for p in one.parameters())
    for kind in ("named_parameters", "named_buffers"):
        mine, theirs = dict(getattr(one, kind)()), dict(getattr(other, kind)())
        assert set(mine) == set(theirs)
        for name, tensor in theirs.items():
            assert (mine[name].dtype, mine[name].device) == (tensor.dtype, tensor.device), name
            assert torch.equal(mine[name], tensor), name
    written_by = {"_name_or_path", "_commit_hash", "architectures", "dtype", "transformers_version"}
    configs = [{k: v for k, v in dict(m.config.to_dict() if hasattr(m.config, "to_dict") else m.config).items()
                if k not in written_by and not k.startswith("_")} for m in (one, other)]  # fmt: skip
    assert configs[0] == configs[1]


def test_the_same_vae_in_two_checkpoints_is_one(checkout: Path, tmp_path: Path) -> None:
    first = write_checkpoint(tmp_path / "one.safetensors", "sdxl", CHECKPOINT)
    file = TensorFile(first)
    tensors = {name: file.raw(name) for name in file.names}
    unet = next(name for name in tensors if name.startswith("model.diffusion_model."))
    tensors[unet] = raw_tensors({"": tensors[unet].torch() + 1})[""]
    write_tensors(tmp_path / "two.safetensors", tensors, {"note": "tuned"})
    for name in ("one", "two"):
        add_base(name, [tmp_path / f"{name}.safetensors"], config=small("sdxl"))
    same = {part: read_pointer("one", part).identity() == read_pointer("two", part).identity() for part in PARTS}
    assert same == {"vae": True, "text": True, "denoiser": False}


def test_shards_of_a_part_are_the_part(checkout: Path, tmp_path: Path) -> None:
    files = write_split(tmp_path / "models")
    t5 = TensorFile(files[3])
    shards = [files[3].with_name(f"t5-{n:05}-of-00002.safetensors") for n in (1, 2)]
    for n, shard in enumerate(shards):
        write_tensors(shard, {name: t5.raw(name) for name in t5.names[n::2]}, {})
    add_base("whole", files, config=small("flux"))
    add_base("shards", [*files[:3], shards[1]], config=small("flux"))
    assert read_pointer("shards", "text").identity() == read_pointer("whole", "text").identity()
    assert set(read_pointer("shards", "text").components["text_encoder_2"].files) == {s.name for s in shards}
    load_text_encoders(load_family("flux"), open_base("shards", "flux", "text"), torch.float32)


@pytest.mark.parametrize("scaled", [True, False])
def test_fp8_is_read_as_numbers(scaled: bool, checkout: Path, tmp_path: Path) -> None:
    files = write_split(tmp_path / "models")
    weights, wanted = {}, {}
    for name, tensor in load_tensors(files[3]).items():
        matrix = name.endswith("weight") and "SelfAttention" in name and "relative" not in name
        scale = tensor.abs().max().float() / 448 if scaled and matrix else torch.tensor(1.0)
        weights[name] = (tensor.float() / scale).to(torch.float8_e4m3fn)
        wanted[name] = weights[name].float() * scale
        if scaled and matrix:
            weights[name.removesuffix("weight") + "scale_weight"] = scale
    if scaled:
        weights["scaled_fp8"] = torch.zeros(0, dtype=torch.float8_e4m3fn)
    write_tensors(files[3], raw_tensors(weights), {})
    add_base("fp8", files, config=small("flux"))
    t5 = load_text_encoders(load_family("flux"), open_base("fp8", "flux", "text"), torch.float32).encoders[
        "text_encoder_2"
    ]
    mine = t5.state_dict()
    assert all(torch.equal(mine[name], tensor) for name, tensor in wanted.items())
    if scaled:  # another scale is another base
        index = next(name for name in weights if name.endswith("scale_weight"))
        write_tensors(files[3], raw_tensors({**weights, index: weights[index] * 2}), {})
        with pytest.raises(BaseError, match=r"text_encoder_2 .* is not what the pointer .* names: its content"):
            open_base("fp8", "flux", "text")


def test_a_renamed_or_converted_file_is_the_same_base(checkout: Path, tmp_path: Path) -> None:
    """local.yaml may name another file, or a folder: the content decides, not the name."""
    files = write_arrangement("sdxl", tmp_path / "models")
    add_base("mine", files, config=small("sdxl"))
    local = checkout / "local.yaml"
    assert local.read_text() == f"bases:\n  mine:\n  - {files[0]}\n  - {small('sdxl')}\n"
    files[0].rename(tmp_path / "other name.safetensors")
    with pytest.raises(BaseError, match=r"base 'mine', component unet, are not on this machine|differs|is not what"):
        local.write_text("{}\n")
        open_base("mine", "sdxl", "denoiser")
    local.write_text(f"bases:\n  mine: [{tmp_path}/other name.safetensors]\n")
    assert set(open_base("mine", "sdxl", "denoiser").single_files) == {"unet"}
    local.write_text(f"bases:\n  mine: {small('sdxl')}\n")
    assert set(open_base("mine", "sdxl").folders) >= {"unet", "vae", "tokenizer"}


def test_other_weights_of_the_same_name_and_size_are_refused(checkout: Path, tmp_path: Path) -> None:
    files = write_split(tmp_path / "models")
    add_base("mine", files, config=configs_only("flux", tmp_path))
    data = bytearray(files[1].read_bytes())
    data[-3] ^= 1
    files[1].write_bytes(data)
    with pytest.raises(
        BaseError, match=r"vae \(VAE\) in .*ae\.safetensors is not what the pointer of base 'mine' names"
    ):
        open_base("mine", "flux", "vae")
    open_base("mine", "flux", "text", "denoiser")


def test_what_is_missing_is_named(checkout: Path, tmp_path: Path) -> None:
    files = write_split(tmp_path / "models")
    with pytest.raises(
        BaseError, match=r"no file holds vae\. .*put ae\.safetensors or .* into vae of ComfyUI's models"
    ):
        add_base("mine", files[:1], config=small("flux"))
    with pytest.raises(BaseError, match=r"no denoiser among VAE \(ae\.safetensors\)"):
        add_base("mine", files[1:2], config=small("flux"))
    with pytest.raises(BaseError, match=r"several denoisers"):
        copy = shutil.copy(files[0], tmp_path / "again.safetensors")
        add_base("mine", [*files, Path(copy)], config=small("flux"))
    with pytest.raises(BaseError, match=r"ae\.safetensors and .*again\.safetensors both hold vae"):
        shutil.copy(files[1], tmp_path / "again.safetensors")
        add_base("mine", [*files, tmp_path / "again.safetensors"], config=small("flux"))
    tensors = load_tensors(files[0])
    del tensors["img_in.bias"]
    write_tensors(files[0], raw_tensors(tensors), {})
    with pytest.raises(
        BaseError, match=r"flux1-dev\.safetensors .* is missing 1 of \d+ tensors of transformer: img_in\.bias"
    ):
        add_base("mine", files, config=small("flux"))
    assert not (bases_dir() / "mine").exists()


def test_wrong_parts_are_refused(checkout: Path, tmp_path: Path) -> None:
    files = write_split(tmp_path / "models")
    lora = {"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": torch.zeros(2, 2)}
    write_tensors(tmp_path / "lora.safetensors", raw_tensors(lora), {})
    with pytest.raises(BaseError, match=r"lora\.safetensors is a LoRA"):
        add_base("mine", [tmp_path / "lora.safetensors"])
    with pytest.raises(
        BaseError, match=r"Flux\.1 transformer of another size, which nobody published.*--config FOLDER"
    ):
        add_base("mine", files)
    with pytest.raises(BaseError, match=r"--config .* is missing .*vae.*config\.json"):
        add_base("mine", files, config=tmp_path)
    write_tensors(files[1], small_original("sdxl", "vae"), {})
    with pytest.raises(
        BaseError, match=r"is not the vae of this base: its encoder\.conv_out\.weight is \[8, 16, 3, 3\]"
    ):
        add_base("mine", files, config=small("flux"))
    with pytest.raises(BaseError, match=r"a folder among several sources"):
        add_base("mine", [tmp_path, files[0]])
    with pytest.raises(BaseError, match=r"--config belongs to single files"):
        add_base("mine", [small("flux")], config=small("flux"))


def test_a_fine_tune_that_predicts_v(checkout: Path, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "v.safetensors", "sdxl", CHECKPOINT)
    file = TensorFile(path)
    tensors = {name: file.raw(name) for name in file.names}
    write_tensors(path, {**tensors, **raw_tensors({"v_pred": torch.zeros(0)})}, {})
    add_base("v", [path], config=small("sdxl"))
    assert read_pointer("v", "denoiser").components["scheduler"].config["prediction_type"] == "v_prediction"


@pytest.mark.slow
def test_a_pickle_that_is_allowed_is_the_same_base(checkout: Path, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "x.safetensors", "sdxl", CHECKPOINT)
    torch.save({"state_dict": load_tensors(path)}, tmp_path / "x.ckpt")
    with pytest.raises(BaseError, match=r"x\.ckpt is a pickle"):
        add_base("pickled", [tmp_path / "x.ckpt"], config=small("sdxl"))
    (checkout / "local.yaml").write_text("allow_pickle: true\n")
    add_base("pickled", [tmp_path / "x.ckpt"], config=small("sdxl"))
    add_base("plain", [path], config=small("sdxl"))
    for part in PARTS:
        assert read_pointer("pickled", part).identity() == read_pointer("plain", part).identity()
    unet = load_denoiser(load_family("sdxl"), open_base("pickled", "sdxl", "denoiser"), torch.float32)
    equal_models(unet, load_denoiser(load_family("sdxl"), open_base("plain", "sdxl", "denoiser"), torch.float32))
    assert (checkout / "local.yaml").read_text().startswith("allow_pickle: true\n")
