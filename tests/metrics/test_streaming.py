"""The validation metrics: frozen weights, streaming equals batch, damage raises the distance."""

import pytest
import torch
from torch import nn

from ctflow.metrics import FrechetClipMetric, FrechetSliceMetric, MetricError
from ctflow.metrics.ct_backbone import ct_input
from ctflow.metrics.frechet import frechet_from_features
from ctflow.metrics.images import slices_at, three_channels, to_uint8
from ctflow.metrics.random_backbone import RandomBackbone, projected_features, projection, projection_width
from ctflow.metrics.statistics import DiagonalFrechetStatistic, KernelStatistic
from ctflow.metrics.streaming import FeatureNetwork, FrechetVolumeMetric


def images(n: int, seed: int, size: int = 24) -> torch.Tensor:
    """Smooth random pictures in HU ``[n, 1, size, size]``."""
    coarse = torch.randn(n, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
    return 400 * torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic") - 200


def test_streamed_equals_kept_features():
    real, fake = images(40, 1), images(36, 2) + 60
    metric = FrechetSliceMetric(batch=7)
    metric.update(real[:13], real=True)
    metric.update(real[13:], real=True)
    metric.update(fake, real=False)
    backbone = RandomBackbone(2)
    kept = projected_features(backbone(to_uint8(real)), backbone(to_uint8(fake)))
    assert float(metric.compute()) == pytest.approx(float(frechet_from_features(*kept)), rel=1e-6)
    assert kept[0].shape[1] == 16
    assert kept[0].mean(0).abs().max() < 1e-9  # centred on the real set, for the kernel distance
    kernel = KernelStatistic([kept[1]], [kept[0]])([0], [0])
    assert 0 < kernel < 100


def test_two_metrics_whose_sums_are_added_equal_one():
    real, fake = images(20, 3), images(20, 4)
    parts = [FrechetSliceMetric() for _ in range(3)]  # the third never sees an image
    whole = FrechetSliceMetric()
    for metric, rows in ((parts[0], slice(0, 9)), (parts[1], slice(9, 20)), (whole, slice(0, 20))):
        metric.update(real[rows], real=True)
        metric.update(fake[rows], real=False)
    merged = FrechetSliceMetric()
    merged.update(real[:1], real=True)
    merged.reset()
    for key in parts[0].metric_state:
        setattr(merged, key, sum(p.metric_state[key] for p in parts))
    assert float(merged.compute()) == pytest.approx(float(whole.compute()), rel=1e-9)


def test_too_few_images_give_no_number():
    metric = FrechetSliceMetric()
    metric.update(images(4, 5), real=True)
    metric.update(images(1, 6), real=False)
    assert torch.isnan(metric.compute())


def test_nan_and_wrong_shapes_are_refused():
    metric = FrechetSliceMetric()
    bad = images(3, 7)
    bad[1, 0, 3, 3] = float("nan")
    with pytest.raises(MetricError, match="NaN"):
        metric.update(bad, real=False)
    with pytest.raises(MetricError, match="shape"):
        metric.update(bad[:, 0], real=False)
    with pytest.raises(ValueError, match="16 slices"):
        FrechetClipMetric(16).update(torch.zeros(1, 1, 8, 16, 16), real=True)


def test_clip_metric_sees_shuffled_slices_and_its_name_tells_the_length():
    clips = images(24 * 3, 8).reshape(24, 3, 24, 24).repeat_interleave(6, 1).unsqueeze(1)[:, :, :16]
    other = images(24 * 3, 9).reshape(24, 3, 24, 24).repeat_interleave(6, 1).unsqueeze(1)[:, :, :16]
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    values = {}
    for name, fake in (("same", other), ("shuffled", other[:, :, order])):
        metric = FrechetClipMetric(16)
        metric.update(clips, real=True)
        metric.update(fake, real=False)
        values[name] = float(metric.compute())
    assert metric.name == "fvd_rand3d_f16"
    assert values["shuffled"] > 1.5 * values["same"]


def test_autocast_does_not_touch_the_sums():
    outside, inside = FrechetSliceMetric(), FrechetSliceMetric()
    outside.update(images(6, 10), real=True)
    with torch.autocast("cpu", torch.bfloat16):
        inside.update(images(6, 10), real=True)
    torch.testing.assert_close(inside.real_outer, outside.real_outer, rtol=1e-12, atol=0)
    assert inside.real_outer.dtype == torch.float64


def test_projection_is_orthogonal_and_its_width_follows_the_sample():
    assert (projection_width(255), projection_width(256)) == (16, 64)
    matrix = projection(480, torch.ones(480), 64)
    torch.testing.assert_close(matrix.T @ matrix, torch.eye(64, dtype=torch.float64))
    torch.testing.assert_close(projection(480, torch.ones(480), 16), matrix[:, :16])


def test_weights_that_differ_are_refused(monkeypatch):
    monkeypatch.setattr("ctflow.metrics.random_backbone.STREAM", "another stream")
    with pytest.raises(RuntimeError, match="hash"):
        RandomBackbone(2)


def test_window_by_hand():
    hu = torch.tensor([-2000.0, -1000.0, 0.0, 500.0, 1000.0, 3000.0])
    assert to_uint8(hu).tolist() == [0, 0, 128, 191, 255, 255]


def test_resampling_keeps_flat_images_and_three_channels_are_equal():
    at = slices_at(torch.full((2, 1, 16, 16), 40.0), 32)
    assert at.shape == (2, 1, 32, 32)
    assert at.unique().tolist() == [133]
    assert three_channels(at).shape == (2, 3, 32, 32)


class Shares(nn.Module):
    """A volume network's convention ``[N, 1, z, x, y]`` to features: shares of bright voxels."""

    def forward(self, volumes: torch.Tensor) -> torch.Tensor:
        return torch.stack([(volumes > level).float().mean((1, 2, 3, 4)) for level in (0.2, 0.5, 0.8)], 1)


@pytest.mark.parametrize("number", [3, 5])
def test_whole_volumes_take_the_form_their_number_allows(number, monkeypatch):
    monkeypatch.setattr(ct_input, "__defaults__", ((4, 8, 8),))
    metric = FrechetVolumeMetric(FeatureNetwork("fd_ct3d", Shares(), 3))
    real, fake = ([images(6, seed + i)[:, 0] for i in range(number)] for seed in (0, 50))
    for volume in real:
        metric.update(volume, real=True)
    for volume in real:  # forgotten below
        metric.update(volume, real=False)
    assert abs(float(metric.compute())) < 1e-8
    metric.forget_fake()
    for volume in fake:
        metric.update(volume, real=False)
    x, y = (torch.cat([Shares()(ct_input(v)) for v in side]).double() for side in (fake, real))
    few = DiagonalFrechetStatistic([x], [y])([0], [0])
    expected = few if number <= 3 else float(frechet_from_features(x, y))
    assert metric.name == "fd_ct3d" and float(metric.compute()) == pytest.approx(expected, rel=1e-6)
