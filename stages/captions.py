"""captions: the folder of pictures -> one table of pictures, one of captions."""

from pathlib import Path

from eridiff.captionreport import report
from eridiff.captions import CAPTION_COLUMNS, IMAGE_COLUMNS, CaptionParams, captions_rows, images_rows
from eridiff.config import load_section
from eridiff.errors import run_main
from eridiff.filedigests import FileDigests
from eridiff.pictures import scan_pictures
from eridiff.progress import say
from eridiff.tables import write_table


def main() -> None:
    """Read data/raw; write data/captions."""
    params = load_section(CaptionParams, "captions")
    with FileDigests() as digests:
        pictures, ignored = scan_pictures(Path("data/raw"), digests)
    images, captions = images_rows(pictures), captions_rows(pictures, params)
    out = Path("data/captions")
    write_table(out / "images.parquet", images, IMAGE_COLUMNS)
    write_table(out / "captions.parquet", captions, CAPTION_COLUMNS, {"trigger": params.trigger})
    say(report(pictures, captions, ignored, params))


if __name__ == "__main__":
    run_main(main)
