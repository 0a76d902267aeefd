"""The FMvT as a velocity field for the solver, with guidance by text and by the previous block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ctflow.config.generation import RolloutConfig
from ctflow.flow import Velocity
from ctflow.models import Conditions, FMvT, TextCondition


def guided_velocity(
    model: FMvT, conditions: Conditions, no_text: TextCondition | None, config: RolloutConfig
) -> Velocity:
    """Velocity field with classifier-free guidance (Ho & Salimans 2022), one scale for each condition.

    ``v + (text_guidance - 1) (v - v_without_text) + (previous_guidance - 1) (v - v_without_previous)``, where
    v has both conditions. A scale of 1 costs nothing; each other one costs one more evaluation of the
    network, the text's only at times from ``guidance_from`` on.

    Args:
        model: The FMvT, in evaluation mode.
        conditions: What the blocks are generated from; the text is encoded.
        no_text: "No text" for as many samples; None where text guidance is off.
        config: The scales; one for the previous block needs a model that knows a null previous block.

    Returns:
        ``velocity(z, t)`` for ``ctflow.flow.solve``.
    """
    unguided = replace(conditions, text=no_text)
    alone = replace(conditions, previous=None)

    def velocity(z: Tensor, t: Tensor) -> Tensor:
        full = model(z, t, conditions)
        out = full
        if no_text is not None and float(t) >= config.guidance_from:
            out = out + (config.text_guidance - 1) * (full - model(z, t, unguided))
        if config.previous_guidance != 1:
            out = out + (config.previous_guidance - 1) * (full - model(z, t, alone))
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
    return whole, model.encode_text(None, batch=len(texts))
