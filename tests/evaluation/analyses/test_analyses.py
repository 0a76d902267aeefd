"""Every analysis at its smallest, the table of findings by hand, and the reading pack there and back."""

import base64
import csv
import gzip
import io
import json
import math
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from page_text import without_payloads
from tqdm import tqdm

from ctflow.anatomy import LABELS, Found, true_places
from ctflow.checkpoint import load_system, save_system
from ctflow.config.commands import SamplingChoice
from ctflow.config.evaluation import ANALYSIS_NAMES, AnalysisConfig, EvalConfig, PageConfig
from ctflow.data import SliceRecord, SliceShardWriter
from ctflow.errors import CTFlowError
from ctflow.evaluation.analyses import ANALYSES, Context, run_analysis
from ctflow.evaluation.analyses.pairs import COLUMNS, ReportPair, read_pairs, shows
from ctflow.evaluation.analyses.reading import ReadingItem, named_findings, reading_page, systematic
from ctflow.evaluation.analyses.rollouts import obeyed
from ctflow.evaluation.analyses.sets import nearest_distances
from ctflow.evaluation.analyses.yardsticks import spread
from ctflow.evaluation.cases import HalvedReader, RealCase, halved
from ctflow.evaluation.features import CaseFeatures, Key, Samples, VolumeFacts
from ctflow.evaluation.results import ALL, MODEL, findings_table
from ctflow.evaluation.run import evaluate
from ctflow.flow import time_grid
from ctflow.metrics.damage import DAMAGES
from ctflow.metrics.images import volume_at
from ctflow.metrics.monitors import MonitorRecord
from ctflow.metrics.reconstruction import ReconstructionMetric, similarity, similarity_name
from ctflow.models import FMvT
from ctflow.processes import Ranks
from ctflow.types import Acquisition, HUVolume

from ..conftest import rises, soft_volume, write_shards

KEY = Key("rand2d", 32)
YARDSTICKS = "ctflow.evaluation.analyses.yardsticks.DAMAGES"


@pytest.fixture
def context(tiny_system, tiny_shards, tmp_path) -> Context:
    config = EvalConfig(
        slices=str(tiny_shards),
        cache=str(tmp_path / "cache"),
        cases=4,
        batch_size=4,
        clip_lengths=[16],
        sampling=SamplingChoice(steps=1),
    )
    return Context(config, tiny_system, Ranks(), tmp_path / "out")


def features_of(name, values=None, findings=None) -> CaseFeatures:
    """A volume of which only slice features or findings matter."""
    values = np.zeros((0, 1)) if values is None else values
    found = findings and {
        label: [Found(side, size, "") for side, size in items] for label, items in findings.items()
    }
    record = MonitorRecord(*(torch.zeros(0) for _ in range(4)), torch.tensor(math.nan))
    slices = Samples(np.arange(len(values), dtype=np.int32), {KEY: values})
    return CaseFeatures(name, VolumeFacts(len(values), 8, 0), slices, {}, record, findings=found)


def with_analysis(context: Context, **values) -> Context:
    return replace(context, config=replace(context.config, analysis=AnalysisConfig(**values)))


def test_registry_and_configuration_agree():
    assert tuple(ANALYSES) == ANALYSIS_NAMES


