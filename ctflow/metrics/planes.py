"""FID 2.5D: slices of three orthogonal planes at 1 mm through a 2D network, as public evaluators define it.

The definition is that of NVIDIA's and the VLM3D challenge's ``compute_fid_2-5d_ct.py``: RAS, 1 mm, padded
with air or cropped about the centre to 512³, HU clipped to [-1000, 1000], scaled to [0, 1] over the volume's
own range, three equal channels less their ImageNet means; all slices along z, x and y.
"""

from __future__ import annotations

import pickle
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ctflow.errors import WeightsError
from ctflow.metrics.images import SCORE_WINDOW
from ctflow.metrics.trained_backbones import checked_file
from ctflow.types import AIR_HU, HUVolume

PLANES = ("xy", "yz", "xz")
SIDE = 512
SPACING_MM = 1.0
CHANNEL_MEANS = (0.406, 0.456, 0.485)
SQUEEZENET, RADIMAGENET = "squeezenet1_1", "radimagenet_resnet50"
SLICES_PER_PASS = 16
KERAS_EPSILON = 1.001e-5


def plane_volume(volume: HUVolume, side: int = SIDE) -> Tensor:
    """A volume in HU on the evaluators' grid.

    Args:
        volume: Axes S,P,R.
        side: Voxels of 1 mm along every axis of the result.

    Returns:
        Float32 ``[side, side, side]``, axes x (to the right), y (to the front), z (up).
    """
    from monai.data import MetaTensor
    from monai.transforms import CenterSpatialCrop, Spacing, SpatialPad

    z, y, x = volume.spacing
    hu = torch.from_numpy(volume.hu).flip(1).permute(2, 1, 0)[None].contiguous()
    image = MetaTensor(hu, affine=torch.from_numpy(np.diag([x, y, z, 1.0])))
    image = Spacing(pixdim=(SPACING_MM,) * 3, mode="bilinear")(image)
    image = SpatialPad((side,) * 3, mode="constant", value=AIR_HU)(image)
    return CenterSpatialCrop((side,) * 3)(image).as_tensor()[0].float().clamp(*SCORE_WINDOW)


class PlaneBackbone(nn.Module):
    """The 2D network: torchvision's SqueezeNet 1.1 (1000 logits) or RadImageNet's ResNet-50 (2048 features).

    Args:
        weights: State dict of torchvision's ``squeezenet1_1``, or of RadImageNet's ResNet-50 as it was
            converted from Keras to PyTorch (convolutions with biases).
        expected: SHA-256 the file must have; empty: any, it is reported.

    Attributes:
        sha256: Of the file.
        kind: Which of both.

    Raises:
        WeightsError: No such file, another hash or layout.
    """

    def __init__(self, weights: Path, expected: str = "") -> None:
        super().__init__()
        self.sha256 = checked_file(weights, expected, "the network of FID 2.5D")
        try:
            state = torch.load(weights, map_location="cpu", weights_only=True)
            self.kind = SQUEEZENET if "classifier.1.weight" in state else RADIMAGENET
            self.network = _squeezenet() if self.kind == SQUEEZENET else _radimagenet()
            self.network.load_state_dict(state)
        except (RuntimeError, pickle.UnpicklingError, TypeError, AttributeError) as error:
            raise WeightsError(
                f"{weights}: {str(error)[:300]}",
                f"a state dict of torchvision's {SQUEEZENET} or of RadImageNet's ResNet-50 with biases",
            ) from error
        self.requires_grad_(False)
        self.eval()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Images ``[N, 3, h, w]`` to features ``[N, d]``."""
        return self.network(images)

    def planes(self, volume: Tensor, device: torch.device) -> list[Tensor]:
        """Features ``[n, d]`` of all slices of a volume ``[x, y, z]`` from ``plane_volume``, per plane."""
        low, high = volume.min(), volume.max()
        means = torch.tensor(CHANNEL_MEANS, device=device).view(1, 3, 1, 1)
        found = []
        for axis in (2, 0, 1):  # what is left of x, y, z: the planes in the order of ``PLANES``
            parts = []
            for part in volume.movedim(axis, 0).split(SLICES_PER_PASS):
                scaled = (part.to(device) - low) / (high - low + 1e-10)
                parts.append(self(scaled.unsqueeze(1) - means).float().cpu())
            found.append(torch.cat(parts))
        return found


def _squeezenet() -> nn.Module:
    from torchvision.models import squeezenet1_1

    return squeezenet1_1(weights=None)


def _radimagenet() -> nn.Module:
    """Torchvision's ResNet-50 as Keras has it: biases, strides in a block's first convolution, another ε."""
    from torchvision.models import resnet50
    from torchvision.models.resnet import Bottleneck

    network = resnet50(weights=None, norm_layer=partial(nn.BatchNorm2d, eps=KERAS_EPSILON))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.bias = nn.Parameter(torch.zeros(module.out_channels))
        if isinstance(module, Bottleneck):
            module.conv1.stride, module.conv2.stride = module.conv2.stride, module.conv1.stride
    network.fc = nn.Identity()  # what is left is averaged over places
    return network
