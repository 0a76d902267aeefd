"""Rows of the networks: FMvT against a plain arrangement, A-VAE slice by slice, few steps against many."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ctflow.bench.measure import Row, compare, counted_gflop
from ctflow.bench.plain import transformer
from ctflow.config.bench import BenchConfig
from ctflow.config.generation import RolloutConfig
from ctflow.config.models import FMvTConfig
from ctflow.flow import Churn, solve
from ctflow.generation import evaluations
from ctflow.models import AVAE, Conditions, FMvT
from ctflow.models.fmvt_published import fmvt_config_to_published, fmvt_state_to_published, published_preset
from ctflow.pipeline import CTFlow
from ctflow.training.cost import training_gib

MEMORY_BATCHES = (1, 8, 32, 64)
"""Blocks of a process whose memory is measured."""


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """The context in which a network runs at a precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def fmvt_rows(config: BenchConfig, device: torch.device, peaks: dict[str, float]) -> Iterator[Row]:
    """FMvT forward and training step, against the plain arrangement with equal weights."""
    for size in config.sizes:
        preset = published_preset(size) if size != "tiny" else _tiny()
        torch.manual_seed(0)
        model = FMvT(preset).to(device)
        _randomise(model)
        published, state = (
            fmvt_config_to_published(preset),
            fmvt_state_to_published(dict(model.named_parameters())),
        )
        state |= fmvt_state_to_published(dict(model.named_buffers()))
        shape = (config.batch_size, preset.latent_channels, *preset.input_size)
        block, previous = torch.randn(2, *shape, device=device)
        text = torch.randn(config.batch_size, 1, preset.text_dim, device=device)
        t = torch.rand(config.batch_size, device=device)
        conditions = Conditions(text, previous)
        parameters = [p for p in model.parameters() if p.requires_grad]

        ours = partial(model, block, t, conditions)
        plain = partial(transformer, published, state, block, t, text, previous)
        with torch.no_grad():
            gflop = counted_gflop(plain)
        for precision in config.precisions:
            for train in (False, True):
                name = "forward + backward" if train else "forward"
                row = Row(
                    f"FMvT-{size} {name}, {config.batch_size} block(s)",
                    precision,
                    reference="plain arrangement, equal weights",
                    gflop=gflop * (3 if train else 1),
                )
                run, other = (_mode(call, parameters, precision, device, train) for call in (ours, plain))
                compare(row, run, other, config.repeats, device)
                yield _rated(row, peaks)


def _mode(
    call: Callable[[], Tensor],
    parameters: Sequence[Tensor],
    precision: str,
    device: torch.device,
    train: bool,
) -> Callable[[], Tensor]:
    """Forward alone, or with the gradient of all weights, whose joined values are what is compared."""

    def run() -> Tensor:
        with torch.set_grad_enabled(train), autocast(precision, device):
            out = call()
        if not train:
            return out.float()
        out.float().square().mean().backward()
        gradient = torch.cat([p.grad.reshape(-1).float() for p in parameters if p.grad is not None])
        for parameter in parameters:
            parameter.grad = None
        return gradient

    return run


def avae_rows(
    config: BenchConfig, device: torch.device, peaks: dict[str, float], avae: AVAE
) -> Iterator[Row]:
    """A-VAE encode and decode of a block's slices together, against one after the other."""
    avae = avae.to(device).eval()
    side = config.image_size
    hu = torch.rand(16, side, side, device=device) * 2000 - 1000
    with torch.no_grad():
        latents = avae.whiten(avae.encode_hu(hu).mean)
    calls: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
        "encode": (lambda x: avae.encode_hu(x).mean, hu),
        "decode": (avae.decode_to_hu, latents),
    }
    for name, (call, data) in calls.items():
        with torch.no_grad():
            gflop = counted_gflop(partial(call, data))
        for precision in config.precisions:
            row = Row(
                f"A-VAE {name}, 16 slices of {side}²", precision, reference="slice by slice", gflop=gflop
            )
            together = partial(_in_parts, call, data, len(data), precision)
            compare(row, together, partial(_in_parts, call, data, 1, precision), config.repeats, device)
            row.note = f"{16 / row.seconds:.1f} slices/s"
            yield _rated(row, peaks)


