"""Rows of generation: by length, batch and steps, with the memory beyond the volumes themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from ctflow.bench.measure import MIB, PeakMemory, Row, compare, timed
from ctflow.bench.networks import autocast
from ctflow.config.bench import BenchConfig
from ctflow.config.commands import SamplingChoice
from ctflow.generation import RolloutCase
from ctflow.pipeline import CTFlow, GeneratedVolume, GenerationRequest
from ctflow.seeding import case_noise

REPORT = "There is a large right pleural effusion."


_WARM_UP_SLICES = 32


def endless(model: CTFlow) -> CTFlow:
    """The model without a stop rule: lengths are compared, and few steps would end volumes early."""
    rollout = model.system.config.rollout
    model.system.config.rollout = replace(rollout, stop=replace(rollout.stop, threshold=1e-9))
    return model


def generation_rows(config: BenchConfig, model: CTFlow) -> Iterator[Row]:
    """Seconds and memory of whole volumes: longer ones, more side by side, more steps."""
    model = endless(model)
    generate(model, _WARM_UP_SLICES, 1, 1)
    base = config.lengths[0]
    for length in config.lengths:
        yield _row(model, length, 1, config.generation_steps)
    for batch in config.batches:
        yield _row(model, base, batch, config.generation_steps)
    for steps in config.steps:
        yield _row(model, base, 1, steps)


def generate(model: CTFlow, length: int, batch: int, steps: int) -> list[np.ndarray]:
    """Volumes of one length. The longest volume that the checkpoint knows does not limit it."""
    spacing = model.system.config.z_spacing_mm
    requests = [
        GenerationRequest(REPORT, f"bench{i}", seed=i, slices=length, z_spacing=spacing) for i in range(batch)
    ]
    made = model.generate_many(requests, SamplingChoice(steps=steps, max_slices=max(length, 16)))
    return [volume.volume.hu for volume in made if isinstance(volume, GeneratedVolume)]


def _row(model: CTFlow, length: int, batch: int, steps: int) -> Row:
    memory = PeakMemory(model.device)
    made: list[np.ndarray] = []
    seconds = timed(lambda: made.extend(generate(model, length, batch, steps)), model.device)
    peak = memory.mib()
    slices = sum(map(len, made))
    output = 0 if model.device.type == "cuda" else sum(volume.nbytes for volume in made) / MIB
    return Row(
        f"generation, {length} slices, batch {batch}, {steps} steps",
        "fp32",
        seconds=seconds,
        spread=(seconds, seconds),
        peak_mib=peak - output,
        note=f"{slices} slices, {slices / seconds:.1f} slices/s",
    )


def beside_row(config: BenchConfig, model: CTFlow) -> Row:
    """Decoding while the next block is solved, against one after the other."""
    model = endless(model)
    length, steps = config.lengths[0], config.generation_steps
    sampling = SamplingChoice(steps=steps, max_slices=max(length, 16))
    settings = sampling.applied_to(model.system.config.rollout)
    text = model.text_encoder.encode([REPORT])
    case = RolloutCase("bench", text.tokens[0], text.mask[0], length)
    generator = model.generator()

    def run(beside: bool) -> torch.Tensor:
        with autocast("fp32", model.device):
            stream = generator.stream([case], settings, lambda *key: case_noise(0, *key), beside=beside)
            return torch.from_numpy(np.concatenate([update.hu for update in stream]))

    row = Row(
        f"streaming {length} slices, decoding beside the solver, {torch.get_num_threads()} thread(s)",
        "fp32",
        reference="decoding after it",
    )
    return compare(row, lambda: run(True), lambda: run(False), config.repeats, model.device)