def test_pairs_tell_whether_the_report_is_read(tiny_system, context, tmp_path):
    texts = ("There is a large right pleural effusion.", "There is a large left pleural effusion.")
    volume = soft_volume(20, 3)
    with SliceShardWriter(tmp_path / "pairs") as writer:
        for scan, text in zip("ab", texts, strict=True):
            spacing, acquisition = (4.0, 9.0, 9.0), Acquisition(scan=f"p_{scan}")
            writer.append(
                SliceRecord(f"p_{scan}", "p", volume, spacing, text, split="valid", acquisition=acquisition)
            )
    context = replace(context, config=replace(context.config, slices=str(tmp_path / "pairs")))
    result = ANALYSES["pairs"](context)
    assert [r["finding"] for r in result.records] == ["all", "Pleural effusion, side"]
    assert result.records[0]["pairs"] == 1 and result.records[0]["read"] in (0.0, 1.0)
    # Equal volumes under swapped reports: what one loses the other wins.
    assert result.records[0]["partner's loss over own"] == pytest.approx(1, abs=1e-4)
    once = ANALYSES["pairs"](with_analysis(context, name="pairs", times=[0.985]))
    assert once.records == result.records  # other times change nothing at this one
    with pytest.raises(ValueError, match=r"0\.985 among them, found \[0\.9\]"):
        AnalysisConfig(times=[0.9])
    with pytest.raises(CTFlowError, match="no contrast pair"):
        ANALYSES["pairs"](with_analysis(replace(context, config=replace(context.config, slices=str(
            write_shards(tmp_path / "alone", [20])
        ))), name="pairs"))  # fmt: skip


def test_response_of_a_generator_that_answers_with_the_data(tiny_system, context, tmp_path, monkeypatch):
    """Through the analysis' own function; what is drawn back is given, so that the numbers are known."""
    shards = write_shards(tmp_path / "response", [16, 20, 36])
    rollout = replace(context.rollout, steps=4, start_steps=2)
    asked = replace(context, config=replace(
        context.config, slices=str(shards), sampling=SamplingChoice(steps=4, start_steps=2)
    ))  # fmt: skip
    seen = []

    def halfway(model, latents, start, white, text, spacing, config, steps, noise, starts):
        assert config.steps == rollout.steps and noise.shape[0] == steps
        seen.append((starts, steps, latents.shape[1], tuple(noise.shape[1:3])))
        return latents

    monkeypatch.setattr("ctflow.evaluation.analyses.yardsticks.redraw", halfway)
    records = ANALYSES["response"](asked).records
    channels = tiny_system.avae.config.latent_channels
    assert {s for s in seen if s[0]} == {(True, n, 16, (1, channels)) for n in (6, 5, 3, 2, 1)}
    assert {s[2:] for s in seen if not s[0]} == {(20, (2, channels)), (36, (3, channels))}
    assert {s[1] for s in seen if not s[0]} == {4, 3, 2, 1}
    assert {r["blocks"]: r["volumes"] for r in records} == {"first": 3, "later": 2}
    assert {r["quantity"] for r in records} == {
        "mean HU", "body", "lung of body", "fat of body", "soft tissue of body", "bone of body",
        "latents' deviation",
    }  # fmt: skip
    times = sorted({r["t"] for r in records if r["blocks"] == "first"}, reverse=True)
    assert times[0] == 1 and len(times) == 5
    assert times[-1] == pytest.approx(float(time_grid(4, rollout.time_shift, 2)[-2]), abs=1e-4)
    for record in records:
        assert record["real"] == record["drawn"], record
        found = (record["difference"], record["ratio"])
        assert found == (0, 1) or all(map(math.isnan, found))  # where the phantoms are all alike
    assert any(record["ratio"] == 1 for record in records)


def test_response_finds_the_variety_that_is_lost(context, tmp_path, monkeypatch):
    asked = replace(context, config=replace(
        context.config, slices=str(write_shards(tmp_path / "response", [16, 16, 16, 16]))
    ))  # fmt: skip
    real = [torch.randn(4, 16, 8, 8, generator=torch.Generator().manual_seed(i)) * (i + 1) for i in range(4)]
    mean = float(torch.stack([x.std() for x in real]).mean())
    given = iter(real)
    monkeypatch.setattr(type(context.system), "encode", lambda self, volume: next(given))

    def half(model, latents, *_, **__):
        wanted = mean + (latents.std() - mean) / 2
        return latents * wanted / latents.std()

    monkeypatch.setattr("ctflow.evaluation.analyses.yardsticks.redraw", half)
    records = [r for r in ANALYSES["response"](asked).records if r["quantity"] == "latents' deviation"]
    assert records and {r["ratio"] for r in records} == {0.5} and {r["correlation"] for r in records} == {1}
    assert {r["difference"] for r in records} == {0}


