"""Run folders: where a run lies, what it resumes from, and which run of a task is the newest."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ctflow.config.training import TrainConfig
from ctflow.errors import ConfigError
from ctflow.locks import LockHeld, LongLock
from ctflow.training.callbacks import LAST
from ctflow.training.curves import CURVES

EXPORT = "export"
"""Sub-folder of a run that holds the sharing folder."""

CONFIG_FILE = "config.yaml"
LOCK = ".training.lock"


@dataclass(frozen=True)
class Run:
    """One run on disk.

    Attributes:
        folder: ``runs_dir/task/name``.
        checkpoint: The Lightning checkpoint to resume from; None: start fresh.
    """

    folder: Path
    checkpoint: Path | None

    @property
    def last(self) -> Path:
        """The run's own checkpoint, rewritten as it goes."""
        return self.folder / LAST

    @property
    def export(self) -> Path:
        """Where the sharing folder goes."""
        return self.folder / EXPORT

    @property
    def tokenizer(self) -> Path:
        """Where the embedded pair's vocabulary is trained to."""
        return self.folder / "tokenizer"


def locate_run(config: TrainConfig) -> Run:
    """The run folder and the checkpoint that ``resume`` and ``name`` ask for.

    A path given as ``resume`` continues in the folder it lies in, unless ``name`` says otherwise.
    ``export_only`` without a name takes the task's newest run.

    Raises:
        ConfigError: The checkpoint to resume from, or to export, does not exist, or the name is none of one
            folder.
    """
    bad = config.name in (".", "..") or re.search(r"[/\\]", config.name) or not config.name.isprintable()
    if config.name and bad:
        raise ConfigError(
            f"name={config.name!r} does not name one folder",
            "a name without slashes and line breaks, e.g. name=first",
        )
    task_dir = Path(config.runs_dir) / config.task
    if config.resume not in ("auto", "none"):
        checkpoint = Path(config.resume)
        if not checkpoint.is_file():
            raise ConfigError(f"no checkpoint at {checkpoint}", "a Lightning checkpoint such as " + LAST)
        return Run(task_dir / config.name if config.name else checkpoint.resolve().parent, checkpoint)
    folder = task_dir / (config.name or datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))
    if config.export_only and not config.name:
        folder = newest_run(task_dir, LAST) or folder
    found = newest_checkpoint(folder) if config.resume == "auto" else None
    if config.export_only and found is None:
        raise ConfigError(
            f"nothing to export: no {folder / LAST}", "a run with a checkpoint", "give name=… or resume=PATH"
        )
    return Run(folder, found)


def newest_checkpoint(folder: Path) -> Path | None:
    """The run's own checkpoint, or a newer one that Lightning itself wrote on a signal under SLURM."""
    found = [path for path in (folder / LAST, *folder.glob("hpc_ckpt_*.ckpt")) if path.is_file()]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a run's folder, so that no second training writes to it; one that was refused leaves none behind.

    Raises:
        ConfigError: Another process trains in it.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = LongLock(folder / LOCK)
    except LockHeld as other:
        who = f" ({other.holder})" if other.holder else ""
        raise ConfigError(
            f"another training writes to {folder}{who}",
            "one training per run",
            "give another name=…, or stop it",
        ) from None
    try:
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)  # while it is held: nobody locks a file that is about to go
        lock.release()
        if folder in made and not any((folder / name).exists() for name in (LAST, CURVES, EXPORT)):
            shutil.rmtree(folder)
            for parent in made[1:]:
                if not any(parent.iterdir()):
                    parent.rmdir()


def newest_run(task_dir: Path, holding: str) -> Path | None:
    """The folder around the file ``*/holding`` below ``task_dir`` that changed last, if any."""
    found = [p for p in task_dir.glob(f"*/{holding}") if p.exists()]
    return max(found, key=lambda p: p.stat().st_mtime).parent if found else None
