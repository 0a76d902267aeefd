"""Batches as named bundles that Lightning moves and pins."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor


class _Bundle:
    """Tensor fields move together; other fields stay as they are."""

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Self:
        """A copy whose tensors lie on ``device``."""
        moved = {k: v.to(device, non_blocking=non_blocking) for k, v in self._tensors().items()}
        return replace(self, **moved)  # type: ignore[type-var]

    def pin_memory(self) -> Self:
        """A copy whose tensors lie in page-locked memory."""
        return replace(self, **{k: v.pin_memory() for k, v in self._tensors().items()})  # type: ignore[type-var]

    def __len__(self) -> int:
        return len(self.case_id)  # type: ignore[attr-defined]

    def _tensors(self) -> dict[str, Tensor]:
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}


@dataclass
class SliceBatch(_Bundle):
    """Axial slices for the A-VAE.

    Attributes:
        images: Float32 HU ``[B, 1, H, W]``.
        case_id: Case of each slice.
        slice_index: Int64 ``[B]``, from the inferior end.
        spacing: Float32 ``[B, 3]`` mm (z, y, x).
        redrawn: Float32 ``[B, C, h, w]``: the slices' whitened latents as a generator draws them, NaN where
            there are none; None: the view has none.
    """

    images: Tensor
    case_id: list[str]
    slice_index: Tensor
    spacing: Tensor
    redrawn: Tensor | None = None


@dataclass
class BlockBatch(_Bundle):
    """Pairs of blocks for the FMvT; latents are sampled from the posterior and whitened.

    Attributes:
        previous: ``[B, C, 16, h, w]``: the block before the target; the start block before the first one.
        target: ``[B, C, 16, h, w]``: end slices follow a volume's last slice.
        text: Float32 ``[B, L, D]``: hidden states of the report's tokens.
        text_mask: Bool ``[B, L]``, True where a token is real.
        pooled: Float32 ``[B, D]``: pooled text vector.
        position: Int64 ``[B]``: index of the target's first slice, from the inferior end.
        length: Int64 ``[B]``: slices in the volume.
        spacing: Float32 ``[B, 3]`` mm (z, y, x).
        case_id: Case of each pair.
        partner: Int64 ``[B]``: the row of the same block in the other volume of a contrast pair; None: the
            view has no contrast pairs.
    """

    previous: Tensor
    target: Tensor
    text: Tensor
    text_mask: Tensor
    pooled: Tensor
    position: Tensor
    length: Tensor
    spacing: Tensor
    case_id: list[str]
    partner: Tensor | None = None


@dataclass
class VolumeBatch(_Bundle):
    """Whole volumes on the image tower's grid, for the embedded pair.

    Attributes:
        hu: Float32 HU ``[B, 1, D, H, W]``, clipped to the grid's limit.
        reports: The reports' texts.
        labels: Float32 ``[B, K]``, 0 or 1, NaN where a case has no such label.
        label_names: The K names, the same in every batch of a set.
        case_id: Case of each volume.
    """

    hu: Tensor
    reports: list[str]
    labels: Tensor
    label_names: list[str]
    case_id: list[str]
