"""Where a step's time goes on the device: kernels by kind, the longest of all, and how long the device waits.

python -m benchmarks.stepprofile --rows flux-b1,sdxl-b1 [--side fast] [--out FOLDER] [--tiny --device cpu]
"""

import argparse
import json
import re
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.steprow import ROWS
from benchmarks.stepside import Side
from eridiff.core.files import write_text

STEPS = 3
LONGEST = 18
# Kind of a kernel, by the first of these that its name holds.
KINDS = {
    "attention": r"flash|cudnn_generated_fort_native_sdpa|sdpa|fmha|attention",
    "convolutions": r"conv|fprop|dgrad|wgrad|implicit",
    "products": r"gemm|nvjet|cutlass|cublas|splitk|sm90_xmma",
    "compiled": r"triton",
    "copies": r"memcpy|memset|copy",
    "optimizer": r"multi_tensor|adam",
}


def kind_of(name: str) -> str:
    """The kind of a kernel."""
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name, re.IGNORECASE)), "other")


def profile_row(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of one step by kind and by kernel, and from the first kernel's start to the last one's end."""
    with tempfile.TemporaryDirectory() as store:
        options = {"row": name, "side": arguments.side, "device": arguments.device, "tiny": arguments.tiny}
        side = Side(argparse.Namespace(**options, store=store, checkout=""))
        side.build()
        side.warm_up()
        is_cuda = side.device.type == "cuda"
        with profile(activities=[ProfilerActivity.CUDA if is_cuda else ProfilerActivity.CPU]) as seen:
            for _ in range(STEPS):
                side.step()
            side.synchronize()
    kernels: dict[str, list[float]] = defaultdict(list)
    spans = []
    for event in seen.events():
        if not is_cuda or event.device_type == torch.autograd.DeviceType.CUDA:
            kernels[event.name].append((event.time_range.end - event.time_range.start) / 1000 / STEPS)
            spans.append((event.time_range.start, event.time_range.end))
    kinds: dict[str, float] = defaultdict(float)
    for kernel, times in kernels.items():
        kinds[kind_of(kernel)] += sum(times)
    longest = sorted(kernels.items(), key=lambda item: -sum(item[1]))[:LONGEST]
    return {
        "name": name,
        "whole ms": (max(end for _, end in spans) - min(start for start, _ in spans)) / 1000 / STEPS,
        "kernels ms": sum(kinds.values()),
        "kinds ms": dict(sorted(kinds.items(), key=lambda item: -item[1])),
        "kernels": len([1 for times in kernels.values() for _ in times]) // STEPS,
        "longest": [[kernel[:110], len(times) // STEPS, sum(times)] for kernel, times in longest],
    }


def main() -> None:
    """Print each row's table; with --out, JSON too."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", required=True)
    parser.add_argument("--side", default="fast")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if unknown := set(arguments.rows.split(",")) - set(ROWS):
        sys.exit(f"no such rows: {', '.join(sorted(unknown))}. Known: {', '.join(ROWS)}")
    for name in arguments.rows.split(","):
        found = profile_row(name, arguments)
        print(f"\n{name}: {found['whole ms']:.1f} ms, kernels {found['kernels ms']:.1f} ms in {found['kernels']} calls")
        print("  " + ", ".join(f"{kind} {ms:.1f}" for kind, ms in found["kinds ms"].items()))
        for kernel, calls, ms in found["longest"]:
            print(f"  {ms:8.2f} ms {calls:5d} x  {kernel}")
        if arguments.out:
            write_text(arguments.out / f"profile-{name}.json", json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