def test_response_runs_with_the_network_and_says_what_it_cannot(context, tmp_path):
    asked = replace(
        context, config=replace(context.config, slices=str(write_shards(tmp_path / "two", [18, 17])))
    )
    result = ANALYSES["response"](asked)
    assert {(r["blocks"], r["t"]) for r in result.records} == {("first", 1.0), ("later", 1.0)}
    assert any(r["difference"] != 0 for r in result.records) and "response" in result.figures
    with pytest.raises(CTFlowError, match="dopri5"):
        ANALYSES["response"](replace(asked, config=replace(
            asked.config, sampling=SamplingChoice(solver="dopri5")
        )))  # fmt: skip
    with pytest.raises(CTFlowError, match="two or more"):
        ANALYSES["response"](replace(asked, config=replace(asked.config, cases=1)))


def test_reconstruction_counts_its_slices_and_writes_everything(context):
    context = with_analysis(context, name="reconstruction", reconstructed_slices=30)
    run_analysis(context.config, context.system, context.ranks, context.output)
    records = json.loads((context.output / "reconstruction.json").read_text(encoding="utf-8"))
    values = {r["metric"]: r for r in records}
    assert values["psnr"]["slices"] == 30 and values["psnr"]["value"] > 0
    assert values["lpips (lung window)"]["value"] is None and "n/a" in values["lpips (lung window)"]["note"]
    assert {p.suffix for p in context.output.iterdir()} == {".md", ".csv", ".json", ".html", ".yaml"}


def test_floors_are_the_tables_and_leave_the_table_only_generated_volumes(context):
    config = replace(context.config, cases=3, setting="next-block")
    records = ANALYSES["floors"](replace(context, config=config)).records
    files = {p.name for p in Path(config.cache).iterdir()}
    other = replace(context.system, fingerprint="1" * 64, text_fingerprint="0" * 64)  # another FMvT
    rows = [r for r in evaluate(config, other, context.ranks).rows if r.source != MODEL]
    # next-block may score every slice of a real volume, so its floors over slices are these
    numbers = {(r["source"], r["metric"]): r["value [95 %]"] for r in records}
    for row in rows:
        if row.metric in ("fid_rand2d", "kid_rand2d", "clip_phantom"):
            assert row.text() == numbers[row.source, row.metric]
    assert len(files) == 9 and len({p.name for p in Path(config.cache).iterdir()} - files) == 3


def test_slices_are_spread_over_all_volumes():
    assert spread([3, 5, 2], 10) == [[0, 1, 2], [0, 1, 2, 3, 4], [0, 1]]
    assert sum(map(len, spread([100, 60, 90], 25))) == 25


def test_steps_compare_solvers_on_equal_cases(context):
    small = replace(context, config=replace(context.config, cases=2))
    result = ANALYSES["steps"](with_analysis(small, solvers=["euler", "midpoint"], steps=[2]))
    assert [(r["network"], r["solver"], r["evaluations per block"]) for r in result.records] == [
        ("checkpoint, as recommended", "euler", 1),
        ("checkpoint", "euler", 2),
        ("checkpoint", "midpoint", 4),
    ]
    assert len({r["fid_rand2d"] for r in result.records}) == 3
    assert "fvd_rand3d_f16 at infinite N" in result.records[0]
    assert "recall" not in result.records[0]  # these cases are no phantoms


