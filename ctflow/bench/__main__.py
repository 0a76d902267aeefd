"""``python -m ctflow.bench``: see ``docs/performance.md``."""

from ctflow.bench import main
from ctflow.config import run_command

if __name__ == "__main__":
    run_command(main)
