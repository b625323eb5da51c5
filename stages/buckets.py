"""buckets: the table of pictures -> a bucket, a resize and a crop box for each, and a report."""

from pathlib import Path

from eridiff.buckets import BUCKET_COLUMNS, plan_buckets, report, summary
from eridiff.config import load_section
from eridiff.errors import run_main
from eridiff.files import write_text
from eridiff.params_buckets import BucketParams
from eridiff.progress import say
from eridiff.tables import read_table, write_table


def main() -> None:
    """Read data/captions/images.parquet; write data/buckets."""
    params = load_section(BucketParams, "buckets")
    images, facts = read_table(Path("data/captions/images.parquet"))
    rows, left_out = plan_buckets(images, params)
    blank = facts.get("blank", {})
    text = report(rows, left_out, blank)
    out = Path("data/buckets")
    write_table(out / "buckets.parquet", rows, BUCKET_COLUMNS)
    write_text(out / "report.md", text)
    say(summary(rows, left_out, blank))


if __name__ == "__main__":
    run_main(main)
