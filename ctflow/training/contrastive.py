"""LightningModule of the embedded pair: contrastive training with auxiliary label heads."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import CatMetric
from torchmetrics.functional.classification import binary_auroc

from ctflow.config.training import ClipTask
from ctflow.data import VolumeBatch
from ctflow.models import CTCLIP, TextEncoding, VolumeEncoding
from ctflow.models.text import clean_text
from ctflow.models.tokenizer import ReportTokenizer
from ctflow.training.base import CountingModule
from ctflow.training.ema import averaged_copy
from ctflow.training.optim import build_optimizer
from ctflow.training.plain import from_plain, to_plain

SIDES = ("text", "tokens", "image")
"""Pooled text state, mean token state, volume: the order of ``LabelledPair``'s logits."""


class LabelledPair(nn.Module):
    """A CT-CLIP with linear heads from pooled text state, mean token state and volume to the labels.

    Args:
        clip: The pair.
        labels: Number of labels.
    """

    def __init__(self, clip: CTCLIP, labels: int) -> None:
        super().__init__()
        self.clip = clip
        self.text_head = nn.Linear(clip.config.bert.hidden_size, labels)
        self.token_head = nn.Linear(clip.config.bert.hidden_size, labels)
        self.image_head = nn.Linear(clip.config.dim_image, labels)

    def forward(
        self, ids: Tensor, mask: Tensor, volume: Tensor
    ) -> tuple[TextEncoding, VolumeEncoding, list[Tensor]]:
        """Encode pairs and score their labels.

        Args:
            ids: Token ids ``[B, L]``.
            mask: ``[B, L]``, 1 where a token stands.
            volume: ``[B, 1, D, H, W]`` in [-1, 1].

        Returns:
            Text and volume encoding, and logits ``[B, K]`` of pooled state, mean token state and volume.
        """
        (text, logits), image = self.read(ids, mask), self.clip.encode_volume(volume)
        return text, image, [*logits, self.image_head(image.embedding)]

    def read(self, ids: Tensor, mask: Tensor) -> tuple[TextEncoding, list[Tensor]]:
        """The text side alone: its encoding, and logits from the pooled and from the mean token state."""
        text = self.clip.encode_text(ids, mask)
        mean = (text.tokens * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)  # [B, D]
        return text, [self.text_head(text.pooled), self.token_head(mean)]


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy over the labels a case has (NaN: it has none); a scalar."""
    known = labels.isfinite()
    losses = F.binary_cross_entropy_with_logits(logits.float(), labels.nan_to_num(0.0), reduction="none")
    return (losses * known).sum() / known.sum().clamp_min(1)


def retrieval_accuracy(text: Tensor, image: Tensor) -> Tensor:
    """Share of reports whose most similar volume of the batch is their own; latents ``[B, D]``."""
    own = torch.arange(len(text), device=text.device)
    return ((text @ image.T).argmax(dim=1) == own).float().mean()


def mean_auroc(scores: Tensor, labels: Tensor) -> Tensor:
    """Mean area under the ROC curve over the labels that have both classes; NaN where none has.

    Args:
        scores: ``[N, K]``.
        labels: ``[N, K]`` of 0, 1 or NaN (unknown).
    """
    values = []
    for score, label in zip(scores.unbind(1), labels.unbind(1), strict=True):
        known = label.isfinite()
        if label[known].unique().numel() == 2:
            values.append(binary_auroc(score[known], label[known].long()))
    return torch.stack(values).mean() if values else scores.new_tensor(torch.nan)


class ClipModule(CountingModule):
    """CLIP's symmetric loss with a learned temperature, plus label losses on both towers.

    The label losses make the text states informative long before the contrast alone would.

    Args:
        config: ``ClipTask`` or its plain dictionary (as checkpoints store it).
        tokenizer: Text of the tokenizer's JSON.
        label_names: The labels, in the order of the batches' columns.
        seed: The run's seed.
    """

    def __init__(
        self, config: ClipTask | dict[str, Any], tokenizer: str, label_names: list[str], seed: int = 0
    ) -> None:
        typed = from_plain(ClipTask, config)
        super().__init__(seed, typed.ema_cap)
        self.config = typed
        self.save_hyperparameters(
            {"config": to_plain(typed), "tokenizer": tokenizer, "label_names": label_names, "seed": seed}
        )
        self.tokenizer = ReportTokenizer.from_json(tokenizer, typed.network.max_tokens)
        self.network: LabelledPair = LabelledPair(CTCLIP(typed.network), len(label_names))
        self.averaged = averaged_copy(self.network)
        self.labelled = bool(label_names)
        self.val_labels = CatMetric()
        self.val_scores = nn.ModuleList(CatMetric() for _ in SIDES)

    @property
    def trained(self) -> CTCLIP:
        """The pair to export: the moving average."""
        assert isinstance(self.averaged, LabelledPair)
        return self.averaged.clip

    def compile_networks(self) -> None:
        """Both towers, which the step calls one by one."""
        self.network.clip.text.compile()
        self.network.clip.volume.compile()

    def encode(
        self, network: nn.Module, batch: VolumeBatch
    ) -> tuple[TextEncoding, VolumeEncoding, list[Tensor]]:
        """Both encodings of a batch and the logits of the labels."""
        limit = self.config.network.grid.hu_limit
        volumes = batch.hu.clamp(-limit, limit) / limit
        return network(*self.tokens(batch), volumes)

    def training_step(self, batch: VolumeBatch, batch_idx: int) -> Tensor:
        """Contrast over the global batch, labels over the local one; at first the text's labels alone."""
        if self.labelled and self.batches < self.config.text_warmup:
            return self.text_step(batch)
        text, image, logits = self.encode(self.network, batch)
        contrast = self.network.clip.contrastive_loss(self.gather(text.latent), self.gather(image.latent))
        labels = torch.stack([label_loss(side, batch.labels) for side in logits]).mean()
        loss = contrast + self.config.label_weight * labels + image.commitment
        self.batches += 1
        accuracy = retrieval_accuracy(text.latent, image.latent)
        terms = {"contrast": contrast, "labels": labels, "retrieval": accuracy, "loss": loss}
        self.log_terms(terms, len(batch.reports))
        return loss

    def text_step(self, batch: VolumeBatch) -> Tensor:
        """Label losses of the text tower, which costs a fraction of the volume tower."""
        _, logits = self.network.read(*self.tokens(batch))
        loss = torch.stack([label_loss(side, batch.labels) for side in logits]).mean()
        self.batches += 1
        self.log_terms({"labels": loss, "loss": loss}, len(batch.reports))
        return loss

    def tokens(self, batch: VolumeBatch) -> tuple[Tensor, Tensor]:
        """Token ids and mask ``[B, L]`` of a batch's reports."""
        tokens = self.tokenizer([clean_text(report) for report in batch.reports])
        return tokens.ids.to(self.device), tokens.mask.to(self.device)

    def gather(self, latent: Tensor) -> Tensor:
        """Latents of all processes ``[W·B, D]``, gradients flowing back to each."""
        if self.trainer.world_size == 1:
            return latent
        gathered = self.all_gather(latent, sync_grads=True)
        assert isinstance(gathered, Tensor)
        return gathered.flatten(0, 1)

    def validation_step(self, batch: VolumeBatch, batch_idx: int) -> None:
        """Retrieval within the batch; label scores of both towers are kept for the AUROC."""
        text, image, logits = self.encode(self.averaged, batch)
        size = len(batch.reports)
        accuracy = retrieval_accuracy(text.latent, image.latent)
        self.log("val/retrieval", accuracy, prog_bar=True, sync_dist=True, batch_size=size)
        contrast = self.trained.contrastive_loss(text.latent, image.latent)
        self.log("val/contrast", contrast, sync_dist=True, batch_size=size)
        if not self.labelled:
            return
        self.val_labels.update(batch.labels.nan_to_num(-1.0))
        for metric, side in zip(self.val_scores, logits, strict=True):
            metric.update(side.float())  # type: ignore[operator]

    def on_validation_epoch_end(self) -> None:
        """Log the label AUROC of either tower, where there are labels."""
        if not self.labelled:
            return
        labels = self.val_labels.compute()
        labels = labels.masked_fill(labels < 0, torch.nan)
        for name, metric in zip(SIDES, self.val_scores, strict=True):
            assert isinstance(metric, CatMetric)
            value = mean_auroc(metric.compute(), labels)
            if value.isfinite():
                self.log(f"val/{name}_auroc", value, prog_bar=name == "text")
            metric.reset()
        self.val_labels.reset()

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW and the schedule, stepped with every update."""
        optimizer, scheduler = build_optimizer(self.network, self.config.optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
