"""CT-Net, whose features the VLM3D challenge's FVD compares, and that FVD.

Draelos et al., "Machine-Learning-Based Multiple Abnormality Prediction with Large-Scale Chest CT Volumes"
(2021): a 2D ResNet-18 on triples of slices, three 3D convolutions over them, two linear layers. The features
are the 96 numbers before the labels.
"""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctflow.errors import MetricError, WeightsError
from ctflow.metrics.frechet import frechet_from_features
from ctflow.metrics.images import SCORE_WINDOW
from ctflow.metrics.trained_backbones import checked_file

GRID = (402, 420, 420)
"""Voxels along the stored z, x, y: every volume is stretched to them, with any spacing."""
SCALE_HU = (-1000.0, 200.0)
IMAGE_MEAN = 0.449
FEATURES = 96
STRATUM = 4
"""Pairs of volumes per distance; the score is the mean over strata."""
REGULARISATION = 1e-6
_LABELS = 18


def ctnet_input(stored: Tensor, grid: tuple[int, int, int] = GRID) -> Tensor:
    """A volume as CT-Net takes it.

    Args:
        stored: HU ``[z, x, y]`` in the order of the file; nothing is reoriented.
        grid: Voxels of the result.

    Returns:
        Float32 of ``grid``: clipped to ±1000 HU, stretched (trilinear), then -1000 … 200 HU as 0 … 1 less
        0.449.
    """
    x = stored.float().clamp(*SCORE_WINDOW)[None, None]
    x = F.interpolate(x, size=grid, mode="trilinear", align_corners=False)[0, 0]
    low, high = SCALE_HU
    return (x.clamp(low, high) - low) / (high - low) - IMAGE_MEAN


def stratified_fvd(fake: Tensor, real: Tensor, regularised: bool, size: int = STRATUM) -> list[float]:
    """Fréchet distances of consecutive strata of pairs; the challenge's score is their mean.

    Args:
        fake: Features ``[N, d]`` of the scored volumes, sorted by name.
        real: Features of their pairs.
        regularised: Whether 1e-6 of the mean variance is added to both covariances (2026). Without it (2025)
            the evaluator's matrix root of four samples may fail; this function gives the exact value.
        size: Pairs per stratum; the last may have fewer.

    Raises:
        MetricError: The last stratum has one pair, which has no covariance.
    """
    if len(fake) != len(real) or len(fake) % size == 1 or not len(fake):
        raise MetricError(
            f"{len(fake)} volumes with {len(real)} pairs",
            f"pairs in strata of {size}, the last of at least 2",
            "the public evaluator gives no number here either",
        )
    distance = _regularised_distance if regularised else frechet_from_features
    parts = zip(fake.split(size), real.split(size), strict=True)
    return [float(distance(x, y)) for x, y in parts]


def _regularised_distance(fake: Tensor, real: Tensor) -> Tensor:
    x, y = fake.double(), real.double()
    first, second = torch.cov(x.T), torch.cov(y.T)
    added = REGULARISATION * torch.trace(first + second) / len(first) * torch.eye(len(first), dtype=x.dtype)
    first, second = first + added, second + added
    values, vectors = torch.linalg.eigh(first)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ second @ root).clamp_min(0).sqrt().sum()
    return (x.mean(0) - y.mean(0)).square().sum() + torch.trace(first + second) - 2 * cross


class CTNet(nn.Module):
    """The network with the 18 labels of CT-RATE.

    Args:
        weights: The challenge's checkpoint ``CTNet28_ctclip_whole_data_18classes``: a dict with ``params``.
        expected: SHA-256 the file must have; empty: any, it is reported.

    Attributes:
        sha256: Of the file.

    Raises:
        WeightsError: No such file, a cut one, another hash or layout.
    """

    def __init__(self, weights: Path, expected: str = "") -> None:
        super().__init__()
        self.sha256 = checked_file(weights, expected, "CT-Net")
        state = _state(weights)
        from torchvision.models import resnet18

        self.features = nn.Sequential(*list(resnet18(weights=None).children())[:-2])
        triples = GRID[0] // 3
        self.reducingconvs = nn.Sequential(
            nn.Conv3d(triples, 64, (3, 3, 3), stride=(3, 1, 1)),
            nn.ReLU(),
            nn.Conv3d(64, 32, (3, 3, 3), stride=(3, 1, 1)),
            nn.ReLU(),
            nn.Conv3d(32, 16, (3, 2, 2), stride=(3, 2, 2)),
            nn.ReLU(),
        )
        self.classifier = nn.Sequential(
            nn.Linear(16 * 18 * 5 * 5, 128), nn.ReLU(), nn.Dropout(), nn.Linear(128, FEATURES), nn.ReLU(),
            nn.Dropout(), nn.Linear(FEATURES, _LABELS),
        )  # fmt: skip
        try:
            self.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
        except RuntimeError as error:
            raise WeightsError(f"{weights}: {str(error)[:300]}", "CT-Net with 18 labels") from error
        self.requires_grad_(False)
        self.eval()

    @torch.no_grad()
    def forward(self, volumes: Tensor) -> Tensor:
        """Volumes ``[N, 402, 420, 420]`` from ``ctnet_input`` to features ``[N, 96]``."""
        maps = torch.stack([self.features(v.reshape(-1, 3, *v.shape[1:])) for v in volumes])
        flat = self.reducingconvs(maps).flatten(1)  # [N, 134, 512, 14, 14] → [N, 16·18·5·5]
        return self.classifier[:-1](flat).float()


def _state(weights: Path) -> dict[str, Tensor]:
    with weights.open("rb") as stream:
        archive = stream.read(2) == b"PK"
    if archive and not zipfile.is_zipfile(weights):
        raise WeightsError(
            f"{weights} ({weights.stat().st_size:,} bytes) is cut: its archive has no end",
            "the whole checkpoint CTNet28_ctclip_whole_data_18classes",
            "the one in the evaluators' repository is cut too; ask the organisers for the whole file",
        )
    try:
        loaded = torch.load(weights, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise WeightsError(f"{weights} is not a file of tensors ({str(error)[:200]})", "CT-Net") from error
    state = loaded.get("params") if isinstance(loaded, dict) else None
    if not isinstance(state, dict):
        raise WeightsError(f"{weights} holds no 'params'", "CT-Net's checkpoint: a dict with 'params'")
    return state