def test_a_student_stands_beside_its_checkpoint(context, tiny_checkpoint, tmp_path):
    system = load_system(tiny_checkpoint)
    rollout = replace(system.config.rollout, steps=3, solver="euler", text_guidance=1.0)
    student = save_system(
        tmp_path / "student", replace(system, config=replace(system.config, rollout=rollout))
    )
    small = replace(
        context, config=replace(context.config, cases=2, sampling=SamplingChoice(text_guidance=2.0))
    )
    result = ANALYSES["steps"](with_analysis(small, solvers=["euler"], steps=[3], student=str(student)))
    assert [(r["network"], r["steps"], r["evaluations per block"]) for r in result.records] == [
        ("checkpoint, as recommended", 1, 2),
        ("checkpoint", 3, 6),
        ("student", 3, 3),
    ]
    assert result.records[1]["fid_rand2d"] != result.records[2]["fid_rand2d"]  # the student is not guided
    assert [len(axes.lines) for axes in result.figures["cost"][0].axes] == [3]
    wider = FMvT(replace(system.fmvt.config, input_size=[16, 8, 8]))
    save_system(student, replace(system, fmvt=wider, config=replace(system.config, image_size=64)))
    with pytest.raises(CTFlowError, match="64 pixels"):
        ANALYSES["steps"](with_analysis(small, solvers=["euler"], steps=[3], student=str(student)))


def test_length_asks_for_lengths(context):
    result = ANALYSES["length"](with_analysis(context, lengths=[20, 40], seeds=1, reports=2))
    assert [(r["requested"], r["mean slices"]) for r in result.records] == [(20, 20), (40, 40)]
    assert all(r["length_error"] == 0 for r in result.records)


def test_reconstruction_by_window_sees_what_the_window_shows(context):
    result = ANALYSES["reconstruction"](with_analysis(context, reconstructed_slices=4))
    names = {r["metric"] for r in result.records}
    assert {"psnr", "psnr (lung window)", "psnr (soft tissue window)", "ssim (lung window)"} <= names
    original = torch.full((2, 1, 32, 32), 40.0)
    metric = ReconstructionMetric((-160.0, 240.0))
    metric.update(original + 20.0, original)
    assert metric.compute()["psnr"] == pytest.approx(20 * math.log10(400 / 20))  # the window is 400 HU wide
    clipped = ReconstructionMetric((-160.0, 240.0))
    clipped.update(torch.full((2, 1, 32, 32), -1000.0), torch.full((2, 1, 32, 32), -300.0))
    assert clipped.compute()["psnr"] == math.inf  # both are black in it


def test_seams_stand_beside_the_real_scans_own(context):
    context = with_analysis(context, name="seams")
    result = ANALYSES["seams"](context)
    lines = {r["volume"]: r for r in result.records}
    assert list(lines) == ["real scan", "A-VAE", "gt-head", "next-block"]
    assert lines["gt-head"]["scored slices"] == lines["gt-head"]["slices"] - 16
    assert lines["real scan"]["psnr to the scan"] is None and lines["A-VAE"]["psnr to the scan"] > 0
    assert result.figures.keys() == {"volumes", "profile"}


def test_capacity_has_a_line_per_block(context, tiny_shards):
    result = ANALYSES["capacity"](with_analysis(context, train_slices=str(tiny_shards)))
    assert [r["first slice"] for r in result.records] == [0, 16]
    assert all(np.isfinite(r["psnr A-VAE"]) for r in result.records)


@pytest.fixture
def bars(monkeypatch):
    """Progress bars over volumes, in the order in which they are shown."""
    shown = []

    class Bar(tqdm):
        def __init__(self, *args, **keys):
            super().__init__(*args, **keys)
            shown.append(self)

    monkeypatch.setattr("ctflow.evaluation.analyses.base.tqdm", Bar)
    monkeypatch.setattr("ctflow.evaluation.collect.tqdm", Bar)
    return shown


