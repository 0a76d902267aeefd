"""Image grids for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

WINDOW = (-1000.0, 1000.0)
"""HU shown black and white."""

DIFFERENCE_HU = 400.0
"""HU of difference shown black and white; no difference is middle grey."""


def to_grey(hu: Tensor, low: float = WINDOW[0], high: float = WINDOW[1]) -> Tensor:
    """HU of any shape to greys in [0, 1]."""
    return ((hu.float() - low) / (high - low)).clamp(0.0, 1.0)


def reconstruction_grid(images: Tensor, output: Tensor) -> Tensor:
    """Rows input, reconstruction, difference of slices ``[N, H, W]`` in HU: ``[1, 3H, N·W]`` in [0, 1]."""
    difference = to_grey(output - images, -DIFFERENCE_HU, DIFFERENCE_HU)
    rows = [torch.cat(list(row), dim=1) for row in (to_grey(images), to_grey(output), difference)]
    return torch.cat(rows)[None]


def axial_and_coronal(volume: Tensor, spacing: tuple[float, float, float]) -> Tensor:
    """Middle axial slice beside the middle coronal one of a volume ``[S, H, W]`` in HU: ``[1, h, w]`` grey.

    The coronal image is stretched to square pixels and shows the head end up.
    """
    axial = to_grey(volume[len(volume) // 2])  # [H, W]
    coronal = to_grey(volume[:, volume.shape[1] // 2]).flip(0)  # [S, W]
    rows = max(1, round(len(coronal) * spacing[0] / spacing[2]))
    coronal = torch.nn.functional.interpolate(coronal[None, None], (rows, coronal.shape[1]))[0, 0]
    height = max(len(axial), len(coronal))
    padded = [torch.nn.functional.pad(part, (0, 0, 0, height - len(part))) for part in (axial, coronal)]
    return torch.cat(padded, dim=1)[None]


def add_image(trainer: L.Trainer, name: str, image: Tensor, step: int) -> None:
    """Give an image ``[1, H, W]`` in [0, 1] to every TensorBoard logger."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
            logger.experiment.add_image(name, image.cpu(), step)


class ReconstructionImages(L.Callback):
    """Input, reconstruction and difference of a few validation slices.

    Args:
        slices: How many.
    """

    def __init__(self, slices: int = 6) -> None:
        self.slices = slices

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Tensor | Mapping[str, Any] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Show slices spread over the first batch."""
        if batch_idx == 0 and isinstance(outputs, Tensor):
            chosen = torch.linspace(0, len(outputs) - 1, min(self.slices, len(outputs))).round().long()
            grid = reconstruction_grid(batch.images[:, 0][chosen].cpu(), outputs[chosen].cpu())
            add_image(trainer, "val/reconstruction", grid, trainer.fit_loop.epoch_loop.total_batch_idx + 1)
