"""``python -m data_prep.ct_rate --source DIR --output DIR``: see ``docs/ingest.md``."""

from ctflow.config import run_command
from data_prep.ct_rate.command import main

if __name__ == "__main__":
    run_command(main)
