"""Phantoms that show what a report states."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from ctflow.errors import CTFlowError
from ctflow.reports import parse_report
from data_prep.phantom.__main__ import main
from data_prep.phantom.report import report_for
from data_prep.phantom.requested import with_stated
from data_prep.phantom.sampling import sample_spec

CASES = {
    "There is a large right pleural effusion.": {("Pleural effusion", "right", None)},
    "Bilateral pleural effusions.": {("Pleural effusion", "right", None), ("Pleural effusion", "left", None)},
    "No pleural effusion.": set(),
    "A 12 mm nodule in the left upper lobe. The heart is enlarged.": {
        ("Lung nodule", "left", "left upper lobe"),
        ("Cardiomegaly", None, None),
    },
    "Opacity in the left lung.": {("Lung opacity", "left", "any")},
}


@pytest.mark.parametrize(("report", "expected"), CASES.items())
def test_a_patient_shows_what_is_stated_and_nothing_else(report, expected):
    for index in range(5):
        spec = with_stated(sample_spec(3, index), report)
        lobes = {label: lobe for label, _, lobe in expected}
        found = {(f.label, f.side, f.lobe if lobes.get(f.label) != "any" else "any") for f in spec.findings}
        assert found == expected


def test_sizes_are_taken_over():
    spec = with_stated(sample_spec(3, 0), "Left pleural effusion of 450 ml. A nodule of 14 mm on the right.")
    assert {f.label: (f.volume_ml or f.size_mm) for f in spec.findings} == {
        "Pleural effusion": 450.0,
        "Lung nodule": 14.0,
    }
    volumes = [
        with_stated(sample_spec(3, 0), f"There is a {grade} left pleural effusion.").findings[0].volume_ml
        for grade in ("small", "moderate", "large")
    ]
    assert volumes == sorted(volumes)
    assert volumes[0] < 300 < volumes[1] < 700 < volumes[2]


def test_its_own_report_tells_the_same():
    spec = with_stated(sample_spec(3, 1), "There is a large right pleural effusion.")
    told = {(f.label, f.side) for f in parse_report(report_for(spec).text) if f.present}
    assert told == {("Pleural effusion", "right")}


def test_a_text_without_findings_is_refused():
    with pytest.raises(CTFlowError, match="no finding in the report"):
        with_stated(sample_spec(3, 0), "Thank you for the referral.")


def test_the_command_makes_such_a_set(tmp_path: Path):
    main(
        ["--output", str(tmp_path), "--volumes", "2", "--size", "32", "valid_fraction=0", "workers=1"]
        + ["slice_spacing=10", "--report", "There is a large right pleural effusion."]
    )
    with (tmp_path / "dataset/multi_abnormality_labels/train_predicted_labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    for row in rows:
        assert [name for name, value in row.items() if value == "1"] == ["Pleural effusion"]
