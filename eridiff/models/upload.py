"""The bytes of mapped files as tensors on a device, without a copy of a tensor on the host.

To a GPU they go by way of two pinned buffers: threads fill one from the map while the GPU fetches the other. Copying
straight from the map would wait for each page of the file, one thread at a time.
"""

from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from types import TracebackType
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eridiff.formats.safetensors import TORCH_NAMES, RawTensor

BUFFER = 64 << 20  # bytes
FILLERS = 4  # threads: one copies a few GB/s out of the system's page cache
PIECE = 4 << 20  # bytes that a thread copies at a time

Bytes = NDArray[np.uint8]


class Uploader:
    """Makes tensors on one device: a context manager, for one thread."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._fillers = ThreadPoolExecutor(FILLERS)
        self._buffers = cycle([_PinnedBuffer(), _PinnedBuffer()] if device.type == "cuda" else [])

    def __enter__(self) -> Self:
        """Return the uploader itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End its threads."""
        self._fillers.shutdown()

    def upload(self, raw: RawTensor) -> Tensor:
        """A tensor with a copy of the data, on the device."""
        on_cuda = self.device.type == "cuda"
        dtype = getattr(torch, TORCH_NAMES[raw.dtype])
        tensor = torch.empty(raw.shape, dtype=dtype, device=self.device if on_cuda else "cpu")
        if not raw.data:
            return tensor.to(self.device)
        source, target = np.frombuffer(raw.data, np.uint8), tensor.reshape(-1).view(torch.uint8)
        if not on_cuda:
            self._fill(target.numpy(), source)
            return tensor.to(self.device)
        for begin in range(0, len(source), BUFFER):
            piece = source[begin : begin + BUFFER]
            buffer = next(self._buffers)
            self._fill(buffer.wait(len(piece)), piece)
            buffer.send(target[begin : begin + len(piece)])
        return tensor

    def _fill(self, target: Bytes, source: Bytes) -> None:
        """Copy by several threads: numpy lets others run while it copies."""
        places = [slice(begin, begin + PIECE) for begin in range(0, len(source), PIECE)]
        copy = self._fillers.map if len(places) > 1 else map
        list(copy(lambda place: np.copyto(target[place], source[place]), places))


class _PinnedBuffer:
    """Host memory that a GPU can read directly."""

    def __init__(self) -> None:
        self._memory = torch.empty(BUFFER, dtype=torch.uint8, pin_memory=True)
        self._sent = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def wait(self, size: int) -> Bytes:
        """The first bytes, to be filled, once what they held has been fetched."""
        self._sent.synchronize()
        filled: Bytes = self._memory[:size].numpy()
        return filled

    def send(self, target: Tensor) -> None:
        """Have the GPU fetch as many bytes as the target has."""
        target.copy_(self._memory[: len(target)], non_blocking=True)
        self._sent.record(torch.cuda.current_stream(target.device))
