"""Volumes in every format that is written, read back by other programs and by the ingest."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from ctflow.data.writers import write_volume
from ctflow.errors import ScanError
from ctflow.formats import LPS_TO_RAS, ending_of
from ctflow.generate import main as generate
from ctflow.types import HUVolume
from data_prep.ct_rate.dicom_reader import read_dicom_series
from data_prep.ct_rate.geometry import to_patient_axes
from data_prep.ct_rate.itk_reader import read_itk_scan
from data_prep.ct_rate.nifti_reader import read_nifti_scan
from data_prep.ct_rate.scan import RawScan

SPACING = (2.5, 0.7123456789, 0.9)
FORMATS = ["a.nii", "a.nii.gz", "a.mha", "a.nrrd", "a.dcm"]
TURNED = np.array(
    [
        [0.0, 0.04279, 0.8989821, -12.5],
        [-0.118867, -0.710503, 0.04279, 88.25],
        [2.497172, -0.03382, 0.00214, -301.125],
        [0.0, 0.0, 0.0, 1.0],
    ]
)
"""Placement of (slice, row, column): about 3 degrees off the patient's axes."""


@pytest.fixture(scope="module")
def volume() -> HUVolume:
    rng = np.random.default_rng(4)
    hu = rng.uniform(-1024, 3000, (12, 40, 36)).astype(np.float32)
    hu[0, 0, :3] = (40000.0, -40000.0, 1.5)
    return HUVolume(hu, SPACING)


def straight_turn() -> np.ndarray:
    """TURNED with exactly orthogonal axes and the volume's spacing."""
    matrix, _, right = np.linalg.svd(TURNED[:3, :3] / SPACING)
    placed = TURNED.copy()
    placed[:3, :3] = (matrix @ right) * SPACING
    return placed


def by_itk(path: Path) -> sitk.Image:
    if not path.is_dir():
        return sitk.ReadImage(str(path))
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(path)))
    return reader.Execute()


def by_ingest(path: Path) -> RawScan:
    if path.is_dir():
        return read_dicom_series(sorted(path.iterdir()), 2**30)
    if path.suffix in (".mha", ".nrrd"):
        return read_itk_scan(path, path.parent, 2**30)
    return read_nifti_scan(path, 2**30)


def stored(volume: HUVolume, dtype: str) -> np.ndarray:
    return volume.hu if dtype == "float32" else np.clip(np.rint(volume.hu), -32768, 32767)


CHOICES = [(n, d, o) for n in FORMATS[:4] for d in ("int16", "float32") for o in ("RAS", "LPS")]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("name", "dtype", "orientation"), [*CHOICES, ("a.dcm", None, None)])
def test_every_format_reads_back_in_itk_and_the_ingest(tmp_path, volume, name, dtype, orientation, turned):
    placement = straight_turn() if turned else None
    write_volume(tmp_path / name, volume, "a line", dtype=dtype, orientation=orientation, placement=placement)
    expected = stored(volume, dtype)
    centre = np.eye(4) if placement is None else placement
    # SimpleITK: values of each voxel at the place the volume has it.
    image = by_itk(tmp_path / name)
    assert image.GetPixelID() == (sitk.sitkFloat32 if dtype == "float32" else sitk.sitkInt16)
    for index in [(0, 0, 0), (11, 39, 35), (3, 20, 7)]:
        point = LPS_TO_RAS @ centre @ [*index, 1.0] if turned else _centred_point(index, volume)
        at = image.TransformPhysicalPointToIndex([float(x) for x in point[:3]])
        assert image[at] == expected[index]
    ras = orientation == "RAS"
    signs = np.diag(np.array(image.GetDirection()).reshape(3, 3)).round()
    assert signs.tolist() == ([-1, -1, 1] if ras else [1, 1, 1])
    # The ingest: the same array, spacing and place.
    scan = by_ingest(tmp_path / name)
    view, spacing, axes = to_patient_axes(scan.stored, scan.affine)
    np.testing.assert_allclose(view * scan.slope + scan.intercept, expected, atol=1e-3)
    np.testing.assert_allclose(spacing, SPACING, rtol=1e-6)
    assert axes == ("RAS" if ras else "LPS")
    assert scan.oriented


def _centred_point(index: tuple[int, ...], volume: HUVolume) -> np.ndarray:
    """LPS millimetres of a voxel where the volume's centre is the origin."""
    z, y, x = (np.array(index) - (np.array(volume.hu.shape) - 1) / 2) * volume.spacing
    return np.array([-x, y, z])


