"""Solving the next blocks in a thread of its own while the last ones are decoded."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch

from ctflow.generation.volumes import RolloutRound

Rounds = Callable[[Callable[[], bool]], Iterator[RolloutRound]]
AHEAD = 1
"""Solved rounds that may wait to be decoded: memory stays within them."""


class _End:
    """The rounds have ended.

    Args:
        error: What ended them, if anything did.
    """

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


def run_ahead(
    rounds: Rounds, cancelled: Callable[[], bool] | None, device: torch.device
) -> Iterator[RolloutRound]:
    """The rounds of ``rounds(cancelled)``, computed ahead of their reader in another thread.

    On a CUDA device the thread works on a stream of its own, and the reader's decoding runs beside
    it. A reader that goes away ends the thread at the next question of the solver.

    Args:
        rounds: Starts the rounds, given a question whether to stop.
        cancelled: The caller's own question.
        device: Of the networks.

    Yields:
        The rounds, in order.

    Raises:
        Exception: Whatever the rounds raised, ``Cancelled`` for one.
    """
    gone = threading.Event()
    ready: queue.Queue[tuple[RolloutRound, torch.cuda.Event | None] | _End] = queue.Queue(AHEAD)

    def asked() -> bool:
        return gone.is_set() or (cancelled is not None and cancelled())

    def offer(item: tuple[RolloutRound, torch.cuda.Event | None] | _End) -> None:
        while not gone.is_set():
            try:
                ready.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    cuda = device.type == "cuda"
    side = torch.cuda.Stream(device) if cuda else None
    if side is not None:
        side.wait_stream(torch.cuda.current_stream(device))  # weights that are still on their way

    def work() -> None:
        stream: AbstractContextManager[object] = torch.cuda.stream(side) if cuda else nullcontext()
        try:
            with stream:
                for round_ in rounds(asked):
                    offer((round_, side.record_event() if side is not None else None))
            offer(_End())
        except BaseException as error:  # handed to the reader, in whose thread it belongs
            offer(_End(error))

    thread = threading.Thread(target=work, name="rollout", daemon=True)
    thread.start()
    try:
        while not isinstance(item := ready.get(), _End):
            round_, event = item
            if event is not None:
                current = torch.cuda.current_stream(device)
                current.wait_event(event)
                for latents in round_.slices.values():
                    latents.record_stream(current)
            yield round_
        if item.error is not None:
            raise item.error
    finally:
        gone.set()
        thread.join()
