"""The one frozen text encoder: reports in, what conditions the FMvT out."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ctflow.errors import CTFlowError
from ctflow.models.ctclip import CTCLIP, TextEncoding
from ctflow.models.tokenizer import ReportTokenizer, UnknownWords

log = logging.getLogger(__name__)

TextMode = Literal["pooled", "tokens"]
TOLD = 5
"""Truncated reports after which an encoder no longer tells of each."""
UNKNOWN_WORTH_A_WORD = 0.2
NOT_GIVEN = "Not given."
POOLED_EPS = 1e-6


class TextEmbedding(NamedTuple):
    """What conditions the FMvT, for B reports.

    Attributes:
        tokens: ``[B, L, D]``: all hidden states, or (mode ``pooled``) the pooled vector alone, L = 1.
        mask: ``[B, L]`` bool, true where a token stands.
        pooled: ``[B, D]``, the first token's hidden state divided by its norm + 1e-6, as published.
    """

    tokens: Tensor
    mask: Tensor
    pooled: Tensor


def clean_text(text: str) -> str:
    """A report as CT-CLIP was trained on: no quotes, apostrophes, brackets or "Not given.", single spaces.

    Findings and impression are joined with a space before this; either may be empty or "Not given.".
    """
    text = re.sub(r"[\"'()]", "", text.replace(NOT_GIVEN, " "))
    return " ".join(text.split())


def has_words(report: str) -> bool:
    """Whether a report, once it is cleaned, has a word: digits, signs and "Not given." are none."""
    return any(character.isalpha() for character in clean_text(report))


def unit_pooled(pooled: Tensor) -> Tensor:
    """Pooled states ``[B, D]`` over their norm + 1e-6, the published condition."""
    return pooled / (pooled.norm(dim=-1, keepdim=True) + POOLED_EPS)


class TextEncoder:
    """CT-CLIP's text tower, frozen, with its tokenizer.

    Args:
        clip: Put in evaluation mode; its device is used.
        tokenizer: The one its text tower was trained with.
        mode: ``tokens``: all hidden states, masked; ``pooled``: one normalised vector, as published.

    Raises:
        CTFlowError: The vocabulary is larger than the text tower's.
    """

    def __init__(self, clip: CTCLIP, tokenizer: ReportTokenizer, mode: TextMode = "tokens") -> None:
        if mode not in ("pooled", "tokens"):
            raise ValueError(f"a text mode is 'pooled' or 'tokens', found {mode!r}")
        limit = clip.config.bert.vocab_size
        if tokenizer.vocab_size > limit:
            raise CTFlowError(
                f"a tokenizer of {tokenizer.vocab_size} tokens for a text tower of {limit}",
                "the tokenizer that belongs to the weights",
            )
        self.clip = clip.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.mode = mode
        self.truncated = 0
        """Reports that lost text to the token limit since this encoder was made."""

    @property
    def dim(self) -> int:
        """Width of tokens and pooled vectors."""
        return self.clip.config.bert.hidden_size

    def encode(self, reports: Sequence[str], batch_size: int = 32) -> TextEmbedding:
        """Encode reports; they are cleaned first, so that every caller sees the same text.

        Args:
            reports: Texts, at least one. An empty one is a report without words ([CLS] [SEP]).
            batch_size: Reports per forward.

        Returns:
            Float32 tensors on the encoder's device.
        """
        parts = [(self._condition(encoding, mask), mask) for encoding, mask in self._run(reports, batch_size)]
        length = max(part.tokens.shape[1] for part, _ in parts)
        tokens = [F.pad(part.tokens, (0, 0, 0, length - part.tokens.shape[1])) for part, _ in parts]
        masks = [F.pad(part.mask, (0, length - part.mask.shape[1])) for part, _ in parts]
        return TextEmbedding(
            torch.cat(tokens), torch.cat(masks), torch.cat([part.pooled for part, _ in parts])
        )

    def encode_latents(self, reports: Sequence[str], batch_size: int = 32) -> Tensor:
        """Latents ``[B, dim_latent]`` of reports, of unit norm, to be compared with those of volumes."""
        return torch.cat([encoding.latent for encoding, _ in self._run(reports, batch_size)])

    def _condition(self, encoding: TextEncoding, mask: Tensor) -> TextEmbedding:
        pooled = unit_pooled(encoding.pooled)
        if self.mode == "pooled":
            return TextEmbedding(pooled[:, None], mask[:, :1].bool(), pooled)
        return TextEmbedding(encoding.tokens * mask[..., None], mask.bool(), pooled)

    @torch.inference_mode(False)
    @torch.no_grad()
    def _run(self, reports: Sequence[str], batch_size: int) -> list[tuple[TextEncoding, Tensor]]:
        if not reports:
            raise CTFlowError("no report to encode", "at least one")
        device = self.clip.temperature.device
        texts = [clean_text(report) for report in reports]
        results, lost = [], []
        starts = range(0, len(texts), batch_size)
        for start in tqdm(starts, "encoding reports", disable=len(starts) < 20, leave=False):
            batch = self.tokenizer(texts[start : start + batch_size])
            lost += [text for text in batch.lost if text]
            mask = batch.mask.to(device)
            results.append((self.clip.encode_text(batch.ids.to(device), mask), mask))
        if lost:
            self._tell_lost(lost, len(texts))
        return results

    def _tell_lost(self, lost: list[str], reports: int) -> None:
        """Say how many reports were too long, and of the first ones what they lost."""
        known, self.truncated = self.truncated, self.truncated + len(lost)
        if known >= TOLD:
            return
        log.warning(
            "%d of %d reports exceed %d tokens: beginning and impression are kept, what lies between was "
            "lost, for example: %s%s",
            len(lost),
            reports,
            self.tokenizer.max_tokens,
            repr(lost[0]),
            "; further ones are counted, not told" if self.truncated >= TOLD else "",
        )

    def unknown_words(self, report: str) -> UnknownWords:
        """How much of a report the vocabulary does not know."""
        return self.tokenizer.unknown_words(clean_text(report))

    def check_known(self, report: str, name: str, limit: float) -> None:
        """Warn of a report whose words the vocabulary hardly knows; refuse it beyond ``limit``.

        Args:
            report: The text.
            name: Names it in words.
            limit: Largest share of unknown words, 0 to 1; 1 refuses nothing.

        Raises:
            CTFlowError: More are unknown, as in another language or another script.
        """
        share, examples = self.unknown_words(report)
        text = f"{name}: {share:.0%} of its words are unknown to the text encoder ({', '.join(examples)} …)"
        if share > limit:
            raise CTFlowError(
                text,
                f"a report in the language of its training, at most {limit:.0%} unknown words",
                "translate the report, or give max_unknown=1 to go on all the same",
            )
        if share > UNKNOWN_WORTH_A_WORD:
            log.warning("%s: they hardly say anything to the model", text)
