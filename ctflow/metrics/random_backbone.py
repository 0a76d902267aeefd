"""Embedded feature extractors: frozen random convolutions, for when no trained backbone is at hand.

Their Fréchet distances order blur, noise, shuffled slices, seams, duplicates, shifts and checkerboards; they
say nothing about clinical realism, so the metrics carry other names: ``fid_rand2d``, ``fvd_rand3d_f16`` …
"""

from __future__ import annotations

import hashlib
import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctflow.metrics.frechet import Moments

STREAM = "ctflow random convolution v1"
CHANNELS = {2: (16, 32, 64, 128), 3: (8, 16, 32, 64)}
WEIGHTS_SHA256 = {
    2: "8802dd074dcd6a48517d64a6eb7234fcb267e57d5fdcc0c8ada4b98ae3b5252c",
    3: "df4ac0d36c490aa82c32ae0e70c0da8564802eb8303ef0451010c9555c893450",
}
FEW_SAMPLES = 256
WIDE, NARROW = 64, 16
SPREAD_FLOOR = 0.01
Dimensions = Literal[2, 3]


def frozen_uniform(name: str, *shape: int) -> Tensor:
    """Uniform numbers in (-1, 1) that are the same on every machine and in every version of every library.

    They are SHAKE-256 output read as 16-bit integers, so that a hash of them can be asserted.
    """
    count = math.prod(shape)
    raw = np.frombuffer(hashlib.shake_256(name.encode()).digest(2 * count), dtype="<u2")
    return torch.from_numpy((raw.astype(np.float64) + 0.5) / 32768.0 - 1.0).float().reshape(shape)


class RandomBackbone(nn.Module):
    """Four convolutions of frozen random weights with leaky ReLUs; the features are each stage's mean and
    std.

    No normalisation layers: they would divide out exactly what blur, noise and shifts change.

    Args:
        dimensions: 2 for slices ``[N, 1, H, W]``, 3 for clips ``[N, 1, T, H, W]``.
    """

    def __init__(self, dimensions: Dimensions) -> None:
        super().__init__()
        self.dimensions: Dimensions = dimensions
        widths = (1, *CHANNELS[dimensions])
        for stage in range(4):
            shape = (widths[stage + 1], widths[stage], *[3] * dimensions)
            bound = math.sqrt(6.0 / math.prod(shape[1:]))  # He: variance 2 / fan-in
            self.register_buffer(
                f"weight{stage}", bound * frozen_uniform(f"{STREAM} {dimensions}d {stage}", *shape)
            )
        self.width = 2 * sum(CHANNELS[dimensions])
        if self.sha256() != WEIGHTS_SHA256[dimensions]:
            raise RuntimeError(f"frozen weights of the {dimensions}D backbone hash to {self.sha256()}")

    def sha256(self) -> str:
        """Hash of the weights."""
        digest = hashlib.sha256()
        for stage in range(4):
            digest.update(self.get_buffer(f"weight{stage}").float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Raw features of 8-bit images.

        Args:
            images: uint8 ``[N, 1, H, W]`` or ``[N, 1, T, H, W]``.

        Returns:
            Float32 ``[N, width]``: per stage the mean and the standard deviation of every channel.
        """
        convolve = F.conv2d if self.dimensions == 2 else F.conv3d
        pool = F.avg_pool2d if self.dimensions == 2 else F.avg_pool3d
        x = images.float().div_(127.5).sub_(1.0)
        features: list[Tensor] = []
        for stage in range(4):
            if stage:
                # A side of 1 is kept: clips may be thinner than the pyramid is high.
                x = pool(x, [min(2, side) for side in x.shape[2:]])
            x = F.leaky_relu_(convolve(x, self.get_buffer(f"weight{stage}"), padding=1), 0.2)
            flat = x.flatten(2)
            mean = flat.mean(2)
            # ``std`` over a last axis this long takes several times as long on a CPU.
            deviation = torch.linalg.vector_norm(flat - mean.unsqueeze(2), dim=2) / math.sqrt(flat.shape[2])
            features += [mean, deviation]
        return torch.cat(features, 1)


def projection_width(samples: int) -> int:
    """Features kept for a Fréchet distance: 64, or 16 where a set has fewer than 256 samples."""
    return WIDE if samples >= FEW_SAMPLES else NARROW


def projection(width: int, spread: Tensor, kept: int) -> Tensor:
    """Matrix ``[width, kept]`` from raw features to those of the distance.

    Every raw feature is divided by the real set's own standard deviation, then a fixed orthogonal projection
    mixes them.

    Args:
        width: Raw features.
        spread: Standard deviation of the real set's raw features ``[width]``.
        kept: Columns of the projection, see ``projection_width``.
    """
    frozen = frozen_uniform(f"{STREAM} projection {width}", width, WIDE).double()
    orthogonal, triangle = torch.linalg.qr(frozen)
    orthogonal = (orthogonal * triangle.diagonal().sign())[:, :kept].to(spread.device)
    # A feature that hardly varies among real images must not blow up: the floor is a share of the median.
    floor = SPREAD_FLOOR * spread.median().clamp_min(1e-12)
    return orthogonal / spread.double().clamp_min(floor).unsqueeze(1)


def projected_moments(real: Moments, fake: Moments) -> tuple[Moments, Moments]:
    """Both sets' raw statistics through one projection, set by the real spread and the smaller set's size."""
    kept = projection_width(int(min(real.count, fake.count)))
    spread = real.covariance.diagonal().clamp_min(0).sqrt()
    matrix = projection(len(real.total), spread, kept)
    return real.mapped(matrix), fake.mapped(matrix)


def projected_features(real: Tensor, *others: Tensor) -> list[Tensor]:
    """Kept raw features ``[n, width]`` of the real set and of others through one projection, in float64.

    The real set's mean is taken off: a Fréchet distance does not see it, a polynomial kernel drowns in it.
    """
    kept = projection_width(min(len(x) for x in (real, *others)))
    matrix = projection(real.shape[1], real.double().std(0), kept)
    centre = real.double().mean(0)
    return [(x.double() - centre) @ matrix for x in (real, *others)]
