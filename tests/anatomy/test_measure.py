"""Anatomy read from shapes whose volumes and places are known exactly."""

from __future__ import annotations

import numpy as np
import pytest

from ctflow.anatomy import Measurement, findings, measure
from ctflow.errors import CTFlowError
from ctflow.types import HUVolume

SPACING = (4.0, 3.4, 3.4)
SHAPE = (56, 96, 96)


def axes_mm() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    z, y, x = (np.arange(n) * s for n, s in zip(SHAPE, SPACING, strict=True))
    return (
        z[:, None, None] - z.mean(),
        y[None, :, None] - y.mean(),
        x[None, None, :] - x.mean(),
    )


def ellipsoid(center: tuple[float, float, float], radii: tuple[float, float, float]) -> np.ndarray:
    return sum(((a - c) / r) ** 2 for a, c, r in zip(axes_mm(), center, radii, strict=True)) < 1


def chest(bridge: bool = False, fluid: str = "", table: bool = True) -> tuple[HUVolume, dict[str, float]]:
    """A body with unequal lungs, heart, spine, ring of ribs, trachea; and the true aerated millilitres."""
    z, y, x = axes_mm()
    hu = np.full(SHAPE, -1000.0, np.float32)
    if table:
        hu[:, 88:91, 10:86] = 60.0
    body = ((x / 150) ** 2 + (y / 112) ** 2 < 1) & (z > -1e9)
    hu[body] = 50.0
    # A ring of ribs: bone in two of five slices.
    ring = np.abs(np.hypot(x / 126, y / 92) - 1.0) < 0.05
    hu[ring & ((np.arange(SHAPE[0]) % 5) < 2)[:, None, None]] = 420.0
    lungs = {
        "right": ellipsoid((0, 0, 62), (95, 84, 56)),
        "left": ellipsoid((0, 0, -64), (95, 84, 50)),
    }
    if bridge:
        lungs["right"] |= (np.abs(z) < 40) & (np.abs(y + 60) < 14) & (x > -1) & (x < 40)
        lungs["left"] |= (np.abs(z) < 40) & (np.abs(y + 60) < 14) & (x <= -1) & (x > -40)
    for mask in lungs.values():
        hu[mask] = -840.0
    if fluid:
        pool = lungs[fluid] & (y > 38)
        hu[pool] = 10.0
        lungs[fluid] &= ~pool
    heart = ellipsoid((-30, -28, -12), (48, 46, 56))
    hu[heart] = 42.0
    for side in lungs:
        lungs[side] &= ~heart
    hu[(np.hypot(x, y - 74) < 18) & (z > -1e9)] = 330.0
    hu[(np.hypot(x, y - 6) < 9) & (z > 12)] = -990.0
    voxel = float(np.prod(SPACING)) / 1000.0
    noise = np.random.default_rng(0).normal(0, 12, SHAPE).astype(np.float32)
    return HUVolume(hu + noise, SPACING), {side: float(m.sum()) * voxel for side, m in lungs.items()}


def test_volumes_sides_and_presence_on_known_shapes():
    volume, true = chest()
    m = measure(volume)
    for side in ("left", "right"):
        assert m.lungs.volume_ml[side] == pytest.approx(true[side], rel=0.06)
    assert m.lungs.volume_ml["right"] > m.lungs.volume_ml["left"]  # the right one lies at high columns
    assert m.body.present and m.spine.present and m.heart.present and m.trachea.present
    assert m.spine.center[28][1:] == pytest.approx((47.5 + 74 / 3.4, 47.5), abs=2.0)
    assert m.trachea.diameter_mm == pytest.approx(18, abs=3)
    assert m.heart.width_mm == pytest.approx(112, abs=14)
    assert m.effusion_ml == {"left": pytest.approx(0, abs=30), "right": pytest.approx(0, abs=30)}
    assert "Pleural effusion" not in findings(m) and "Consolidation" not in findings(m)


def test_touching_lungs_are_split():
    volume, true = chest(bridge=True)
    m = measure(volume)
    for side in ("left", "right"):
        assert m.lungs.volume_ml[side] == pytest.approx(true[side], rel=0.08)


@pytest.mark.parametrize("side", ["left", "right"])
def test_fluid_is_found_on_its_side_only(side):
    volume, true = chest(fluid=side)
    m = measure(volume)
    found = findings(m)["Pleural effusion"]
    assert [item.side for item in found] == [side]
    dry = chest()[1][side]
    assert found[0].size == pytest.approx(dry - true[side], rel=0.3)


def test_slices_of_a_millimetre_are_refused():
    with pytest.raises(CTFlowError, match=r"1 × 1 mm.*\n.*between 20 and 1500 mm"):
        measure(HUVolume(np.zeros((8, 64, 64), np.float32), (1.0, 1 / 64, 1 / 64)))


def test_in_plane_resolution_does_not_change_the_volumes():
    volume, _ = chest()
    fine = HUVolume(
        volume.hu.repeat(2, axis=1).repeat(2, axis=2), (SPACING[0], SPACING[1] / 2, SPACING[2] / 2)
    )
    coarse, doubled = measure(volume), measure(fine)
    assert doubled.lungs.volume_ml == pytest.approx(coarse.lungs.volume_ml, rel=1e-3)
    # Places are in voxels of the measured volume.
    assert doubled.trachea.path[-1][1] == pytest.approx(2 * coarse.trachea.path[-1][1] + 0.5, abs=0.1)


@pytest.mark.parametrize(
    "hu",
    [
        np.full((20, 48, 48), -1000.0),
        np.full((20, 48, 48), 40.0),
        np.random.default_rng(0).normal(-300, 400, (20, 48, 48)),
        np.full((1, 16, 16), -1000.0),
        np.random.default_rng(1).normal(0, 500, (3, 32, 32)),
    ],
    ids=["air", "water", "noise", "one slice", "tiny noise"],
)
def test_what_is_no_chest_has_nothing_in_it(hu):
    m = measure(HUVolume(hu.astype(np.float32), (4.0, 3.0, 3.0)))
    assert isinstance(m, Measurement)
    assert not any(m.lungs.present.values())
    assert not m.heart.present and not m.trachea.present
    assert not {"Pleural effusion", "Consolidation"} & findings(m).keys()


def test_values_that_are_not_finite_are_taken_for_air():
    volume, true = chest()
    hu = volume.hu.copy()
    hu[:, :3] = np.nan
    m = measure(HUVolume(hu, SPACING))
    assert m.lungs.volume_ml["right"] == pytest.approx(true["right"], rel=0.06)


def test_measuring_can_be_ended_between_organs() -> None:
    volume, _ = chest()
    asked: list[int] = []
    assert measure(volume, lambda: asked.append(1)) == measure(volume)
    assert len(asked) >= 10

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(volume, stop)
