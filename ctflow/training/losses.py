"""Loss terms of the A-VAE besides L1 and KL: hinge PatchGAN with adaptive weight, VGG-16 feature distance."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError

import torch
from monai.losses import PatchAdversarialLoss
from monai.networks.nets import PatchDiscriminator
from torch import Tensor, nn
from torchvision.models import vgg16

from ctflow.config.tasks import AdversaryConfig
from ctflow.errors import WeightsError

VGG_TAPS = (3, 8, 15, 22)
"""Indices of relu1_2, relu2_2, relu3_3 and relu4_3 in torchvision's ``vgg16().features``."""


class Adversary(nn.Module):
    """MONAI's patch discriminator and hinge loss.

    Instance norm instead of batch norm: its result does not depend on how a batch is split over processes.

    Args:
        config: Width and depth of the discriminator.
        in_channels: Image channels.
    """

    def __init__(self, config: AdversaryConfig, in_channels: int) -> None:
        super().__init__()
        self.net = PatchDiscriminator(
            spatial_dims=2,
            channels=config.channels,
            in_channels=in_channels,
            num_layers_d=config.layers,
            norm="INSTANCE",
        )
        self.hinge = PatchAdversarialLoss(criterion="hinge")

    def generator_loss(self, fake: Tensor) -> Tensor:
        """How little the discriminator takes ``fake`` ``[N, C, H, W]`` for real."""
        return self.hinge(self.net(fake)[-1], target_is_real=True, for_discriminator=False)

    def discriminator_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        """Hinge loss of telling real images from detached reconstructions, both ``[N, C, H, W]``."""
        loss_real = self.hinge(self.net(real)[-1], target_is_real=True, for_discriminator=True)
        loss_fake = self.hinge(self.net(fake.detach())[-1], target_is_real=False, for_discriminator=True)
        return 0.5 * (loss_real + loss_fake)


def gradient_at(loss: Tensor, last_layer: nn.Parameter) -> Tensor:
    """Gradient of ``loss`` at the decoder's last layer, the graph kept."""
    return torch.autograd.grad(loss, last_layer, retain_graph=True)[0].float()


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, cap: float = 1e4) -> Tensor:
    """Ratio of two gradients' norms, at most ``cap`` (VQGAN, eq. 7): neither term drowns the other."""
    return (reconstruction.norm() / (adversarial.norm() + 1e-4)).clamp(0.0, cap).detach()


class PerceptualTerm(nn.Module):
    """Mean absolute difference of normalised VGG-16 features; frozen.

    Args:
        weights: torchvision's ``vgg16`` state dict on disk, read with ``weights_only=True``.

    Raises:
        WeightsError: The file is missing or is not such a state dict.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, weights: Path | str) -> None:
        super().__init__()
        expected = "torchvision's vgg16 state dict, e.g. vgg16-397923af.pth"
        if not Path(weights).is_file():
            raise WeightsError(
                f"no perceptual weights at {weights}", expected, "set perceptual_weight=0 or the path"
            )
        with torch.device("meta"):
            self.features = vgg16(weights=None).features[: VGG_TAPS[-1] + 1]
        try:
            state = torch.load(weights, map_location="cpu", weights_only=True)
            needed = {name: state[f"features.{name}"] for name in self.features.state_dict()}
            self.features.load_state_dict(needed, assign=True)
        except (RuntimeError, TypeError, KeyError, EOFError, UnpicklingError) as error:
            raise WeightsError(f"{weights}: {str(error).splitlines()[0]}", expected) from error
        self.features.requires_grad_(False).eval()
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        self.register_buffer("mean", mean.view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", std.view(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        """Distance of images ``[N, 1 or 3, H, W]`` in [0, 1]; a scalar."""
        x = (torch.cat([image, target]).expand(-1, 3, -1, -1) - self.mean) / self.std
        total = x.new_zeros(())
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in VGG_TAPS:
                unit = nn.functional.normalize(x, dim=1)  # [2N, F, h, w]
                ours, theirs = unit.chunk(2)
                total = total + (ours - theirs).abs().sum(dim=1).mean()
        return total

    def train(self, mode: bool = True) -> PerceptualTerm:
        """Stays in evaluation mode: it is a fixed ruler."""
        return super().train(False)
