"""Inputs that readers get wrong in silence: each ends with the right HU, a flag, or a reason."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from ct_rate_scans import SPACING, chest, codes, ingest_one, save_dicom, save_enhanced, save_nifti
from pydicom.data import get_testdata_file
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    generate_uid,
)

from data_prep.ct_rate.command import main
from data_prep.ct_rate.dicom_headers import read_header
from data_prep.ct_rate.dicom_pixels import read_pixels
from data_prep.ct_rate.likeness import Looks, alike, coarse_picture

HU = chest(seed=3)
EXPECTED = np.where(HU <= -1024, -1000, HU)
OUTSIDE = np.hypot(*np.meshgrid(np.arange(64) - 31.5, np.arange(64) - 31.5)) > 31.5


def only(results):
    assert len(results) == 1, [(o.key, o.status, o.reasons) for o, _ in results]
    return results[0]


def edit(paths, change) -> None:
    """Rewrite DICOM files; ``change`` gets the dataset, its stored values and its number."""
    for number, path in enumerate(paths):
        data = pydicom.dcmread(path)
        stored = np.frombuffer(data.PixelData, "<u2").reshape(data.Rows, data.Columns).astype(int)
        change(data, stored, number)
        data.save_as(path)


def masked():
    return np.where(OUTSIDE, -1000, EXPECTED)


# Values


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_voxels_without_a_number_become_air(tmp_path, value):
    hu = HU.astype(np.float32)
    hu[20, 30:34, 30:34] = value
    outcome, volume = only(ingest_one(save_nifti(tmp_path / "a.nii.gz", hu), tmp_path))
    assert codes(outcome) == ["not_finite_filled"]
    assert (volume[20, 30:34, 30:34] == -1000).all() and volume.max() < 2000


def test_a_slice_without_numbers_is_blank(tmp_path):
    hu = HU.astype(np.float32)
    hu[20] = np.nan
    outcome, _ = only(ingest_one(save_nifti(tmp_path / "a.nii.gz", hu), tmp_path))
    assert codes(outcome) == ["blank_slices"]


def test_two_values_of_padding_in_one_scan(tmp_path):
    hu = HU.copy()
    hu[:, OUTSIDE] = -3024
    hu[:, :8, :8] = -2048
    outcome, volume = only(ingest_one(save_nifti(tmp_path / "a.nii.gz", hu), tmp_path))
    assert outcome.status == "accepted", outcome.reasons
    expected = masked()
    expected[:, :8, :8] = -1000
    np.testing.assert_array_equal(volume, expected)


# Headers


def test_sform_and_qform_that_disagree_are_flagged(tmp_path):
    path = save_nifti(tmp_path / "a.nii.gz", HU)
    image = nib.load(path)
    mirrored = np.diag([-1.0, 1.0, 1.0, 1.0]) @ image.affine
    image.set_qform(mirrored, 1)
    nib.save(image, path)
    outcome, volume = only(ingest_one(path, tmp_path))
    assert codes(outcome) == ["header_conflict"]
    assert "sform LPS" in outcome.reasons[0][1] and "qform RPS" in outcome.reasons[0][1]
    np.testing.assert_array_equal(volume, EXPECTED)


@pytest.mark.parametrize("names", [("A.HDR", "A.IMG"), ("a.hdr.gz", "a.img.gz"), ("a.hdr", "a.img.gz")])
def test_pairs_by_any_spelling(tmp_path, names):
    affine = nib.load(save_nifti(tmp_path / "b.nii", HU)).affine
    (tmp_path / "in").mkdir()
    stored = nib.load(tmp_path / "b.nii").get_fdata().astype(np.int16)
    written = [
        f"a.{kind}{'.gz' if name.endswith('gz') else ''}"
        for kind, name in zip(("hdr", "img"), names, strict=True)
    ]
    for name in written:
        pair = nib.Nifti1Pair(stored, affine)
        pair.to_filename(tmp_path / "in" / name.replace("hdr", "img"))
    for old, new in zip(written, names, strict=True):
        (tmp_path / "in" / old).rename(tmp_path / "in" / new)
    for path in (tmp_path / "in").iterdir():
        if path.name not in names:
            path.unlink()
    outcome, volume = only(ingest_one(tmp_path / "in", tmp_path))
    assert outcome.status == "accepted", outcome.reasons
    np.testing.assert_array_equal(volume, EXPECTED)


def test_a_nifti_without_ending_is_known_by_its_content(tmp_path):
    (tmp_path / "in").mkdir()
    save_nifti(tmp_path / "a.nii.gz", HU).rename(tmp_path / "in" / "scan")
    results = ingest_one(tmp_path / "in", tmp_path)
    assert [(o.key, o.status) for o, _ in results] == [("in/scan", "accepted")]


@pytest.mark.parametrize("space", ["space: scanner-xyz", "space dimension: 3", "space: 3D-right-handed"])
def test_a_nrrd_whose_space_is_not_the_patient(tmp_path, space):
    image = sitk.GetImageFromArray(HU)
    image.SetSpacing(SPACING[::-1])
    sitk.WriteImage(image, str(tmp_path / "a.nrrd"))
    data = (tmp_path / "a.nrrd").read_bytes()
    (tmp_path / "a.nrrd").write_bytes(data.replace(b"space: left-posterior-superior", space.encode()))
    outcome, _ = only(ingest_one(tmp_path / "a.nrrd", tmp_path))
    assert codes(outcome) == ["no_orientation"]


def test_a_nrrd_in_ras_is_turned(tmp_path):
    image = sitk.GetImageFromArray(HU[:, ::-1])  # columns from left to right, rows from behind to the front
    image.SetSpacing(SPACING[::-1])
    sitk.WriteImage(image, str(tmp_path / "a.nrrd"))
    data = (tmp_path / "a.nrrd").read_bytes()
    (tmp_path / "a.nrrd").write_bytes(data.replace(b"left-posterior-superior", b"right-anterior-superior"))
    outcome, volume = only(ingest_one(tmp_path / "a.nrrd", tmp_path))
    assert outcome.facts["stored_axes"] == "RAS"
    np.testing.assert_array_equal(volume, EXPECTED)


def test_what_a_metaimage_lacks_is_told(tmp_path):
    image = sitk.GetImageFromArray(HU)
    image.SetSpacing(SPACING[::-1])
    for name in ("short.mha", "gone.mhd"):
        sitk.WriteImage(image, str(tmp_path / name))
    (tmp_path / "short.mha").write_bytes((tmp_path / "short.mha").read_bytes()[:-100])
    (tmp_path / "gone.raw").unlink()
    short, gone = (only(ingest_one(tmp_path / name, tmp_path))[0] for name in ("short.mha", "gone.mhd"))
    assert codes(short) == codes(gone) == ["truncated"]
    assert f"{HU.size * 2 - 100:,} of {HU.size * 2:,} bytes" in short.reasons[0][1]
    assert "gone.raw" in gone.reasons[0][1]


# DICOM


def test_monochrome1_says_how_to_show_values_not_what_they_are(tmp_path):
    paths = save_dicom(tmp_path / "in", HU, PhotometricInterpretation="MONOCHROME1")
    assert len(paths) == len(HU)
    outcome, volume = only(ingest_one(tmp_path / "in", tmp_path))
    assert outcome.status == "accepted", outcome.reasons
    np.testing.assert_array_equal(volume, EXPECTED)


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("padding", [0, 65535, 1024 + 1500])
def test_pixel_padding_value_becomes_air(tmp_path, padding, implicit):
    paths = save_dicom(tmp_path / "in", HU)

    def pad(data, stored, number) -> None:
        stored[OUTSIDE[:, ::-1]] = padding
        data.add_new("PixelPaddingValue", "US", padding)
        data.PixelData = stored.astype("<u2").tobytes()
        if implicit:
            data.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian

    edit(paths, pad)
    outcome, volume = only(ingest_one(tmp_path / "in", tmp_path))
    assert outcome.status == "accepted", outcome.reasons
    np.testing.assert_array_equal(volume, masked())


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
)
def test_uncompressed_encodings(tmp_path, syntax):
    for path in save_dicom(tmp_path / "in", HU):
        data = pydicom.dcmread(path)
        data.file_meta.TransferSyntaxUID = syntax
        if syntax == ExplicitVRBigEndian:
            data.PixelData = np.frombuffer(data.PixelData, "<u2").astype(">u2").tobytes()
            data["PixelData"].VR = "OW"
        path.unlink()
        options = {"implicit_vr": syntax == ImplicitVRLittleEndian}
        options["little_endian"] = syntax != ExplicitVRBigEndian
        pydicom.dcmwrite(path.with_suffix(""), data, **options)  # and without an ending
    _, volume = only(ingest_one(tmp_path / "in", tmp_path))
    np.testing.assert_array_equal(volume, EXPECTED)


@pytest.mark.parametrize("name", ["MR_small_jpeg_ls_lossless", "MR_small_RLE", "MR_small_bigendian"])
def test_pixels_of_files_that_other_encoders_wrote(name):
    plain, other = (
        read_header(Path(get_testdata_file(f"{n}.dcm", download=False))) for n in ("MR_small", name)
    )
    np.testing.assert_array_equal(read_pixels([other])[0], read_pixels([plain])[0])


def test_slope_and_intercept_of_each_slice(tmp_path):
    def change(data, stored, number) -> None:
        data.RescaleIntercept = -1024 - number
        data.PixelData = (stored + number).astype("<u2").tobytes()

    edit(save_dicom(tmp_path / "in", HU), change)
    _, volume = only(ingest_one(tmp_path / "in", tmp_path))
    np.testing.assert_array_equal(volume, EXPECTED)


def test_slope_and_intercept_of_each_frame(tmp_path):
    path = save_enhanced(tmp_path / "in" / "a.dcm", HU)
    data = pydicom.dcmread(path)
    group = data.SharedFunctionalGroupsSequence[0].pop("PixelValueTransformationSequence")
    pixels = np.frombuffer(data.PixelData, "<u2").reshape(HU.shape).astype(int)
    for number, frame in enumerate(data.PerFrameFunctionalGroupsSequence):
        own = pydicom.Dataset()
        own.RescaleSlope, own.RescaleIntercept, own.RescaleType = 1, -1024 - number, "HU"
        frame.PixelValueTransformationSequence = [own]
    data.PixelData = (pixels + np.arange(len(HU))[:, None, None]).astype("<u2").tobytes()
    assert group is not None
    data.save_as(path)
    outcome, volume = only(ingest_one(path, tmp_path))
    assert outcome.status == "accepted", outcome.reasons
    np.testing.assert_array_equal(volume, EXPECTED)


def test_stray_bits_above_the_stored_ones(tmp_path):
    def change(data, stored, number) -> None:
        data.BitsStored, data.HighBit = 12, 11
        data.PixelData = (stored.clip(0, 4095) | 0xF000).astype("<u2").tobytes()

    edit(save_dicom(tmp_path / "in", HU), change)
    _, volume = only(ingest_one(tmp_path / "in", tmp_path))
    np.testing.assert_array_equal(volume, EXPECTED)


def test_prone_is_turned_by_its_orientation(tmp_path):
    def change(data, stored, number) -> None:
        x, y, z = map(float, data.ImagePositionPatient)
        data.ImageOrientationPatient = [-1, 0, 0, 0, -1, 0]
        data.ImagePositionPatient = [x + 63 * SPACING[2], y + 63 * SPACING[1], z]
        data.PixelData = stored[::-1, ::-1].astype("<u2").tobytes()

    edit(save_dicom(tmp_path / "in", HU), change)
    _, volume = only(ingest_one(tmp_path / "in", tmp_path))
    np.testing.assert_array_equal(volume, EXPECTED)


def test_the_same_image_under_another_identifier_counts_once(tmp_path):
    paths = save_dicom(tmp_path / "in", HU)
    data = pydicom.dcmread(paths[7])
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    data.save_as(tmp_path / "in" / "again.dcm")
    outcome, volume = only(ingest_one(tmp_path / "in", tmp_path))
    assert outcome.status == "accepted" and len(volume) == len(HU)


def test_a_slice_without_position_is_named(tmp_path):
    paths = save_dicom(tmp_path / "in", HU)
    edit(paths[7:8], lambda data, stored, number: data.__delattr__("ImagePositionPatient"))
    outcome, _ = only(ingest_one(tmp_path / "in", tmp_path))
    assert codes(outcome) == ["no_geometry"] and "s1_007.dcm" in outcome.reasons[0][1]


def test_a_ct_class_without_modality_is_ct(tmp_path):
    edit(save_dicom(tmp_path / "in", HU), lambda data, stored, number: data.__delattr__("Modality"))
    assert only(ingest_one(tmp_path / "in", tmp_path))[0].status == "accepted"


def test_a_dead_link_costs_itself_only(tmp_path):
    save_dicom(tmp_path / "in", HU)
    (tmp_path / "in" / "gone").symlink_to(tmp_path / "nowhere")
    results = ingest_one(tmp_path / "in", tmp_path)
    assert {o.key: o.status for o, _ in results} == {"in/gone": "refused", "in": "accepted"}


# The run


def test_copies_and_reconstructions_of_a_scan_stay_on_its_side_of_the_split(tmp_path):
    for name in "abcd":
        save_nifti(tmp_path / "in" / f"{name}.nii.gz", HU)
    for seed, name in enumerate("efgh"):  # the same body with other noise
        save_nifti(tmp_path / "in" / f"{name}.nii.gz", chest(seed=10 + seed))
    keys = ["resolution=64", "z_spacing=null", "workers=1", "progress=false", "valid_fraction=0.5"]
    assert main(["--source", str(tmp_path / "in"), "--output", str(tmp_path / "out"), *keys]) == 0
    with (tmp_path / "out" / "volumes.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 8 and len({(row["patient_id"], row["split"]) for row in rows}) == 1
    assert [row["flags"] for row in rows] == ["", *["duplicate_content"] * 3, *[""] * 4]
    save_nifti(tmp_path / "in" / "z.nii.gz", HU)  # a later run names the same first one
    assert main(["--source", str(tmp_path / "in"), "--output", str(tmp_path / "out"), *keys]) == 0
    quarantine = (tmp_path / "out" / "quarantine.csv").read_text(encoding="utf-8")
    assert quarantine.count("equals a") == 4


@pytest.mark.parametrize("trimmed", [1, 2, 3, 5])
def test_a_copy_that_is_trimmed_at_either_end_is_alike_and_another_chest_is_not(trimmed):
    """By 5 to 25 mm: such a copy counted as another patient."""
    one, other = coarse_picture(chest(seed=11), 5.0), coarse_picture(HU[:, :, ::-1], 5.0)
    for copy in (HU[trimmed:], HU[:-trimmed]):
        picture = coarse_picture(copy, 5.0)
        assert alike(one, picture) and alike(picture, one)
        assert not alike(other, picture) and not alike(picture, other)
    looks: Looks[int] = Looks()
    looks.add(one, 1)
    assert looks.find(coarse_picture(HU[trimmed:], 5.0)) == [1]


def test_likeness_needs_length_and_equal_anatomy():
    one = coarse_picture(HU, 5.0)
    assert alike(one, coarse_picture(chest(seed=11)[:40], 5.0))
    assert not alike(one, coarse_picture(HU[:10], 5.0))  # too short to tell
    assert not alike(one, coarse_picture(HU[:, :, ::-1], 5.0))  # heart and liver on the other side
