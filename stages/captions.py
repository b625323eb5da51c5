"""captions: the folder of pictures -> one table of pictures, one of captions."""

from pathlib import Path

from eridiff.captionreport import report
from eridiff.captions import CAPTION_COLUMNS, IMAGE_COLUMNS, captions_rows, images_rows
from eridiff.config import load_section
from eridiff.errors import run_main
from eridiff.filedigests import FileDigests
from eridiff.ownpictures import describe_unsafe
from eridiff.params_captions import CaptionParams
from eridiff.picturenotes import image_facts, notes
from eridiff.pictures import scan_pictures
from eridiff.progress import say, warn
from eridiff.tables import write_table


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
    run_main(main)
