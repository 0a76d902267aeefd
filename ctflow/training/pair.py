"""The pair with the heads of its training, and the losses and scores of texts."""

from __future__ import annotations

import random
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_auroc

from ctflow.models import CTCLIP, TextEncoding, VolumeEncoding

MASKED_SHARE = 0.15


class LabelledPair(nn.Module):
    """A CT-CLIP with linear heads to labels and columns, and a head that guesses masked words.

    With an adapter, both towers are frozen: no gradients, no dropout, no codes that follow the data.

    Args:
        clip: The pair.
        stated: Yes/no answers: label tables and columns.
        sizes: Size columns (asked of the text alone).
        train_text: False freezes the text tower.
    """

    def __init__(self, clip: CTCLIP, stated: int, sizes: int = 0, train_text: bool = True) -> None:
        super().__init__()
        self.clip = clip
        self.frozen = clip.adapter is not None
        if clip.adapter is not None:
            clip.requires_grad_(False)
            clip.adapter.requires_grad_(True)
        self.train_text = train_text
        if not train_text:
            clip.text.requires_grad_(False)
        width = clip.config.bert.hidden_size
        self.text_head = nn.Linear(width, stated + sizes)
        self.token_head = nn.Linear(width, stated + sizes)
        self.image_head = nn.Linear(clip.config.dim_image, stated)
        self.word_head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.word_bias = nn.Parameter(torch.zeros(clip.config.bert.vocab_size))

    def forward(
        self, ids: Tensor, mask: Tensor, volume: Tensor
    ) -> tuple[TextEncoding, VolumeEncoding, list[Tensor]]:
        """Encode pairs and answer their columns.

        Args:
            ids: Token ids ``[B, L]``.
            mask: ``[B, L]``, 1 for tokens.
            volume: ``[B, 1, D, H, W]`` in [-1, 1].

        Returns:
            Text and volume encoding, and answers of pooled state and mean token state
            ``[B, stated + sizes]`` and of the volume ``[B, stated]``.
        """
        (text, logits), image = self.read(ids, mask), self.clip.encode_volume(volume)
        return text, image, [*logits, self.image_head(image.embedding)]

    def train(self, mode: bool = True) -> Self:
        """Training mode, but for frozen towers."""
        super().train(mode)
        if self.frozen:
            self.clip.eval()
        if not self.train_text:
            self.clip.text.eval()
        return self

    def read(
        self, ids: Tensor, mask: Tensor, positions: Tensor | None = None
    ) -> tuple[TextEncoding, list[Tensor]]:
        """The text side alone: its encoding, and answers from the pooled and from the mean token state."""
        text = self.clip.encode_text(ids, mask, positions)
        return text, [self.text_head(text.pooled), self.token_head(mean_token(text.tokens, mask))]

    def word_loss(
        self, ids: Tensor, mask: Tensor, hidden: Tensor, mask_id: int, positions: Tensor | None = None
    ) -> Tensor:
        """Cross-entropy of the words that ``hidden`` ``[B, L]`` (bool) hides; mean over texts of means."""
        tokens = self.clip.encode_text(ids.masked_fill(hidden, mask_id), mask, positions).tokens
        words = self.clip.text.get_input_embeddings().weight  # type: ignore[operator]
        logits = self.word_head(tokens[hidden]) @ words.T + self.word_bias
        losses = torch.zeros(hidden.shape, device=ids.device)
        losses[hidden] = F.cross_entropy(logits.float(), ids[hidden], reduction="none")
        return (losses.sum(dim=1) / hidden.sum(dim=1).clamp_min(1)).mean()


def mean_token(tokens: Tensor, mask: Tensor) -> Tensor:
    """Mean of the real tokens' states: ``[B, L, D]`` and ``[B, L]`` to ``[B, D]``."""
    return (tokens * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)


def places(mask: Tensor, limit: int, streams: list[random.Random]) -> Tensor:
    """Positions ``[B, L]`` of tokens: half of the texts begin further on, as if much had been said before.

    The tower then understands a sentence at any place of a report. The first token keeps position 0.

    Args:
        mask: ``[B, L]``, 1 for tokens.
        limit: Most tokens of a text.
        streams: A stream for each text.
    """
    shifts = [
        rng.randint(0, limit - length) if rng.random() < 0.5 else 0
        for length, rng in zip(mask.sum(dim=1).tolist(), streams, strict=True)
    ]
    positions = torch.arange(mask.shape[1]) + torch.tensor(shifts)[:, None]
    positions[:, 0] = 0
    return positions.clamp_max(limit - 1)


