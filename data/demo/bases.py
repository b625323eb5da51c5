"""The demo's bases from nothing: drawings, layouts, VAEs, denoisers, and the folders of data/bases.

    python -m data.demo.bases prepare WORK         # needs npm and cairosvg; no GPU
    python -m data.demo.bases train WORK           # one GPU, 27 minutes for all three at once (an H100)
    python -m data.demo.bases finish WORK          # copies the bases to data/bases and makes their pointers

The two VAEs train beside each other, then the three denoisers: small models leave most of a large GPU idle. SD 3.5 and
Flux have the same VAE. WORK/NAME.log says what happened.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from data.demo.drawings import load_sets, read_pack, write_pack
from data.demo.layouts import PARTS, Layout, clip_merges, write
from eridiff.tokenizers import MERGES

FAMILIES = tuple(PARTS)
VAE_OF = {"sdxl": "sdxl", "sd35": "sd35", "flux": "sd35"}
VAE_MINUTES = 5.5
MINUTES = {"sdxl": 12.0, "sd35": 15.0, "flux": 15.0}
README = """---
license: apache-2.0
---
# tiny-{family}

A small model of the {family} family in diffusers' layout: the real classes, narrow and shallow, {millions:.1f} million
parameters in fp16. It was trained in this repository on {pictures} small drawings and draws about as many subjects in
three styles, at 128 x 128. It is here so that the demo can train a LoRA on a CPU in minutes; it says nothing about what
the real models can do.

Made by `python -m data.demo.bases` (seeds in the scripts): the VAE took {vae[steps]} steps of 128 pictures and rebuilds
drawings with {vae[psnr]:.1f} dB; text encoders and denoiser took {denoiser[steps]} steps of {denoiser[batch]}.
Of 54 subjects a style, drawn with 20 steps, the nearest drawing is the one that was asked for in: {accuracy}.

Licence: Apache-2.0, as the rest of this repository. It was trained on Fluent Emoji (MIT) and Noto Emoji (Apache-2.0),
see data/LICENSES. The CLIP vocabulary is the first 1,500 merges of OpenAI CLIP's, under the MIT licence in
LICENSE-CLIP.
"""


def prepare(work: Path) -> None:
    """Rasterise the drawings and write folders without weights."""
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        write_pack(load_sets(None, Path(scratch)), work / "drawings.zip")
    for family in FAMILIES:
        Layout(family, work / f"tiny-{family}", clip_merges()).make()
        shutil.copyfile(MERGES.with_name("LICENSE-CLIP"), work / f"tiny-{family}/LICENSE-CLIP")


def train(work: Path) -> None:
    """Train the VAEs, then the denoisers with their text encoders, then look at what they draw."""
    vaes = [family for family in FAMILIES if VAE_OF[family] == family]
    _together(work, {f: ["vae", f, f"tiny-{f}", "--minutes", str(VAE_MINUTES)] for f in vaes})
    for family, owner in VAE_OF.items():
        if family != owner:
            shutil.copytree(work / f"tiny-{owner}/vae", work / f"tiny-{family}/vae", dirs_exist_ok=True)
            shutil.copyfile(work / f"tiny-{owner}/vae.report.json", work / f"tiny-{family}/vae.report.json")
    _together(work, {f: ["pretrain", f"tiny-{f}", "--minutes", str(MINUTES[f])] for f in FAMILIES})
    _together(work, {f: ["accuracy", f"tiny-{f}", "--sheet", f"{f}.png"] for f in FAMILIES})


def _together(work: Path, calls: dict[str, list[str]]) -> None:
    """Run one of the scripts for several families at once; the first failure is raised when all have ended."""
    running = {}
    for family, (script, *arguments) in calls.items():
        command = [sys.executable, "-m", f"data.demo.{script}"]
        for argument in arguments:
            below = argument.startswith("tiny-") or argument.endswith(".png")
            command.append(str(work / argument) if below else argument)
        command += ["--drawings", str(work / "drawings.zip")]
        with (work / f"{script}-{family}.log").open("w") as log:
            running[family] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    failed = [family for family, process in running.items() if process.wait()]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; see the logs in {work}")


def finish(work: Path, bases: Path) -> None:
    """Copy the trained folders, say what they are; make the pointers and the picture that tests compare with."""
    from data.demo.accuracy import REFERENCES, write_references
    from eridiff.bases import licences_of_folder, make_pointers
    from eridiff.licences import FILE, licences_text
    from eridiff.pointers import pointer_text

    write_references(read_pack(work / "drawings.zip"), REFERENCES)
    for family in FAMILIES:
        source, target = work / f"tiny-{family}", bases / f"tiny-{family}"
        reports = {part: json.loads((source / f"{part}.report.json").read_text()) for part in ("vae", "denoiser")}
        accuracy = json.loads((source / "accuracy.report.json").read_text())
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.report.json"))
        write(target / "README.md", _readme(family, target, reports, accuracy))
        for pointer in make_pointers(target.name, target):
            write(target / f"{pointer.part}.json", pointer_text(pointer))
        write(target / FILE, licences_text(licences_of_folder(target)))


def _readme(family: str, folder: Path, reports: dict[str, dict[str, Any]], accuracy: dict[str, float]) -> str:
    from data.demo.drawings import STYLES, SUBJECTS

    weights = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    shares = ", ".join(f"{style} {100 * share:.0f} %" for style, share in accuracy.items())
    return README.format(
        family=family, millions=weights / 2e6, pictures=len(SUBJECTS) * len(STYLES), accuracy=shares, **reports
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the demo's bases.")
    parser.add_argument("step", choices=("prepare", "train", "finish"))
    parser.add_argument("work", type=Path, help="a folder for what is made on the way")
    arguments = parser.parse_args()
    match arguments.step:
        case "prepare":
            prepare(arguments.work)
        case "train":
            train(arguments.work)
        case _:
            finish(arguments.work, Path(__file__).resolve().parents[1] / "bases")


if __name__ == "__main__":
    main()
