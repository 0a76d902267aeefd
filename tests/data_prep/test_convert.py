"""``ctflow convert``: HU, spacing and place stay; what is synthetic stays marked; refusals say why."""

from __future__ import annotations

import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from ctflow.data.placement import centred
from ctflow.data.writers import write_volume
from ctflow.errors import CTFlowError
from ctflow.types import HUVolume
from data_prep.convert import main, read_placed

SPACING = (2.5, 0.9, 0.8)
FORMATS = ["a.nii.gz", "b.mha", "c.dcm", "d.nrrd", "e.nii"]


@pytest.fixture(scope="module")
def volume() -> HUVolume:
    """A body of soft tissue with two lungs and a marker on its left, in front, below."""
    rng = np.random.default_rng(2)
    hu = np.full((12, 48, 40), -1000.0, np.float32)
    hu[:, 8:40, 4:36] = 40.0
    hu[:, 16:32, 8:18] = hu[:, 16:32, 22:32] = -850.0
    hu += rng.normal(0, 12, hu.shape).astype(np.float32)
    hu[0, 10, 6] = 700.25
    hu[-1, -1, -1] = -1024.0  # below what the ingest takes for air, and kept
    return HUVolume(hu, SPACING)


@pytest.fixture
def placement(volume) -> np.ndarray:
    """Some 4 degrees off the patient's axes, far from the origin."""
    turn = np.eye(4)
    a, b = np.radians([4.0, -3.0])
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    turn[:3, :3] = about_x @ about_z
    turn[:3, 3] = (31.5, -80.25, 412.125)
    return turn @ centred(volume)


def test_a_chain_through_every_format_keeps_all(volume, placement, tmp_path):
    write_volume(tmp_path / "0.mha", volume, "seen at noon", dtype="float32", placement=placement)
    previous = tmp_path / "0.mha"
    for name in [*FORMATS, "f.mha"]:
        assert main([str(previous), str(tmp_path / name)]) == 0
        previous = tmp_path / name
        found = read_placed(previous)
        np.testing.assert_allclose(found.volume.hu, volume.hu, atol=0.5)
        np.testing.assert_allclose(found.volume.spacing, SPACING, rtol=1e-6)
        np.testing.assert_allclose(found.placement, placement, atol=2e-4)
        assert found.description == "seen at noon"
        assert not found.synthetic


def test_dtype_and_orientation_by_other_programs(volume, tmp_path):
    write_volume(tmp_path / "0.nii.gz", volume, dtype="float32")
    options = ["--dtype", "float32", "--orientation", "LPS"]
    assert main([str(tmp_path / "0.nii.gz"), str(tmp_path / "1.nii.gz"), *options]) == 0
    image = nib.load(tmp_path / "1.nii.gz")
    assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
    assert image.get_data_dtype() == np.float32
    array = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "1.nii.gz")))
    np.testing.assert_array_equal(array, volume.hu[:, :, ::-1])  # columns to the left
    assert main([str(tmp_path / "0.nii.gz"), str(tmp_path / "2.nrrd"), "--orientation", "RAS"]) == 0
    image = sitk.ReadImage(str(tmp_path / "2.nrrd"))
    np.testing.assert_allclose(image.GetDirection(), (-1, 0, 0, 0, -1, 0, 0, 0, 1), atol=1e-6)
    assert image.GetPixelID() == sitk.sitkInt16


@pytest.mark.parametrize("middle", ["x.nii", "x.mha", "x.nrrd", "x.dcm"])
def test_what_is_synthetic_stays_marked(volume, tmp_path, middle):
    write_volume(tmp_path / "0.nii.gz", volume, "ctflow 0.1.0 synthetic CT in HU", synthetic=True)
    assert main([str(tmp_path / "0.nii.gz"), str(tmp_path / middle)]) == 0
    assert main([str(tmp_path / middle), str(tmp_path / "last.dcm")]) == 0
    header = pydicom.dcmread(tmp_path / "last.dcm" / "slice_0001.dcm")
    assert "synthetic" in header.SeriesDescription and "shows no patient" in header.ImageComments


