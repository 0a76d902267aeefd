"""Networks: the FMvT, the A-VAE and CT-CLIP. Plain PyTorch; no Lightning, no files."""

from ctflow.models.avae import AVAE, Posterior

__all__ = ["AVAE", "Posterior"]
