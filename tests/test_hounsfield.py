"""Values that are HU, and the scales that other values are recognised as."""

from __future__ import annotations

import numpy as np
import pytest

from ctflow.hounsfield import scale_of, why_not_hu


def chest(shape=(40, 64, 64)):
    """HU with noise: air around a trunk with two lungs and a spine."""
    s, p, r = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    hu = np.full(shape, -1000.0)
    hu[(p / 0.7) ** 2 + (r / 0.9) ** 2 < 1] = 45
    for side in (-1, 1):
        hu[((p / 0.5) ** 2 + ((r - side * 0.4) / 0.3) ** 2 + (s / 0.8) ** 2) < 1] = -850
    hu[((p - 0.5) ** 2 + r**2) < 0.012] = 500
    return np.rint(hu + np.random.default_rng(0).normal(0, 12, shape)).clip(-1024, 3000)


HU = chest()
UNIT = (HU.clip(-1000, 1000) + 1000) / 2000


def test_hu_are_hu():
    assert why_not_hu(HU) is None


@pytest.mark.parametrize(
    ("values", "name", "remedy"),
    [
        (UNIT, "[0, 1]", "-1000 and 1000"),
        ((HU.clip(-1000, 600) + 1000) / 1600, "[0, 1]", "window"),
        (2 * UNIT - 1, "[-1, 1]", "multiply by 1000"),
        (2 * (HU.clip(-1000, 400) + 1000) / 1400 - 1, "[-1, 1]", "window"),
        (HU / 1000, "HU / 1000", "multiply by 1000"),
        (np.rint(255 * UNIT), "0…255", "255"),
        (HU + 1024, "HU + 1000 or 1024", "subtract"),
        (HU + 1000, "HU + 1000 or 1024", "subtract"),
        (HU + 32768, "HU + 32768", "subtract 32768"),
        (HU % 65536, "wrapped", "signed"),
        (-HU, "sign turned", "-1"),
        (np.rint(65535 * UNIT), "0…65535", "65535"),
        (10 * HU, "times 10", "divide"),
        (HU.clip(0), "cut off", "signed"),
        (np.where(HU < -900, 0, HU).clip(0), "cut off", "signed"),
        (0.02 * (1 + HU / 1000).clip(0), "attenuation per mm", "water"),
        ((HU - HU.mean()) / HU.std(), "z-scores", "std"),
    ],
)
def test_other_scales_are_recognised(values, name, remedy):
    assert why_not_hu(values) is not None
    told = str(scale_of(values))
    assert name in told and remedy in told


def test_what_is_of_no_known_scale():
    noise = np.random.default_rng(0)
    shape = (20, 32, 32)
    for values in (
        noise.normal(0, 400, shape),
        noise.uniform(-1000, 1000, shape),
        HU - 1024,
        np.full((9, 9), np.nan),
        np.zeros(5),
    ):
        assert scale_of(values) is None
