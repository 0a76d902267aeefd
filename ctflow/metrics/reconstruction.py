"""How well the A-VAE gives slices back: PSNR, SSIM, MS-SSIM in HU, LPIPS with a local backbone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure as multiscale_ssim,
)
from torchmetrics.functional.image import structural_similarity_index_measure as ssim

from ctflow.errors import MetricError, WeightsError
from ctflow.metrics.images import SCORE_WINDOW, three_channels
from ctflow.metrics.trained_backbones import checked_file

FIVE_SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
THREE_SCALES = tuple(b / sum(FIVE_SCALES[:3]) for b in FIVE_SCALES[:3])
FIVE_SCALES_ABOVE = 160
THREE_SCALES_ABOVE = 40
SSIM_ABOVE = 10


def multiscale_name(side: int) -> str:
    """``ms_ssim`` where a slice is large enough for the usual five scales, else ``ms_ssim_s3``."""
    return "ms_ssim" if side > FIVE_SCALES_ABOVE else "ms_ssim_s3"


class ReconstructionMetric(Metric):
    """PSNR (pooled MSE), SSIM and MS-SSIM of slices in HU, streamed in float64.

    PSNR is ``10 log10(range² / MSE)``; HU are clipped to the range, -1000 … 1000 unless told, on both sides.
    MS-SSIM is called ``ms_ssim_s3`` with three scales (renormalised weights) for sides up to 160, and is
    left out up to 40.

    Args:
        limits: Lowest and highest HU, for example of a display window.
    """

    full_state_update = False
    squared: Tensor
    voxels: Tensor
    ssim_total: Tensor
    multiscale_total: Tensor
    slices: Tensor

    def __init__(self, limits: tuple[float, float] = SCORE_WINDOW, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.limits, self.range = limits, limits[1] - limits[0]
        for name in ("squared", "voxels", "ssim_total", "multiscale_total", "slices"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.side = 0

    def update(self, reconstructed: Tensor, original: Tensor) -> None:
        """Add slices ``[N, 1, H, W]`` in HU and what they were.

        Raises:
            MetricError: Different shapes, sides too small for SSIM, or values that are not finite.
        """
        if reconstructed.shape != original.shape or original.ndim != 4:
            raise MetricError(
                f"slices {tuple(reconstructed.shape)} and {tuple(original.shape)}", "[N, 1, H, W]"
            )
        if not (torch.isfinite(reconstructed).all() and torch.isfinite(original).all()):
            raise MetricError("HU that are NaN or infinite", "finite HU")
        side = min(original.shape[2:])
        if side <= SSIM_ABOVE or self.side not in (0, side):
            raise MetricError(
                f"slices of side {side}", f"one side above {SSIM_ABOVE} for all (so far {self.side})"
            )
        self.side = side
        x, y = (v.float().clamp(*self.limits) for v in (reconstructed, original))
        count = len(x)
        self.squared += (x - y).double().square().sum()
        self.voxels += x.numel()
        similarity = ssim(x, y, data_range=self.range)
        assert isinstance(similarity, Tensor)  # a tuple only where the full image is asked for
        self.ssim_total += similarity.double() * count
        if side > THREE_SCALES_ABOVE:
            betas = FIVE_SCALES if side > FIVE_SCALES_ABOVE else THREE_SCALES
            self.multiscale_total += (
                multiscale_ssim(x, y, data_range=self.range, betas=betas).double() * count
            )
        self.slices += count

    def compute(self) -> dict[str, float]:
        """``psnr`` in dB, ``ssim``, and ``ms_ssim`` or ``ms_ssim_s3``; NaN without slices."""
        if float(self.slices) == 0:
            return {"psnr": math.nan, "ssim": math.nan}
        mse = float(self.squared / self.voxels)
        result = {
            "psnr": 10 * math.log10(self.range**2 / mse) if mse > 0 else math.inf,
            "ssim": float(self.ssim_total / self.slices),
        }
        if self.side > THREE_SCALES_ABOVE:
            result[multiscale_name(self.side)] = float(self.multiscale_total / self.slices)
        return result


def similarity(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """Mean MS-SSIM of two volumes ``[S, H, W]`` in HU over the slices that both have; NaN without any."""
    common = min(len(first), len(second))
    if not common:
        return float("nan")
    metric = ReconstructionMetric()
    metric.update(*(torch.from_numpy(volume[:common]).unsqueeze(1) for volume in (first, second)))
    found = metric.compute()
    return found[similarity_name(first.shape[1])]


def similarity_name(side: int) -> str:
    """MS-SSIM with as many scales as the slices have room for; below that, SSIM."""
    return multiscale_name(side) if side > THREE_SCALES_ABOVE else "ssim"


def lpips_input(hu: Tensor, window: tuple[float, float]) -> Tensor:
    """Slices ``[N, 1, H, W]`` in HU through a display window (centre, width) to three channels in [-1, 1]."""
    centre, width = window
    grey = ((hu.float() - centre) / (width / 2)).clamp(-1, 1)
    return three_channels(grey)


class Lpips(nn.Module):
    """LPIPS (Zhang et al. 2018) with torchmetrics' linear layers and an AlexNet from a local file.

    Args:
        state: torchvision's AlexNet state dict (``features.N.weight`` …).
    """

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        from torchmetrics.functional.image.lpips import _LPIPS

        self.network = _LPIPS(pretrained=True, net="alex", eval_mode=True, pnet_rand=True)
        own = self.network.net.state_dict()
        # torchmetrics keeps torchvision's layer numbers behind the name of the slice they are in.
        renamed = {key: state.get("features." + key.split(".", 1)[1]) for key in own}
        missing = [k for k, v in renamed.items() if v is None or v.shape != own[k].shape]
        if missing:
            raise MetricError(f"AlexNet weights without {missing[:3]}", "torchvision's AlexNet state dict")
        self.network.net.load_state_dict(renamed)

    @torch.no_grad()
    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Distance per slice ``[N]`` of images from ``lpips_input``."""
        return self.network(first, second, normalize=False).flatten()


def load_lpips(path: Path, sha256: str) -> Lpips:
    """LPIPS with the AlexNet of a file.

    Args:
        path: torchvision's state dict.
        sha256: Expected hash in hex; empty: any.

    Raises:
        WeightsError: No file there, another hash, or no state dict.
        MetricError: Weights of another network.
    """
    checked_file(path, sha256, "torchvision's AlexNet")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for other files
        raise WeightsError(f"{path} is not a state dict: {error}", "torchvision's AlexNet weights") from error
    return Lpips(state)
