"""Utility, alignment and length over spacings: each at its smallest, and their parts by hand."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ctflow.anatomy import Found
from ctflow.config.commands import SamplingChoice
from ctflow.config.evaluation import AnalysisConfig, EvalConfig
from ctflow.config.system import SystemConfig
from ctflow.data import SliceRecord, SliceShardWriter
from ctflow.errors import CTFlowError, EvaluationError
from ctflow.evaluation.analyses import ANALYSES, Context
from ctflow.evaluation.analyses.alignment import _rank, shares, text_effect
from ctflow.evaluation.analyses.rollouts import _note
from ctflow.evaluation.analyses.sets import read_labels
from ctflow.evaluation.cases import RealCase
from ctflow.evaluation.features import CaseFeatures, Samples, VolumeFacts
from ctflow.metrics.monitors import MonitorRecord
from ctflow.processes import Ranks

from ..conftest import soft_volume

EFFUSION, NODULE = "Pleural effusion", "Lung nodule"


def shards(folder: Path, number: int, first: int) -> Path:
    with SliceShardWriter(folder) as writer:
        for i in range(first, first + number):
            labels = {EFFUSION: i % 2, NODULE: int(i % 3 == 0), "Emphysema": 0}
            hu = soft_volume(18, i)
            hu[:9] += np.int16(300 * (i % 2))  # what the label says can be seen
            record = SliceRecord(
                case_id=f"case_{i:03d}", patient_id=f"p{i:03d}", hu=hu.clip(-1000, 1000), spacing=(4, 9, 9),
                report=f"Report {i}.", source_sha256=f"{i:064x}", split="valid", labels=labels,
            )  # fmt: skip
            writer.append(record)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("labelled")
    return shards(root / "train", 8, 0), shards(root / "valid", 10, 50)


@pytest.fixture
def context(tiny_system, folders, tmp_path) -> Context:
    config = EvalConfig(
        slices=str(folders[1]), cache=str(tmp_path / "cache"), cases=10, batch_size=4, clip_lengths=[16],
        sampling=SamplingChoice(steps=1),
    )  # fmt: skip
    return Context(config, tiny_system, Ranks(), tmp_path / "out")


def with_analysis(context: Context, **values) -> Context:
    return replace(context, config=replace(context.config, analysis=AnalysisConfig(**values)))


def test_utility_has_a_line_per_training_set_and_finding(context, folders):
    sizes = {"classifier_steps": 2, "shares": [0.5, 1.0], "train_slices": str(folders[0])}
    result = ANALYSES["utility"](with_analysis(context, **sizes))
    lines = {(r["trained on"], r["real share"], r["finding"]): r for r in result.records}
    findings = {EFFUSION, NODULE, "mean of the findings"}  # Emphysema never differs
    sources = [
        ("real", 0.5, 4),
        ("real", 1.0, 8),
        ("both", 0.5, 12),
        ("both", 1.0, 16),
        ("synthetic", 0.0, 8),
    ]
    assert {(source, share, f) for source, share, _ in sources for f in findings} == set(lines)
    assert all(lines[source, share, EFFUSION]["volumes"] == n for source, share, n in sources)
    assert all(r["held out"] == 10 and 0 <= float(r["AUROC [95 %]"].split()[0]) <= 1 for r in result.records)


def test_utility_takes_other_shards_and_a_label_file(context, folders, tmp_path):
    table = tmp_path / "labels.csv"
    rows = [f"case_{i:03d},{(i + 1) % 2}" for i in [*range(8), *range(50, 60)]]
    table.write_text("\n".join([f"VolumeName,{EFFUSION}", *rows]), encoding="utf-8")
    sizes = {"classifier_steps": 1, "shares": [1.0], "train_slices": str(folders[0]), "labels": str(table)}
    result = ANALYSES["utility"](with_analysis(context, synthetic=str(folders[0]), **sizes))
    assert {r["finding"] for r in result.records} == {EFFUSION, "mean of the findings"}
    own = with_analysis(context, **{**sizes, "train_slices": str(folders[1])})
    with pytest.raises(EvaluationError, match="10 patients are in both"):
        ANALYSES["utility"](own)


def test_label_files_are_checked(tmp_path):
    path = tmp_path / "labels.csv"
    for text, words in (
        ("case_id,Nothing\na,1", "findings among"),
        (f"case_id,{EFFUSION}\na,2", r"line 2: Pleural effusion is '2'"),
        (f"case_id,{EFFUSION}\na,1\na.nii.gz,0", "'a' twice"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(EvaluationError, match=words):
            read_labels(path)
    path.write_text(f"case_id;{EFFUSION};{NODULE}\na.nii.gz;1.0;\nb;0;1", encoding="utf-8")
    found = read_labels(path)
    assert (
        found["a"][EFFUSION] == 1
        and math.isnan(found["a"][NODULE])
        and found["b"] == {EFFUSION: 0, NODULE: 1}
    )


def test_alignment_goes_over_guidance_scales(context):
    result = ANALYSES["alignment"](with_analysis(context, reports=4, seeds=1, guidance=[1.0, 3.0]))
    assert [r["text guidance"] for r in result.records] == [1.0, 3.0]
    assert all(r["volumes"] == 4 and "clip_phantom [95 %]" in r for r in result.records)
    assert "Rank correlation" in result.text


def test_the_texts_effect_is_that_of_the_text(context):
    case = context.reader().cases()[0]
    first = text_effect(context, case)
    assert first > 0 and text_effect(context, case) == first
    assert text_effect(context, replace(case, report="Small right pleural effusion.")) != first


def volume(found: list[str] | None) -> CaseFeatures:
    read = None if found is None else {label: [Found("left", 1.0, "")] for label in found}
    record = MonitorRecord(*(torch.zeros(0) for _ in range(4)), torch.tensor(math.nan))
    return CaseFeatures(
        "x", VolumeFacts(0, 8, 0), Samples(np.zeros(0, np.int32), {}), {}, record, findings=read
    )


def test_findings_obeyed_by_hand():
    def case(**labels: int) -> RealCase:
        return RealCase("x", "p", "x", (9, 8, 8), (1.0, 1.0, 1.0), "d", labels=labels)

    both = case(**{EFFUSION: 1, NODULE: 1, "Emphysema": 0})
    none = case(**{EFFUSION: 0})
    obeyed, false = shares([both, none], [[volume([EFFUSION]), volume([EFFUSION, NODULE])], [volume(None)]])
    assert obeyed[0] == 3 / 4 and false[0] == 0 and math.isnan(obeyed[1]) and math.isnan(false[1])
    _, false = shares([none], [[volume([EFFUSION]), volume([])]])
    assert false == [0.5]
    assert _rank([1, 2, 3, 4], [1, 3, 2, 9]).startswith("0.80 (p")
    assert _rank([1, 2, 3, math.nan], [1, 3, 2, 9]) == "n/a (3 pairs)"


def test_length_goes_over_spacings(context):
    result = ANALYSES["length"](
        with_analysis(context, lengths=[20, 36], seeds=1, reports=2, spacings=[2.0, 4.0])
    )
    assert [(r["spacing in mm"], r["requested"]) for r in result.records] == [
        (2.0, 20), (2.0, 36), (4.0, 20), (4.0, 36)
    ]  # fmt: skip
    assert "trained on" in result.records[0]["note"] and not result.records[2]["note"]
    assert {"monitors", "windows"} == set(result.figures)
    assert result.records[0]["slope per block [95 %]"] == "n/a"  # one window has no slope
    assert float(result.records[1]["slope per block [95 %]"].split()[0]) != 0


def test_notes_of_what_was_not_trained():
    system = SystemConfig(z_spacing_mm=4.0, z_spacing_range=[1.5, 5.0], max_slices=90)
    assert _note(80, 2.0, system) == "" and _note(80, None, system) == ""
    assert _note(100, 1.0, system) == (
        "longer than any training volume (90); the model was trained on 1.5 … 5 mm"
    )


def test_bad_sizes_are_refused():
    for bad in ({"shares": [0.0]}, {"shares": []}, {"spacings": [-1.0]}, {"classifier_steps": 0}):
        with pytest.raises((CTFlowError, ValueError), match="found"):
            AnalysisConfig(**bad)