def test_memorisation_sees_a_copy_and_refuses_training_cases(context, tiny_shards, tmp_path, bars):
    train = write_shards(tmp_path / "train", [20, 22, 24, 26], first_seed=500)
    result = ANALYSES["memorisation"](with_analysis(context, train_slices=str(train)))
    assert len(bars) == 1 and bars[0].n == bars[0].total
    assert [r["volumes"] for r in result.records] == ["generated", "held-out real"]
    with pytest.raises(CTFlowError, match="are training cases"):
        ANALYSES["memorisation"](with_analysis(context, train_slices=str(tiny_shards)))
    rng = np.random.default_rng(0)
    pool = [features_of(str(i), rng.normal(size=(3, 5))) for i in range(6)]
    copy = features_of("copy", pool[2].slices.values[KEY][::-1])
    other = features_of("other", rng.normal(size=(3, 5)))
    distances = nearest_distances([copy, other, features_of("none")], pool, KEY)
    assert len(distances) == 2
    assert distances[0] < 1e-9 < distances[1]


def test_damages_keep_their_argument_and_grow():
    hu = soft_volume(48, 1).astype(np.float32)
    before = hu.copy()
    for name, (damage, levels) in DAMAGES.items():
        sizes = []
        for level in levels:
            damaged = damage(hu, level, np.random.default_rng(0))
            changed = np.abs(damaged - hu[: len(damaged)]).mean() + 1e3 * (len(hu) - len(damaged))
            sizes.append(changed)
        assert np.all(np.diff(sizes) > 0), name
        np.testing.assert_array_equal(hu, before)


def test_rises_needs_every_step_above_the_one_before():
    records = [
        {"damage": d, "m": v} for d, v in (("none", 1.0), ("blur", 2.0), ("blur", 3.0), ("noise", 1.0))
    ]
    assert rises(records, "m", "blur") and not rises(records, "m", "noise")


def test_severity_sweep_rises_above_the_floor(context, monkeypatch, bars):
    some = {name: (DAMAGES[name][0], (60.0, 250.0)) for name in ("noise", "seam", "shift", "checkerboard")}
    some["blur"] = (DAMAGES["blur"][0], (1.0, 4.0))
    # These few bodies are alike from end to end; test_severity_phantoms.py has every damage and metric.
    monkeypatch.setattr(YARDSTICKS, some)
    records = ANALYSES["severity"](context).records
    assert len(bars) == 1 and bars[0].n == bars[0].total
    assert records[0]["damage"] == "none" and len(records) == 1 + 2 * len(some)
    for name in some:
        assert rises(records, "fid_rand2d", name), name
    assert rises(records, "drift_z", "shift")
    assert rises(records, "seam_ratio", "seam") and not rises(records, "seam_ratio", "shift")
    assert rises(records, "checkerboard_2", "checkerboard") and not rises(records, "checkerboard_2", "seam")


def test_severity_of_a_single_scan_holds_its_odd_slices_against_its_even_ones(context, tmp_path, monkeypatch):
    monkeypatch.setattr(YARDSTICKS, {"blur": (DAMAGES["blur"][0], (2.0,))})
    folder = write_shards(tmp_path / "one", [41])
    one = replace(context, config=replace(context.config, slices=str(folder)))
    (scan,) = one.reader().cases()
    sets = halved([scan])
    even, odd = (HalvedReader(folder).volume(*half) for half in (sets.evaluated, sets.others))
    pixels = np.empty(scan.shape, np.float32)
    pixels[::2], pixels[1::2] = even.hu, odd.hu
    assert np.array_equal(pixels, one.reader().volume(scan).hu)
    assert even.spacing == (8.0, 9.0, 9.0) and sets.evaluated[0].shape == even.hu.shape
    floor, blurred = ANALYSES["severity"](with_analysis(one, split="slices")).records
    assert blurred["fid_rand2d"] > floor["fid_rand2d"] and blurred["kid_rand2d"] > floor["kid_rand2d"]


