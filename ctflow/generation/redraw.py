"""Real blocks as a generator draws them: noised to a time of its grid, and solved from there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ctflow.config.generation import RolloutConfig
from ctflow.flow import Churn, LinearPath, solve, time_grid
from ctflow.generation.rollout import encode_reports, guided_velocity
from ctflow.models import Conditions, FMvT
from ctflow.types import BLOCK_LENGTH


@torch.no_grad()
def redraw(
    model: FMvT,
    latents: Tensor,
    start: Tensor,
    white: Tensor,
    text: tuple[Tensor, Tensor],
    spacing: Sequence[float],
    config: RolloutConfig,
    steps: int,
    noise: Tensor,
    starts: bool = False,
) -> Tensor:
    """A volume drawn again, block by block, each under the real slices before it (SDEdit, Meng et al. 2022).

    What lies above the noise at the step's beginning stays; the network draws the rest, with the errors that
    it makes in a rollout.

    Args:
        model: The FMvT, in evaluation mode.
        latents: Whitened latents ``[C, S, h, w]``.
        start: The whitened start block ``[C, T, h, w]``.
        white: The whitened latent of an end slice ``[C, h, w]``.
        text: The report's tokens ``[L, D]`` and mask ``[L]``.
        spacing: Millimetres between slices, rows and columns.
        config: Solver, steps and guidance.
        steps: The last so many steps of the grid are taken, at least 1.
        noise: Standard normal ``[steps, K, C, T, h, w]`` for the K blocks: the noise that is added, then what
            churn draws.
        starts: Blocks are redrawn as a volume's first one is drawn, with ``start_steps`` more; else as those
            that follow others.

    Returns:
        ``[C, S, h, w]``.

    Raises:
        ValueError: More steps than the grid has.
    """
    early = config.early(starts)
    if not 1 <= steps <= config.steps + early:
        raise ValueError(f"the grid has {config.steps + early} steps, found {steps} to take")
    slices = latents.shape[1]
    blocks = -(-slices // BLOCK_LENGTH)
    end = white[:, None].expand(-1, blocks * BLOCK_LENGTH - slices, -1, -1)
    whole = torch.cat([start, latents, end], dim=1)
    parts = torch.stack(whole.split(BLOCK_LENGTH, dim=1))  # [1 + K, C, T, h, w]
    told, no_text = encode_reports(model, [text[0]], [text[1]], guided=config.text_guidance != 1)
    rows = torch.zeros(blocks, dtype=torch.long, device=latents.device)
    conditions = Conditions(
        text=told.select(rows),
        previous=parts[:-1],
        position=torch.arange(blocks, device=latents.device).float() * BLOCK_LENGTH,
        length=torch.full((blocks,), torch.nan, device=latents.device),
        spacing=torch.tensor([list(spacing)], device=latents.device).expand(blocks, -1),
    )
    taken = config.steps + early - steps
    at = time_grid(config.steps, config.time_shift, early)[taken]
    z = LinearPath().sample(parts[1:], noise[0], at).z_t
    churn = Churn(config.churn, noise[1:], config.churn_below) if config.churn else None
    field = guided_velocity(model, conditions, None if no_text is None else no_text.select(rows), config)
    drawn = solve(
        field, z, config.steps, config.solver, shift=config.time_shift, churn=churn, early=early, taken=taken
    )
    return torch.cat(drawn.unbind(), dim=1)[:, :slices]
