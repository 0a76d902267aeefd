"""Real processes for the tests: trainings to be killed, or the two ranks of one training.

``driver.py kill FILE`` reads a list of command lines (JSON), forks one training for each and lets each hang
at its sixth batch, to be killed there. ``driver.py rank FILE`` runs the command lines one after the
other as the rank that the environment names. ``driver.py stop FILE`` does so too, and sends the second rank a
SIGTERM at the first call of a method; ``[[command line, class, method], …]`` says which. The imports are paid
once per process.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import torch

from ctflow.train import main
from ctflow.training import runner  # noqa: F401  (imports everything before the fork)
from ctflow.training.callbacks import SeedEachBatch

HANG_AT = 5
STILL_JOINED = 9
"""Status of a rank that has not left the process group when the interpreter ends; it aborts now and then."""


def hang(seed_batch):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if module.batches == HANG_AT:
            (Path(trainer.default_root_dir) / "hanging").touch()
            time.sleep(600)
        seed_batch(self, trainer, module, batch, batch_idx)

    return on_train_batch_start


def check_left() -> None:
    if torch.distributed.is_initialized():
        os._exit(STILL_JOINED)


def stopped_at(command: list[str], place: str, method: str) -> int:
    """Status of a training whose second rank gets a SIGTERM at the first call of a method."""
    module, _, name = place.partition(":")
    owner = getattr(importlib.import_module(module), name)
    original, calls = getattr(owner, method), []

    def call(self, *args, **keys):
        trainer = self.trainer if hasattr(self, "trainer") else args[0].trainer
        if os.environ["LOCAL_RANK"] == "1" and trainer.global_step > 0 and not calls:
            calls.append(1)
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *args, **keys)

    setattr(owner, method, call)
    try:
        return main(command)
    finally:
        setattr(owner, method, original)


if __name__ == "__main__":
    mode, commands = sys.argv[1], json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    atexit.register(check_left)  # is called after what is registered later
    if mode == "stop":
        statuses = [stopped_at(*entry) for entry in commands]
        sys.exit(0 if set(statuses) == {143} else f"statuses {statuses}")
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
