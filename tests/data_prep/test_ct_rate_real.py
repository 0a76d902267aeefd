"""Every real scan beside the checkout ends as its list says."""

from __future__ import annotations

import numpy as np
import pytest
from ct_rate_scans import codes, ingest_one

from ctflow.config.prep import IngestConfig
from data_prep.ct_rate.likeness import alike
from data_prep.ct_rate.tables import Tables

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def scans(shared_dir):
    return shared_dir / "real_ct"


@pytest.fixture(scope="module")
def lidc(scans, tmp_path_factory):
    """The whole chest with its own slices, and its outcome."""
    path = scans / "ct_chest_lidc0314_hu.nii.gz"
    ((outcome, volume),) = ingest_one(path, tmp_path_factory.mktemp("lidc"), resolution=256)
    return outcome, volume


def stored_row(scans):
    config = IngestConfig(metadata=[str(scans / "ct_chest_lidc0314_5mm_stored_norescale.csv")])
    return Tables(config, []).row("ct_chest_lidc0314_5mm_stored_norescale.nii.gz", alone=False)


def test_whole_chest_is_accepted(lidc):
    outcome, volume = lidc
    assert outcome.status == "accepted"
    assert volume.shape == (275, 256, 256)
    assert outcome.spacing == pytest.approx((1.0, 1.5625, 1.5625))
    assert outcome.facts["stored_axes"] == "LPS" and outcome.facts["rescale"]["source"] == "stored"


def test_hu_are_equal_from_both_files(lidc, scans, tmp_path):
    path = scans / "ct_chest_lidc0314_5mm_stored_norescale.nii.gz"
    row = stored_row(scans)
    assert row.rescale == (1.0, -1000.0) and row.spacing == (5.0, 1.5625, 1.5625)
    ((outcome, volume),) = ingest_one(path, tmp_path, row, resolution=256)
    assert outcome.status == "accepted" and outcome.facts["rescale"]["source"] == "csv"
    difference = volume.astype(int) - lidc[1][::5].astype(int)
    assert np.abs(difference).max() <= 1
    assert alike(outcome.coarse, lidc[0].coarse)  # and so they are on one side of the split


def test_both_files_agree_where_their_slices_meet_after_resampling(scans, tmp_path):
    row = stored_row(scans)
    thin, thick = (
        ingest_one(scans / name, tmp_path, given, resolution=128, z_spacing=1.5)[0][1]
        for name, given in (
            ("ct_chest_lidc0314_hu.nii.gz", None),
            ("ct_chest_lidc0314_5mm_stored_norescale.nii.gz", row),
        )
    )
    common = slice(0, len(thick), 10)  # every 15 mm
    assert np.abs(thin[common][:18].astype(int) - thick[common][:18].astype(int)).max() <= 1


def test_stored_values_without_their_csv_are_refused(scans, tmp_path):
    ((outcome, _),) = ingest_one(scans / "ct_chest_lidc0314_5mm_stored_norescale.nii.gz", tmp_path)
    assert outcome.status == "refused" and codes(outcome) == ["not_hu"]


def test_air_fat_blood_and_bone_lie_where_they_belong(lidc):
    volume = lidc[1]
    assert np.median(volume[:, :6, 110:150]) == pytest.approx(-1000, abs=30)  # above the chest
    counts, edges = np.histogram(volume, bins=350, range=(-200, 150))
    fat, muscle = (int(edges[i + int(np.argmax(counts[i : i + 110]))]) for i in (50, 220))
    assert -130 < fat < -80 and 20 < muscle < 80
    aorta = volume[150:170, 140:150, 118:124]
    assert np.percentile(volume[140:170, 170:200, 115:145], 95) > 250  # the spine, behind
    assert aorta.size and volume.max() > 1000


def test_left_is_left_and_down_is_down(lidc):
    """Heart to the patient's left, liver at the bottom on the right, spine behind, lungs above."""
    volume = lidc[1]
    tissue = (volume > 0) & (volume < 150)
    left, right = slice(40, 128), slice(128, 216)  # columns run from the patient's left to the right
    bottom = slice(20, 50)
    assert tissue[bottom, 60:150, right].mean() > 1.15 * tissue[bottom, 60:150, left].mean()
    assert tissue[:40].mean() > 1.5 * tissue[150:200].mean()
    bone = volume > 250
    assert bone[:, 150:].mean() > bone[:, :100].mean()
    columns = np.arange(256)
    spine = np.average(columns, weights=bone[110:130, 150:200].sum((0, 1)))
    heart = np.average(columns[85:171], weights=tissue[110:130, 85:135, 85:171].sum((0, 1)))
    assert 2 < spine - heart < 20


def test_eight_millimetre_dicom_is_accepted_and_resampled(scans, tmp_path):
    ((outcome, volume),) = ingest_one(
        scans / "dicom_chest_siemens_8mm", tmp_path, resolution=128, z_spacing=1.5
    )
    assert outcome.status == "accepted" and outcome.patient_id == "Lung_Dx-A0002"
    assert outcome.facts["native_spacing"] == pytest.approx([8.0, 0.646484, 0.646484], abs=1e-5)
    assert volume.shape == (155, 128, 128) and outcome.spacing[0] == 1.5
    assert volume.min() >= -1024


def test_partial_dicom_is_flagged_short_and_its_padding_stays_out(scans, tmp_path):
    ((outcome, volume),) = ingest_one(scans / "dicom_chest_ge_lidc0001_partial", tmp_path, resolution=512)
    assert outcome.status == "flagged" and codes(outcome) == ["short_coverage"]
    assert outcome.facts["padding_share"] > 0.1
    assert volume.min() > -1024 and (volume[:, :20, :20] == -1000).all()


def test_crops_are_flagged_as_no_whole_chest(scans, tmp_path):
    ((crop, _),) = ingest_one(scans / "ct_mediastinum_cta_crop_LPS.nii.gz", tmp_path, resolution=128)
    assert crop.status == "flagged" and "cropped_field" in codes(crop)
    ((half, volume),) = ingest_one(scans / "ct_right_hemithorax_aniso.mha", tmp_path, resolution=128)
    assert half.status == "flagged" and {"one_lung", "cropped_field"} <= set(codes(half))
    assert not alike(crop.coarse, half.coarse)
    assert half.facts["lung_ml"] > 1000 and half.facts["lung_left_ml"] is None
    assert half.facts["native_spacing"] == pytest.approx([2.5, 1.366, 1.366], abs=1e-3)
    assert volume.min() > -1024


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("awkward_ct_oblique_uint8_nohu_head.nii.gz", "not_hu", "values 0 to 2"),
        ("reject_mr_4d.nii.gz", "not_3d", "4D"),
        ("reject_mr_abdomen_LPS.nii.gz", "not_hu", "no air"),
        ("reject_dicom_tilt_and_missing_slice", "uneven_slices", "IM-0001-0003.dcm"),
    ],
)
def test_refused_by_name_and_reason(scans, tmp_path, name, code, words):
    ((outcome, volume),) = ingest_one(scans / name, tmp_path)
    assert outcome.status == "refused" and volume is None
    assert codes(outcome)[0] == code and words in outcome.reasons[0][1]


def test_the_gap_and_the_tilt_are_named(scans, tmp_path):
    ((outcome, _),) = ingest_one(scans / "reject_dicom_tilt_and_missing_slice", tmp_path)
    reasons = dict(outcome.reasons)
    assert "IM-0001-0005.dcm" in reasons["uneven_slices"] and "1 missing" in reasons["uneven_slices"]
    assert "15.5 degrees" in reasons["gantry_tilt"]
