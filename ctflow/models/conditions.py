"""What a block is generated from, as one bundle."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ctflow.models.fmvt_text import TextCondition


@dataclass(frozen=True)
class Conditions:
    """Everything that the FMvT is told about a batch of B blocks of T slices.

    Attributes:
        text: Reports ``[B, L, text_dim]``, an ``FMvT.encode_text`` result, or None: no text.
        previous: The 16 slices before each block ``[B, C, T, h, w]``, whitened; None: no previous block.
        text_mask: ``[B, L]``, non-zero where a token counts; only with a text tensor. A row without any token
            is "no text"; None: all tokens count.
        known: ``[B, T]`` bool, True where the noisy block holds a clean slice that is given (t = 0 there);
            None: none is given.
        position: ``[B]`` index of the block's first slice from the inferior end; NaN or None: unknown.
        length: ``[B]`` number of slices of the volume; NaN or None: unknown.
        spacing: ``[B, 3]`` millimetres between slices, rows and columns; NaN or None: unknown.
        previous_noise: ``[B]`` standard deviation of the noise in ``previous``; None: none.
        without_previous: ``[B]`` bool, True: as if without previous block; None: all have theirs.
    """

    text: Tensor | TextCondition | None = None
    previous: Tensor | None = None
    text_mask: Tensor | None = None
    known: Tensor | None = None
    position: Tensor | None = None
    length: Tensor | None = None
    spacing: Tensor | None = None
    previous_noise: Tensor | None = None
    without_previous: Tensor | None = None

    def dropped(
        self, text: Tensor | None = None, previous: Tensor | None = None, length: Tensor | None = None
    ) -> Conditions:
        """The same bundle with conditions taken away from some samples, as training does.

        Args:
            text: ``[B]`` bool, True: no text; needs a text tensor.
            previous: ``[B]`` bool, True: no previous block.
            length: ``[B]`` bool, True: unknown length.
        """
        changed: dict[str, Tensor] = {}
        if text is not None:
            assert isinstance(self.text, Tensor)
            mask = self.text_mask
            if mask is None:
                mask = torch.ones(self.text.shape[:2], dtype=torch.bool, device=self.text.device)
            changed["text_mask"] = mask.bool() & ~text[:, None]
        if previous is not None:
            changed["without_previous"] = previous
        if length is not None and self.length is not None:
            changed["length"] = self.length.float().masked_fill(length, torch.nan)
        return replace(self, **changed)
