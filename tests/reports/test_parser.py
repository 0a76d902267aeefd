"""Stated findings: sentences one by one, phantoms against their truth, real reports."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ctflow.reports import LABELS, StatedFinding, difference, parse_report, sentences, summarised
from data_prep.phantom import spec
from data_prep.phantom.report import report_for
from data_prep.phantom.sampling import sample_spec

REAL = Path(__file__).parents[2] / ".." / "shared" / "reports"

SENTENCES = {
    # sides of both findings in one sentence
    "On the left no effusion, on the right a large effusion.": (
        "no pleural effusion left; pleural effusion right, large"
    ),
    "No effusion on the right, large effusion on the left.": (
        "no pleural effusion right; pleural effusion left, large"
    ),
    "On the left there is no pleural effusion, on the right there is a small one.": (
        "no pleural effusion left; pleural effusion right, small"
    ),
    "There is a large right and a small left pleural effusion.": (
        "pleural effusion left, small; pleural effusion right, large"
    ),
    "Large left, small right pleural effusion.": (
        "pleural effusion right, small; pleural effusion left, large"
    ),
    "Bilateral pleural effusions of about 450 ml on the right and 200 ml on the left.": (
        "pleural effusion right, 450 ml; pleural effusion left, 200 ml"
    ),
    "Bilateral pleural effusion reaching 3 cm on the right and 1.5 cm on the left.": (
        "pleural effusion right, 30 mm; pleural effusion left, 15 mm"
    ),
    "Bilateral pleural effusions, larger on the right.": "pleural effusion both",
    # a side without a size of its own stays
    "Bilateral pleural effusions, right 300 ml.": "pleural effusion right, 300 ml; pleural effusion left",
    "Bilateral nodules, the largest 8 mm in the right upper lobe.": (
        "lung nodule right upper lobe, 8 mm; lung nodule left"
    ),
    "Effusion is seen on the right but not on the left.": "pleural effusion right; no pleural effusion left",
    "There is a large effusion on the right side and none on the left.": (
        "pleural effusion right, large; no pleural effusion left"
    ),
    "Pleural effusion is absent on the right and large on the left.": (
        "no pleural effusion right; pleural effusion left, large"
    ),
    "Right-sided pleural effusion without effusion on the left.": (
        "pleural effusion right; no pleural effusion left"
    ),
    "There is neither right nor left pleural effusion.": (
        "no pleural effusion left; no pleural effusion right"
    ),
    "A pleural effusion is seen on neither side.": "no pleural effusion both",
    "No pleural effusion on either side.": "no pleural effusion both",
    # denials: before, after, listed, ended
    "Pericardial, pleural effusion was not detected.": "no pericardial effusion; no pleural effusion",
    "No pleural or pericardial effusion.": "no pleural effusion; no pericardial effusion",
    "There is no pericardial effusion, but a moderate left pleural effusion is present.": (
        "no pericardial effusion; pleural effusion left, moderate"
    ),
    "Right effusion is not seen, left effusion is large.": (
        "no pleural effusion right; pleural effusion left, large"
    ),
    "Neither pleural effusion nor consolidation is seen.": "no pleural effusion; no consolidation",
    "Patient without nodules, with a large right pleural effusion.": (
        "no lung nodule; pleural effusion right, large"
    ),
    "No lung nodule is seen; a 3.5 x 2.1 cm mass is present in the left upper lobe.": (
        "no lung nodule; lung nodule left upper lobe, 35 mm"
    ),
    "The effusion on the left has resolved.": "no pleural effusion left",
    "The previously seen left pleural effusion is no longer visible.": "no pleural effusion left",
    "Pleural effusion: none.": "no pleural effusion",
    "There's no pleural effusion and the heart isn't enlarged.": "no pleural effusion; no cardiomegaly",
    # what looks like a denial
    "No significant change in the right pleural effusion.": "pleural effusion right",
    "Pleural effusion cannot be excluded on the left.": "pleural effusion left",
    "Is there a pleural effusion?": "",
    # organs called normal
    "The right pleural space is clear.": "no pleural effusion right",
    "In the right pleural space there is a large effusion.": "pleural effusion right, large",
    "Heart contour, size are normal.": "no cardiomegaly",
    "The heart is larger than normal.": "cardiomegaly",
    "The size of the heart is not normal.": "",
    "No lymph node was detected in pathological size and appearance.": "no lymphadenopathy",
    # places
    "In the left lower lobe there is a 2.5 cm nodule and a consolidation.": (
        "lung nodule left lower lobe, 25 mm; consolidation left lower lobe"
    ),
    "Consolidation in the right upper and middle lobes.": (
        "consolidation right upper lobe; consolidation right middle lobe"
    ),
    "Consolidation areas in the lower lobes of both lungs.": (
        "consolidation right lower lobe; consolidation left lower lobe"
    ),
    "Nodule 12 mm RUL, 8 mm in the LLL.": (
        "lung nodule right upper lobe, 12 mm; lung nodule left lower lobe, 8 mm"
    ),
    "Nodules of 5 mm and 7 mm in the right upper lobe.": (
        "lung nodule right upper lobe, 5 mm; lung nodule right upper lobe, 7 mm"
    ),
    "Three solid nodules are seen: 12 mm in the right upper lobe, 8 mm in the left lower lobe and 9 mm in "
    "the right middle lobe.": (
        "lung nodule right upper lobe, 12 mm; lung nodule left lower lobe, 8 mm; "
        "lung nodule right middle lobe, 9 mm"
    ),
    "Atelectasis and effusion on the left.": "atelectasis left; pleural effusion left",
    "Left lower lobe atelectasis adjacent to a moderate pleural effusion.": (
        "atelectasis left lower lobe; pleural effusion, moderate"
    ),
    "Cardiomegaly and right pleural effusion.": "cardiomegaly; pleural effusion right",
    "A nodule in the right upper lobe and a rib fracture on the left.": "lung nodule right upper lobe",
    "There is a left pacemaker with its leads in the right heart.": "medical material left",
    "Several intracutaneous nodules in the pelvic region.": "",
    # sizes
    "Cardiothoracic ratio is increased to 0.57.": "cardiomegaly, ratio 0.57",
    "Volume of the right effusion about 1,200 ml.": "pleural effusion right, 1200 ml",
    "Pleural fluid of 1.2 l on the right.": "pleural effusion right, 1200 ml",
    "Enlarged paratracheal lymph nodes of 27 x 14 mm on the right.": "lymphadenopathy right, 14 mm",
    "Calcific atheroma plaques are observed in the aortic arch and LAD.": (
        "arterial wall calcification; coronary artery wall calcification"
    ),
    "Coronary atherosclerosis.": "coronary artery wall calcification",
    "THERE IS A LARGE RIGHT PLEURAL EFFUSION": "pleural effusion right, large",
}


def _told(findings: list[StatedFinding]) -> str:
    return "; ".join(map(str, findings))


@pytest.mark.parametrize("sentence", SENTENCES)
def test_sentences(sentence: str) -> None:
    assert _told(parse_report(sentence)) == SENTENCES[sentence]


def test_labels_are_the_phantoms() -> None:
    assert LABELS == spec.LABELS


def test_sentences_survive_numbers_and_line_breaks() -> None:
    text = "Ratio 0.57. A nodule of 1.2 cm in the\nright upper lobe.\n- No effusion\nHeart normal"
    assert sentences(text) == [
        "Ratio 0.57.", "A nodule of 1.2 cm in the right upper lobe.", "- No effusion", "Heart normal",
    ]  # fmt: skip


def test_summary_joins_what_is_told_twice() -> None:
    text = (
        "There is a pleural effusion on the right of about 900 ml. No effusion on the left. No nodule. "
        "Large right pleural effusion. Nodule of 8 mm in the left upper lobe. Lung nodule."
    )
    assert _told(summarised(parse_report(text))) == (
        "pleural effusion right, large, 900 ml; no pleural effusion left; lung nodule left upper lobe, 8 mm"
    )
    both = "Bilateral pleural effusions. Small effusion on the left, large effusion on the right."
    assert (
        _told(summarised(parse_report(both))) == "pleural effusion left, small; pleural effusion right, large"
    )


def _places(findings: list[StatedFinding] | tuple[spec.Finding, ...]) -> set[tuple[str, str | None]]:
    sides = [
        (f.label, s) for f in findings for s in (("right", "left") if f.side == "both" else (f.side,)) if s
    ]
    lobes = [(f.label, f.lobe) for f in findings if f.lobe and f.label != "Emphysema"]
    return {*sides, *lobes, *((f.label, None) for f in findings)}


def _sizes(findings: list[StatedFinding] | tuple[spec.Finding, ...]) -> set[tuple[str, str | None, float]]:
    lengths = {(f.label, f.lobe, f.size_mm) for f in findings if f.lobe and f.size_mm}
    volumes = {(f.label, f.side, 50 * round(f.volume_ml / 50)) for f in findings if f.volume_ml}
    return lengths | volumes | {(f.label, None, f.ratio) for f in findings if f.ratio}


def test_phantoms_reports_say_what_was_drawn() -> None:
    """Every label of 150 phantoms is found and none beside them; sides and lobes too, where told."""
    for index in range(150):
        phantom = sample_spec(9173, index, 128, 4.0)
        found = parse_report(report_for(phantom).text)
        stated = [f for f in found if f.present]
        truth = _places(phantom.findings)
        assert _places(stated) <= truth, report_for(phantom).text
        assert _sizes(stated) <= _sizes(phantom.findings)
        assert {label for label, _ in truth - _places(stated)} <= {
            "Emphysema"
        }  # apical bullae: without a side
        denied = {(f.label, f.side) for f in found if not f.present}
        drawn = {f.label for f in phantom.findings}
        assert not any(label in drawn and (side is None or (label, side) in truth) for label, side in denied)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real reports at {REAL}")
def test_real_reports() -> None:
    found = {}
    for path in sorted(REAL.glob("*.md")):
        text = re.search(r"```\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
        assert text is not None
        found[path.name[:7]] = {str(f) for f in summarised(parse_report(text.group(1)))}
    assert found["Task002"] == {
        "lung nodule right lower lobe", "bronchiectasis, small", "no pleural effusion", "no lymphadenopathy",
    }  # fmt: skip
    for name in ("Task007", "Task023"):
        assert {"lung nodule left lower lobe, 7 mm", "emphysema", "no lymphadenopathy"} <= found[name]
        assert {f for f in found[name] if "calcification" in f} == {
            "arterial wall calcification, mild", "coronary artery wall calcification, large",
        }  # fmt: skip
    for name in ("Task005", "Task016", "Task024"):
        assert {"lymphadenopathy right, 35 mm", "lymphadenopathy left, 37 mm"} <= found[name]
        assert {"bronchiectasis", "peribronchial thickening", "lung opacity"} <= found[name]
        assert not any(f.startswith("no ") or "effusion" in f for f in found[name])


def test_what_two_reports_differ_in() -> None:
    assert difference("Cardiomegaly.", "Heart size is normal.") == "Cardiomegaly, presence"
    right, left = (f"There is a small {side} pleural effusion." for side in ("right", "left"))
    assert difference(right, left) == "Pleural effusion, side"
    assert difference(right, right.replace("small", "large")) == "Pleural effusion, size"
    assert difference(right, right) == "not told"
