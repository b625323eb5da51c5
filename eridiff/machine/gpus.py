"""The GPUs of this machine as the driver's nvidia-smi tells them: torch would take seconds to import."""

import shutil
import subprocess
from dataclasses import dataclass

NOMINAL = 0.93  # a card tells up to 7 % less than it is sold with: 22.5 GB of 24 where memory is checked for errors


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU."""

    index: int
    name: str
    mib: int | None  # its memory; None: shared with the processor, so the driver does not tell

    def described(self) -> str:
        """Its number, name and memory."""
        memory = "memory not told" if self.mib is None else f"{self.mib / 1024:.1f} GB"
        return f"GPU {self.index}: {self.name}, {memory}"

    def compare(self, gigabytes: int) -> int:
        """-1, 0 or 1: less memory than a card that is sold with so much, as much, or more."""
        share = 1.0 if self.mib is None else self.mib / 1024 / gigabytes
        return (share >= NOMINAL) + (share > 1 / NOMINAL) - 1


def ask_driver(*fields: str) -> list[list[str]]:
    """What nvidia-smi tells of each GPU; nothing where there is none, or no driver that answers."""
    tool = shutil.which("nvidia-smi") or shutil.which("/usr/lib/wsl/lib/nvidia-smi")
    if tool is None:
        return []
    command = [tool, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines() if done.returncode == 0 else []
    rows = [[value.strip() for value in line.split(",")] for line in lines]
    return [row for row in rows if len(row) == len(fields)]


def find_gpus() -> list[Gpu]:
    """Every GPU of this machine, by its number."""
    rows = ask_driver("index", "name", "memory.total")
    return [Gpu(index=int(i), name=name, mib=int(mib) if mib.isdigit() else None) for i, name, mib in rows]
