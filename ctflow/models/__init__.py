"""Networks: the FMvT, the A-VAE and CT-CLIP. Plain PyTorch; no Lightning, no files."""

from ctflow.models.avae import AVAE, Posterior
from ctflow.models.ctclip import CTCLIP, TextEncoding, VolumeEncoding
from ctflow.models.fmvt import FMvT, TextCondition

__all__ = ["AVAE", "CTCLIP", "FMvT", "Posterior", "TextCondition", "TextEncoding", "VolumeEncoding"]
