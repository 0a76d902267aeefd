"""What the decoder makes of an error in latents: a metric over channels that a loss can count errors by."""

from __future__ import annotations

import torch
from torch import Tensor

from ctflow.models import AVAE

PROBE = 0.1
"""Deviations by which a channel is changed: small beside the data, large beside rounding."""


@torch.no_grad()
def decoder_metric(avae: AVAE, latents: Tensor) -> Tensor:
    """How strongly, and how alike, the decoder answers to its channels.

    Whitened channels vary alike and do not count alike: some hold the mean HU of their pixels, others grain.
    Entry (c, d) is the mean over all pixels and slices of the changes of HU by channels c and d, each
    raised everywhere in the slice by a tenth of a deviation: J^T J of the decoder for errors that are smooth.

    Args:
        avae: The autoencoder.
        latents: Whitened latents ``[N, C, h, w]``.

    Returns:
        ``[C, C]`` float32, symmetric and positive semidefinite, with the trace C, as the identity has.

    Raises:
        ValueError: The decoder does not answer to these latents.
    """
    channels = latents.shape[1]
    metric = torch.zeros(channels, channels, dtype=torch.float64)
    for latent in latents.float():
        probes = PROBE * torch.eye(channels)[:, :, None, None]  # [C, C, 1, 1]
        before = avae.decode_to_hu(latent[None])  # [1, H, W]
        change = (avae.decode_to_hu(latent + probes) - before).double().flatten(1)  # [C, H * W]
        metric += change @ change.T
    trace = metric.trace()
    if not trace > 0:
        raise ValueError(f"decoded latents do not change with them, over {len(latents)} slices")
    return (metric * channels / trace).float()


def metric_root(metric: Tensor, share: float) -> Tensor:
    """The symmetric root R of ``(1 - share) 1 + share metric``: ``|R e|²`` is the error that is to count.

    Every share below 1 leaves the loss's minimum where it is, at the conditional mean: only what a network
    that cannot reach it learns first is changed.

    Args:
        metric: ``[C, C]`` of ``decoder_metric``.
        share: In [0, 1).
    """
    mixed = share * metric.double() + (1 - share) * torch.eye(len(metric), dtype=torch.float64)
    values, vectors = torch.linalg.eigh(mixed)
    return ((vectors * values.clamp_min(0).sqrt()) @ vectors.T).float()


def weighed(values: Tensor, root: Tensor) -> Tensor:
    """``values [B, C, T, h, w]`` with each latent multiplied by ``root [C, C]``, in float32."""
    return torch.einsum("cd,bdthw->bcthw", root, values.float())
