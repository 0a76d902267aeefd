"""What is in a phantom's voxels against its truth."""

from __future__ import annotations

from itertools import count

import numpy as np
import pytest

from data_prep.phantom import (
    LABELS,
    Finding,
    PhantomSpec,
    contrast_pair,
    make_phantom,
    mirrored_pair,
    requested_finding,
    sample_spec,
)


@pytest.fixture(scope="module")
def healthy() -> PhantomSpec:
    """One patient without findings on a coarse grid, complete lungs."""
    specs = (sample_spec(11, index, 64, 5.0).with_findings() for index in count())
    return next(spec for spec in specs if make_phantom(spec).truth["coverage"]["lungs_complete"])


def voxel_ml(phantom) -> float:
    return float(np.prod(phantom.volume.spacing)) / 1000.0


def test_same_spec_same_voxels_other_spec_other_voxels(healthy):
    first, second = make_phantom(healthy), make_phantom(healthy)
    np.testing.assert_array_equal(first.volume.hu, second.volume.hu)
    other = make_phantom(sample_spec(11, 1, 64, 5.0))
    assert other.volume.hu.shape != first.volume.hu.shape or np.any(other.volume.hu != first.volume.hu)


def test_organs_lie_where_the_truth_says(healthy):
    phantom = make_phantom(healthy, masks=True)
    hu, anatomy = phantom.volume.hu, phantom.truth["anatomy"]
    middle = hu.shape[0] // 2
    row, column = (round(v) for v in anatomy["spine_center_voxel"])
    assert hu[middle, row - 1 : row + 2, column - 1 : column + 2].mean() > 80
    for end in ("top_voxel", "bottom_voxel"):
        s, r, c = (round(v) for v in anatomy["trachea"][end])
        assert hu[min(s, hu.shape[0] - 1), r, c] < -600
    for side in ("left", "right"):
        mask = phantom.masks[f"lung_{side}"] > 0
        assert abs(mask.sum() * voxel_ml(phantom) / anatomy["lung_volume_ml"][side] - 1) < 0.06
        assert 1000 < anatomy["lung_volume_ml"][side] < 4500
        assert np.median(hu[mask]) < -700
        columns = np.nonzero(mask)[2]
        assert (columns.mean() > 32) == (side == "right")  # columns run from the left to the right
    # The liver is on the patient's right at the bottom; there the left holds the stomach's gas.
    low = phantom.truth["coverage"]
    dome = int((healthy.anatomy.dome_z - 40 - low["bottom_mm"]) / phantom.volume.spacing[0])
    right_side = hu[dome, 24:44, 42:50]
    assert np.mean((right_side > 20) & (right_side < 200)) > 0.6


def test_cardiothoracic_ratio(healthy):
    for ratio in (0.42, 0.62):
        spec = healthy.with_findings(Finding("Cardiomegaly", ratio=ratio))
        anatomy = make_phantom(spec).truth["anatomy"]
        assert abs(anatomy["heart_width_mm"] / anatomy["thorax_width_mm"] - ratio) < 0.02


@pytest.mark.parametrize("side", ["left", "right"])
def test_effusion_is_read_from_the_image_alone(healthy, side):
    spec = healthy.with_findings(Finding("Pleural effusion", side=side, volume_ml=600.0, seed=3))
    present, absent = make_phantom(spec, masks=True), make_phantom(healthy)
    truth = present.truth["findings"][0]
    assert abs(truth["volume_ml"] - 600) < 12
    gained = np.clip((present.volume.hu - absent.volume.hu) / 850.0, 0, 1)
    fluid = (present.volume.hu > -60) & (absent.volume.hu < -300)
    assert 0.7 < fluid.sum() * voxel_ml(present) / 600 < 1.5  # collapsed lung lies on the fluid
    s, r, c = truth["center_voxel"]
    lung = np.nonzero(absent.volume.hu[round(s)] < -700)
    assert r > np.median(lung[0])  # dependent: behind
    assert (c > 32) == (side == "right")
    slices = np.nonzero(gained.sum((1, 2)) > 0)[0]
    assert s < slices.mean() + 3  # more at the base


