"""I3D features of clips, from the torchscript file that FVD implementations share."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ctflow.errors import WeightsError
from ctflow.metrics.files import checked_file
from ctflow.metrics.images import three_channels

FEATURES = 400


class I3DBackbone(nn.Module):
    """The I3D detector (400 logits), called ``(uint8 [B,3,T,H,W], rescale=True, resize=True,
    return_features=True)``.

    Args:
        script: The torchscript file.
        sha256: Hash it must have; required, because a torchscript file is a program.

    Raises:
        WeightsError: No such file, no or another hash, or no torchscript.
    """

    def __init__(self, script: Path, sha256: str) -> None:
        super().__init__()
        self.sha256 = checked_file(script, sha256, "the I3D torchscript", required=True)
        try:
            self.network = torch.jit.load(str(script), map_location="cpu").eval()
        except RuntimeError as error:
            raise WeightsError(f"{script} is no torchscript file ({str(error)[:200]})") from error

    @torch.no_grad()
    def forward(self, clips: Tensor) -> Tensor:
        """8-bit clips ``[N, 1, T, H, W]`` to features ``[N, 400]``, float32."""
        features = self.network(
            three_channels(clips).contiguous(), rescale=True, resize=True, return_features=True
        )
        return features.flatten(1).float()
