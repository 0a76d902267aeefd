"""Entry point of ``python -m ctflow.weights``."""

from ctflow.config import run_command
from ctflow.weights.command import main

if __name__ == "__main__":
    run_command(main)
