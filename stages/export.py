"""Stage `export`: a checkpoint in data/lora => files for ComfyUI and others, a workflow and a model card."""

from pathlib import Path

from eridiff.core.config import load_section
from eridiff.core.progress import say
from eridiff.dvc.project_versions import run_stage
from eridiff.dvc.pushing import STAY, pushes_pictures
from eridiff.export.export import export_checkpoint
from eridiff.params.export import ExportParams
from eridiff.params.inherited import EXPORT_EMA, read_inherited


def main() -> None:
    """Run the stage."""
    params = load_section(ExportParams, "export")
    params = params.model_copy(update={"ema": read_inherited(Path("data/choices.json"), EXPORT_EMA)})
    export_checkpoint(Path("data/lora"), params, Path("data/export"))
    if pushes_pictures(Path()) is False:
        say(STAY)  # the last stage's last line: DVC's own hint to push follows it


if __name__ == "__main__":
    run_stage(main)
