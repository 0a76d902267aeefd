"""Orientation, spacing, resampling: every voxel comes out where it lay in the patient."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from ct_rate_scans import SPACING, chest, codes, ingest_one, save_nifti

from data_prep.ct_rate.geometry import (
    Grid,
    field_in_image,
    obliqueness,
    resample,
    to_patient_axes,
    trim_blank,
)
from data_prep.ct_rate.hounsfield import Rescale
from data_prep.ct_rate.reasons import ScanRefused
from data_prep.ct_rate.scan import check_affine

SAME = Rescale(1.0, 0.0, "stored")


def grid(resolution=64, z_spacing=None, field_of_view=None, max_slices=None) -> Grid:
    return Grid(resolution, z_spacing, field_of_view, max_slices)


@pytest.mark.parametrize("axes", ["SPR", "LPS", "RAS", "ARI", "IAL", "PIR"])
def test_any_axis_order_gives_the_same_volume(tmp_path, axes):
    hu = chest()
    path = save_nifti(tmp_path / "in" / "a.nii.gz", hu, axes=axes)
    ((outcome, volume),) = ingest_one(path, tmp_path)
    assert outcome.status == "accepted"
    assert outcome.facts["stored_axes"] == axes
    np.testing.assert_array_equal(volume, np.where(hu <= -1024, -1000, hu))
    assert outcome.spacing == pytest.approx(SPACING)


def test_all_48_orientations_are_turned_by_the_affine():
    cube = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    base = np.array([[0, 0, 1.0, 0], [0, -2.0, 0, 0], [3.0, 0, 0, 0], [0, 0, 0, 1.0]])  # S,P,R
    import nibabel as nib

    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            turn = np.column_stack([order, signs]).astype(float)
            affine = base @ nib.orientations.inv_ornt_aff(turn, cube.shape)
            view, spacing, _ = to_patient_axes(nib.orientations.apply_orientation(cube, turn), affine)
            np.testing.assert_array_equal(view, cube)
            assert spacing == pytest.approx((3.0, 2.0, 1.0))


def test_a_marker_keeps_its_place_in_millimetres():
    scan = np.full((30, 100, 80), 0.0, np.float32)
    spacing = (2.0, 1.0, 1.25)
    scan[12, 40:44, 20:24] = 1000.0
    out, new = resample(scan, spacing, SAME, grid(64, 1.5))
    assert new == pytest.approx((1.5, 100 / 64, 100 / 64))
    where = np.argwhere(out > 300)
    centre = np.average(where, axis=0, weights=out[out > 300])
    assert centre[0] * new[0] == pytest.approx(12 * 2.0, abs=0.8)  # slices count from the first one's centre
    assert (centre[1] + 0.5) * new[1] == pytest.approx(42.0, abs=0.5)  # rows from the edge of the field
    assert (centre[2] + 0.5) * new[2] == pytest.approx(22 * 1.25, abs=0.5)


def test_sampling_is_exact_where_it_can_be():
    rng = np.random.default_rng(0)
    scan = rng.integers(-1000, 1000, (20, 64, 64)).astype(np.int16)
    out, spacing = resample(scan, (1.0, 2.0, 2.0), SAME, grid(64, 1.0))
    np.testing.assert_array_equal(out, scan)
    assert spacing == (1.0, 2.0, 2.0)
    third, _ = resample(scan, (1.0, 2.0, 2.0), SAME, grid(64, 1.5))
    np.testing.assert_array_equal(
        third[::2], scan[: 3 * len(third[::2]) : 3]
    )  # 0, 3, 6 mm are slices of the scan
    halves, _ = resample(scan, (1.0, 2.0, 2.0), SAME, grid(32))
    expected = scan.reshape(20, 32, 2, 32, 2).mean((2, 4))
    assert np.abs(halves - expected).max() <= 0.51
    thick, _ = resample(scan, (1.0, 2.0, 2.0), SAME, grid(64, 4.0))
    assert thick[1:-1].std() < 0.7 * scan.std()  # thick slices are means


def test_field_of_view_crops_and_pads_with_air():
    scan = np.full((8, 64, 48), 50, np.int16)
    padded, spacing = resample(scan, (2.0, 4.0, 4.0), SAME, grid(64, None, 320.0))
    assert spacing[1] == pytest.approx(5.0)
    rows, columns = field_in_image((64, 48), (4.0, 4.0), 5.0, 64)
    assert (rows, columns) == (slice(7, 57), slice(13, 51))
    assert (padded[:, rows, columns] == 50).all()
    assert (padded[:, :5] == -1000).all() and (padded[:, :, :12] == -1000).all()
    cropped, _ = resample(scan, (2.0, 4.0, 4.0), SAME, grid(64, None, 160.0))
    assert (cropped == 50).all()
    square, spacing = resample(scan, (2.0, 4.0, 4.0), SAME, grid(64))  # pixels stay square
    assert spacing == (2.0, 4.0, 4.0)
    assert (square[:, :, 8:56] == 50).all() and (square[:, :, :8] == -1000).all()


def test_max_slices_takes_the_middle():
    scan = np.broadcast_to(np.arange(40, dtype=np.int16)[:, None, None], (40, 32, 32))
    out, _ = resample(scan, (2.0, 5.0, 5.0), SAME, grid(32, None, None, 16))
    np.testing.assert_array_equal(out[:, 0, 0], np.arange(12, 28))


@pytest.mark.parametrize("padding", [-1024, -2000, -2048, -3024])
def test_padding_becomes_air_before_anything_is_mixed(padding):
    scan = np.full((10, 96, 96), -100, np.int16)
    scan[:, :20] = padding
    out, _ = resample(scan, (1.0, 4.0, 4.0), SAME, grid(64, 1.5))
    assert out.min() == -1000 and out.max() == -100


def test_oblique_volumes_are_straightened(tmp_path):
    from scipy.ndimage import gaussian_filter

    hu = np.rint(gaussian_filter(chest().astype(np.float32), 1.0)).astype(np.int16)
    angle = np.radians(8.0)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    straight = np.diag([5.5, 5.5, 5.0, 1.0])
    ras = hu.transpose(2, 1, 0)[:, ::-1]
    centre = np.array([(n - 1) / 2 for n in ras.shape])
    tilted = np.eye(4)
    tilted[:3, :3] = turn @ straight[:3, :3]
    straight[:3, 3] = -straight[:3, :3] @ centre
    tilted[:3, 3] = -tilted[:3, :3] @ centre
    from scipy.ndimage import affine_transform

    back = np.linalg.inv(straight) @ tilted  # where a tilted voxel lies in the straight scan
    seen = affine_transform(ras.astype(np.float32), back[:3, :3], back[:3, 3], order=1, cval=-1000.0)
    path = save_nifti(tmp_path / "in" / "a.nii.gz", np.rint(seen).astype(np.int16), affine=tilted)
    assert obliqueness(tilted) == pytest.approx(8.0, abs=0.1)
    ((outcome, volume),) = ingest_one(path, tmp_path, field_of_view=352.0)
    assert outcome.usable and outcome.facts["oblique_degrees"] == pytest.approx(8.0, abs=0.1)
    inner = (slice(4, -4), slice(12, -12), slice(12, -12))
    difference = volume[:44][inner].astype(float) - hu[inner]
    assert np.abs(difference).mean() < 25 and abs(np.median(difference)) < 3


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (np.array([[1, 0, 0, 0], [0, 1, 0.2, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), "gantry_tilt"),
        (np.diag([1.0, 1.0, 0.0, 1.0]), "no_geometry"),
        (np.diag([1.0, np.nan, 1.0, 1.0]), "no_geometry"),
    ],
)
def test_affines_that_place_nothing_are_refused(change, code):
    with pytest.raises(ScanRefused) as refused:
        check_affine(np.diag([2.0, 2.0, 2.0, 1.0]) @ change)
    assert refused.value.code == code


def test_blank_slices_are_cut_at_the_ends_and_refused_inside(tmp_path):
    hu = chest()
    hu[:3] = hu[-2:] = -1000
    kept, cut = trim_blank(hu)
    assert kept.shape[0] == hu.shape[0] - 5 and cut == 5
    hu[20:22] = 0
    path = save_nifti(tmp_path / "in" / "a.nii.gz", hu)
    ((outcome, _),) = ingest_one(path, tmp_path)
    assert codes(outcome) == ["blank_slices"] and "from slice 20" in outcome.reasons[0][1]
