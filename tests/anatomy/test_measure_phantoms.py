"""Anatomy and findings of phantoms: findings on their side, the accuracy command."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ctflow.accuracy import main, spoil
from ctflow.anatomy import compare_with_truth, findings, measure
from ctflow.config.accuracy import AccuracyConfig
from ctflow.errors import CTFlowError
from data_prep.phantom import Finding, PhantomSpec, make_phantom, sample_spec


def patient(*found: Finding) -> PhantomSpec:
    return sample_spec(7, 3, 128, 5.0).with_findings(*found)


@pytest.fixture(scope="module")
def healthy():
    phantom = make_phantom(patient())
    return phantom, measure(phantom.volume)


def test_healthy_anatomy_agrees_with_the_truth(healthy):
    phantom, measurement = healthy
    comparison = compare_with_truth(measurement, phantom.truth)
    assert comparison.two_lungs
    for side in ("left", "right"):
        assert abs(comparison.lung_error_ml[side]) < 0.05 * comparison.lung_true_ml[side]
    assert comparison.spine_error_mm < 10 and comparison.trachea_error_mm < 20
    assert abs(comparison.heart_error_mm) < 15
    assert {"Pleural effusion", "Consolidation", "Cardiomegaly"}.isdisjoint(findings(measurement))


@pytest.mark.parametrize("side", ["left", "right"])
def test_effusion_on_its_side_also_when_blurred_noisy_and_with_seams(side):
    phantom = make_phantom(patient(Finding("Pleural effusion", side=side, volume_ml=400.0, seed=1)))
    spoilt = AccuracyConfig(blur_pixels=1.0, noise_hu=30.0, seam_hu=20.0)
    clean = findings(measure(phantom.volume))["Pleural effusion"]
    assert [item.side for item in clean] == [side]
    assert clean[0].size == pytest.approx(phantom.truth["findings"][0]["volume_ml"], rel=0.35)
    rough = spoil(phantom.volume, spoilt, np.random.default_rng(0))
    found = findings(measure(rough))["Pleural effusion"]
    assert [item.side for item in found] == [side]
    assert found[0].size == pytest.approx(phantom.truth["findings"][0]["volume_ml"], rel=0.35)


@pytest.mark.parametrize("blur", [1.0, 1.5])
def test_no_effusion_is_feigned_in_a_blurred_chest_and_a_large_one_is_found(blur, healthy):
    spoilt = AccuracyConfig(blur_pixels=blur, noise_hu=30.0, seam_hu=30.0)
    dry = spoil(healthy[0].volume, spoilt, np.random.default_rng(1))
    assert "Pleural effusion" not in findings(measure(dry))
    wet = make_phantom(patient(Finding("Pleural effusion", side="right", volume_ml=800.0, seed=1)))
    rough = spoil(wet.volume, spoilt, np.random.default_rng(1))
    assert [item.side for item in findings(measure(rough))["Pleural effusion"]] == ["right"]


def test_consolidation_with_its_air_bronchograms_is_no_fluid():
    found = Finding("Consolidation", side="left", lobe="left upper lobe", size_mm=60.0, seed=3)
    phantom = make_phantom(patient(found))
    read = findings(measure(phantom.volume))
    assert "Pleural effusion" not in read
    assert [item.side for item in read["Consolidation"]] == ["left"]
    assert read["Consolidation"][0].size == pytest.approx(phantom.truth["findings"][0]["volume_ml"], rel=0.3)


def test_solid_nodule_is_found_where_it_is():
    phantom = make_phantom(
        patient(Finding("Lung nodule", side="right", lobe="right upper lobe", size_mm=18.0, seed=5))
    )
    comparison = compare_with_truth(measure(phantom.volume), phantom.truth)
    (match,) = comparison.nodules
    assert match.found_mm == pytest.approx(18, abs=3)
    assert match.same_side and match.distance_mm < 6


def test_accuracy_command_writes_tables_and_ranges(tmp_path, healthy):
    from ctflow.data.nifti import write_nifti

    phantom, _ = healthy
    write_nifti(tmp_path / "in" / "a.nii.gz", phantom.volume)
    truth = {"case_id": "a", **phantom.truth}
    (tmp_path / "in" / "a.truth.json").write_text(json.dumps(truth), encoding="utf-8")
    arguments = ["--volumes", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    assert main([*arguments, f"ranges_file={tmp_path / 'ranges.json'}"]) == 0
    result = json.loads((tmp_path / "out" / "anatomy-accuracy.json").read_text(encoding="utf-8"))
    assert result["volumes"] == 1 and result["anatomy"]["two_lungs"] == 1.0
    table = (tmp_path / "out" / "anatomy-accuracy.md").read_text(encoding="utf-8")
    assert "| Pleural effusion | 0 |" in table
    assert json.loads((tmp_path / "ranges.json").read_text(encoding="utf-8"))["volumes"] == 1


def test_accuracy_measures_the_first_volumes_alone(tmp_path, healthy):
    from ctflow.data.nifti import write_nifti

    phantom, _ = healthy
    for name in "ab":
        write_nifti(tmp_path / "in" / f"{name}.nii.gz", phantom.volume)
        truth = {"case_id": name, **phantom.truth}
        (tmp_path / "in" / f"{name}.truth.json").write_text(json.dumps(truth), encoding="utf-8")
    assert main(["--volumes", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "limit=1"]) == 0
    assert json.loads((tmp_path / "out" / "anatomy-accuracy.json").read_text())["volumes"] == 1
    with pytest.raises(CTFlowError, match="limit is a number of volumes or 0"):
        main(["--volumes", str(tmp_path / "in"), "limit=-1"])


def test_accuracy_command_refuses_a_folder_without_phantoms(tmp_path):
    with pytest.raises(CTFlowError, match="no phantoms"):
        main(["--volumes", str(tmp_path)])
    with pytest.raises(CTFlowError, match="no folder of volumes"):
        main([])
