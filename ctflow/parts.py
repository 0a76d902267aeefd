"""One preparation as the parts of one job: which part this process is, and which others may write too."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ctflow.errors import ConfigError, ShardError
from ctflow.locks import LockHeld, LongLock, short_lock
from ctflow.processes import launched_number

log = logging.getLogger(__name__)
STARTED = "parts.jsonl"
"""A line for every part that has started."""
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Part:
    """A share of a job.

    Attributes:
        index: From 0.
        count: All parts.
    """

    index: int = 0
    count: int = 1

    def __str__(self) -> str:
        return f"part {self.index} of {self.count}"

    def owns(self, number: int) -> bool:
        """Whether a piece of work, numbered from 0, is this part's."""
        return number % self.count == self.index


def this_part(part: int | None, parts: int | None, environment: Mapping[str, str] = os.environ) -> Part:
    """Which part this process is.

    Arguments come first. Else SLURM's array (``SLURM_ARRAY_TASK_ID`` and ``_COUNT``) counts, and inside of a
    task the processes of ``torchrun`` (``RANK``, ``WORLD_SIZE``) or ``srun``
    (``SLURM_PROCID``, ``SLURM_NTASKS``).

    Args:
        part: From 0; None: the environment's.
        parts: All parts; None: the environment's.
        environment: Variables of the process.

    Raises:
        ConfigError: A part without their number, or one that lies outside of it.
    """
    if part is not None and parts is None:
        raise ConfigError(f"part={part} without parts", "part=INDEX parts=COUNT, from 0", "give both")
    if parts is not None:
        index = part if part is not None else _index(environment)
        if index is None:
            raise ConfigError(
                f"parts={parts} without part, and no scheduler that says which",
                "part=INDEX, from 0, or SLURM_ARRAY_TASK_ID, SLURM_PROCID or RANK",
                f"give part=0 to part={parts - 1}, one process each",
            )
        if not 0 <= index < parts:
            raise ConfigError(f"part {index} of {parts}", f"part=0 to part={parts - 1}", "count parts from 0")
        return Part(index, parts)
    outer, inner = _array(environment), _processes(environment)
    found = Part(outer.index * inner.count + inner.index, outer.count * inner.count)
    if found.count > 1:
        log.info("%s, by the scheduler's variables", found)
    return found


def _index(environment: Mapping[str, str]) -> int | None:
    """The number that a scheduler gives this process, as it is."""
    names = ["SLURM_ARRAY_TASK_ID", "RANK", *(["SLURM_PROCID"] if _in_a_step(environment) else [])]
    return next((launched_number(n, environment=environment) for n in names if n in environment), None)


def _array(environment: Mapping[str, str]) -> Part:
    """Place in SLURM's array, from any first number.

    Raises:
        ConfigError: The array has gaps, or is one task that does not begin it: some parts are run again.
    """
    if not {"SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"} <= environment.keys():
        return Part()
    number, count, first, step = (
        launched_number(f"SLURM_ARRAY_TASK_{name}", usual, environment) or 0
        for name, usual in (("ID", 0), ("COUNT", 1), ("MIN", 0), ("STEP", 1))
    )
    step = step or 1
    index, rest = divmod(number - first, step)
    if rest or not 0 <= index < count or first > 1 or (first and count == 1):
        raise ConfigError(
            f"task {number} of an array of {count} tasks that begins at {first}",
            "an array without gaps that begins at 0 or 1",
            "where some parts are run again, say how many there are in all: parts=COUNT (from 0)",
        )
    return Part(index, count)


def _processes(environment: Mapping[str, str]) -> Part:
    """Place among the processes that ``torchrun`` or ``srun`` started.

    Raises:
        ConfigError: Not one of them.
    """
    names = ("RANK", "WORLD_SIZE")
    if not {*names} <= environment.keys() and _in_a_step(environment):
        names = ("SLURM_PROCID", "SLURM_NTASKS")
    if not {*names} <= environment.keys():
        return Part()
    index, count = (launched_number(name, environment=environment) or 0 for name in names)
    if index >= count:
        raise ConfigError(
            f"process {index} of {count} ({names[0]}, {names[1]})",
            "processes numbered from 0",
            "start the command through the scheduler, or unset both",
        )
    return Part(index, count)


