"""One thing at a time: the queue of jobs, the one thread that works on them, and its listeners."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ctflow.errors import CTFlowError
from ctflow.generation import Cancelled

WAITING, RUNNING, DONE, CANCELLED, FAILED = "waiting", "running", "done", "cancelled", "failed"
"""States of a job; the last three are final."""

MOST_WAITING = 20
_REMEMBERED = 8
log = logging.getLogger("ctflow")


def _nothing() -> None:
    """A callback that does nothing."""


@dataclass
class Job:
    """Work that was asked for.

    Attributes:
        id: Names it in addresses; made here.
        kind: ``generate``, ``continue``, ``open`` or ``reconstruct``.
        title: A few words for the list.
        volumes: Ids of the volumes it makes.
        state: See ``WAITING`` and its neighbours.
        stage: What is being done, in words.
        done: Slices made so far, of all volumes.
        expected: Slices it is likely to make.
        evaluations: Evaluations of the network so far, which move where slices do not yet.
        began: When it was started, in seconds of ``time.monotonic``; None: not yet.
        arrived: When its newest slices came; None: none has come.
        closed: When it ended.
        message: Why it failed.
        after: Called when it has ended, however it did.
    """

    id: str
    kind: str
    title: str
    volumes: list[str] = field(default_factory=list)
    state: str = WAITING
    stage: str = ""
    done: int = 0
    expected: int = 0
    evaluations: int = 0
    began: float | None = None
    arrived: float | None = None
    closed: float | None = None
    message: str = ""
    after: Callable[[], None] = _nothing
    ended: threading.Event = field(default_factory=threading.Event, repr=False)
    _stop: threading.Event = field(default_factory=threading.Event, repr=False)

    def cancelled(self) -> bool:
        """Whether the work is to end; counts the question as an evaluation of the network."""
        self.evaluations += 1
        return self._stop.is_set()

    def arrive(self, slices: int) -> None:
        """Count new slices."""
        self.done += slices
        self.expected = max(self.expected, self.done)
        self.arrived = time.monotonic()

    def check(self) -> None:
        """Go no further where the work is to end.

        Raises:
            Cancelled: It is.
        """
        if self._stop.is_set():
            raise Cancelled

    def cancel(self) -> None:
        """Ask the work to end."""
        self._stop.set()

    def snapshot(self) -> dict[str, Any]:
        """The job as the page shows it, as JSON values."""
        now = time.monotonic() if self.closed is None else self.closed
        rate = left = None
        if self.began is not None and self.arrived is not None and self.done:
            rate = self.done / max(self.arrived - self.began, 1e-6)
            left = max((self.expected - self.done) / rate - (now - self.arrived), 0.0)
        shown = ("id", "kind", "title", "volumes", "state", "stage", "done", "expected", "evaluations")
        return {
            **{name: getattr(self, name) for name in (*shown, "message")},
            "seconds": 0.0 if self.began is None else round(now - self.began, 1),
            "rate": rate and round(rate, 3),
            "seconds_left": None if left is None else round(left, 1),
        }


Act = Callable[[Job], None]


class Queue:
    """Jobs in the order they were asked for, worked on by one thread.

    Args:
        changed: Called, from any thread, when something that the page shows has changed.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._jobs: dict[str, Job] = {}
        self._waiting: deque[tuple[Job, Act]] = deque()
        self._more = threading.Condition()
        self._made, self._closed = 0, False
        self._thread = threading.Thread(target=self._work, name="ctflow-app", daemon=True)
        self._thread.start()

    def submit(self, kind: str, title: str, act: Act, after: Callable[[], None] = _nothing) -> Job:
        """Put work at the queue's end; ``after`` is called when it has ended, also where it never began.

        Raises:
            CTFlowError: Too much is waiting.
        """
        with self._more:
            if len(self._waiting) >= MOST_WAITING:
                raise CTFlowError(f"{MOST_WAITING} jobs are waiting", "fewer", "wait, or cancel some")
            self._made += 1
            job = Job(f"j{self._made}", kind, title, after=after)
            self._jobs[job.id] = job
            self._waiting.append((job, act))
            self._more.notify()
        self._changed()
        return job

    def cancel(self, job_id: str) -> Job:
        """End a job: at once where it waits, at its next question where it runs.

        Raises:
            CTFlowError: No such job.
        """
        with self._more:
            job = self._jobs.get(job_id)
            if job is None:
                raise CTFlowError("no such job", "one of the queue")
            job.cancel()
            self._waiting = deque(pair for pair in self._waiting if pair[0] is not job)
            if job.state == WAITING:
                self._end(job, CANCELLED)
        self._changed()
        return job

    def snapshot(self) -> list[dict[str, Any]]:
        """The newest jobs that have ended, the one that runs, and those that wait."""
        with self._more:
            return [job.snapshot() for job in self._jobs.values()]

    def close(self, seconds: float = 5.0) -> None:
        """End everything and wait for the thread, at most so long."""
        with self._more:
            self._closed = True
            self._waiting.clear()
            for job in list(self._jobs.values()):
                job.cancel()
                if job.state == WAITING:
                    self._end(job, CANCELLED)
            self._more.notify()
        self._thread.join(seconds)

    def _work(self) -> None:
        while True:
            with self._more:
                self._more.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                job, act = self._waiting.popleft()
                job.state, job.began = RUNNING, time.monotonic()
            self._changed()
            self._run(job, act)
            self._changed()

    def _run(self, job: Job, act: Act) -> None:
        state = FAILED
        try:
            act(job)
            state = DONE
        except Cancelled:
            state = CANCELLED
        except CTFlowError as error:
            job.message = str(error)
        except Exception as error:  # the server goes on, whatever one job has run into
            log.exception("%s %s failed", job.kind, job.id)
            job.message = f"{type(error).__name__}: {error}"
        with self._more:
            self._end(job, state)

    def _end(self, job: Job, state: str) -> None:
        job.state, job.stage, job.closed = state, "", time.monotonic()
        ended = [other.id for other in self._jobs.values() if other.ended.is_set()]
        for old in ended[: max(len(ended) + 1 - _REMEMBERED, 0)]:
            del self._jobs[old]
        job.after()
        job.ended.set()
