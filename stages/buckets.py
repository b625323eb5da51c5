"""buckets: the table of pictures -> a bucket, a resize and a crop box for each, and a report."""

from pathlib import Path

from eridiff.core.config import load_section
from eridiff.core.files import write_text
from eridiff.core.progress import say
from eridiff.dataset.buckets import BUCKET_COLUMNS, plan_buckets, report, summary
from eridiff.dvc.project_versions import run_stage
from eridiff.formats.tables import read_table, write_table
from eridiff.params.buckets import BucketParams


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
    run_stage(main)
