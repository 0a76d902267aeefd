"""``python -m ctflow COMMAND …``: the console script's commands."""

import sys

from ctflow.cli import main

if __name__ == "__main__":
    sys.exit(main())
