"""Formats and their defects: NIfTI, DICOM, NRRD, MetaImage."""

from __future__ import annotations

import gzip
import shutil

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from ct_rate_scans import SPACING, chest, codes, ingest_one, save_dicom, save_enhanced, save_nifti
from pydicom.uid import RLELossless

HU = chest()
EXPECTED = np.where(HU <= -1024, -1000, HU)


def only(results):
    assert len(results) == 1, [(o.key, o.status, o.reasons) for o, _ in results]
    return results[0]


def usable(results):
    return [(o, v) for o, v in results if o.usable]


# NIfTI


def test_nifti_is_recognised_by_content_not_by_ending(tmp_path):
    plain = save_nifti(tmp_path / "in" / "a.nii", HU)
    plain.rename(tmp_path / "in" / "a.nii.gz")
    outcome, volume = only(ingest_one(tmp_path / "in", tmp_path))
    assert outcome.status == "accepted"
    np.testing.assert_array_equal(volume, EXPECTED)


def test_a_pair_of_header_and_image(tmp_path):
    import nibabel as nib

    single = nib.load(save_nifti(tmp_path / "single.nii", HU))
    (tmp_path / "in").mkdir()
    nib.save(nib.Nifti1Pair(single.dataobj, single.affine, single.header), tmp_path / "in" / "a.hdr")
    outcome, volume = only(ingest_one(tmp_path / "in", tmp_path))
    assert outcome.status == "accepted"
    np.testing.assert_array_equal(volume, EXPECTED)
    (tmp_path / "in" / "a.img").unlink()
    outcome, _ = only(ingest_one(tmp_path / "in", tmp_path))
    assert codes(outcome) == ["truncated"]


def test_metres_are_millimetres_times_a_thousand(tmp_path):
    spacing = tuple(s / 1000 for s in SPACING)
    path = save_nifti(tmp_path / "in" / "a.nii.gz", HU, spacing=spacing, unit="meter")
    outcome, _ = only(ingest_one(path, tmp_path))
    assert outcome.spacing == pytest.approx(SPACING)


@pytest.mark.parametrize(("cut", "code"), [(0.5, "truncated"), (0.999, "truncated"), (0.0, "not_an_image")])
@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
def test_cut_files_are_refused(tmp_path, ending, cut, code):
    path = save_nifti(tmp_path / "in" / f"a.{ending}", HU)
    data = path.read_bytes()
    path.write_bytes(data[: int(cut * len(data))])
    outcome, volume = only(ingest_one(path, tmp_path))
    assert outcome.status == "refused" and codes(outcome) == [code] and volume is None


def test_a_flipped_bit_in_a_compressed_stream_is_noticed(tmp_path):
    path = save_nifti(tmp_path / "in" / "a.nii.gz", HU)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    outcome, _ = only(ingest_one(path, tmp_path))
    assert outcome.status == "refused" and codes(outcome)[0] in ("damaged", "truncated")


def test_a_decompression_bomb_is_refused_before_it_unfolds(tmp_path):
    path = save_nifti(tmp_path / "in" / "a.nii", HU)
    data = bytearray(path.read_bytes())
    data[42:48] = np.array([30000, 30000, 30000], "<i2").tobytes()
    path.write_bytes(gzip.compress(bytes(data)))
    outcome, _ = only(ingest_one(path, tmp_path))
    assert codes(outcome) == ["too_large"]


@pytest.mark.parametrize(
    ("array", "code"),
    [
        (np.stack([HU, HU], -1), "not_3d"),
        (HU[:4], "too_few_slices"),
        (HU[:, :20, :20], "too_small"),
        (HU.astype(np.complex64), "not_3d"),
    ],
)
def test_shapes_that_are_no_volume(tmp_path, array, code):
    path = save_nifti(tmp_path / "in" / "a.nii.gz", array, affine=np.diag([5.5, 5.5, 5.0, 1.0]))
    outcome, _ = only(ingest_one(path, tmp_path))
    assert codes(outcome) == [code]


def test_a_trailing_axis_of_one_is_no_fourth_dimension(tmp_path):
    path = save_nifti(tmp_path / "in" / "a.nii.gz", HU[..., None], affine=np.diag([5.5, 5.5, 5.0, 1.0]))
    outcome, _ = only(ingest_one(path, tmp_path))
    assert codes(outcome) != ["not_3d"] and outcome.facts.get("native_shape")


def test_without_orientation_left_and_right_are_unknown(tmp_path):
    path = save_nifti(tmp_path / "in" / "a.nii.gz", HU, codes=(0, 0))
    outcome, _ = only(ingest_one(path, tmp_path))
    assert codes(outcome) == ["no_orientation"]