def test_findings_leave_all_else_alone(healthy):
    full = healthy.with_findings(
        Finding("Pleural effusion", side="right", volume_ml=500.0, seed=1),
        Finding("Lung nodule", side="left", lobe="left upper lobe", size_mm=24.0, kind="solid", seed=2),
        Finding("Consolidation", side="right", lobe="right upper lobe", size_mm=50.0, seed=3),
    )
    drawn = make_phantom(full, masks=True)
    for label in ("Pleural effusion", "Lung nodule", "Consolidation"):
        absent = make_phantom(full.without(label))
        changed = np.abs(drawn.volume.hu - absent.volume.hu) > 2
        # Fluid climbs along the whole pleura in films too thin for its mask.
        name = "lung_right" if label == "Pleural effusion" else label.lower().replace(" ", "_")
        where = np.nonzero(drawn.masks[name])
        near = np.zeros_like(changed)
        low = [max(w.min() - 5, 0) for w in where]
        high = [w.max() + 6 for w in where]
        near[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
        assert changed.any()
        assert not (changed & ~near).any()
        kept = [f for f in drawn.truth["findings"] if f["label"] != label]
        assert kept == absent.truth["findings"]


@pytest.mark.parametrize("size_mm", [10.0, 18.0, 30.0])
def test_nodule_has_its_diameter(healthy, size_mm):
    spec = healthy.resized(128, 2.5)
    nodule = Finding(
        "Lung nodule", side="right", lobe="right upper lobe", size_mm=size_mm, kind="solid", seed=4
    )
    present, absent = make_phantom(spec.with_findings(nodule)), make_phantom(spec)
    s, r, c = (round(v) for v in present.truth["findings"][0]["center_voxel"])
    assert present.volume.hu[s, r, c] > -150
    assert c > 64
    gained = (present.volume.hu - absent.volume.hu).astype(np.float64)
    background = absent.volume.hu[np.abs(gained) > 30].mean()
    volume = gained.sum() / (40.0 - background) * np.prod(spec.acquisition.spacing)
    assert abs((6 * volume / np.pi) ** (1 / 3) - size_mm) < 0.12 * size_mm


def test_consolidation_keeps_to_its_lobe_and_shows_bronchograms(healthy):
    spec = healthy.resized(96, 4.0).with_findings(
        Finding("Consolidation", side="left", lobe="left lower lobe", size_mm=60.0, seed=8)
    )
    phantom = make_phantom(spec, masks=True)
    mask = phantom.masks["consolidation"] > 0
    assert np.nonzero(mask)[2].max() < 52  # the left has the low columns
    truth = phantom.truth["findings"][0]
    assert 0.5 < truth["volume_ml"] / (np.pi / 6 * 6.0**3) < 1.2
    inside = phantom.volume.hu[mask]
    assert -150 < np.median(inside) < 100
    assert (inside < -300).sum() >= 3  # air in the bronchi


@pytest.mark.parametrize("label", LABELS)
def test_every_label_shows_in_the_image(healthy, label):
    present, absent = contrast_pair(healthy, label)
    changed = np.abs(make_phantom(present).volume.hu - make_phantom(absent).volume.hu) > 60
    assert changed.sum() >= 6, f"{label} changes {changed.sum()} voxels"


def test_mirrored_pair_swaps_sides(healthy):
    left, right = mirrored_pair(healthy, "Consolidation")
    for spec, side in ((left, "left"), (right, "right")):
        found = make_phantom(spec).truth["findings"]
        assert len(found) == 1
        assert found[0]["side"] == side
        assert (found[0]["center_voxel"][2] > 32) == (side == "right")


def test_requested_finding_has_the_side(healthy):
    assert requested_finding(healthy, "Pleural effusion", "left").side == "left"
    with pytest.raises(ValueError, match="side"):
        requested_finding(healthy, "Cardiomegaly", "left")


def test_partial_coverage_is_stated():
    specs = [sample_spec(2, i, 32, 5.0) for i in range(60)]
    cut = next(s for s in specs if s.acquisition.top_z < s.anatomy.apex_z)
    whole = next(s for s in specs if s.acquisition.top_z > s.anatomy.apex_z + 10)
    for spec, complete in ((cut, False), (whole, True)):
        phantom = make_phantom(spec, masks=True)
        assert phantom.truth["coverage"]["lungs_complete"] <= complete
        last = phantom.masks["lung_left"][-1] | phantom.masks["lung_right"][-1]
        assert bool(last.any()) == (not complete)
    assert 0.8 < np.mean([s.acquisition.top_z > s.anatomy.apex_z for s in specs]) < 1