def test_the_mark_can_be_set_and_taken(volume, tmp_path):
    write_volume(tmp_path / "0.nii.gz", volume)
    assert main([str(tmp_path / "0.nii.gz"), str(tmp_path / "a.dcm"), "synthetic=true"]) == 0
    header = pydicom.dcmread(tmp_path / "a.dcm" / "slice_0001.dcm")
    assert "synthetic" in header.SeriesDescription
    assert main([str(tmp_path / "a.dcm"), str(tmp_path / "b.dcm"), "synthetic=false"]) == 0
    header = pydicom.dcmread(tmp_path / "b.dcm" / "slice_0001.dcm")
    assert "shows no patient" not in str(header)


def test_several_volumes_are_listed_and_one_is_named(volume, tmp_path):
    write_volume(tmp_path / "in" / "a.dcm", volume)
    write_volume(tmp_path / "in" / "b.nrrd", volume)
    with pytest.raises(CTFlowError, match=r"2 volumes in .*'a.dcm', 'b.nrrd'(.|\n)*--volume"):
        main([str(tmp_path / "in"), str(tmp_path / "o.mha")])
    with pytest.raises(CTFlowError, match="none called 'c'"):
        main([str(tmp_path / "in"), str(tmp_path / "o.mha"), "--volume", "c"])
    assert not (tmp_path / "o.mha").exists()
    assert main([str(tmp_path / "in"), str(tmp_path / "o.mha"), "--volume", "b.nrrd"]) == 0


def test_refusals_say_what_was_found_and_write_nothing(volume, tmp_path):
    out = tmp_path / "out" / "o.mha"
    (tmp_path / "a.txt").write_text("no image")
    (tmp_path / "b.zip").write_bytes(b"PK\x03\x04")
    write_volume(tmp_path / "c.nii.gz", HUVolume(volume.hu + 1024, SPACING))
    (tmp_path / "d.nii.gz").write_bytes((tmp_path / "c.nii.gz").read_bytes()[:2000])
    nib.save(nib.Nifti1Image(np.transpose(volume.hu), np.eye(4)), tmp_path / "e.nii")
    cases = {
        "a.txt": "no volume in",
        "b.zip": "unpack",
        "c.nii.gz": "stored values",
        "d.nii.gz": "ends early",
        "e.nii": "the header is blank",
        "nowhere.nii": "no folder at|No such file",
    }
    for name, words in cases.items():
        with pytest.raises((CTFlowError, OSError), match=words) as told:
            main([str(tmp_path / name), str(out)])
        assert "--metadata" not in str(told.value)
    assert not out.parent.exists() or not list(out.parent.iterdir())


def test_voxels_that_are_no_numbers_become_air_and_are_told(volume, tmp_path, caplog):
    hu = volume.hu.copy()
    hu[3, 0, :4] = np.nan
    image = nib.Nifti1Image(np.ascontiguousarray(hu.transpose(2, 1, 0)[:, ::-1]), np.diag([0.8, 0.9, 2.5, 1]))
    nib.save(image, tmp_path / "a.nii")
    with caplog.at_level(logging.WARNING):
        assert main([str(tmp_path / "a.nii"), str(tmp_path / "b.nrrd")]) == 0
    assert "are not numbers and became air" in caplog.text
    assert (read_placed(tmp_path / "b.nrrd").volume.hu[3, 0, :4] == -1000).all()


def test_a_real_scan_stays_where_it_lies(shared_dir: Path, tmp_path):
    source = shared_dir / "real_ct" / "ct_right_hemithorax_aniso.mha"
    assert main([str(source), str(tmp_path / "a.dcm")]) == 0
    before, after = read_placed(source), read_placed(tmp_path / "a.dcm")
    np.testing.assert_allclose(after.volume.hu, before.volume.hu, atol=0.5)
    np.testing.assert_allclose(after.placement, before.placement, atol=1e-3)
