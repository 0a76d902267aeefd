"""DICOM as exporters and anonymisers leave it: jitter, odd tags, no preamble, slices without a rescale."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from ct_rate_scans import chest, codes, ingest_one, save_dicom, save_enhanced
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from pydicom.uid import generate_uid

from ctflow.config.prep import IngestConfig
from data_prep.ct_rate.dicom_headers import is_dicom
from data_prep.ct_rate.dicom_series import sort_folder
from data_prep.ct_rate.dicom_tags import numbers
from data_prep.ct_rate.discovery import find_items

HU = chest()
EXPECTED = np.where(HU <= -1024, -1000, HU)


def edit(paths, change, **written) -> None:
    for k, path in enumerate(paths):
        data = pydicom.dcmread(path)
        change(data, k)
        data.save_as(path, **written)


def only(results):
    assert len(results) == 1, [(o.key, o.status, o.reasons) for o, _ in results]
    return results[0]


def raw(data, name, text, vr) -> None:
    tag = Tag(name)
    value = text.encode() + b" " * (len(text) % 2)
    data._dict[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)


def turned_jitter(data, k):
    s = 0.005 + (1e-5 if k % 2 else -1e-5)
    c = float(np.sqrt(1 - s * s))
    data.ImageOrientationPatient = [f"{v:.9f}" for v in (c, s, 0, -s, c, 0)]


def place_jitter(data, k):
    x, y, z = data.ImagePositionPatient
    data.ImagePositionPatient = [x + 0.004 * (k % 3), y - 0.004 * (k % 2), z + 0.003 * (k % 2)]


def spacing_jitter(data, k):
    data.PixelSpacing = [5.5, 5.5 + 1e-6 * (k % 2)]


@pytest.mark.parametrize("jitter", [turned_jitter, place_jitter, spacing_jitter])
def test_jitter_between_slices_splits_and_refuses_nothing(tmp_path, jitter):
    edit(save_dicom(tmp_path / "in", HU), jitter)
    outcome, volume = only(ingest_one(tmp_path / "in", tmp_path))
    assert outcome.status == "accepted", outcome.reasons
    np.testing.assert_array_equal(volume, EXPECTED)


def test_a_reformat_under_the_same_series_is_a_volume_of_its_own(tmp_path):
    save_dicom(tmp_path / "in", HU)
    reformat = save_dicom(tmp_path / "other", HU, ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    uid = pydicom.dcmread(tmp_path / "in" / "s1_000.dcm").SeriesInstanceUID
    edit(reformat, lambda d, k: setattr(d, "SeriesInstanceUID", uid))
    for path in reformat:
        path.rename(tmp_path / "in" / f"r{path.name}")
    statuses = sorted(o.status for o, _ in ingest_one(tmp_path / "in", tmp_path))
    assert statuses == ["accepted", "refused"]


@pytest.mark.parametrize("every", [2, 4])
def test_a_series_of_which_only_some_slices_have_an_orientation_is_no_volume_of_the_others(tmp_path, every):
    """Every second slice of a chest looks whole, at twice the spacing."""

    def change(data, k):
        if k % every == 1:
            del data.ImageOrientationPatient

    edit(save_dicom(tmp_path / "in", HU), change)
    items, told = sort_folder(find_items(tmp_path / "in", None, IngestConfig()).items[0])
    assert not items
    ((_, status, code, detail),) = told
    lost = len(range(1, len(HU), every))
    assert (status, code) == ("refused", "no_geometry")
    assert f"{lost} files" in detail and f"{lost} further slices have no orientation" in detail


def test_two_passes_whose_positions_jitter_are_two_volumes(tmp_path):
    first = save_dicom(tmp_path / "in", HU, AcquisitionNumber=1)
    for path in first:
        path.rename(path.with_name("first_" + path.name))
    edit(save_dicom(tmp_path / "in", chest(seed=5), AcquisitionNumber=2), place_jitter)
    assert [o.status for o, _ in ingest_one(tmp_path / "in", tmp_path)].count("accepted") == 2


def test_slices_beside_the_others_are_refused_by_name(tmp_path):
    def shifted(data, k):
        x, y, z = data.ImagePositionPatient
        data.ImagePositionPatient = [x + (20.0 if k == 7 else 0.0), y, z]

    edit(save_dicom(tmp_path / "in", HU), shifted)
    outcome, _ = only(ingest_one(tmp_path / "in", tmp_path))
    assert codes(outcome) == ["no_geometry"] and "s1_007.dcm lies 20.0 mm beside" in outcome.reasons[0][1]


def test_a_tilt_tag_over_a_straight_geometry_is_a_flag(tmp_path):
    save_dicom(tmp_path / "in", HU, GantryDetectorTilt="2.0")
    outcome, volume = only(ingest_one(tmp_path / "in", tmp_path))
    assert outcome.status == "flagged" and codes(outcome) == ["tilt_conflict"]
    np.testing.assert_array_equal(volume, EXPECTED)


@pytest.mark.parametrize(
    ("vr", "text", "works"),
    [
        ("UT", r"5.5\5.5", True),
        ("LO", r"5.5\5.5", True),
        ("UN", r"5.5\5.5", True),
        ("DS", r"5,5\5,5", True),
        ("DS", "5.5,5.5", True),
        ("DS", "5.5 5.5", True),
        ("DS", "5,5", False),
        ("DS", r"5.5\abc", False),
        ("DS", r"5.5", False),
    ],
)
def test_pixel_spacing_as_text(tmp_path, vr, text, works):
    edit(save_dicom(tmp_path / "in", HU), lambda d, k: raw(d, "PixelSpacing", text, vr))
    outcome, volume = only(ingest_one(tmp_path / "in", tmp_path))
    if works:
        assert outcome.status == "accepted", outcome.reasons
        assert outcome.spacing == pytest.approx([5.0, 5.5, 5.5])
        np.testing.assert_array_equal(volume, EXPECTED)
    else:
        (reason,) = outcome.reasons
        assert reason[0] == "no_geometry" and "44 files" in reason[1]
        assert f"PixelSpacing {text!r} is not 2 numbers" in reason[1]


def test_numbers_of_tags():
    assert numbers("-170,5\\0\\-3e2", 3) == (-170.5, 0.0, -300.0)
    assert numbers([1, 2.5], 2) == (1.0, 2.5) and numbers(3, 1) == (3.0,)
    assert numbers("1,2", 2) is None and numbers("nan", 1) is None and numbers(None, 1) is None
    assert numbers("[0.7, 0.7]", 2) == (0.7, 0.7)


def test_tags_that_are_not_needed_refuse_no_slice(tmp_path):
    def change(data, k):
        for name in ("AcquisitionNumber", "SeriesNumber", "InstanceNumber"):
            raw(data, name, f"A{k}x", "IS")
        raw(data, "GantryDetectorTilt", "none", "DS")
        raw(data, "PixelPaddingValue", "lots", "US")

    edit(save_dicom(tmp_path / "in", HU), change)
    outcome, volume = only(ingest_one(tmp_path / "in", tmp_path))
    assert outcome.status == "accepted", outcome.reasons
    np.testing.assert_array_equal(volume, EXPECTED)


# Slope and intercept


def without(*names):
    def change(data, k):
        if k == 30:
            for name in names:
                delattr(data, name)

    return change


def test_no_slice_may_lack_what_the_others_have(tmp_path):
    for names in (("RescaleSlope", "RescaleIntercept"), ("RescaleIntercept",), ("RescaleSlope",)):
        folder = tmp_path / "-".join(names)
        edit(save_dicom(folder, HU), without(*names))
        outcome, _ = only(ingest_one(folder, tmp_path))
        assert codes(outcome) == ["mixed_rescale"] and "s1_030.dcm" in outcome.reasons[0][1]


def test_an_intercept_of_its_own_that_does_not_fit_is_refused(tmp_path):
    edit(save_dicom(tmp_path / "in", HU), lambda d, k: setattr(d, "RescaleIntercept", 0 if k == 9 else -1024))
    outcome, _ = only(ingest_one(tmp_path / "in", tmp_path))
    assert codes(outcome) == ["mixed_rescale"] and "s1_009.dcm" in outcome.reasons[0][1]


@pytest.mark.parametrize(
    ("slope", "code"), [("0", None), ("-1", "not_hu"), ("abc", "mixed_rescale"), ("", None)]
)
def test_slopes_of_a_whole_series(tmp_path, slope, code):
    edit(save_dicom(tmp_path / "in", HU), lambda d, k: raw(d, "RescaleSlope", slope, "DS"))
    outcome, volume = only(ingest_one(tmp_path / "in", tmp_path))
    if code:
        assert codes(outcome) == [code] and slope in outcome.reasons[0][1]
    else:
        assert outcome.status == "accepted", outcome.reasons
        np.testing.assert_array_equal(volume, EXPECTED)


def test_frames_of_which_some_lack_a_rescale_are_refused(tmp_path):
    path = save_enhanced(tmp_path / "in" / "a.dcm", HU)
    data = pydicom.dcmread(path)
    shared = data.SharedFunctionalGroupsSequence[0]
    sequence = shared.PixelValueTransformationSequence
    del shared.PixelValueTransformationSequence
    for frame in data.PerFrameFunctionalGroupsSequence[3:]:
        frame.PixelValueTransformationSequence = sequence
    data.save_as(path)
    outcome, _ = only(ingest_one(path, tmp_path))
    assert codes(outcome) == ["mixed_rescale"] and "frame" in outcome.reasons[0][1]


def test_values_beyond_what_is_stored_are_flagged(tmp_path):
    hu = HU.astype(np.int32)
    hu[10, 5, 5] = 60000
    save_dicom(tmp_path / "in", hu)
    outcome, _ = only(ingest_one(tmp_path / "in", tmp_path))
    assert codes(outcome) == ["clipped_values"]


# Files without preamble


def bare(paths, kind) -> None:
    """Take preamble and magic away: file meta first, or the data set alone, with or without group length."""
    for path in paths:
        whole = path.read_bytes()
        if kind == "file meta":
            path.write_bytes(whole[132:])
            continue
        data = pydicom.dcmread(path)
        data.SeriesInstanceUID = "1.2.3.9"
        del data.file_meta
        data.preamble = None
        implicit, little = "implicit" in kind, "big" not in kind
        data.save_as(path, enforce_file_format=False, implicit_vr=implicit, little_endian=little)
        if "length" in kind:
            length = b"\x08\0\0\0\x04\0\0\0" if implicit else b"\x08\0\0\0UL\x04\0"
            path.write_bytes(length + b"\x2c\x01\0\0" + path.read_bytes())


@pytest.mark.parametrize("kind", ["file meta", "implicit", "explicit", "implicit length", "explicit length"])
@pytest.mark.parametrize("share", [slice(None), slice(30, None)])
def test_files_without_preamble_belong_to_their_series(tmp_path, kind, share):
    paths = save_dicom(
        tmp_path / "in", HU, SeriesInstanceUID=generate_uid() if kind == "file meta" else "1.2.3.9"
    )
    bare(paths[share], kind)
    paths = [path.rename(path.with_suffix("")) for path in paths]
    assert all(map(is_dicom, paths))
    outcome, volume = only(ingest_one(tmp_path / "in", tmp_path))
    assert outcome.status == "accepted", outcome.reasons
    np.testing.assert_array_equal(volume, EXPECTED)


def test_many_strays_beside_a_series_are_refused(tmp_path):
    save_dicom(tmp_path / "in", HU)
    for k in range(3):
        (tmp_path / "in" / f"u{k}").write_bytes(b"no image at all")
    results = ingest_one(tmp_path / "in", tmp_path)
    assert sorted(o.status for o, _ in results) == ["accepted", "refused", "refused", "refused"]


@pytest.mark.parametrize(
    "head", [b"", b"text", b"\x08\0\x05\0abcd", b"\x08\0\0\0\x05\0\0\0", b"\x02\0\0\x0200000"]
)
def test_other_beginnings_are_no_dicom(tmp_path, head):
    (tmp_path / "x").write_bytes(head)
    assert not is_dicom(tmp_path / "x")


def test_a_dicomdir_under_another_name_is_no_volume(tmp_path):
    save_dicom(tmp_path / "in", HU)
    data = pydicom.dcmread(tmp_path / "in" / "s1_000.dcm")
    directory = pydicom.Dataset()
    directory.file_meta = data.file_meta
    directory.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    directory.FileSetID, directory.DirectoryRecordSequence = "SET", []
    directory.save_as(tmp_path / "in" / "INDEX.dcm", enforce_file_format=True)
    results = ingest_one(tmp_path / "in", tmp_path)
    assert sorted((o.status, *codes(o)) for o, _ in results) == [("accepted",), ("ignored", "no_pixels")]
