"""Image grids for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from numpy.typing import NDArray
from torch import Tensor

from ctflow import pictures
from ctflow.pictures import WHOLE, comparison
from ctflow.types import HUVolume


def reconstruction_grid(images: Tensor, output: Tensor) -> Tensor:
    """Rows input, reconstruction, difference of slices ``[N, H, W]`` in HU: ``[1, h, w]`` in [0, 1]."""
    return _grey(comparison(images.float().numpy(), output.float().numpy()))


def axial_and_coronal(volume: Tensor, spacing: tuple[float, float, float]) -> Tensor:
    """Middle axial and coronal slice of a volume ``[S, H, W]`` in HU: ``[1, h, w]`` in [0, 1].

    They are displayed as in every other picture: the patient's right on the left, head up, square pixels.
    """
    shown = HUVolume(volume.float().numpy(), spacing)
    return _grey(pictures.axial_and_coronal(shown, WHOLE, volume.shape[2]))


def _grey(image: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(image.copy())[None].float() / 255


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
