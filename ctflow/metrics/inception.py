"""Inception features and the Inception score, with torch-fidelity's weights from a local file."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor, nn

from ctflow.errors import MetricError, WeightsError
from ctflow.metrics.files import checked_file
from ctflow.metrics.images import three_channels

FEATURES = 2048
SPLITS = 10


class InceptionBackbone(nn.Module):
    """torch-fidelity's Inception-v3 (``inception-v3-compat``): 2048 pooled features and 1008 unbiased logits.

    Args:
        weights: ``weights-inception-2015-12-05-6726825d.pth`` or another file of that layout.
        sha256: Hash the file must have; empty: whatever it is, it is reported.

    Raises:
        WeightsError: No such file, another hash, or another layout.
    """

    def __init__(self, weights: Path, sha256: str = "") -> None:
        super().__init__()
        from torchmetrics.image.fid import NoTrainInceptionV3

        self.sha256 = checked_file(weights, sha256, "the Inception weights")
        try:
            # torch-fidelity unpickles the file without limits; it only gets one that holds nothing but
            # tensors.
            torch.load(weights, map_location="cpu", weights_only=True)
            self.network = NoTrainInceptionV3(
                "inception-v3-compat", ["2048", "logits_unbiased"], str(weights)
            )
        except (RuntimeError, pickle.UnpicklingError, KeyError, AttributeError) as error:
            found = f"{weights} is not a state dict of torch-fidelity's Inception-v3 ({str(error)[:200]})"
            raise WeightsError(found, "its published weights, sha256 6726825d…") from error

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """8-bit slices ``[N, 1, H, W]`` to features ``[N, 2048]`` and logits ``[N, 1008]``, float32."""
        # _torch_fidelity_forward gives all requested outputs; forward() only the first.
        features, logits = self.network._torch_fidelity_forward(three_channels(images).contiguous())
        return features.flatten(1).float(), logits.float()


def inception_score(logits: Tensor, splits: int = SPLITS, seed: int = 0) -> tuple[float, float]:
    """Inception score: ``exp E KL(p(y|x) || p(y))``, mean and standard deviation over random splits.

    Salimans et al., "Improved Techniques for Training GANs" (2016), on logits without their bias.

    Args:
        logits: ``[N, classes]``.
        splits: Equal parts of the shuffled set.
        seed: Of the shuffle.

    Raises:
        MetricError: Fewer than two images in a split, or values that are not finite.
    """
    if len(logits) < 2 * splits:
        raise MetricError(f"{len(logits)} images", f"at least {2 * splits} for {splits} splits")
    if not torch.isfinite(logits).all():
        raise MetricError("logits that are NaN or infinite", "finite logits")
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(seed))
    scores = []
    for part in logits[order].double().tensor_split(splits):
        log_p = part.log_softmax(1)
        marginal = log_p.exp().mean(0, keepdim=True).log()
        scores.append((log_p.exp() * (log_p - marginal)).sum(1).mean().exp())
    return float(torch.stack(scores).mean()), float(torch.stack(scores).std(unbiased=False))
