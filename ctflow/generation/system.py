"""The one system that generates: reports in, latents block by block, slices in Hounsfield units out."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ctflow.config.generation import RolloutConfig
from ctflow.generation.rollout import BlockMemo, rollout, rollout_stream
from ctflow.generation.volumes import Cancelled, CaseRollout, NoiseSource, RolloutCase, RolloutRound, StopRule
from ctflow.models import AVAE, FMvT

ENCODE_BATCH = 16
CANCEL_SLICES = 4
"""Slices decoded between two questions whether to go on."""


@dataclass(frozen=True)
class SliceUpdate:
    """Slices of a growing volume, decoded as soon as they are final.

    Attributes:
        case_id: The volume.
        first: Index of the first of them, from the inferior end.
        hu: Float32 HU ``[n, rows, columns]``; n may be 0 where all new slices are held back or trimmed.
        blocks: Blocks of this volume solved so far.
        result: The finished rollout where these are the volume's last slices; else None.
    """

    case_id: str
    first: int
    hu: NDArray[np.float32]
    blocks: int
    result: CaseRollout | None


class VolumeGenerator:
    """An FMvT and an A-VAE as one system: start block, stop rule, rollout and decoding.

    ``CTFlow``, evaluation and validation during training all generate through this class.

    Args:
        fmvt: Generator of the blocks, in evaluation mode.
        avae: Encoder and decoder of the slices; its whitening is that of the FMvT's latents.
        image_size: Rows and columns of a slice in pixels.
        precision: ``fp32``, or ``bf16`` autocast of the FMvT.
    """

    def __init__(self, fmvt: FMvT, avae: AVAE, image_size: int, precision: str = "fp32") -> None:
        self.fmvt, self.avae, self.image_size, self.precision = fmvt, avae, image_size, precision

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.avae.last_layer.device

    @property
    def start(self) -> Tensor:
        """The whitened latent ``[C, h, w]`` of an air slice, as before slice 0."""
        return self.avae.air_latent(self.image_size)

    def stop_rule(self, config: RolloutConfig) -> StopRule:
        """How the end of a volume is recognised in this A-VAE's latents."""
        size = self.image_size
        return StopRule(config.stop, self.avae.white_latent(size), self.avae.white_spread(size))

    def latents(
        self,
        cases: Sequence[RolloutCase],
        config: RolloutConfig,
        noise: NoiseSource,
        progress: Callable[[RolloutRound], None] | None = None,
        memo: BlockMemo | None = None,
    ) -> list[CaseRollout]:
        """Whole volumes as latents, all cases at once; see ``ctflow.generation.rollout``."""
        with self._autocast():
            rule = self.stop_rule(config)
            return rollout(self.fmvt, cases, self.start, rule, config, noise, progress, memo)

    @torch.no_grad()
    def encode(self, hu: Tensor) -> Tensor:
        """HU ``[S, image_size, image_size]`` to whitened posterior means ``[C, S, h, w]``."""
        means = [self.avae.encode_hu(part.to(self.device)).mean for part in hu.split(ENCODE_BATCH)]
        return self.avae.whiten(torch.cat(means)).transpose(0, 1).contiguous()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> NDArray[np.float32]:
        """Whitened latents ``[C, S, h, w]`` to float32 HU ``[S, rows, columns]`` on the CPU."""
        if not latents.shape[1]:
            return np.zeros((0, self.image_size, self.image_size), np.float32)
        return self.avae.decode_to_hu(latents.transpose(0, 1).to(self.device)).float().cpu().numpy()

    def stream(
        self,
        cases: Sequence[RolloutCase],
        config: RolloutConfig,
        noise: NoiseSource,
        cancelled: Callable[[], bool] | None = None,
        side_by_side: int = 0,
        beside: bool | None = None,
    ) -> Iterator[SliceUpdate]:
        """Generate volumes and decode each block's slices as soon as they are final.

        Latents are forgotten once they are decoded: memory does not grow with a volume's length.

        Args:
            cases: What to generate, with different ids.
            config: Solver, guidance, overlap, limit and stop rule.
            noise: Source of the noise.
            cancelled: Asked before each evaluation of the network and every few decoded slices; True ends the
                stream with ``Cancelled``.
            side_by_side: Volumes of a batch: the next case takes the place of one that has ended; 0: all.
            beside: Whether the next blocks are solved (in a thread of their own) while these are decoded; the
                numbers are the same. None: where something can run it, a CUDA device or a core that the
                threads of one operation leave free.

        Yields:
            After each round of blocks one update for every volume that grew or ended. A volume's updates
            joined are the whole volume.
        """
        told = {case.case_id: 0 for case in cases}
        blocks = dict(told)
        with self._autocast():
            rule, start = self.stop_rule(config), self.start

        def rounds(cancelled: Callable[[], bool] | None) -> Iterator[RolloutRound]:
            steps = rollout_stream(
                self.fmvt, cases, start, rule, config, noise, cancelled, side_by_side=side_by_side, keep=False
            )
            while True:
                with self._autocast():  # anew each round: none is left open while a reader works
                    round_ = next(steps, None)
                if round_ is None:
                    return
                yield round_

        beside = self._has_room() if beside is None else beside
        for round_ in run_ahead(rounds, cancelled, self.device) if beside else rounds(cancelled):
            finished = {result.case_id: result for result in round_.finished}
            for case_id, latents in round_.slices.items():
                blocks[case_id] += 1
                hu = self._decode_unless(latents, cancelled)
                yield SliceUpdate(case_id, told[case_id], hu, blocks[case_id], finished.get(case_id))
                told[case_id] += len(hu)

    def _decode_unless(self, latents: Tensor, cancelled: Callable[[], bool] | None) -> NDArray[np.float32]:
        """``decode``, a few slices at a time."""
        parts = []
        for part in latents.split(CANCEL_SLICES, dim=1):
            if cancelled is not None and cancelled():
                raise Cancelled
            parts.append(self.decode(part))
        return np.concatenate(parts)

    def _has_room(self) -> bool:
        cores = len(os.sched_getaffinity(0))
        return self.device.type == "cuda" or torch.get_num_threads() < cores

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")


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