TRUTH = {
    "findings": [
        {"label": "Pleural effusion", "side": "right", "volume_ml": 100.0, "size_mm": None},
        {"label": "Lung nodule", "side": "left", "size_mm": 10.0, "volume_ml": None},
        {"label": "Lung nodule", "side": "left", "size_mm": 6.0, "volume_ml": None},
        {"label": "Cardiomegaly", "side": None},
    ]
}


def test_findings_table_by_hand(tmp_path):
    (tmp_path / "truth.json").write_text(json.dumps(TRUTH), encoding="utf-8")
    case = RealCase("a", "p", "x", (10, 8, 8), (1.0, 1.0, 1.0), "d", truth_path=str(tmp_path / "truth.json"))
    assert true_places("Lung nodule", TRUTH) == {"left": 10.0}
    found = {
        "Pleural effusion": [["right", 120.0], ["left", 60.0]],
        "Lung nodule": [["left", 9.0]],
        "Emphysema": [[None, 0.2]],
    }
    card = findings_table("model", [case], [features_of("a", findings=found)], "full-body")
    lines = {line["finding"]: line for line in card}
    effusion, nodule = lines["Pleural effusion"], lines["Lung nodule"]
    assert (effusion["recall"], effusion["false positives"], effusion["right side"]) == (1.0, 1.0, 0.0)
    assert effusion["median size error"] == pytest.approx(0.2)
    assert (nodule["recall"], nodule["false positives"], nodule["right side"]) == (1.0, 0.0, 1.0)
    assert lines["Cardiomegaly"]["recall"] == 0.0 and lines["Emphysema"]["false positives"] == 1.0
    assert lines[ALL]["present"] == 3 and lines[ALL]["recall"] == pytest.approx(2 / 3)
    assert findings_table("model", [replace(case, truth_path=None)], [], "full-body") == []
    (all_of_them,) = [line for line in card if line["finding"] == ALL]
    columns = ("recall", "false positives", "right side")
    assert obeyed([case], [features_of("a", findings=found)]) == {name: all_of_them[name] for name in columns}


def test_findings_table_without_its_truth_file_is_an_error(tmp_path):
    case = RealCase("a", "p", "x", (10, 8, 8), (1.0, 1.0, 1.0), "d", truth_path=str(tmp_path / "gone.json"))
    with pytest.raises(CTFlowError, match="ground truth"):
        findings_table("model", [case], [features_of("a", findings={})], "full-body")


def test_contrast_pairs_are_judged_as_pairs():
    absent = ReportPair("1", "Pleural effusion", 32, ("x", "y"), ("right", "absent"))
    sided = ReportPair("2", "Pleural effusion", 32, ("x", "y"), ("left", "right"))

    def volume(*sides):
        return features_of("a", findings={"Pleural effusion": [[s, 90.0] for s in sides]})

    assert shows(volume("right"), absent, 0) and not shows(volume("left"), absent, 0)
    assert (
        shows(volume(), absent, 1)
        and shows(volume("left"), absent, 1)
        and not shows(volume("right"), absent, 1)
    )
    assert shows(volume("left"), sided, 0) and not shows(volume("left", "right"), sided, 0)


def test_contrast_runs_from_a_csv(context, tmp_path, monkeypatch):
    spacings = []

    effusion = {"Pleural effusion": [Found("right", 100.0, "ml")]}
    monkeypatch.setattr("ctflow.evaluation.features.measure", lambda volume: spacings.append(volume.spacing))
    monkeypatch.setattr("ctflow.evaluation.features.findings", lambda measurement: effusion)
    path = tmp_path / "pairs.csv"
    rows = [
        ["pair", "label", "slices", "report_a", "side_a", "report_b", "side_b"],
        ["1", "Pleural effusion", "20", "Right pleural effusion.", "right", "No pleural effusion.", "absent"],
    ]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    asked = with_analysis(context, pairs=str(path), pair_seeds=1)
    nothing = replace(asked, config=replace(asked.config, slices=str(tmp_path / "nothing")))
    result = ANALYSES["contrast"](nothing)  # it needs no real cases
    record = result.records[0]
    assert (record["first half right"], record["second half right"], record["both right"]) == (1, 0, 0)
    own = context.system.config
    assert spacings == 2 * [(own.z_spacing_mm, own.pixel_spacing_mm, own.pixel_spacing_mm)]
    rows[1][4] = "upwards"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    with pytest.raises(CTFlowError, match="upwards"):
        read_pairs(path)