def test_the_dicom_series_by_pydicom(tmp_path, volume):
    write_volume(tmp_path / "case 7.dcm", volume, "ctflow 1.0 synthetic CT in HU", synthetic=True)
    files = sorted((tmp_path / "case 7.dcm").iterdir())
    slices = [pydicom.dcmread(path) for path in files]
    assert len(slices) == 12
    hu = np.stack([s.pixel_array * float(s.RescaleSlope) + float(s.RescaleIntercept) for s in slices])
    np.testing.assert_array_equal(hu[:, :, ::-1], stored(volume, "int16"))
    first = slices[0]
    assert first.ImageType[:2] == ["DERIVED", "SECONDARY"]
    assert "synthetic" in first.SeriesDescription
    assert "shows no patient" in first.ImageComments
    assert list(first.ImageOrientationPatient) == [1, 0, 0, 0, 1, 0]
    assert [float(s.ImagePositionPatient[2]) for s in slices] == [-13.75 + 2.5 * k for k in range(12)]
    np.testing.assert_allclose(first.PixelSpacing, SPACING[1:])
    assert first.PatientID == "case 7"
    assert len({s.SOPInstanceUID for s in slices}) == 12
    for name in ("SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert len({s[name].value for s in slices}) == 1
    write_volume(tmp_path / "case 7.dcm", volume)
    again = pydicom.dcmread(files[0])
    assert again.SeriesInstanceUID != first.SeriesInstanceUID
    assert "synthetic" not in str(again).lower()


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="no dciodvfy (Debian: dicom3tools)")
@pytest.mark.parametrize("synthetic", [True, False])
@pytest.mark.parametrize("name", ["a.dcm", "Befund – größer^Ö=x.dcm", "x" * 90 + ".dcm"])
def test_the_dicom_series_passes_dciodvfy(tmp_path, volume, name, synthetic):
    write_volume(tmp_path / name, volume, "words\\and\nlines " * 9, synthetic=synthetic)
    for path in sorted((tmp_path / name).iterdir())[::11]:
        told = subprocess.run(["dciodvfy", path], capture_output=True, encoding="utf-8", check=False)
        assert "Error" not in told.stderr + told.stdout
        assert "CTImage" in told.stderr + told.stdout
        assert told.returncode == 0


def test_the_header_says_what_it_is(tmp_path, volume):
    for name in FORMATS[:4]:
        write_volume(tmp_path / name, volume, "ctflow 1.0 synthetic CT in HU")
    assert nib.load(tmp_path / "a.nii.gz").header["descrip"].tobytes().startswith(b"ctflow 1.0 synthetic CT")
    assert b"Comment = ctflow 1.0 synthetic CT in HU" in (tmp_path / "a.mha").read_bytes()
    assert b"Comment:=ctflow 1.0 synthetic CT in HU" in (tmp_path / "a.nrrd").read_bytes()


@pytest.mark.parametrize(
    ("name", "choices", "message"),
    [
        ("a.png", {}, "ending in .nii.gz, .nii, .mha, .nrrd or .dcm"),
        (".mha", {}, "ending in"),
        ("a.dcm", {"dtype": "float32"}, "float32 for a DICOM series"),
        ("a.dcm", {"orientation": "RAS"}, "LPS, as CT images are"),
    ],
)
def test_refusals_write_nothing(tmp_path, volume, name, choices, message):
    with pytest.raises(ScanError, match=message):
        write_volume(tmp_path / name, volume, **choices)
    assert list(tmp_path.iterdir()) == []


def test_nothing_of_the_user_is_replaced_by_a_series(tmp_path, volume):
    (tmp_path / "mine.dcm").mkdir()
    (tmp_path / "mine.dcm" / "notes.txt").write_text("mine")
    (tmp_path / "file.dcm").write_text("mine")
    (tmp_path / "a.mha").mkdir()
    for name, words in {"mine.dcm": "holds notes.txt", "file.dcm": "is a file", "a.mha": "a folder"}.items():
        with pytest.raises(ScanError, match=words):
            write_volume(tmp_path / name, volume)
        with pytest.raises(ScanError, match=words):  # before anything is generated
            generate(["--report", "Clear.", "--checkpoint", "nowhere", "--output", str(tmp_path / name)])
    assert (tmp_path / "mine.dcm" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "file.dcm").read_text() == "mine"


@pytest.mark.parametrize("name", FORMATS)
def test_a_failure_leaves_the_old_volume_and_nothing_else(tmp_path, volume, name, monkeypatch):
    write_volume(tmp_path / name, volume)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    nan = volume.hu.copy()
    nan[5, 5, 5] = np.nan
    with pytest.raises(ScanError, match="not finite"):
        write_volume(tmp_path / name, HUVolume(nan, SPACING))
    fails = {".dcm": (pydicom.Dataset, "save_as"), ".gz": (nib, "save"), ".nii": (nib, "save")}
    owner, call = fails.get(Path(name).suffix, (sitk, "WriteImage"))

    def broken(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(owner, call, broken)
    with pytest.raises(OSError, match="no space"):
        write_volume(tmp_path / name, volume)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_endings_in_capital_letters():
    assert ending_of("X.NII.GZ") == ".nii.gz"
    assert ending_of("folder.dcm/") == ".dcm"
