"""Metrics and monitors on a real chest: near one where nothing is wrong, rising with damage of known size."""

import numpy as np
import pytest
import torch

from ctflow.data.nifti import read_nifti
from ctflow.metrics import FrechetClipMetric, FrechetSliceMetric
from ctflow.metrics.damage import DAMAGES
from ctflow.metrics.images import at_side
from ctflow.metrics.monitors import SeamMonitor, checkerboard
from ctflow.metrics.monitors.thresholds import tripped

SIDE = 64


@pytest.fixture(scope="module")
def chest(shared_dir) -> np.ndarray:
    """The LIDC chest ``[275, 64, 64]`` in HU."""
    volume = read_nifti(shared_dir / "real_ct" / "ct_chest_lidc0314_hu.nii.gz")
    return at_side(torch.from_numpy(volume.hu).clamp(-1000, 1000), SIDE).numpy()


def monitors(hu: np.ndarray) -> dict[str, float]:
    seam = SeamMonitor()
    seam.update(torch.from_numpy(hu))
    return seam.compute() | {f"checkerboard_{p}": v for p, v in checkerboard(torch.from_numpy(hu)).items()}


@pytest.mark.slow
def test_no_monitor_raises_an_alarm_on_a_real_chest(chest):
    for spacing in (1, 2, 4):
        values = monitors(chest[::spacing])
        assert not [name for name, value in values.items() if tripped(name, value)], values
        assert values["seam_ratio"] == pytest.approx(1.0, abs=0.1)


@pytest.mark.slow
def test_a_seam_and_a_grid_raise_theirs(chest):
    rng = np.random.default_rng(0)
    seam = monitors(DAMAGES["seam"][0](chest[::2], 50.0, rng))
    grid = monitors(DAMAGES["checkerboard"][0](chest[::2], 15.0, rng))
    assert tripped("seam_ratio", seam["seam_ratio"]) and not tripped("checkerboard_2", seam["checkerboard_2"])
    assert tripped("checkerboard_2", grid["checkerboard_2"]) and not tripped("seam_ratio", grid["seam_ratio"])


@pytest.mark.slow
def test_distances_rise_with_every_damage(chest):
    """Every second slice is the reference, the slices between are damaged."""
    blind = {("fid_rand2d", "shuffle")}  # slices have no order there
    for metric in (FrechetSliceMetric(), FrechetClipMetric(16)):
        clips = isinstance(metric, FrechetClipMetric)

        def images(hu, clips=clips):
            if not clips:
                return torch.from_numpy(hu).unsqueeze(1)
            return torch.from_numpy(np.stack([hu[s : s + 16] for s in range(0, len(hu) - 15, 4)])).unsqueeze(
                1
            )

        def distance(hu, metric=metric, images=images):
            metric.reset()
            metric.update(images(chest[::2]), real=True)
            metric.update(images(hu), real=False)
            return float(metric.compute())

        floor = distance(chest[1::2])
        for name, (damage, levels) in DAMAGES.items():
            if (metric.name, name) in blind:
                continue
            mild, strong = (
                distance(damage(chest[1::2], levels[i], np.random.default_rng(0))) for i in (1, 3)
            )
            assert floor < mild < strong, (metric.name, name, floor, mild, strong)
