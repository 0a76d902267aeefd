"""What a report asks for beside what is measured, on phantoms whose findings are known."""

from __future__ import annotations

import pytest

from ctflow.anatomy.findings import Found
from ctflow.asked import AskedAndFound, _told, asked_and_found
from data_prep.phantom import make_phantom
from data_prep.phantom.contrast import graded_pair
from data_prep.phantom.sampling import sample_spec


def test_a_phantom_shows_what_its_report_says():
    bare = sample_spec(3, 1, 96, 5.0).with_findings()
    _, large = graded_pair(bare, "left")
    volume = make_phantom(large).volume
    told = asked_and_found("A large left pleural effusion. Bronchiectasis. No cardiomegaly.", volume)
    assert "pleural effusion left, large" in told.asked and "no cardiomegaly" in told.asked
    assert told.unmeasured == ["bronchiectasis"]
    assert [f.split(" ")[:3] for f in told.found if f.startswith("pleural")] == [
        ["pleural", "effusion", "left"]
    ]
    assert "not measured: bronchiectasis" in str(told)


def test_nothing_is_told_as_nothing():
    assert str(AskedAndFound([], [], [])) == "asked: nothing; found: nothing"


@pytest.mark.parametrize(
    ("size", "unit", "told"),
    [(0.34, "ml", "0.3 ml"), (0.04, "ml", "0.04 ml"), (284.4, "ml", "284 ml"), (0.52, "ratio", "0.52")],
)
def test_what_is_found_is_never_told_as_none(size: float, unit: str, told: str) -> None:
    assert (
        _told("Arterial wall calcification", Found(None, size, unit)) == f"arterial wall calcification {told}"
    )
