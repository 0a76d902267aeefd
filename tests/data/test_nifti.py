"""NIfTI files: HU, axes and spacing survive, and bad files are refused by reason."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from ctflow.data.nifti import read_geometry, read_nifti, small_nifti, write_nifti
from ctflow.errors import ScanError
from ctflow.types import HUVolume


@pytest.fixture
def volume():
    hu = np.random.default_rng(0).integers(-1000, 1000, (5, 6, 7)).astype(np.float32)
    return HUVolume(hu, (2.5, 0.8, 0.7))


@pytest.mark.parametrize("name", ["a.nii.gz", "deep/b.nii"])
def test_a_volume_comes_back(volume, tmp_path, name):
    write_nifti(tmp_path / name, volume, "seed 3, " + "x" * 200)
    found = read_nifti(tmp_path / name)
    np.testing.assert_array_equal(found.hu, volume.hu)
    assert found.spacing == pytest.approx(volume.spacing, rel=1e-6)
    assert len(list((tmp_path / name).parent.iterdir())) == 1, "no temporary file stays"


def test_a_volume_to_look_at_has_steps_of_8_hu(volume, tmp_path):
    write_nifti(tmp_path / "a.nii.gz", volume, dtype="float32")
    (tmp_path / "b.nii.gz").write_bytes(small_nifti(volume))
    right, small = nib.load(tmp_path / "a.nii.gz"), nib.load(tmp_path / "b.nii.gz")
    assert np.abs(small.get_fdata() - right.get_fdata()).max() <= 4
    np.testing.assert_allclose(small.affine, right.affine, rtol=1e-6)
    assert small.get_data_dtype() == np.uint8
    volume.hu[0, 0, :2] = -3000, 3000
    (tmp_path / "b.nii.gz").write_bytes(small_nifti(volume))
    values = nib.load(tmp_path / "b.nii.gz").get_fdata()
    assert (values.min(), values.max()) == (-1024, 1016)


def test_the_file_is_int16_hu_on_standard_axes(volume, tmp_path):
    volume.hu[0, 0, 0] = 31.6
    volume.hu[0, 0, 1] = 1e6
    write_nifti(tmp_path / "a.nii.gz", volume, "seed 3")
    image = nib.load(tmp_path / "a.nii.gz")
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    assert image.get_data_dtype() == np.int16
    assert (image.dataobj.slope, image.dataobj.inter) == (1.0, 0.0)
    np.testing.assert_allclose(image.header.get_zooms(), (0.7, 0.8, 2.5), rtol=1e-6)
    assert image.header.get_xyzt_units()[0] == "mm"
    assert int(image.header["sform_code"]) == int(image.header["qform_code"]) == 1
    np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-5)
    assert bytes(image.header["descrip"]).rstrip(b"\0") == b"seed 3"
    data = np.asarray(image.dataobj)
    assert data.shape == (7, 6, 5)
    assert data[0, 5, 0] == 32, "slice 0, row 0 (anterior), column 0 (left): R lowest, A highest, S lowest"
    assert data[1, 5, 0] == np.iinfo(np.int16).max


def test_directions_follow_the_affine(volume, tmp_path):
    """Each voxel keeps its place in the world whatever the order and direction of the axes in the file."""
    write_nifti(tmp_path / "a.nii", volume)
    ras = nib.load(tmp_path / "a.nii")
    for codes in (("L", "P", "S"), ("A", "L", "I"), ("S", "P", "R"), ("I", "R", "P")):
        turn = nib.orientations.ornt_transform(
            nib.io_orientation(ras.affine), nib.orientations.axcodes2ornt(codes)
        )
        nib.save(ras.as_reoriented(turn), tmp_path / "b.nii")
        found = read_nifti(tmp_path / "b.nii")
        np.testing.assert_array_equal(found.hu, volume.hu)
        assert found.spacing == pytest.approx(volume.spacing, rel=1e-6)


def test_slope_and_intercept_are_applied(tmp_path):
    image = nib.Nifti1Image(np.full((3, 4, 5), 100, np.int16), np.eye(4))
    image.header.set_slope_inter(2.0, -1024.0)
    nib.save(image, tmp_path / "a.nii")
    with (tmp_path / "a.nii").open("r+b") as stream:
        stream.seek(112)
        stream.write(np.array([2.0, -1024.0], "<f4").tobytes())
    stored = float(np.asarray(nib.load(tmp_path / "a.nii").dataobj.get_unscaled())[0, 0, 0])
    assert read_nifti(tmp_path / "a.nii").hu[0, 0, 0] == 2.0 * stored - 1024.0


def save(path, data, affine):
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


def test_bad_files_are_refused_by_reason(volume, tmp_path):
    cube = np.zeros((4, 4, 4), np.float32)
    oblique = np.eye(4)
    oblique[:2, :2] = [[0.9, -0.436], [0.436, 0.9]]
    nan = cube.copy()
    nan[0, 0, 0] = np.nan
    for name, data, affine, message in [
        ("four.nii", np.zeros((4, 4, 4, 2), np.float32), np.eye(4), "shape"),
        ("oblique.nii", cube, oblique, "degrees"),
        ("nan.nii", nan, np.eye(4), "not finite"),
    ]:
        with pytest.raises(ScanError, match=message):
            read_nifti(save(tmp_path / name, data, affine))
    write_nifti(tmp_path / "cut.nii.gz", volume)
    (tmp_path / "cut.nii.gz").write_bytes((tmp_path / "cut.nii.gz").read_bytes()[:300])
    (tmp_path / "noise.nii.gz").write_bytes(bytes(range(256)))
    for name in ("cut.nii.gz", "noise.nii.gz", "absent.nii.gz"):
        with pytest.raises(ScanError, match="cannot be read"):
            read_nifti(tmp_path / name)
    with pytest.raises(ScanError, match=r"\.nii"):
        write_nifti(tmp_path / "a.png", volume)
    with pytest.raises(ScanError, match="not finite"):
        write_nifti(tmp_path / "a.nii", HUVolume(nan, (1.0, 1.0, 1.0)))
    assert not (tmp_path / "a.nii").exists()


@pytest.mark.parametrize("axes", [("R", "A", "S"), ("L", "P", "S"), ("S", "P", "R"), ("I", "R", "A")])
def test_the_header_alone_tells_shape_and_spacing(tmp_path, axes):
    turn = nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(axes), (4, 5, 6))
    path = save(tmp_path / "a.nii.gz", np.zeros((4, 5, 6), np.float32), turn @ np.diag([1.0, 2.0, 3.0, 1.0]))
    volume = read_nifti(path)
    assert read_geometry(path) == (volume.hu.shape, volume.spacing)
