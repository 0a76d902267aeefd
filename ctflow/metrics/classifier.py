"""A small 3D classifier of findings, and its AUROC as a statistic over cases."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.classification import binary_auroc

from ctflow.metrics.images import SCORE_WINDOW

GRID = (32, 64, 64)
"""Voxels along slices, rows, columns that the classifier sees of a whole volume."""
WIDTHS = (8, 16, 32, 64)
BATCH, LEARNING_RATE = 8, 1e-3


def train_classifier(x: Tensor, y: Tensor, steps: int, seed: int) -> nn.Module:
    """A 3D ResNet of four blocks (MONAI's) for labels ``[N, findings]`` of volumes ``[N, 1, *GRID]``.

    Labels that are NaN are unknown and teach nothing.
    """
    from monai.networks.nets import ResNet

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ResNet(
            "basic", [1, 1, 1, 1], list(WIDTHS), spatial_dims=3, n_input_channels=1, num_classes=y.shape[1],
            conv1_t_size=3, conv1_t_stride=2,
        ).train()  # fmt: skip
        optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE)
        draws = torch.Generator().manual_seed(seed)
        for _ in range(steps):
            rows = torch.randint(len(x), (BATCH,), generator=draws)
            loss = F.binary_cross_entropy_with_logits(
                network(x[rows]), y[rows].nan_to_num(), reduction="none"
            )
            known = torch.isfinite(y[rows])
            optimizer.zero_grad()
            ((loss * known).sum() / known.sum().clamp_min(1)).backward()
            optimizer.step()
    return network.eval()


@torch.no_grad()
def predict(network: nn.Module, x: Tensor) -> Tensor:
    """Scores ``[N, findings]``."""
    return torch.cat([network(part) for part in x.split(BATCH)])


def as_grid(hu: np.ndarray) -> Tensor:
    """A volume ``[S, H, W]`` in HU as the classifier sees it: ``[1, *GRID]`` in [-1, 1], area means."""
    x = torch.from_numpy(np.asarray(hu, np.float32)).clamp(*SCORE_WINDOW)[None, None]
    return F.interpolate(x, size=GRID, mode="area")[0] / 1000


class AurocStatistic:
    """AUROC over chosen held-out cases: of one finding, or the mean over all that have both classes.

    Args:
        scores: ``[N, findings]``.
        targets: 0 and 1, NaN where unknown.

    Attributes:
        column: Which finding; None: the mean.
    """

    def __init__(self, scores: Tensor, targets: Tensor) -> None:
        self.scores, self.targets = scores, targets
        self.column: int | None = None
        self.fake_cases = self.real_cases = len(scores)

    def samples(self, fake: Sequence[int], real: Sequence[int]) -> int:
        """Cases."""
        return len(fake)

    def __call__(self, fake: Sequence[int], real: Sequence[int]) -> float:
        """NaN where all chosen cases agree."""
        rows = torch.tensor(list(fake))
        columns = range(self.scores.shape[1]) if self.column is None else [self.column]
        found = []
        for column in columns:
            target = self.targets[rows, column]
            some = torch.isfinite(target)
            if len(target[some].unique()) == 2:
                found.append(float(binary_auroc(self.scores[rows, column][some], target[some].long())))
        return float(np.mean(found)) if found else math.nan
