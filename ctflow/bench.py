"""``python -m ctflow.bench`` (``make bench``): how fast the stages are on this machine."""

from __future__ import annotations

import json
import logging
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ctflow.config import parse_command, run_command
from ctflow.config.bench import BenchConfig
from ctflow.config.encoders import AVAEConfig
from ctflow.config.models import FMvTConfig
from ctflow.flow import solve
from ctflow.models import AVAE, Conditions, FMvT

log = logging.getLogger("ctflow")

DESCRIPTION = """Time the A-VAE, the FMvT and the sampler on this machine: medians of runs after a warm-up.
Random weights: speed does not depend on them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Time every stage and write a table."""
    config = parse_command(BenchConfig, "python -m ctflow.bench", DESCRIPTION, [], argv).config
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows: list[dict[str, object]] = []
    for precision in config.precisions:
        for name, run in stages(config, device).items():
            seconds = median_seconds(run, device, precision, config.repeats)
            rows.append({"stage": name, "precision": precision, "seconds": round(seconds, 4)})
            log.info("%-52s %-5s %9.4f s", name, precision, seconds)
    machine = (
        torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    )
    result = {"machine": machine, "torch": torch.__version__, "repeats": config.repeats, "stages": rows}
    output = Path(config.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    log.info("written to %s", output)
    return 0


def stages(config: BenchConfig, device: torch.device) -> dict[str, Callable[[], None]]:
    """What is timed, by name."""
    avae = AVAE(AVAEConfig(block_out_channels=config.avae_channels, norm_num_groups=config.avae_groups))
    fmvt = FMvT(FMvTConfig(**config.fmvt))  # type: ignore[arg-type]
    avae, fmvt = avae.to(device).eval(), fmvt.to(device)
    side = config.image_size
    slices = torch.rand(config.slices, side, side, device=device) * 2000 - 1000
    shape = (config.batch_size, fmvt.config.latent_channels, *fmvt.config.input_size)
    block, previous = torch.randn(shape, device=device), torch.randn(shape, device=device)
    text = torch.randn(config.batch_size, fmvt.config.text_tokens, fmvt.config.text_dim, device=device)
    t = torch.rand(config.batch_size, device=device)
    with torch.no_grad():
        latents = avae.whiten(avae.encode_hu(slices[:1]).mean).expand(config.slices, -1, -1, -1)

    conditions = Conditions(text, previous)

    @torch.no_grad()
    def encode() -> None:
        avae.encode_hu(slices)

    @torch.no_grad()
    def decode() -> None:
        avae.decode_to_hu(latents)

    @torch.no_grad()
    def forward() -> None:
        fmvt(block, t, conditions)

    def train() -> None:
        fmvt.zero_grad(set_to_none=True)
        fmvt(block, t, conditions).square().mean().backward()

    @torch.no_grad()
    def sample() -> None:
        solve(lambda z, time: fmvt(z, time, conditions), block, config.steps)

    blocks = f"{config.batch_size} blocks"
    return {
        f"A-VAE encode, {config.slices} slices of {side}²": encode,
        f"A-VAE decode, {config.slices} slices of {side}²": decode,
        f"FMvT forward, {blocks}": forward,
        f"FMvT forward and backward, {blocks}": train,
        f"FMvT sampling, {config.steps} Euler steps, {blocks}": sample,
    }


def median_seconds(run: Callable[[], None], device: torch.device, precision: str, repeats: int) -> float:
    """Median wall time of ``run`` after one warm-up."""
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


if __name__ == "__main__":
    run_command(main)