@torch.no_grad()
def _in_parts(call: Callable[[Tensor], Tensor], data: Tensor, size: int, precision: str) -> Tensor:
    with autocast(precision, data.device):
        return torch.cat([call(part) for part in data.split(size)]).float()


def steps_row(config: BenchConfig, device: torch.device, model: CTFlow, student: CTFlow | None) -> Row:
    """A block in few evaluations against the published 200-step Euler of the checkpoint, from one noise.

    Args:
        config: The measurement.
        device: Where it runs.
        model: The checkpoint.
        student: Sampled as it recommends; None: ``few_steps`` Euler steps of the checkpoint.
    """
    teacher = model.fmvt.to(device).eval()
    few = RolloutConfig(config.few_steps) if student is None else student.system.config.rollout
    network = teacher if student is None else student.fmvt.to(device).eval()
    shape = (1, teacher.config.latent_channels, *teacher.config.input_size)
    generator = torch.Generator().manual_seed(0)
    noise, previous = (torch.randn(shape, generator=generator).to(device) for _ in range(2))
    more = torch.randn(max(few.steps - 1, 1), *shape, generator=generator).to(device)
    text = torch.randn(1, teacher.config.text_tokens, teacher.config.text_dim, generator=generator)
    conditions = Conditions(text.to(device), previous)

    @torch.no_grad()
    def sample(own: FMvT, grid: RolloutConfig) -> Tensor:
        churn = Churn(grid.churn, more, grid.churn_below) if grid.churn else None
        return solve(
            lambda z, t: own(z, t, conditions), noise, grid.steps, grid.solver, None, grid.time_shift, churn
        )

    what = "the student's own sampling" if student else "the undistilled network"
    fresh = " and of the fresh noise of churn" if few.churn else ""
    row = Row(
        f"sampling a block, {evaluations(replace(few, text_guidance=1.0))} evaluations",
        "fp32",
        reference=f"{config.many_steps} Euler steps",
        note=f"{what}: outputs differ because of the few steps{fresh}",
    )
    many = RolloutConfig(config.many_steps)
    return compare(row, lambda: sample(network, few), lambda: sample(teacher, many), 1, device)


def memory_rows(config: BenchConfig) -> Iterator[Row]:
    """Memory of a training by batch, counted on the meta device: float32, all activations of the forward."""
    for size in config.sizes:
        preset = published_preset(size) if size != "tiny" else _tiny()
        for recompute in (False, True):
            chosen = replace(preset, activation_checkpointing=recompute)
            one, two = (training_gib(chosen, batch) for batch in (1, 2))
            told = [f"batch {batch}: {one + (batch - 1) * (two - one):.1f} GiB" for batch in MEMORY_BATCHES]
            name = f"FMvT-{size} training memory{', blocks recomputed' if recompute else ''}"
            yield Row(name, "fp32", peak_mib=one * 1024, note="; ".join(told))


def _rated(row: Row, peaks: dict[str, float]) -> Row:
    assert row.gflop is not None
    row.share_of_peak = row.gflop / row.seconds / peaks[row.precision]
    return row


def _tiny() -> FMvTConfig:
    base = published_preset("S")
    base.input_size, base.hidden_size, base.depth, base.num_heads = [16, 4, 4], 24, 1, 2
    return base


@torch.no_grad()
def _randomise(model: FMvT) -> None:
    """Every weight random: a fresh output layer is zero, and zeros are equal in any implementation."""
    for parameter in model.parameters():
        scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
        parameter.copy_(torch.randn_like(parameter) * scale)
