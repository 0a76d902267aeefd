"""Thresholds, ranges and the sums of the accuracy table, on measurements made by hand."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from ctflow.accuracy import accuracy_page
from ctflow.anatomy import (
    Measurement,
    compare_with_truth,
    findings,
    lung_ranges,
    phantom_ranges,
    save_ranges,
)
from ctflow.anatomy.accuracy import aggregate
from ctflow.anatomy.types import Body, Heart, Lungs, Nodule, Spine, Trachea
from ctflow.errors import CTFlowError


def measurement(**changes: object) -> Measurement:
    volumes = {"left": 2000.0, "right": 2400.0}
    base = Measurement(
        shape=(60, 128, 128),
        spacing=(4.0, 3.0, 3.0),
        body=Body(True, 20000.0, 380.0, 260.0),
        lungs=Lungs(volumes, volumes, {"left": -840.0, "right": -840.0}),
        spine=Spine(True, 1.0, tuple((float(s), 90.0, 64.0) for s in range(60)), 200.0),
        ribs={"left": 10, "right": 10},
        heart=Heart(True, 120.0, 270.0, 0.44),
        trachea=Trachea(True, ((59.0, 60.0, 64.0), (40.0, 66.0, 64.0)), 76.0, 17.0),
        effusion_ml={"left": 0.0, "right": 0.0},
        consolidation_ml={"left": 0.0, "right": 0.0},
    )
    return replace(base, **changes)


def truth(*found: dict, **changes: object) -> dict:
    return {
        "case_id": "case",
        "coverage": {"lungs_complete": True},
        "anatomy": {
            "lung_volume_ml": {"left": 2000.0, "right": 2700.0},
            "heart_width_mm": 118.0,
            "spine_center_voxel": [90.0, 65.0],
            "trachea": {"bottom_voxel": [41.0, 66.0, 64.0]},
        },
        "findings": list(found),
        **changes,
    }


EFFUSION = {"label": "Pleural effusion", "side": "right", "volume_ml": 300.0}


def nodule(center: tuple[float, float, float], diameter: float, side: str) -> Nodule:
    z, y, x = center
    return Nodule(center, (z * 4.0, y * 3.0, x * 3.0), diameter, side, 800.0)


def test_findings_by_threshold():
    assert findings(measurement()) == {}
    found = findings(
        measurement(effusion_ml={"left": 20.0, "right": 300.0}, heart=Heart(True, 160, 270, 0.59))
    )
    assert [(item.side, item.size, item.unit) for item in found["Pleural effusion"]] == [
        ("right", 300.0, "ml")
    ]
    assert found["Cardiomegaly"][0].size == 0.59
    assert "Lung nodule" not in findings(measurement(nodules=(nodule((30, 60, 90), 3.0, "right"),)))


def test_comparison_takes_fluid_off_the_true_lung_and_matches_sides():
    comparison = compare_with_truth(measurement(effusion_ml={"left": 0.0, "right": 240.0}), truth(EFFUSION))
    assert comparison.lung_true_ml == {"left": 2000.0, "right": 2400.0}
    assert comparison.lung_error_ml == {"left": 0.0, "right": 0.0}
    assert comparison.spine_error_mm == pytest.approx(3.0)
    assert comparison.heart_error_mm == pytest.approx(2.0)
    assert comparison.trachea_error_mm == pytest.approx(4.0)
    check = comparison.labels["Pleural effusion"]
    assert check.true == {"right": 300.0} and check.found == {"right": 240.0}
    assert check.size_errors == [pytest.approx(-0.2)]


def test_each_found_nodule_serves_one_true_one():
    true = [
        {"label": "Lung nodule", "side": "right", "size_mm": 10.0, "center_voxel": [30, 60, 90]},
        {"label": "Lung nodule", "side": "left", "size_mm": 8.0, "center_voxel": [31, 60, 91]},
    ]
    found = (nodule((30, 61, 90), 11.0, "right"), nodule((10, 30, 30), 9.0, "left"))
    comparison = compare_with_truth(measurement(nodules=found), truth(*true))
    assert [(m.diameter_mm, m.found_mm) for m in comparison.nodules] == [(10.0, 11.0), (8.0, None)]
    assert comparison.extra_nodules_mm == (9.0,)


def test_aggregate_counts_recall_false_positives_and_sides():
    wet_right = measurement(effusion_ml={"left": 0.0, "right": 240.0})
    wet_left = measurement(effusion_ml={"left": 240.0, "right": 0.0})
    comparisons = [
        compare_with_truth(wet_right, truth(EFFUSION)),
        compare_with_truth(wet_left, truth(EFFUSION)),
        compare_with_truth(measurement(), truth(EFFUSION)),
        compare_with_truth(measurement(), truth()),
    ]
    result = aggregate(comparisons)
    row = result["findings"]["Pleural effusion"]
    assert row["n"] == 3
    assert row["recall"] == pytest.approx(1 / 3)
    assert row["false_positive_rate"] == pytest.approx(1 / 5)  # five sides are dry
    assert row["side_accuracy"] == pytest.approx(1 / 2)
    assert row["size_error_percent"]["bias"] == pytest.approx(-20.0)
    text = accuracy_page(result).markdown()
    assert "| Pleural effusion | 3 | 33.3 % | 20.0 % | 50.0 % | -20.0 % | 20.0 % |" in text


def test_ranges_round_trip_and_hold(tmp_path):
    several = [
        measurement(lungs=Lungs({"left": v, "right": v + 200}, {}, {})) for v in (1000.0, 2000.0, 3000.0)
    ]
    save_ranges(lung_ranges(several), tmp_path / "r.json")
    ranges = phantom_ranges(tmp_path / "r.json")
    assert ranges.lung_ml["left"] == (1020.0, 2980.0)
    assert ranges.holds(several[1]) == {"left": True, "right": True}
    assert ranges.holds(several[2]) == {"left": False, "right": False}
    with pytest.raises(CTFlowError, match="no lung ranges"):
        phantom_ranges(tmp_path / "none.json")


def test_shipped_ranges_are_those_of_chests():
    shipped = phantom_ranges()
    assert shipped.volumes >= 50
    for low, high in shipped.lung_ml.values():
        assert 150 < low < 2000 < high < 6000


def test_a_measurement_is_plain_json():
    stored = json.loads(json.dumps(asdict(measurement(nodules=(nodule((30, 61, 90), 11.0, "right"),)))))
    assert stored["nodules"][0]["side"] == "right" and stored["effusion_ml"] == {"left": 0.0, "right": 0.0}