@pytest.mark.parametrize(
    "spacing", [(5.0, 0.05, 0.05), (40.0, 5.5, 5.5), (0.01, 5.5, 5.5), (5.0, 30.0, 30.0)]
)
def test_spacing_no_scanner_has(tmp_path, spacing):
    path = save_nifti(tmp_path / "in" / "a.nii.gz", HU, spacing=spacing)
    outcome, _ = only(ingest_one(path, tmp_path))
    assert codes(outcome) == ["implausible_spacing"]


# NRRD and MetaImage


def itk_image(hu=HU) -> sitk.Image:
    image = sitk.GetImageFromArray(hu[:, :, ::-1])  # LPS: columns from right to left
    image.SetSpacing(SPACING[::-1])
    return image


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha", "a.mhd", "a.nhdr"])
def test_itk_formats(tmp_path, name):
    (tmp_path / "in").mkdir()
    sitk.WriteImage(itk_image(), str(tmp_path / "in" / name), useCompression=True)
    outcome, volume = only(ingest_one(tmp_path / "in", tmp_path))
    assert outcome.status == "accepted", outcome.reasons
    np.testing.assert_array_equal(volume, EXPECTED)


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
def test_cut_itk_files(tmp_path, name):
    path = tmp_path / "in" / name
    path.parent.mkdir()
    sitk.WriteImage(itk_image(), str(path))
    path.write_bytes(path.read_bytes()[:-20_000])
    outcome, _ = only(ingest_one(path, tmp_path))
    assert outcome.status == "refused" and codes(outcome)[0] in ("truncated", "unreadable")


def test_nrrd_without_space(tmp_path):
    path = tmp_path / "in" / "a.nrrd"
    path.parent.mkdir()
    sitk.WriteImage(itk_image(), str(path))
    head, body = path.read_bytes().split(b"\n\n", 1)
    lines = [line for line in head.splitlines() if not line.startswith(b"space")]
    path.write_bytes(b"\n".join(lines) + b"\n\n" + body)
    outcome, _ = only(ingest_one(path, tmp_path))
    assert codes(outcome) == ["no_orientation"]


# DICOM


def test_dicom_series_with_strays(tmp_path):
    folder = tmp_path / "in"
    paths = save_dicom(folder, HU)
    rename = [p.rename(p.with_suffix("")) for p in paths[:5]]  # DICOM files often have no ending
    assert rename
    (folder / "README.txt").write_text("notes", encoding="utf-8")
    (folder / "DICOMDIR").write_bytes(b"x")
    (folder / "screen.png").write_bytes(b"\x89PNG")
    (folder / "unknown").write_bytes(b"no image at all")
    results = ingest_one(folder, tmp_path)
    ((outcome, volume),) = usable(results)
    assert outcome.status == "accepted", outcome.reasons
    assert outcome.patient_id == "Patient7" and outcome.case_id == "in"
    np.testing.assert_array_equal(volume, EXPECTED)
    assert outcome.spacing == pytest.approx(SPACING)
    assert [(o.key, o.status) for o, _ in results if not o.usable] == [("in/unknown", "ignored")]


def compress(path, syntax) -> None:
    """Rewrite a DICOM file with compressed pixels: RLE by pydicom, JPEG by GDCM."""
    if syntax == "RLE":
        data = pydicom.dcmread(path)
        data.compress(RLELossless)
        data.save_as(path)
        return
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    image = sitk.Cast(reader.Execute(), sitk.sitkInt16)
    for key in reader.GetMetaDataKeys():
        image.SetMetaData(key, reader.GetMetaData(key))
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.KeepOriginalImageUIDOn()
    writer.UseCompressionOn()
    writer.SetCompressor(syntax)
    writer.SetFileName(str(path))
    writer.Execute(image)


@pytest.mark.parametrize(
    ("syntax", "name"),
    [
        ("JPEG2000", "JPEG 2000"),
        ("JPEG", "JPEG Lossless"),
        ("RLE", "RLE Lossless"),
    ],
)
def test_compressed_transfer_syntaxes(tmp_path, syntax, name):
    for path in save_dicom(tmp_path / "in", HU):
        compress(path, syntax)
    outcome, volume = only(ingest_one(tmp_path / "in", tmp_path))
    assert outcome.status == "accepted", outcome.reasons
    assert name in outcome.facts["format"]
    np.testing.assert_array_equal(volume, EXPECTED)


def test_a_damaged_compressed_slice_is_refused(tmp_path):
    paths = save_dicom(tmp_path / "in", HU)
    for path in paths:
        compress(path, "JPEG")
    data = paths[9].read_bytes()
    paths[9].write_bytes(data[: len(data) - 3000])
    outcome, _ = only(ingest_one(tmp_path / "in", tmp_path))
    assert outcome.status == "refused" and "s1_009.dcm" in outcome.reasons[0][1]


