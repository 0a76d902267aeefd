"""Slope and intercept exactly once, whoever carries them."""

from __future__ import annotations

import numpy as np
import pytest
from ct_rate_scans import chest, codes, ingest_one, save_nifti

from data_prep.ct_rate.hounsfield import decide_rescale
from data_prep.ct_rate.reasons import ScanRefused
from data_prep.ct_rate.tables import CsvRow

HU = chest().astype(np.float64)


@pytest.mark.parametrize(
    ("stored", "header", "csv", "source"),
    [
        (HU, (1.0, 0.0), None, "stored"),  # version 2: HU
        (HU, (1.0, 0.0), (1.0, -1024.0), "stored"),  # version 2, the CSV still has version 1's intercept
        (HU + 1024, (1.0, 0.0), (1.0, -1024.0), "csv"),  # version 1: stored values
        (HU + 8192, (1.0, 0.0), (1.0, -8192.0), "csv"),
        ((HU + 1024) / 2, (1.0, 0.0), (2.0, -1024.0), "csv"),
        (HU + 1024, (1.0, -1024.0), None, "header"),
        (HU + 1024, (1.0, -1024.0), (1.0, -1024.0), "header"),  # both say it; it counts once
        (HU, (1.0, -1024.0), None, "stored"),  # HU already, and a header that would do it again
        (HU * 10 + 10240, (0.1, 0.0), (1.0, -1024.0), "csv after header"),
    ],
)
def test_decision(stored, header, csv, source):
    rescale, _ = decide_rescale(stored, header, csv)
    assert rescale.source == source
    assert rescale.conflict == (header != (1.0, 0.0) and source == "stored")
    np.testing.assert_allclose(rescale(stored), np.where(HU <= -1024, -1000, HU), atol=1e-2)


def test_padding_does_not_decide():
    padded = HU.copy()
    padded[:, :12] = -3024
    rescale, facts = decide_rescale(padded, (1.0, 0.0), (1.0, -1024.0))
    assert rescale.source == "stored"
    assert facts["padding_share"] == pytest.approx(np.mean(padded <= -1024), abs=0.02)


rng = np.random.default_rng(1)


@pytest.mark.parametrize(
    ("values", "code"),
    [
        (HU + 1024, "not_hu"),  # stored values and nobody who knows the intercept
        (HU - 1024, "not_hu"),  # intercept applied twice
        (((HU + 1000) / 8).clip(0, 255).astype(np.uint8), "not_hu"),
        ((HU + 1000) / 2000, "not_hu"),
        (np.abs(rng.normal(200, 150, HU.shape)), "not_hu"),  # MR
        (rng.integers(-32768, 32767, HU.shape), "not_hu"),
        (rng.normal(0, 400, HU.shape), "not_hu"),
        (np.zeros(HU.shape), "constant"),
        (np.where(rng.random(HU.shape) < 0.001, 1.0, 0.0), "empty"),
        (np.where(rng.random(HU.shape) < 0.7, np.nan, HU), "not_finite"),
    ],
    ids=["stored", "twice", "8-bit", "unit", "MR", "noise", "gauss", "constant", "empty", "nan"],
)
def test_what_is_not_hu_is_refused(values, code):
    with pytest.raises(ScanRefused) as refused:
        decide_rescale(values, (1.0, 0.0), None)
    assert refused.value.code == code


def test_stored_values_without_csv_say_what_to_do():
    with pytest.raises(ScanRefused, match=r"HU \+ 1000 or 1024.*--metadata"):
        decide_rescale(HU + 1024, (1.0, 0.0), None)


@pytest.mark.parametrize(("slope", "inter"), [(1.0, -1024.0), (0.5, -1024.0)])
def test_a_nifti_header_is_applied_once(tmp_path, slope, inter):
    stored = np.rint((HU - inter) / slope).astype(np.int16)
    path = save_nifti(tmp_path / "in" / "a.nii.gz", stored, slope=slope, inter=inter)
    ((outcome, volume),) = ingest_one(path, tmp_path, CsvRow(rescale=(slope, inter)))
    assert outcome.status == "accepted" and outcome.facts["rescale"]["source"] == "header"
    assert np.abs(volume - np.where(HU <= -1024, -1000, HU)).max() <= 1


@pytest.mark.parametrize(("header", "csv"), [((-1.0, 0.0), None), ((1.0, 0.0), (-1.0, 0.0))])
def test_a_negative_slope_makes_no_hu(header, csv):
    with pytest.raises(ScanRefused, match="slope -1"):
        decide_rescale(-HU, header, csv)


def test_a_negative_slope_over_hu_is_left_out_and_told(tmp_path):
    path = save_nifti(tmp_path / "in" / "a.nii.gz", chest(), slope=-1.0, inter=0.0)
    ((outcome, volume),) = ingest_one(path, tmp_path)
    assert codes(outcome) == ["rescale_conflict"]
    np.testing.assert_array_equal(volume, np.where(HU <= -1024, -1000, HU))


@pytest.mark.parametrize("value", [3e38, 40_000.0])
def test_one_voxel_beyond_what_is_stored_is_told_and_stays_alone(tmp_path, value):
    values = HU.astype(np.float32)
    values[20, 33, 31] = value
    path = save_nifti(tmp_path / "in" / "a.nii.gz", values)
    ((outcome, volume),) = ingest_one(path, tmp_path)
    assert codes(outcome) == ["clipped_values"] and "1 voxels" in outcome.reasons[0][1]
    assert volume[20, 33, 31] == 32767 and volume.max() == 32767
    assert volume[20, 33, 30] == HU[20, 33, 30]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_single_voxel_without_a_number_is_told(tmp_path, value):
    values = np.repeat(HU.astype(np.float32), 2, axis=0)  # more voxels than the sample has
    values[41, 33, 31] = value
    path = save_nifti(tmp_path / "in" / "a.nii.gz", values, spacing=(2.5, 5.5, 5.5))
    ((outcome, volume),) = ingest_one(path, tmp_path)
    assert codes(outcome) == ["not_finite_filled"] and volume[41, 33, 31] == -1000


def test_voxels_that_are_no_numbers_become_air_and_a_flag(tmp_path):
    values = HU.astype(np.float32)
    values[:, :6, :6] = np.nan
    path = save_nifti(tmp_path / "in" / "a.nii.gz", values)
    ((outcome, volume),) = ingest_one(path, tmp_path)
    assert codes(outcome) == ["not_finite_filled"]
    assert (volume[:, :6, :6] == -1000).all()


def test_eight_bit_hu_is_flagged(tmp_path):
    stored = np.rint((HU.clip(-1000, 1000) + 1000) * 255 / 2000).astype(np.uint8)
    path = save_nifti(tmp_path / "in" / "a.nii.gz", stored, slope=2000 / 255, inter=-1000.0)
    ((outcome, _),) = ingest_one(path, tmp_path)
    assert codes(outcome) == ["coarse_intensities"]
