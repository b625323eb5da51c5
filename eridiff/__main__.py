"""`python -m eridiff WORD`: setup, check, test and repro need no package but Python's own; the rest is the CLI."""

import sys

from eridiff.words import WORDS, in_checkout

if len(sys.argv) > 1 and sys.argv[1] in WORDS and in_checkout():
    from eridiff.words import main
else:
    from eridiff.cli import main

main()
