"""Start the demonstration."""

from ctflow.config import run_command
from ctflow.demo import main

if __name__ == "__main__":
    run_command(main)