def test_several_series_in_one_folder(tmp_path):
    folder = tmp_path / "in"
    save_dicom(folder, HU, series=3)
    save_dicom(folder, chest(seed=1), series=4)
    save_dicom(folder, HU[:1], series=1, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    save_dicom(folder, HU[:10], series=9, modality="MR")
    results = ingest_one(folder, tmp_path)
    assert sorted(o.case_id for o, _ in usable(results)) == ["in-1-s3", "in-2-s4"]
    assert len({o.patient_id for o, _ in usable(results)}) == 1
    refused = {o.key: codes(o) for o, _ in results if not o.usable}
    assert refused == {"in/#s1": ["localizer"], "in/#s9": ["not_ct"]}


def test_missing_slice_is_named(tmp_path):
    save_dicom(tmp_path / "in", HU, skip=(17,))
    outcome, _ = only(ingest_one(tmp_path / "in", tmp_path))
    assert codes(outcome) == ["uneven_slices"]
    assert "s1_016.dcm" in outcome.reasons[0][1] and "10.000 mm" in outcome.reasons[0][1]


def test_gantry_tilt_is_refused(tmp_path):
    save_dicom(tmp_path / "in", HU, tilt=12.0)
    outcome, _ = only(ingest_one(tmp_path / "in", tmp_path))
    assert codes(outcome) == ["gantry_tilt"] and "12.0" in outcome.reasons[0][1]


def test_a_truncated_slice_is_refused_by_name(tmp_path):
    paths = save_dicom(tmp_path / "in", HU)
    paths[5].write_bytes(paths[5].read_bytes()[:-1000])
    outcome, _ = only(ingest_one(tmp_path / "in", tmp_path))
    assert codes(outcome) == ["truncated"] and "s1_005.dcm" in outcome.reasons[0][1]


def test_the_same_slice_twice_counts_once_and_another_at_its_place_is_refused(tmp_path):
    paths = save_dicom(tmp_path / "in", HU)
    shutil.copy(paths[3], tmp_path / "in" / "copy.dcm")
    outcome, volume = only(ingest_one(tmp_path / "in", tmp_path))
    assert outcome.status == "accepted" and len(volume) == len(HU)
    data = paths[4].read_bytes()
    save_dicom(tmp_path / "other", chest(seed=2), SOPInstanceUID="1.2.3.4")
    shutil.copy(tmp_path / "other" / "s1_004.dcm", paths[4])
    assert paths[4].read_bytes() != data
    save_dicom(tmp_path / "two", HU)
    shutil.copy(tmp_path / "two" / "s1_004.dcm", tmp_path / "in" / "again.dcm")
    results = ingest_one(tmp_path / "in", tmp_path)
    assert all(o.status == "refused" for o, _ in results), [(o.status, o.reasons) for o, _ in results]


def test_two_passes_in_one_series_become_two_volumes(tmp_path):
    save_dicom(tmp_path / "in", HU, AcquisitionNumber=1)
    for path in list((tmp_path / "in").iterdir()):
        path.rename(path.with_name("first_" + path.name))
    save_dicom(tmp_path / "in", chest(seed=5), AcquisitionNumber=2)
    assert len(usable(ingest_one(tmp_path / "in", tmp_path))) == 2


def test_without_position_there_is_no_volume(tmp_path):
    for path in save_dicom(tmp_path / "in", HU[:10]):
        data = pydicom.dcmread(path)
        del data.ImagePositionPatient
        data.save_as(path)
    outcome, _ = only(ingest_one(tmp_path / "in", tmp_path))
    assert codes(outcome) == ["no_geometry"]


def test_enhanced_multiframe(tmp_path):
    path = save_enhanced(tmp_path / "in" / "a.dcm", HU)
    outcome, volume = only(ingest_one(path, tmp_path))
    assert outcome.status == "accepted", outcome.reasons
    np.testing.assert_array_equal(volume, EXPECTED)
    assert outcome.spacing == pytest.approx(SPACING)


def test_garbage_named_dicom_is_refused_and_objects_without_pixels_are_not_counted(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.dcm").write_bytes(bytes(range(256)) * 20)
    (tmp_path / "in" / "b.dcm").write_bytes(b"")
    (tmp_path / "in" / "c").write_bytes(b"\0" * 4000)
    results = ingest_one(tmp_path / "in", tmp_path)
    assert {o.key: (o.status, codes(o)[0]) for o, _ in results} == {
        "in/a.dcm": ("refused", "unreadable"),
        "in/b.dcm": ("refused", "not_an_image"),
        "in/c": ("refused", "not_an_image"),
    }
