"""captions: the folder of pictures -> one table of pictures, one of captions."""

from pathlib import Path

from eridiff.core.config import load_section
from eridiff.core.progress import say, warn
from eridiff.dataset.caption_report import report
from eridiff.dataset.captions import CAPTION_COLUMNS, IMAGE_COLUMNS, captions_rows, images_rows
from eridiff.dataset.picture_notes import image_facts, notes
from eridiff.dataset.pictures import scan_pictures
from eridiff.dvc.own_pictures import describe_unsafe
from eridiff.dvc.project_versions import run_stage
from eridiff.formats.tables import write_table
from eridiff.machine.filedigests import FileDigests
from eridiff.params.captions import CaptionParams


def main() -> None:
    """Read data/raw; write data/captions."""
    params = load_section(CaptionParams, "captions")
    if unsafe := describe_unsafe(Path()):
        warn(f"this project is one of before: {unsafe}. `eridiff upgrade` brings it up.")
    with FileDigests() as digests:
        pictures, ignored = scan_pictures(Path("data/raw"), digests)
    images, captions = images_rows(pictures), captions_rows(pictures, params)
    out = Path("data/captions")
    write_table(out / "images.parquet", images, IMAGE_COLUMNS, image_facts(pictures))
    write_table(out / "captions.parquet", captions, CAPTION_COLUMNS, {"trigger": params.trigger})
    say("\n".join([report(pictures, captions, ignored, params), *notes(pictures, ignored)]))


if __name__ == "__main__":
    run_stage(main)
