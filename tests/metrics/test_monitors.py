"""Monitors against values worked out by hand, and on damage of known size."""

import itertools
import math

import numpy as np
import pytest
import torch

from ctflow.metrics.monitors import (
    CheckerboardMonitor,
    DriftMonitor,
    EndMonitor,
    MonitorRecord,
    SeamMonitor,
    VolumeMonitors,
    block_boundaries,
    boundary_ratios,
    checkerboard,
    sharpest_steps,
    slice_statistics,
    theil_sen,
    volume_end,
    white_slices,
)
from ctflow.metrics.monitors.drift import last_over_first
from ctflow.metrics.monitors.seam import body_mask, step_sizes
from ctflow.metrics.monitors.thresholds import THRESHOLDS, alarms, limit, tripped


def body(slices: int = 64, side: int = 32, step: float = 10.0, seed: int = 0) -> torch.Tensor:
    """A square body in air whose tissue changes by about ``step`` HU from slice to slice."""
    generator = torch.Generator().manual_seed(seed)
    hu = torch.full((slices, side, side), -1000.0)
    walk = torch.randn(slices, 16, 16, generator=generator).cumsum(0) * step
    hu[:, 8:24, 8:24] = walk.clamp(-300, 800)
    return hu


def test_steps_and_ratios_by_hand():
    hu = torch.full((7, 8, 8), -1000.0)
    hu[:, 2:6, 2:6] = torch.tensor([0.0, 2, 4, 12, 14, 16, 18]).view(7, 1, 1)
    assert body_mask(hu)[0].sum() == 16
    assert step_sizes(hu).tolist() == [2, 2, 8, 2, 2, 2]
    ratios = boundary_ratios(hu)
    assert ratios[2] == pytest.approx(4.0)
    assert ratios[3] == pytest.approx(2 / (2 * 8 * 2 * 2) ** 0.25)
    assert torch.isnan(ratios[[0, 1, 4, 5]]).all()


def test_small_steps_are_floored_and_given_slices_left_out():
    hu = torch.full((40, 8, 8), -1000.0)
    hu[:, 2:6, 2:6] = 40.0
    assert torch.all(step_sizes(hu) == 1.0)
    hu[:16] = float("nan")
    assert torch.isnan(boundary_ratios(hu)[:18]).all()
    assert torch.isfinite(boundary_ratios(hu)[18:-2]).all()


def test_lungs_are_inside_the_body():
    hu = torch.full((1, 9, 9), -1000.0)
    hu[0, 1:8, 1:8] = 40.0
    hu[0, 3:6, 3:6] = -850.0
    assert body_mask(hu)[0, 3:6, 3:6].all() and not body_mask(hu)[0, 0].any()


