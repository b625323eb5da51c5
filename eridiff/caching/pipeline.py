"""Encoding as a pipeline: samples are read ahead, the encoder runs, entries are written behind it.

    read (threads, in order, a bounded number ahead) -> encode (the caller's thread) -> write (threads, bounded)

Threads, not processes: decoding, resizing, digests and writing all release Python's lock, so two threads read as
many pictures as two processes do (docs/benchmarks.md has figures), start at once, raise their errors where they
are waited for, and die with the process. Nothing here changes a value: only when and where it is computed.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from eridiff.core.threads import MAX_READERS, WriteBehind, shared_cores

if TYPE_CHECKING:
    import torch
    from torch import Tensor

READ_BYTES = 4 << 30  # of pictures that are decoded at one time
PIXEL_BYTES = 8  # of a picture that is decoded: two copies of four bytes
BATCHES_BEHIND = 3  # encoded and not yet written: what a SIGKILL loses, beside the batch in the encoder


def reader_threads(device: "torch.device") -> int:
    """Threads that read pictures ahead of the encoder, by the machine's cores: they change no value.

    On a CPU the encoder has CPU_THREADS cores to itself, so with two cores it reads its own pictures.
    """
    from eridiff.models.precision import CPU_THREADS

    taken = CPU_THREADS if device.type == "cpu" else 1
    return min(max(shared_cores() - taken, 0 if device.type == "cpu" else 1), MAX_READERS)


def readers_in_memory(threads: int, largest: int) -> int:
    """So many of the threads that pictures of `largest` pixels, one a thread, fit READ_BYTES; of any size one."""
    return min(threads, max(1, READ_BYTES // (PIXEL_BYTES * max(largest, 1))))


def writer_threads(device: "torch.device") -> int:
    """Threads that write entries behind the encoder: a disk takes several files at once, a CPU is busy."""
    return 1 if device.type == "cpu" else 4


def entry_writer(device: "torch.device", batch_size: int) -> WriteBehind:
    """Writes entries behind an encoder; a stop loses at most BATCHES_BEHIND batches and the current one."""
    return WriteBehind(threads=writer_threads(device), depth=BATCHES_BEHIND * batch_size)


class Transfers:
    """Moves tensors to a device and back on streams of their own, so that the device never waits for the host.

    On a CPU nothing is moved.
    """

    def __init__(self, device: "torch.device") -> None:
        import torch

        self.device = device
        self.streams = [torch.cuda.Stream(device) for _ in range(2)] if device.type == "cuda" else []  # type: ignore[no-untyped-call]

    @property
    def pinned(self) -> bool:
        """Whether buffers on the host have to be pinned, so that copies run beside the encoder."""
        return bool(self.streams)

    def upload(self, tensor: "Tensor") -> "Tensor":
        """A host tensor on the device; the stream that is current waits for it, the host does not."""
        import torch

        if not self.streams:
            return tensor
        with torch.cuda.stream(self.streams[0]):
            moved = tensor.to(self.device, non_blocking=True)
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self.streams[0])
        moved.record_stream(current)
        return moved

    def download(self, tensors: "Mapping[str, Tensor]") -> "Callable[[], dict[str, Tensor]]":
        """Start copying tensors to the host; the answer waits for the copies and gives them, contiguous."""
        import torch

        ready = {name: tensor.contiguous() for name, tensor in tensors.items()}
        if not self.streams:
            return lambda: ready
        stream = self.streams[1]
        stream.wait_stream(torch.cuda.current_stream(self.device))
        host: dict[str, Tensor] = {}
        with torch.cuda.stream(stream):
            for name, tensor in ready.items():
                host[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                host[name].copy_(tensor, non_blocking=True)
                tensor.record_stream(stream)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(stream)

        def wait() -> "dict[str, Tensor]":
            done.synchronize()
            return host

        return wait


def with_finite(tensors: "dict[str, Tensor]") -> "dict[str, Tensor]":
    """Tensors [B, ...] and, as `finite` [B], whether each sample's numbers all are, found where the numbers are."""
    import torch

    checks = [tensor.flatten(1).isfinite().all(dim=1) for tensor in tensors.values()]
    return {**tensors, "finite": torch.stack(checks).all(dim=0)}
