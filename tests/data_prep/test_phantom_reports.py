"""Reports of phantoms: distinct, and in agreement with what is drawn."""

from __future__ import annotations

import re

import pytest

from data_prep.phantom import (
    LABELS,
    Finding,
    PhantomSpec,
    contrast_pair,
    report_for,
    report_pair,
    sample_spec,
)
from data_prep.phantom.sampling_findings import RATES, sample_finding

# How a radiologist would recognise each label in a text.
WORDS = {
    "Medical material": r"pacemaker|port |port\b|wires|tube|sternotomy",
    "Arterial wall calcification": r"wall of the aorta|aortic arch|aortic calcification|of the aorta\.",
    "Cardiomegaly": r"enlarged heart|is enlarged|cardiomegaly|(size|ratio) is increased|enlargement",
    "Pericardial effusion": r"pericardial effusion|surrounds the heart",
    "Coronary artery wall calcification": r"coronary",
    "Hiatal hernia": r"hiatal hernia",
    "Lymphadenopathy": r"lymphadenopathy|lymph nodes?",
    "Emphysema": r"emphysem",
    "Atelectasis": r"atelectasis",
    "Lung nodule": r"nodules?",
    "Lung opacity": r"opacit|ground-glass",
    "Pulmonary fibrotic sequela": r"sequela|fibrotic",
    "Pleural effusion": r"pleural effusion",
    "Mosaic attenuation pattern": r"mosaic",
    "Peribronchial thickening": r"peribronchial|bronchial wall|walls of the bronchi",
    "Consolidation": r"consolidation|pneumonia",
    "Bronchiectasis": r"bronchiectasis|dilated",
    "Interlobular septal thickening": r"septa",
}
NEGATION = re.compile(r"^(no|neither)\b|\bno\b|normal|clear", re.IGNORECASE)


@pytest.fixture(scope="module")
def specs() -> list[PhantomSpec]:
    return [sample_spec(0, index) for index in range(400)]


def sentences(text: str) -> list[str]:
    return [s for s in re.split(r"(?<=\.)\s+", text) if s]


@pytest.mark.parametrize("seed", [0, 7])
def test_190_of_200_reports_differ(seed):
    texts = {report_for(sample_spec(seed, index)).text for index in range(200)}
    assert len(texts) >= 190


def test_each_label_is_told_where_present_and_never_where_absent(specs):
    for spec in specs:
        told = [s for s in sentences(report_for(spec).text) if not NEGATION.search(s)]
        for label, present in spec.labels.items():
            found = any(re.search(WORDS[label], sentence, re.IGNORECASE) for sentence in told)
            assert found == bool(present), (label, told)


def test_nothing_is_denied_that_is_there(specs):
    for spec in specs:
        denied = [s for s in sentences(report_for(spec).text) if NEGATION.search(s)]
        for label in (
            "Consolidation",
            "Lung nodule",
            "Pericardial effusion",
            "Lymphadenopathy",
            "Hiatal hernia",
        ):
            if spec.labels[label]:
                assert not any(re.search(WORDS[label], s, re.IGNORECASE) for s in denied), denied
        sides = {f.side for f in spec.findings if f.label == "Pleural effusion"}
        for sentence in denied:
            if "effusion" in sentence and "pericardial" not in sentence:
                assert not any(side in sentence for side in sides), sentence
                assert not sides or "side" in sentence or "left" in sentence or "right" in sentence


def test_measurements_and_lobes_agree(specs):
    for spec in specs:
        text = report_for(spec).findings
        for finding in spec.findings:
            if finding.label in ("Lung nodule", "Consolidation", "Lung opacity"):
                assert f"{finding.size_mm:.0f} mm" in text
                assert finding.lobe in text
        for side in ("left", "right"):
            fluid = [f for f in spec.findings if f.label == "Pleural effusion" and f.side == side]
            if fluid:
                numbers = [int(n) for n in re.findall(r"(\d+) ml", text)]
                near = any(abs(n - fluid[0].volume_ml) <= 25 for n in numbers)
                assert near or not numbers


def test_frequencies(specs):
    share = {label: sum(s.labels[label] for s in specs) / len(specs) for label in LABELS}
    assert 0.68 <= sum(bool(s.findings) for s in specs) / len(specs) <= 0.82
    assert 0.25 <= share["Pleural effusion"] <= 0.38
    assert 0.15 <= share["Consolidation"] <= 0.27
    assert 0.24 <= share["Lung nodule"] <= 0.37
    assert sum(value > 0 for value in share.values()) == 18
    for label in ("Pleural effusion", "Lung nodule", "Consolidation"):
        sides = [f.side for s in specs for f in s.findings if f.label == label]
        assert 0.4 < sides.count("left") / len(sides) < 0.6


def test_words_are_few(specs):
    words = {w.strip(".,:").lower() for s in specs for w in report_for(s).text.split()}
    assert len(words) < 450
    lengths = sorted(len(report_for(s).text.split()) for s in specs)
    assert 40 <= lengths[len(lengths) // 2] <= 110


def test_pair_of_reports_differs_in_one_finding():
    for index in range(20):
        spec = sample_spec(3, index).with_findings()
        present, absent = report_pair(spec, "Pleural effusion", "left")
        more = [s for s in sentences(present.findings) if s not in sentences(absent.findings)]
        less = [s for s in sentences(absent.findings) if s not in sentences(present.findings)]
        assert any("left" in s or "effusion" in s for s in more)
        assert all(re.search("effusion|pleura|fluid", s) for s in more)
        assert all(re.search("effusion|pleura|fluid|lung|aerat", s, re.IGNORECASE) for s in less)


def test_spec_is_a_function_of_seed_and_index():
    assert sample_spec(5, 9) == sample_spec(5, 9)
    assert len({sample_spec(5, i).anatomy for i in range(200)}) == 200
    assert sample_spec(5, 9).anatomy != sample_spec(6, 9).anatomy


def test_slices_stay_within_ct_rates_range():
    counts = [sample_spec(1, i).acquisition.slices for i in range(400)]
    assert min(counts) >= 48
    assert max(counts) <= 300
    assert max(counts) - min(counts) > 150


def test_pair_keeps_the_other_findings():
    spec = next(s for s in (sample_spec(2, i) for i in range(200)) if len(s.findings) > 2)
    label = spec.findings[0].label
    present, absent = contrast_pair(spec, label)
    assert present == spec
    assert [f for f in spec.findings if f.label != label] == list(absent.findings)


def test_bad_findings_are_refused():
    with pytest.raises(ValueError, match="CT-RATE"):
        Finding("Broken leg")
    with pytest.raises(ValueError, match="side"):
        Finding("Lung nodule", side="up")
    with pytest.raises(ValueError, match="lobe"):
        Finding("Lung nodule", side="left", lobe="right upper lobe")


def test_every_label_can_be_drawn_by_chance():
    import numpy as np

    anatomy = sample_spec(0, 0).anatomy
    for label in RATES:
        assert sample_finding(np.random.default_rng(1), label, anatomy)[0].label == label
    with pytest.raises(ValueError, match="CT-RATE"):
        sample_finding(np.random.default_rng(1), "Broken leg", anatomy)
