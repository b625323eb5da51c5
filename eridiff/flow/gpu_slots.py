"""A slot a GPU: a concurrency limit of Prefect's server, held by a lease that is renewed.

The holder's supervisor releases the lease too, should the holder be killed; where both are, the lease runs out.
"""

import platform
import threading
import urllib.error
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from eridiff.flow.api import request
from eridiff.machine.gpus import ask_driver

LEASE, RENEW = 60.0, 15.0  # seconds: the shortest lease that the server gives; how often it is renewed
LIMITS = "/v2/concurrency_limits"
TAKEN, UNKNOWN, EXISTS = 423, 404, 409


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A slot that is held: its name, its GPU as CUDA_VISIBLE_DEVICES numbers it, and its lease."""

    name: str
    gpu: str
    lease: str

    def environment(self, device: str | None) -> dict[str, str]:
        """What a stage's environment says of it, where the machine's settings ask for a device."""
        named = {"ERIDIFF_DEVICE": "cuda"} if device and device.startswith("cuda:") else {}  # the only one that it sees
        return {"CUDA_VISIBLE_DEVICES": self.gpu, **named}


def gpus(given: Mapping[str, str]) -> tuple[str, ...]:
    """The GPUs that runs may use, as CUDA_VISIBLE_DEVICES numbers them: ERIDIFF_GPUS, else that, else the driver's."""
    for name in ("ERIDIFF_GPUS", "CUDA_VISIBLE_DEVICES"):
        if name in given:
            return tuple(part.strip() for part in given[name].split(",") if part.strip() not in ("", "-1"))
    return tuple(index for (index,) in ask_driver("index"))


def slot_names(given: Mapping[str, str]) -> dict[str, str]:
    """Name of the concurrency limit -> GPU, for each GPU of this machine."""
    return {f"gpu-{gpu} of {platform.node()}": gpu for gpu in gpus(given)}


@contextmanager
def hold_slot(names: Mapping[str, str], stopped: threading.Event, log: Callable[[str], None]) -> Iterator[Slot]:
    """Wait for one of the slots and hold it.

    Raises: InterruptedError where `stopped` is set meanwhile; OSError where the server cannot be asked.
    """
    for name in names:
        make_limit(name)
    slot, said = take_one(names), False
    while slot is None:
        if not said:
            log(f"waits for {' or '.join(names)}")
            said = True
        if stopped.wait(1):
            raise InterruptedError("the run was stopped")
        slot = take_one(names)
    log(f"holds {slot.name}")
    over = threading.Event()
    threading.Thread(target=_renew, args=(slot.lease, over, log), daemon=True).start()
    try:
        yield slot
    finally:
        over.set()
        release(slot.lease)


def make_limit(name: str) -> None:
    """Make the limit, for one holder at a time, where there is none: a user may have set another number."""
    try:
        request("GET", f"{LIMITS}/{urllib.parse.quote(name)}")
    except urllib.error.HTTPError as error:
        if error.code != UNKNOWN:
            raise
        try:
            request("POST", f"{LIMITS}/", {"name": name, "limit": 1})
        except urllib.error.HTTPError as again:
            if again.code != EXISTS:  # another run made it meanwhile
                raise


def take_one(names: Mapping[str, str]) -> Slot | None:
    """The first of the slots that is free, now held; None where all are taken."""
    for name, gpu in names.items():
        body = {"names": [name], "slots": 1, "mode": "concurrency", "lease_duration": LEASE}
        try:
            answer = request("POST", f"{LIMITS}/increment-with-lease", body)
        except urllib.error.HTTPError as error:
            if error.code != TAKEN:
                raise
        else:
            return Slot(name=name, gpu=gpu, lease=answer["lease_id"])
    return None


def release(lease: str) -> None:
    """Give a slot back. A server that cannot be reached frees it when the lease runs out."""
    try:
        request("POST", f"{LIMITS}/decrement-with-lease", {"lease_id": lease})
    except OSError:
        return


def _renew(lease: str, over: threading.Event, log: Callable[[str], None]) -> None:
    while not over.wait(RENEW):
        try:
            request("POST", f"{LIMITS}/leases/{lease}/renew", {"lease_duration": LEASE})
        except OSError as error:
            log(f"the slot could not be renewed: {error}")
