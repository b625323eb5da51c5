"""check: every mistake in params.yaml, named before anything runs."""

from pathlib import Path

from eridiff.check import check_params
from eridiff.errors import run_main
from eridiff.files import write_text


def main() -> None:
    """Read params.yaml and the pointers of data/bases; write the constant data/check.txt."""
    check_params(Path("params.yaml"))
    write_text(Path("data/check.txt"), "params.yaml is sound\n")


if __name__ == "__main__":
    run_main(main)
