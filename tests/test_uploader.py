"""Bytes of a file on a device: every format and shape as torch itself has it, whatever the size."""

from pathlib import Path

import pytest
import torch

from eridiff.tensorfile import TORCH_NAMES, TensorFile, raw_tensors, write_tensors
from eridiff.uploader import BUFFER, PIECE, Uploader

DEVICES = [torch.device("cpu"), pytest.param(torch.device("cuda"), marks=pytest.mark.gpu)]


def mapped(folder: Path, tensors: dict[str, torch.Tensor]) -> TensorFile:
    write_tensors(folder / "tensors.safetensors", raw_tensors(tensors), {})
    return TensorFile(folder / "tensors.safetensors")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 5), (1, 3, 2, 2)])
def test_every_format_and_shape(device: torch.device, shape: tuple[int, ...], tmp_path: Path) -> None:
    drawn = torch.randint(0, 100, shape, generator=torch.Generator().manual_seed(1))
    tensors = {name: drawn.to(getattr(torch, name)) for name in TORCH_NAMES.values()}
    file = mapped(tmp_path, tensors)
    with Uploader(device) as uploader:
        found = {name: uploader.upload(file.raw(name)) for name in file.names}
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert found[name].device.type == device.type
        assert torch.equal(found[name].cpu().float(), tensor.float())


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [PIECE - 1, PIECE, PIECE + 1, BUFFER, 2 * BUFFER + PIECE + 7])
def test_sizes_about_a_piece_and_a_buffer(device: torch.device, size: int, tmp_path: Path) -> None:
    values = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(size))
    file = mapped(tmp_path, {"a": values, "b": values.flip(0)})
    with Uploader(device) as uploader:
        found = [uploader.upload(file.raw(name)) for name in "ab"]
    assert torch.equal(found[0].cpu(), values)
    assert torch.equal(found[1].cpu(), values.flip(0))


def test_what_was_uploaded_is_a_copy(tmp_path: Path) -> None:
    file = mapped(tmp_path, {"a": torch.arange(5)})
    with Uploader(torch.device("cpu")) as uploader:
        uploader.upload(file.raw("a")).zero_()
        assert uploader.upload(file.raw("a")).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_another_device_than_the_current_one(tmp_path: Path) -> None:
    """The buffer waits for the stream of the tensor's device, on which something long runs here."""
    tensors = {f"{place}": torch.full((BUFFER,), place, dtype=torch.uint8) for place in range(8)}
    file, other = mapped(tmp_path, tensors), torch.device("cuda", 1)
    torch.cuda.set_device(0)
    busy = torch.rand(8192, 8192, device=other)
    for _ in range(20):
        busy = (busy @ busy).tanh()
    with Uploader(other) as uploader:
        found = {name: uploader.upload(file.raw(name)) for name in file.names}
    assert all(bool((found[name] == int(name)).all()) for name in tensors)
