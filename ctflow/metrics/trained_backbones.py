"""Trained backbones from local files: torch-fidelity's Inception-v3 and its score, and the I3D of FVD.

Nothing is downloaded; a file is what its hash says.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor, nn

from ctflow.errors import MetricError, WeightsError
from ctflow.files import file_sha256
from ctflow.metrics.images import three_channels

INCEPTION_FEATURES = 2048
I3D_FEATURES = 400
SPLITS = 10


def checked_file(path: Path, sha256: str, what: str, required: bool = False) -> str:
    """The file's SHA-256, after comparing it with the expected one.

    Args:
        path: The file.
        sha256: Expected hash in hex; empty: any, unless ``required``.
        what: What the file is, for the error.
        required: Whether an expected hash must be given (files that hold code).

    Raises:
        WeightsError: No file there, no hash where one is required, or another hash.
    """
    if not path.is_file():
        raise WeightsError(f"no file at {path}", what, "give the path of a local copy; nothing is downloaded")
    found = file_sha256(path)
    if required and not sha256:
        raise WeightsError(
            f"{path} ({what}) holds code and no sha256 was given",
            "the hash of the file you trust, beside its path",
            f"this file's is {found}",
        )
    if sha256 and sha256.lower() != found:
        raise WeightsError(f"{path} has sha256 {found}", f"{what} with sha256 {sha256.lower()}")
    return found


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
            raise WeightsError(f"{script} is not a torchscript file ({str(error)[:200]})") from error

    @torch.no_grad()
    def forward(self, clips: Tensor) -> Tensor:
        """8-bit clips ``[N, 1, T, H, W]`` to features ``[N, 400]``, float32."""
        features = self.network(
            three_channels(clips).contiguous(), rescale=True, resize=True, return_features=True
        )
        return features.flatten(1).float()
