"""check: every mistake in params.yaml, named before anything runs."""

from pathlib import Path

from eridiff.check import check_params
from eridiff.core.files import write_text
from eridiff.core.progress import warn
from eridiff.dvc.project_versions import run_stage
from eridiff.params.inherited import inherited_differences, inherited_text


def main() -> None:
    """Read params.yaml and the pointers of data/bases; write the constant data/check.txt and data/choices.json."""
    sections = check_params(Path("params.yaml"))
    for line in inherited_differences(sections):
        warn(line)
    write_text(Path("data/check.txt"), "params.yaml is sound\n")
    write_text(Path("data/choices.json"), inherited_text(sections))


if __name__ == "__main__":
    run_stage(main)