def test_pairs_in_any_dialect_of_a_spreadsheet(tmp_path):
    path = tmp_path / "pairs.csv"
    rows = [list(COLUMNS), ["1", "Lung nodule", "20.0", "Größe", "present", "", "absent"], [""] * 7]
    path.write_text("\n".join("\t".join(row) for row in rows), encoding="utf-16")
    assert [(pair.slices, pair.reports) for pair in read_pairs(path)] == [(20, ("Größe", ""))]
    path.write_text(";".join(COLUMNS) + "\n1;Lung nodule;many;a;present;b;absent\n", encoding="cp1252")
    with pytest.raises(CTFlowError, match="row 2: slices 'many'"):
        read_pairs(path)


@pytest.mark.parametrize("name", ["length", "steps"])
def test_sweeps_show_one_progress_bar_with_a_total(context, bars, name):
    asked = with_analysis(context, lengths=[20, 24], seeds=1, reports=2, solvers=["euler"], steps=[1, 2])
    asked = replace(asked, config=replace(asked.config, cases=2))
    ANALYSES[name](asked)
    volumes = {"length": 4, "steps": 6}[name] + 2
    assert [(bar.n, bar.total) for bar in bars] == [(volumes, volumes)]


def test_reading_pack_there_and_back(context):
    pack = with_analysis(context, name="reading", read_reports=4)
    # As the command does it: its summary must not replace the page for readers.
    run_analysis(pack.config, pack.system, pack.ranks, pack.output)
    records = json.loads((context.output / "reading.json").read_text(encoding="utf-8"))
    assert records == [{"items": 4, "real": 2, "synthetic": 2}]
    page = without_payloads((context.output / "readings.html").read_text(encoding="utf-8"))
    key = json.loads((context.output / "key.json").read_text(encoding="utf-8"))
    assert "image/jpeg" in page and "case_0" not in page and "http" not in page
    assert not any(entry["case_id"] in page for entry in key)
    form = context.output / "readings.csv"
    with form.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    with pytest.raises(CTFlowError, match="no judgement"):
        ANALYSES["reading"](with_analysis(context, readings=str(form)))
    for row, entry in zip(rows, key, strict=True):
        assert row["item"] == entry["item"]
        row["real_or_synthetic"] = entry["source"]
        row["Cardiomegaly"] = str(int(entry["automatic"]["Cardiomegaly"]))
    rows[0]["real_or_synthetic"] = "synthetic" if key[0]["source"] == "real" else "real"
    with form.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    records = ANALYSES["reading"](with_analysis(context, readings=str(form))).records
    values = {r["measure"]: r for r in records}
    assert values["real or synthetic, accuracy"]["value"] == 0.75
    assert values["anatomy module, all items"]["value"] == 1.0
    assert values["anatomy module, all items"]["number"] == 4


LENGTH_AND_SPACING = {"dim", "pixdim", "srow_x", "srow_y", "srow_z", "qoffset_x", "qoffset_y", "qoffset_z"}


