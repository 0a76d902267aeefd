"""``python -m ctflow.challenge``: see ``docs/challenge.md``."""

from ctflow.challenge.command import main
from ctflow.config import run_command

if __name__ == "__main__":
    run_command(main)
