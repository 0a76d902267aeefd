"""The challenge's definitions on values worked out by hand, and its networks' layouts."""

import numpy as np
import pytest
import scipy
import torch
from torch import nn
from torchvision.models import squeezenet1_1

from ctflow.errors import MetricError, WeightsError
from ctflow.metrics.challenge import clip_input, clip_score
from ctflow.metrics.ctnet import FEATURES, CTNet, ctnet_input, stratified_fvd
from ctflow.metrics.planes import (
    CHANNEL_MEANS,
    PLANES,
    RADIMAGENET,
    SQUEEZENET,
    PlaneBackbone,
    _radimagenet,
    plane_volume,
)
from ctflow.types import HUVolume

SQUARE = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])


def test_ctnet_sees_the_stretched_volume():
    stored = torch.tensor([-3000.0, 2000.0]).view(2, 1, 1)  # clipped to ±1000 before it is stretched
    hu = torch.tensor([-1000.0, -500.0, 500.0, 1000.0])  # a quarter of the way from centre to centre
    expected = (hu.clamp(-1000, 200) + 1000) / 1200 - 0.449
    torch.testing.assert_close(ctnet_input(stored, (4, 2, 3)), expected.view(4, 1, 1).expand(4, 2, 3))


@pytest.mark.parametrize("regularised", [False, True])
def test_fvd_is_taken_by_strata(regularised):
    shift, wide = torch.tensor([3.0, 0.0]), torch.tensor([1.0, 0.0])
    fake = torch.cat([SQUARE, 2 * SQUARE, SQUARE[:2]])
    real = torch.cat([SQUARE + shift, SQUARE + wide, SQUARE[:2]])
    # |3|²; |1|² + 2 (2σ - σ)² with σ² = 4/3; nothing
    expected = [9.0, 1.0 + 2 * 4 / 3, 0.0]
    assert stratified_fvd(fake, real, regularised) == pytest.approx(expected, abs=1e-4)


def test_regularised_fvd_is_the_published_formula():
    generator = torch.Generator().manual_seed(0)
    fake, real = (torch.rand(4, 7, generator=generator).double() for _ in range(2))
    first, second = (np.cov(x.numpy(), rowvar=False) for x in (fake, real))
    added = 1e-6 * np.trace(first + second) / 7 * np.eye(7)
    first, second = first + added, second + added
    root = np.real(scipy.linalg.sqrtm(first @ second))
    expected = ((fake.mean(0) - real.mean(0)) ** 2).sum() + np.trace(first + second - 2 * root)
    assert stratified_fvd(fake, real, True) == pytest.approx([float(expected)], rel=1e-3)


def test_a_stratum_of_one_and_unequal_sets_have_no_number():
    for fake, real in (
        (SQUARE[:1], SQUARE[:1]),
        (SQUARE, SQUARE[:3]),
        (torch.cat([SQUARE, SQUARE[:1]]),) * 2,
    ):
        with pytest.raises(MetricError, match="strata"):
            stratified_fvd(fake, real, True)


def test_a_cut_file_says_so(tmp_path):
    path = tmp_path / "CTNet28"
    torch.save({"params": {"features.0.weight": torch.zeros(1000)}}, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(WeightsError, match=r"2,000 bytes\) is cut.*\n.*\n.*organisers"):
        CTNet(path)
    torch.save({"params": {"features.0.weight": torch.zeros(3)}}, path)
    with pytest.raises(WeightsError, match="18 labels"):
        CTNet(path)
    torch.save({"weights": 1}, path)
    with pytest.raises(WeightsError, match="params"):
        CTNet(path)


@pytest.mark.slow
def test_ctnet_from_its_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(CTNet, "load_state_dict", lambda self, state: None)
    path = tmp_path / "ctnet"
    torch.save({"params": {}}, path)
    network = CTNet(path)
    monkeypatch.undo()
    torch.save({"params": {f"module.{key}": value for key, value in network.state_dict().items()}}, path)
    features = CTNet(path)(torch.rand(1, 402, 420, 420) - 0.449)
    assert features.shape == (1, FEATURES) and (features >= 0).all()


def test_clip_sees_the_file_as_it_is_stored():
    stored = torch.full((2, 4, 4), 500.0)
    shown = clip_input(stored, (3.0, 1.0, 1.0), (6, 4, 3), (1.5, 1.0, 1.0))
    # 2 slices of 3 mm are 4 of 1.5 mm, one before and one behind them of -1 HU; of 4 columns the first goes
    expected = torch.full((1, 1, 6, 4, 3), 0.5)
    expected[:, :, [0, 5]] = -0.001
    torch.testing.assert_close(shown, expected)
    ramp = torch.arange(4.0).view(1, 1, 4).expand(1, 4, 4)
    torch.testing.assert_close(
        clip_input(ramp, (1, 1, 1), (1, 4, 3), (1, 1, 1))[0, 0, 0, 0] * 1000, ramp[0, 0, 1:]
    )
    assert clip_score(torch.tensor([3.0, 4.0]), torch.tensor([6.0, 8.0])) == pytest.approx(100)
    assert clip_score(torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 0.0])) == 0


def test_three_planes_of_the_whole_volume_by_hand():
    volume = torch.arange(24.0).view(2, 3, 4)  # x, y, z

    class Means(nn.Module):
        def forward(self, images):
            return images.mean((2, 3))

    found = PlaneBackbone.planes(Means(), volume, torch.device("cpu"))
    scaled = volume / 23
    for values, mean in zip(
        found, (scaled.mean((0, 1)), scaled.mean((1, 2)), scaled.mean((0, 2))), strict=True
    ):
        torch.testing.assert_close(values, mean[:, None] - torch.tensor(CHANNEL_MEANS))
    assert [len(values) for values in found] == [4, 2, 3] and PLANES == ("xy", "yz", "xz")


def test_the_planes_grid_is_one_millimetre_of_ras():
    hu = np.full((3, 4, 4), -1000, np.float32)
    hu[0, 0, 3] = 3000  # lowest, in front, right
    grid = plane_volume(HUVolume(hu, (2.0, 1.0, 1.0)), side=8)
    assert grid.shape == (8, 8, 8) and grid.min() == -1000 and grid.max() == 1000
    assert (grid > -1000).nonzero().float().mean(0).tolist() == pytest.approx([5, 5, 1.5], abs=0.51)


@pytest.mark.parametrize(
    ("kind", "make", "width"), [(SQUEEZENET, squeezenet1_1, 1000), (RADIMAGENET, _radimagenet, 2048)]
)
def test_networks_of_the_planes(kind, make, width, tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "weights.pth"
    torch.save({k: v for k, v in make().state_dict().items() if not k.startswith("fc")}, path)
    network = PlaneBackbone(path)
    assert network.kind == kind and network(torch.rand(2, 3, 40, 40)).shape == (2, width)
    if kind == RADIMAGENET:  # as Keras has it
        block = network.network.layer2[0]
        assert (block.conv1.stride, block.conv2.stride) == ((2, 2), (1, 1)) and block.conv3.bias is not None
    torch.save({"other": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match="squeezenet1_1"):
        PlaneBackbone(path)