def _in_a_step(environment: Mapping[str, str]) -> bool:
    """Whether ``srun`` started the process; a batch script has the variables too, and is one process."""
    step = {"SLURM_STEP_ID", "SLURM_STEPID"} & environment.keys()
    return bool(step) or "SLURM_JOB_ID" not in environment


WHOLE = Part()
"""All of a job."""


@contextmanager
def claimed(folder: Path, part: Part, place: Path) -> Iterator[None]:
    """Own a part's work for as long as the block lasts; other parts of the same job may run at the same time.

    Args:
        folder: Holds the locks and ``parts.jsonl``; made where missing.
        part: This one.
        place: What is written to, for the message.

    Raises:
        ShardError: The same part runs already, or a job of another number of parts does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    own = folder / f".part-{part.index}-of-{part.count}.lock"
    with short_lock(folder / ".parts.lock"):
        for path in [own, *folder.glob(".part-*-of-*.lock")]:
            if path == own or not path.name.endswith(f"-of-{part.count}.lock"):
                _free(path, place)
        lock = LongLock(own)
        count, ran = started(folder)
        if count != part.count or part.index not in ran:
            with (folder / STARTED).open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"part": part.index, "parts": part.count}) + "\n")
    try:
        yield
    finally:
        with short_lock(folder / ".parts.lock"):
            lock.release()
            own.unlink(missing_ok=True)


@contextmanager
def when_free(path: Path) -> Iterator[None]:
    """Hold a lock for the block; wait for it as long as another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    told = False
    while True:
        try:
            lock = LongLock(path)
            break
        except LockHeld:
            if not told:
                log.info("waiting for another process to let go of %s", path)
            told = True
            time.sleep(_POLL_SECONDS)
    try:
        yield
    finally:
        lock.release()


def parts_running(folder: Path) -> bool:
    """Whether a part holds its work now."""
    for path in folder.glob(".part-*-of-*.lock"):
        try:
            LongLock(path).release()
        except LockHeld:
            return True
    return False


def _free(path: Path, place: Path) -> None:
    """Remove a lock that nobody holds.

    Raises:
        ShardError: Somebody holds it.
    """
    try:
        LongLock(path).release()
    except LockHeld as held:
        index, _, count = path.name.removeprefix(".part-").removesuffix(".lock").split("-")
        who = f"{Part(int(index), int(count))}" if count != "1" else "a run without parts"
        raise ShardError(
            f"another process is writing to {place} ({who}{held.holder and ', '}{held.holder})",
            "one writer for each part, and one number of parts at a time",
            "wait for it or stop it",
        ) from None
    path.unlink(missing_ok=True)


def started(folder: Path) -> tuple[int, set[int]]:
    """The number of parts of the newest job, and which of them ever ran; 1 and none where nothing did."""
    path = folder / STARTED
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    starts = [json.loads(line) for line in lines]
    count = starts[-1]["parts"] if starts else 1
    return count, {start["part"] for start in starts if start["parts"] == count}


def told_by_part(left: Mapping[int, int], folder: Path, what: str) -> list[str]:
    """The unfinished work, a line for each part that it belongs to.

    Args:
        left: Number of a piece of work to how many ``what`` it holds.
        folder: Where ``parts.jsonl`` lies.
        what: Name of what is counted.
    """
    count, ran = started(folder)
    lines = []
    for index in range(count):
        mine = [size for number, size in left.items() if Part(index, count).owns(number)]
        if not mine:
            continue
        if count == 1:
            lines.append(f"{sum(mine)} {what} are not done: run the same command again")
        else:
            state = "has not finished" if index in ran else "never ran"
            lines.append(
                f"part {index} of {count} {state}: {sum(mine)} {what} are not done; run it again with "
                f"part={index} parts={count}"
            )
    return lines
