"""What makes a whole chest, and what is flagged as something else."""

from __future__ import annotations

import numpy as np
import pytest
from ct_rate_scans import SPACING, chest

from data_prep.ct_rate.screening import screen

HU = chest()


def flags(hu, coverage=None) -> list[str]:
    return [
        code for code, _ in screen(hu, SPACING, len(hu) * SPACING[0] if coverage is None else coverage)[1]
    ]


def test_a_whole_chest_has_no_flag_and_its_lungs_are_measured():
    measured, found = screen(HU, SPACING, 220.0)
    assert found == []
    lungs = [
        float(((HU < -600) & (HU > -950))[:, 8:56, side].sum()) for side in (slice(0, 32), slice(32, 64))
    ]
    for name, voxels in zip(("lung_left_ml", "lung_right_ml"), lungs, strict=True):
        assert measured[name] == pytest.approx(voxels * np.prod(SPACING) / 1000, rel=0.1)


def test_the_measures_do_not_depend_on_the_grid():
    fine = np.repeat(np.repeat(np.repeat(HU, 2, 0), 2, 1), 2, 2)
    measured, found = screen(fine, (2.5, 2.75, 2.75), 220.0)
    coarse, _ = screen(HU, SPACING, 220.0)
    assert found == [] and measured["lung_ml"] == pytest.approx(coarse["lung_ml"], rel=0.05)


def test_another_part_of_the_body():
    head = np.where((HU < -300) & (np.abs(np.linspace(-1, 1, 64)) < 0.75), 30, HU)
    assert "not_chest" in flags(head)


def test_one_lung():
    filled = HU.copy()
    inside = filled[:, 10:54, 10:32]
    inside[inside < -600] = 40
    assert flags(filled) == ["one_lung"]


def test_lungs_that_go_on_beyond_the_scan():
    assert flags(HU[:22]) == ["short_coverage"]
    assert flags(HU[22:]) == ["short_coverage"]
    assert flags(HU, coverage=100.0) == ["short_coverage"]


def test_a_crop():
    assert "cropped_field" in flags(HU[:, 16:48, 12:52])