def test_seam_ratio_is_one_without_seams_and_rises_with_them():
    values = []
    for offset in (0.0, 20.0, 60.0):
        hu = body(96, seed=1)
        odd = (torch.arange(96) // 16) % 2 == 1
        hu[odd] = torch.where(hu[odd] > -900, hu[odd] + offset, hu[odd])
        monitor = SeamMonitor()
        monitor.update(hu)
        values.append(monitor.compute())
    assert values[0]["seam_ratio"] == pytest.approx(1.0, abs=0.1)
    assert values[0]["seam_ratio"] < values[1]["seam_ratio"] < values[2]["seam_ratio"]
    assert values[1]["seam_ratio"] > THRESHOLDS["seam_ratio"]


def test_seams_are_looked_for_where_overlapping_blocks_end():
    hu = body(96, seed=1)
    starts = [0, *range(16, 96, 12)]  # blocks of 16 that repeat 4 slices add 12 each
    for number, (start, end) in enumerate(itertools.pairwise([*starts, 96])):
        hu[start:end] = torch.where(hu[start:end] > -900, hu[start:end] + 60.0 * (number % 2), hu[start:end])
    assert torch.nonzero(block_boundaries(95, overlap=4)).flatten().tolist() == [s - 1 for s in starts[1:]]
    assert torch.nonzero(block_boundaries(50)).flatten().tolist() == [15, 31, 47]
    ratios = []
    for overlap in (0, 4):
        monitor = SeamMonitor()
        monitor.update(hu, overlap)
        ratios.append(monitor.compute()["seam_ratio"])
    assert ratios[1] > 1.5 and ratios[1] > 1.3 * ratios[0]


def test_patch_seams_are_told_from_block_seams():
    hu = body(96, seed=2)
    pairs = (torch.arange(96) // 2) % 2 == 1
    hu[pairs] = torch.where(hu[pairs] > -900, hu[pairs] + 30, hu[pairs])
    monitor = SeamMonitor()
    monitor.update(hu)
    assert monitor.compute()["seam_ratio_patch"] > 1.3


@pytest.mark.parametrize("factor", [1.5, 3.0])
def test_sharpest_steps_are_the_jumps_between_slices(factor):
    """Slices one unit apart but for jumps: a jump of f units over neighbours of one unit gives f."""
    heights = torch.ones(49)
    heights[12::12] = factor
    hu = (20.0 * heights.cumsum(0))[:, None, None].expand(-1, 8, 8)
    # Four of 46 steps jump, and a twelfth of 46 are three.
    assert sharpest_steps(hu).item() == pytest.approx(factor)
    monitor = VolumeMonitors()
    monitor.update(hu, requested=49)
    monitor.update(hu[:3], requested=3)  # three neighbouring steps take four slices
    assert monitor.compute()["sharpest_steps"] == pytest.approx(factor)


def test_given_slices_have_no_sharp_steps():
    hu = torch.arange(20.0)[:, None, None].mul(20).expand(-1, 8, 8).clone()
    hu[:10] = torch.nan
    assert sharpest_steps(hu).item() == pytest.approx(1.0)
    assert sharpest_steps(hu[:11]).isnan()


def test_no_boundary_gives_no_number():
    monitor = SeamMonitor()
    monitor.update(body(10))
    assert math.isnan(monitor.compute()["seam_ratio"])


def test_white_slices_and_the_end():
    hu = torch.zeros(10, 4, 4)
    hu[3] = 1000.0
    hu[7:] = 900.0
    hu[9, 0, 0] = 0.0  # 15 of 16 voxels are still 90 %
    white = white_slices(hu)
    assert torch.nonzero(white).flatten().tolist() == [3, 7, 8, 9]
    assert volume_end(white) == 7
    monitor = EndMonitor()
    monitor.update(hu, requested=40)
    monitor.update(torch.zeros(40, 4, 4), requested=40)
    assert monitor.compute() == {"premature": 0.5, "length_error": 33 / 2, "interior_white": 0.5}
    assert volume_end(torch.ones(3, dtype=torch.bool)) == 0


def test_checkerboard_of_noise_is_one_over_the_slices_and_of_a_grid_is_large():
    generator = torch.Generator().manual_seed(3)
    noise = 10 * torch.randn(5, 64, 64, generator=generator)
    for period, value in checkerboard(noise).items():
        assert value == pytest.approx(1 / 5, abs=0.2 if period == 2 else 0.12)
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    grid = 20.0 * ((rows + columns) % 2)
    found = checkerboard(grid.repeat(2, 1, 1).float())
    assert found[2] == pytest.approx(64 * 64 / 4, rel=0.2)  # all variance is in the fold
    monitor = CheckerboardMonitor()
    monitor.update(noise + 5 * grid)
    monitor.update(torch.full((2, 64, 64), float("nan")))
    assert monitor.compute()["checkerboard_2"] > 10 * THRESHOLDS["checkerboard_2"]


def test_a_limit_follows_real_volumes_where_these_lie_high():
    assert limit("checkerboard_4") == 0.83
    assert limit("checkerboard_4", real=0.1) == 0.83
    assert limit("checkerboard_4", real=2.0) == 3.0
    assert limit("seam_ratio", real=2.0) == THRESHOLDS["seam_ratio"]
    assert alarms({"checkerboard_4": 2.5}) and not alarms({"checkerboard_4": 2.5}, {"checkerboard_4": 2.0})


def test_checkerboard_leaves_given_slices_out():
    hu = torch.randn(6, 32, 32, generator=torch.Generator().manual_seed(4))
    padded = torch.cat([torch.full((4, 32, 32), float("nan")), hu])
    assert checkerboard(padded) == checkerboard(hu)
    assert all(math.isnan(v) for v in checkerboard(padded[:4]).values())


def test_drift_statistics_and_slope():
    assert theil_sen([1.0, 3.0, math.nan, 7.0]) == pytest.approx(2.0)
    assert math.isnan(theil_sen([math.nan, 2.0]))
    assert last_over_first([math.nan, 2.0, 5.0]) == 2.5
    flat = slice_statistics(torch.full((2, 8, 8), 30.0))
    torch.testing.assert_close(flat, torch.tensor([[30.0, 0.0, 0.0]] * 2, dtype=torch.float64))


def test_drift_rises_from_window_to_window():
    real = [body(64, seed=s, step=3.0) for s in range(6)]
    still, drifting = DriftMonitor(), DriftMonitor()
    for volume in real:
        for monitor in (still, drifting):
            monitor.update(volume, real=True)
    for seed in range(6, 12):
        volume = body(64, seed=seed, step=3.0)
        still.update(volume, real=False)
        drifting.update(volume + 40.0 * (torch.arange(64) // 16).view(-1, 1, 1), real=False)
    assert drifting.compute()["drift_z_slope"] > still.compute()["drift_z_slope"] + 0.2
    assert drifting.compute()["drift_z"] > still.compute()["drift_z"]


def test_alarms_name_what_tripped():
    found = alarms({"seam_ratio": 1.5, "checkerboard_2": 0.5, "drift_z": 9.0, "premature": math.nan})
    assert len(found) == 1 and "seam_ratio" in found[0]
    assert not tripped("seam_ratio", 1.0) and not tripped("unknown", 1e9)


def test_monitors_take_numpy_backed_volumes():
    monitor = SeamMonitor()
    monitor.update(torch.from_numpy(np.asarray(body(40))))
    assert math.isfinite(monitor.compute()["seam_ratio"])


def test_bundle_cuts_end_slices_off_and_agrees_with_its_parts():
    volume = torch.cat([body(40, seed=5), torch.full((8, 32, 32), 1000.0)])
    bundle, seam = VolumeMonitors(), SeamMonitor()
    bundle.update(volume, requested=40)
    bundle.update(torch.zeros(0, 32, 32), requested=40)
    bundle.update_real(body(40, seed=6))
    seam.update(volume[:40])
    found = bundle.compute()
    assert found["seam_ratio"] == seam.compute()["seam_ratio"]
    assert (found["premature"], found["length_error"], found["interior_white"]) == (0.5, 20.0, 0.0)
    assert math.isfinite(found["drift_z"])
    kept = VolumeMonitors()
    kept.update(MonitorRecord.of(volume), requested=40)
    kept.update(MonitorRecord.of(torch.zeros(0, 32, 32)), requested=40)
    kept.update_real(MonitorRecord.of(body(40, seed=6)))
    assert kept.compute() == found  # what is kept of a volume says as much as the volume
    bundle.reset()
    bundle.update(body(40), requested=40)
    assert bundle.compute()["premature"] == 0.0