def hidden_words(mask: Tensor, streams: list[random.Random]) -> Tensor:
    """Tokens to hide, bool ``[B, L]``: a share of each text's, at least one, never the first or last."""
    hidden = torch.zeros(mask.shape, dtype=torch.bool)
    for row, (length, rng) in enumerate(zip(mask.sum(dim=1).tolist(), streams, strict=True)):
        words = range(1, length - 1)
        if words:
            hidden[row, rng.sample(words, max(1, round(MASKED_SHARE * len(words))))] = True
    return hidden


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy over the labels a case has (NaN: it has none): the mean of the cases' means."""
    known = labels.isfinite()
    losses = F.binary_cross_entropy_with_logits(logits.float(), labels.nan_to_num(0.0), reduction="none")
    return ((losses * known).sum(dim=1) / known.sum(dim=1).clamp_min(1)).mean()


def apart(targets: Tensor) -> Tensor:
    """Only the answers in which the two texts of a pair differ (others NaN): what they are a pair for.

    Args:
        targets: ``[2·N, K]``: N texts, then their partners.
    """
    first, second = targets.chunk(2)
    same = (first == second) | first.isnan() | second.isnan()
    return targets.masked_fill(same.repeat(2, 1), torch.nan)


def size_loss(values: Tensor, targets: Tensor) -> Tensor:
    """Smooth L1 over the sizes that a text states (NaN: none): the mean of the texts' means."""
    known = targets.isfinite()
    losses = F.smooth_l1_loss(values.float(), targets.nan_to_num(0.0), reduction="none")
    return ((losses * known).sum(dim=1) / known.sum(dim=1).clamp_min(1)).mean()


def contrast_with_mirrored(logits: Tensor, mirrored_logits: Tensor, differs: Tensor) -> tuple[Tensor, Tensor]:
    """CLIP's symmetric cross-entropy, with the mirrored reports as further wrong answers of the volumes.

    Args:
        logits: ``[reports, volumes]``, pairs on the diagonal.
        mirrored_logits: ``[mirrored reports, volumes]``.
        differs: Bool ``[mirrored reports]``, false where mirroring changes nothing.

    Returns:
        The loss, and the share of volumes (with sides in their report) nearer to the own than to the
        mirrored report; NaN without any.
    """
    target = torch.arange(len(logits), device=logits.device)
    wrong = mirrored_logits.masked_fill(~differs[:, None], -torch.inf)
    loss = F.cross_entropy(logits, target) + F.cross_entropy(torch.cat([logits, wrong]).T, target)
    right_side = (logits.diagonal() > mirrored_logits.diagonal())[differs].float().mean()
    return 0.5 * loss, right_side


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


def side_auroc(scores: Tensor, stated: Tensor, pairs: list[tuple[int, int]]) -> Tensor:
    """How surely answers separate right from left: AUROC of right minus left over all labels and texts.

    Args:
        scores: Answers ``[N, K]``.
        stated: Columns ``[N, K]`` of 0 and 1.
        pairs: (right, left) columns; texts that state exactly one of a pair count.
    """
    differences, sides = [scores.new_zeros(0)], [stated.new_zeros(0)]
    for right, left in pairs:
        one = stated[:, right] != stated[:, left]
        differences.append((scores[:, right] - scores[:, left])[one])
        sides.append(stated[one, right])
    difference, side = torch.cat(differences), torch.cat(sides)
    return (
        binary_auroc(difference, side.long()) if side.unique().numel() == 2 else scores.new_tensor(torch.nan)
    )


def mirror_distance(means: Tensor, mirrored_means: Tensor) -> Tensor:
    """Distance of a report's mean token to its mirrored one's, over the spread of all reports.

    The spread is the root mean square of the distances to the mean of all.

    Args:
        means: Mean token states ``[N, D]``.
        mirrored_means: Of the mirrored reports; rows equal to ``means``' count as without sides.
    """
    differs = (means != mirrored_means).any(dim=1)
    if len(means) < 2 or not differs.any():
        return means.new_tensor(torch.nan)
    spread = (means - means.mean(dim=0)).square().sum(dim=1).mean().sqrt()
    return (means - mirrored_means)[differs].norm(dim=1).mean() / spread
