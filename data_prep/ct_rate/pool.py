"""Workers that may hang, crash or run out of memory on one file without harm to the run.

Why not Pebble (5.2.3): its workers share one pipe, and it looks for dead workers before it has read which
worker had which file. Measured with four workers and 120 files, of which every third ends its process at
once: in one of four runs the whole pool broke ("All workers expired") after 67 files; in another a crash was
reported as a timeout, after the whole time limit. Its workers also went on after their parent was killed. It
held hangs and memory limits. Here every worker has its own pipe, so a death belongs to one file: in three
such runs all 120 files got their right outcome.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing as mp
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from ctflow.errors import CTFlowError
from data_prep.ct_rate.naming import case_id_of
from data_prep.ct_rate.prepare import REFUSED, Job, Outcome, StagingError, outcome_fingerprint, prepare

log = logging.getLogger(__name__)
_POLL_SECONDS = 1.0
_START_SECONDS = 300.0
_GRACE_SECONDS = 10
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    job: Job | None = None
    since: float = 0.0
    ready: bool = False


class GuardedPool:
    """A few processes, each with one job at a time, a time limit and a memory limit.

    Args:
        count: Processes.
        timeout: Seconds a job may take; then its process is killed and the file refused.
        memory_gb: Address space of a process, above which allocating fails.
        task: What a process does with a job; a function of a module, so that it can be sent.
    """

    def __init__(
        self, count: int, timeout: float, memory_gb: float, task: Callable[[Job], Outcome] = prepare
    ) -> None:
        self._timeout, self._memory_gb, self._task = timeout, memory_gb, task
        self._failed_starts = 0
        self._workers = [self._start() for _ in range(count)]

    def free(self) -> bool:
        """Whether a worker waits for a job."""
        return any(worker.job is None for worker in self._workers)

    def submit(self, job: Job) -> None:
        """Give a job to a waiting worker."""
        worker = next(w for w in self._workers if w.job is None)
        worker.job, worker.since = job, time.monotonic()
        if worker.ready:
            worker.pipe.send(job)

    def results(self) -> Iterator[tuple[Job, Outcome]]:
        """Results of jobs since the last call; waits a moment if there are none.

        Raises:
            CTFlowError: Workers do not even start.
            StagingError: The output's disk does not take what a worker has prepared.
        """
        wait([worker.pipe for worker in self._workers], timeout=_POLL_SECONDS)
        for index, worker in enumerate(self._workers):
            try:
                while worker.pipe.poll():
                    message = worker.pipe.recv()
                    if isinstance(message, StagingError):
                        raise message
                    if message is None:
                        self._greet(worker)
                    elif worker.job is not None:
                        job, worker.job = worker.job, None
                        yield job, message
            except StagingError:
                raise
            except (EOFError, OSError):
                yield from self._bury(index, worker)
                continue
            limit = self._timeout if worker.ready else _START_SECONDS
            if worker.job is not None and time.monotonic() - worker.since > limit:
                worker.process.kill()
                job = worker.job
                self._replace(index, worker)
                yield job, failure(job, "timeout", f"no result after {limit:g} s")

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
            worker.pipe.close()

    def _greet(self, worker: _Worker) -> None:
        worker.ready, worker.since = True, time.monotonic()
        self._failed_starts = 0
        if worker.job is not None:
            worker.pipe.send(worker.job)

    def _bury(self, index: int, worker: _Worker) -> Iterator[tuple[Job, Outcome]]:
        """A worker has died: of the file it was reading, or before it read any."""
        job, was_ready = worker.job, worker.ready
        worker.process.join()
        code = worker.process.exitcode or 0
        cause = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        self._failed_starts += not was_ready
        if self._failed_starts > 2 * len(self._workers) + 1:
            raise CTFlowError(
                f"worker processes end before they begin ({cause})",
                "processes that import data_prep.ct_rate",
                "check the installation and memory_gb",
            )
        self._replace(index, worker)
        if job is not None and was_ready:
            yield job, failure(job, "crashed", f"the reading process ended with {cause}")
        elif job is not None:
            self._workers[index].job = job
            self._workers[index].since = time.monotonic()

    def _replace(self, index: int, worker: _Worker) -> None:
        worker.process.join()
        worker.pipe.close()
        self._workers[index] = self._start()

    def _start(self) -> _Worker:
        context = mp.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_work, args=(theirs, self._timeout, self._memory_gb, self._task), daemon=True
        )
        with _one_thread():
            process.start()
        theirs.close()
        return _Worker(process, ours)


def failure(job: Job, code: str, detail: str) -> Outcome:
    """The outcome of a job whose process died."""
    return Outcome(
        job.item.key,
        outcome_fingerprint(job.item, job.row),
        REFUSED,
        [[code, detail]],
        case_id=case_id_of(job.item.key),
    )


def _work(pipe: Connection, timeout: float, memory_gb: float, task: Callable[[Job], Outcome]) -> None:
    """A worker's life: until the pipe closes, read a job, answer with its outcomes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # C libraries write their warnings there
        os.dup2(silence, stream)
    limit = int(memory_gb * 2**30)
    with contextlib.suppress(ValueError, OSError):  # a system without this limit still has the check by size
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    pipe.send(None)
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        signal.alarm(int(timeout) + _GRACE_SECONDS)  # ends a hanging worker whose parent was killed
        try:
            answer: Outcome | StagingError = task(job)
        except StagingError as error:
            answer = error
        signal.alarm(0)
        pipe.send(answer)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Processes started inside use one thread each for linear algebra."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
