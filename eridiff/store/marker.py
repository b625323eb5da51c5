"""What makes a folder a store: its marker, FORMAT, and the names of what else may lie in it."""

import os
from pathlib import Path

from eridiff.core.errors import StoreError
from eridiff.core.files import atomic_write, read_text

FORMAT = "eridiff-store 1\n"
FOLDERS = ("bases", "footprints", "kernels", "latents", "texts", "pixels", "probes", "rates", "roots", "runs")
OWN_NAMES = {"FORMAT", *FOLDERS}


def check_format(root: Path) -> None:
    """Make the store's marker, or refuse a folder that is something else."""
    marker = root / "FORMAT"
    try:
        found = read_text(marker) if marker.exists() else None
        if found is None:
            foreign = sorted(set(os.listdir(root)) - OWN_NAMES) if root.exists() else []
            foreign = [name for name in foreign if not name.startswith(".")]
            if foreign:
                raise StoreError(
                    f"{root} is no store: it holds {foreign[0]} and no FORMAT. Choose an empty folder with "
                    "ERIDIFF_STORE or `store:` in local.yaml."
                )
            with atomic_write(marker) as file:
                file.write(FORMAT.encode())
    except OSError as error:
        raise StoreError(
            f"the store {root} cannot be used: {error.strerror}. Choose another with ERIDIFF_STORE or `store:` "
            "in local.yaml."
        ) from None
    if found is not None and found != FORMAT:
        raise StoreError(f"{marker} says {found.strip()!r}; this eridiff reads {FORMAT.strip()!r}.")