def test_reading_pack_with_the_viewer_shows_nothing_that_tells_its_source(context):
    asked = with_analysis(context, name="reading", read_reports=2)
    asked = replace(asked, config=replace(asked.config, page=PageConfig(viewer=True)))
    run_analysis(asked.config, asked.system, asked.ranks, asked.output)
    page = (asked.output / "readings.html").read_text(encoding="utf-8")
    headers = []
    for title, data in re.findall(r'class="nifti" data-title="([^"]+)">([^<]+)<', page):
        assert title.startswith("item 0")
        content = gzip.decompress(base64.b64decode(data))
        header = nib.Nifti1Header.from_fileobj(io.BytesIO(content))
        same = {k: header[k].tolist() for k in header if k not in LENGTH_AND_SPACING}
        headers.append(same)
    assert len(headers) == 2 and headers[0] == headers[1]
    assert "niivue.Niivue(" in page and "data:image/jpeg" in page


def test_systematic_reports_name_every_finding_about_equally_often():
    def case(number, *labels):
        known = {label: int(label in labels) for label in LABELS}
        return RealCase(str(number), "p", "x", (9, 8, 8), (1.0, 1.0, 1.0), "d", labels=known)

    many = [case(i, "Emphysema") for i in range(20)]
    rare = [case(20, "Lung nodule", "Emphysema"), case(21, "Consolidation"), case(22)]
    chosen = systematic([*many, *rare], 5)
    assert [c.case_id for c in chosen] == ["0", "20", "21", "22", "1"]
    assert named_findings(rare[0])["Lung nodule"] and not named_findings(rare[0])["Consolidation"]
    assert len(systematic(many, 50)) == 20
    alike = [replace(c, labels={}) for c in many]
    assert [c.case_id for c in systematic(alike, 3)] == ["0", "1", "2"]


def test_real_items_are_shown_at_the_models_own_resolution():
    seen = volume_at(HUVolume(soft_volume(4, 0, side=64).astype(np.float32), (4.0, 1.0, 1.0)), 32)
    assert seen.hu.shape == (4, 32, 32) and seen.spacing == (4.0, 2.0, 2.0)


def test_shipped_contrast_pairs_are_readable(repo_root):
    pairs = read_pairs(repo_root / AnalysisConfig().pairs)
    assert len(pairs) == 48 and {p.kind for p in pairs} == {"present or absent", "left or right"}
    assert all(p.reports[0] != p.reports[1] for p in pairs)
    effusions = read_pairs(repo_root / "configs/eval/effusion_pairs.csv")
    assert Counter(p.kind for p in effusions) == {"present or absent": 40, "left or right": 40}
    assert {p.label for p in effusions} == {"Pleural effusion"}
    assert all(p.reports[0] != p.reports[1] for p in effusions)


def test_diversity_compares_seeds_and_patients(context):
    records = ANALYSES["diversity"](with_analysis(context, reports=7, seeds=2)).records
    assert [r["metric"] for r in records] == [
        *("ssim", "ssim"),  # slices of 32 px have no room for several scales
        *(f"{name}_rand2d" for name in ("precision", "recall", "density", "coverage")),
    ]
    assert all(r["N"] == 7 for r in records)
    within, between = (float(r["value [95 %]"].split()[0]) for r in records[:2])
    assert within < 0.99 and 0 < between < 1


def test_similarity_of_equal_and_longer_volumes():
    hu = soft_volume(12, 0, 48).astype(np.float32)
    assert similarity(hu, hu[:10]) == pytest.approx(1, abs=1e-5)
    assert similarity(hu, hu + 200) < 1 and math.isnan(similarity(hu, hu[:0]))
    assert [similarity_name(side) for side in (32, 128, 256)] == ["ssim", "ms_ssim_s3", "ms_ssim"]


def test_readers_page_escapes_reports_also_inside_its_script():
    evil = "<script>alert(1)</script> 'quoted' | \"both\""
    volume = HUVolume(np.zeros((6, 8, 8), np.float32), (4.0, 9.0, 9.0))
    page = reading_page([ReadingItem.of("item 01", evil, volume)], ["Lung nodule"])
    assert "<script>alert" not in page and page.count("data:image/jpeg;base64,") == 6
    strips = page.split("data-strips='")[1].split("'")[0]
    assert json.loads(strips).keys() == {"lung", "soft"}
