"""Real processes for the tests: trainings to be killed, or the two ranks of one training.

``driver.py kill FILE`` reads a list of command lines (JSON), forks one training for each and lets each hang
at its sixth batch, to be killed there. ``driver.py rank FILE`` runs the command lines one after the
other as the rank that the environment names. The imports are paid once per process.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch

from ctflow.train import main
from ctflow.training import runner  # noqa: F401  (imports everything before the fork)
from ctflow.training.callbacks import SeedEachBatch

HANG_AT = 5


def hang(seed_batch):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if module.batches == HANG_AT:
            (Path(trainer.default_root_dir) / "hanging").touch()
            time.sleep(600)
        seed_batch(self, trainer, module, batch, batch_idx)

    return on_train_batch_start


if __name__ == "__main__":
    mode, commands = sys.argv[1], json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    if mode == "rank":
        for command in commands:
            main(command)
        sys.exit(0)
    SeedEachBatch.on_train_batch_start = hang(SeedEachBatch.on_train_batch_start)
    children = []
    for command in commands:
        child = os.fork()
        if not child:
            main(command)
            os._exit(1)
        children.append(child)
    sys.stdout.write(json.dumps(children) + "\n")
    sys.stdout.flush()
    for child in children:
        os.waitpid(child, 0)
