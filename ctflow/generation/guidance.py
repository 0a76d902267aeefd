"""The FMvT as a velocity field for the solver, with guidance by text and by the previous block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ctflow.flow import Velocity
from ctflow.models import FMvT, TextCondition


@dataclass(frozen=True)
class BlockConditions:
    """What a batch of blocks is generated from.

    Attributes:
        text: The reports, encoded; where text guidance is on, the same reports dropped are ``no_text``.
        no_text: "No text" for as many samples; None where text guidance is off.
        previous: The 16 slices before each block ``[B, C, T, h, w]``, whitened.
        position: Index of each block's first slice ``[B]``.
        length: Slices asked for ``[B]``; NaN: unknown.
    """

    text: TextCondition
    no_text: TextCondition | None
    previous: Tensor
    position: Tensor
    length: Tensor


def guided_velocity(
    model: FMvT, conditions: BlockConditions, text_guidance: float, previous_guidance: float
) -> Velocity:
    """Velocity field with classifier-free guidance (Ho & Salimans 2022), one scale for each condition.

    ``v + (text_guidance - 1) (v - v_without_text) + (previous_guidance - 1) (v - v_without_previous)``, where
    v has both conditions. A scale of 1 costs nothing; each other one costs one more evaluation of the
    network.

    Args:
        model: The FMvT, in evaluation mode.
        conditions: What the blocks are generated from.
        text_guidance: Scale for the text.
        previous_guidance: Scale for the previous block; needs a model that knows a null previous block.

    Returns:
        ``velocity(z, t)`` for ``ctflow.flow.solve``.
    """
    where = {"position": conditions.position, "length": conditions.length}

    def velocity(z: Tensor, t: Tensor) -> Tensor:
        full = model(z, t, conditions.text, conditions.previous, **where)
        out = full
        if conditions.no_text is not None:
            without = model(z, t, conditions.no_text, conditions.previous, **where)
            out = out + (text_guidance - 1) * (full - without)
        if previous_guidance != 1:
            without = model(z, t, conditions.text, None, **where)
            out = out + (previous_guidance - 1) * (full - without)
        return out

    return velocity


def encode_reports(
    model: FMvT, texts: Sequence[Tensor], masks: Sequence[Tensor | None], guided: bool
) -> tuple[TextCondition, TextCondition | None]:
    """Encode the reports of a rollout once, and "no text" beside them where text guidance is on.

    Args:
        model: The FMvT.
        texts: ``[L, D]`` each; shorter ones are padded.
        masks: ``[L]`` each, or None where all tokens count.
        guided: Whether "no text" is needed.

    Returns:
        Two conditions of as many rows as there are texts; the second is None unless ``guided``.
    """
    device = model.pos_embed.device
    longest = max(text.shape[0] for text in texts)
    text = torch.stack([torch.nn.functional.pad(t, (0, 0, 0, longest - t.shape[0])) for t in texts])
    mask = torch.zeros(len(texts), longest, dtype=torch.bool)
    for row, one_text, one_mask in zip(mask, texts, masks, strict=True):
        row[: one_text.shape[0]] = True if one_mask is None else one_mask.bool().cpu()
    text, mask = text.to(device), mask.to(device)
    whole = model.encode_text(text, None if bool(mask.all()) else mask)
    if not guided:
        return whole, None
    return whole, model.encode_text(text[:, :1], drop=torch.ones(len(texts), dtype=torch.bool, device=device))
