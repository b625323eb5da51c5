"""Quantised bases kept in the store by content, so that the next start reads them instead of the base in full.

    STORE/bases/KEY.safetensors   the tensors of one quantised component, as its state_dict names them
    STORE/bases/KEY.used          written at each use: gc keeps what was used within its lease

KEY is of the component's digests, the kind of quantisation and the number format. A file whose content is not what its
header says is made again; that it is sound is remembered for `check_days` of local.yaml.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eridiff.core.errors import DataError
from eridiff.core.files import digest_json, write_text
from eridiff.core.progress import say, track, warn
from eridiff.formats.safetensors import RawTensor, TensorFile, digest_tensors, holds_digest, raw_tensor, write_tensors
from eridiff.machine.filedigests import FileDigests
from eridiff.machine.local import load_local
from eridiff.models.assemble import init_model, is_of_transformers
from eridiff.store.pins import BASES

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from eridiff.models.quantise import Storage

FORMAT = 1  # raised by hand when eridiff/models/quantise.py makes other tensors
DIGEST = "sound quantised base"  # what of a file is remembered


def kept_path(root: Path, identity: Mapping[str, str], kind: str, dtype: "torch.dtype") -> Path:
    """Where a component lies, quantised."""
    key = digest_json({"component": dict(identity), "quantise": kind, "dtype": str(dtype), "format": FORMAT})
    return root / BASES / f"{key}.safetensors"


def keep(model: "nn.Module", path: Path) -> None:
    """Write a quantised model, tensor by tensor. Where the store has no room for it, that is said and nothing more."""
    tensors = _Raw(model.state_dict())
    try:
        digest = digest_tensors(tensors)
        write_tensors(path, tensors, {"digest": digest})
        write_text(path.with_suffix(".used"), "")
        if TensorFile(path).metadata.get("digest") == digest:  # and no other process's, made elsewhere
            with FileDigests() as digests:
                digests.note(path, DIGEST, str(True))
        say(f"kept the quantised base in the store ({_gib(path)}): the next start reads it")
    except OSError as error:
        warn(f"the quantised base is not kept in {path.parent} ({error.strerror}): the next start makes it again.")


def _gib(path: Path) -> str:
    return f"{path.stat().st_size / 2**30:.1f} GiB"


class _Raw(Mapping[str, RawTensor]):
    """Tensors on any device, brought to the host one by one."""

    def __init__(self, tensors: "Mapping[str, Tensor]") -> None:
        self.tensors = tensors

    def __getitem__(self, name: str) -> RawTensor:
        return raw_tensor(self.tensors[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def load_kept(path: Path, kind: Any, config: dict[str, Any], storage: "Storage") -> "nn.Module | None":
    """The quantised model of class `kind` on its device; None where it is not kept, or damaged."""
    from eridiff.models.upload import Uploader  # here, since stages that load no model start without torch

    file = open_sound(path)
    if file is None:
        return None
    with suppress(OSError):
        write_text(path.with_suffix(".used"), "")
    start, size, model = time.monotonic(), _gib(path), init_model(kind, config)
    quantised: dict[str, dict[str, Tensor]] = {place: {} for place in storage.quantised_paths(model)}
    plain: dict[str, Tensor] = {}
    with Uploader(storage.device) as uploader:
        for name in track(file.names, what="quantised base", total=len(file.names), unit="tensors"):
            place = next((part for part in _parents(name) if part in quantised), None)
            tensors, prefix = (quantised[place], f"{place}.") if place else (plain, "")
            tensors[name.removeprefix(prefix)] = uploader.upload(file.raw(name))
    for place, tensors in quantised.items():
        storage.restore(model, place, tensors)
    model.load_state_dict(plain, strict=False, assign=True)
    if is_of_transformers(kind):
        model.tie_weights()
    loaded: nn.Module = model.to(storage.device)
    say(f"quantised base: {size} read from the store in {time.monotonic() - start:.1f} s")
    return loaded


def _parents(name: str) -> Iterator[str]:
    """a.b.c: a.b, a."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def open_sound(path: Path) -> TensorFile | None:
    """The file, if it is there and holds, byte for byte, what its header says."""
    try:
        file = TensorFile(path)
        with FileDigests(days=load_local().check_days) as digests:
            sound = digests.remember(path, DIGEST, lambda: str(holds_digest(file)))
        if sound == str(True):
            return file
    except FileNotFoundError:
        return None
    except DataError:
        pass
    warn(f"{path} is damaged: it is made again.")
    return None
