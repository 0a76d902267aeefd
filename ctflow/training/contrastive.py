"""LightningModule of the embedded pair: contrastive training with auxiliary label heads."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_auroc

from ctflow.config.training import ClipTask
from ctflow.data import VolumeBatch
from ctflow.models import CTCLIP, TextEncoding, VolumeEncoding
from ctflow.training.base import CountingModule
from ctflow.training.ema import averaged_copy
from ctflow.training.optim import build_optimizer
from ctflow.training.plain import from_plain, to_plain

SIDES = ("text", "image")


class LabelledPair(nn.Module):
    """A CT-CLIP with a linear head from each tower's pooled state to the labels.

    Args:
        clip: The pair.
        labels: Number of labels.
    """

    def __init__(self, clip: CTCLIP, labels: int) -> None:
        super().__init__()
        self.clip = clip
        self.text_head = nn.Linear(clip.config.bert.hidden_size, labels)
        self.image_head = nn.Linear(clip.config.dim_image, labels)

    def forward(
        self, ids: Tensor, mask: Tensor, volume: Tensor
    ) -> tuple[TextEncoding, VolumeEncoding, list[Tensor]]:
        """Token ids and mask ``[B, L]`` and volumes ``[B, 1, D, H, W]``: both encodings, logits ``[B, K]`` of text and image."""
        text, image = self.clip.encode_text(ids, mask), self.clip.encode_volume(volume)
        return text, image, [self.text_head(text.pooled), self.image_head(image.embedding)]


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy over the labels a case has (NaN: it has none); a scalar."""
    known = labels.isfinite()
    losses = F.binary_cross_entropy_with_logits(logits.float(), labels.nan_to_num(0.0), reduction="none")
    return (losses * known).sum() / known.sum().clamp_min(1)
