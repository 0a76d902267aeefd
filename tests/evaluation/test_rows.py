"""Rows of the table from features made by hand: protocols, names, sets too small, stand-in backbones."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from ctflow.anatomy import Found
from ctflow.evaluation.cases import RealCase
from ctflow.evaluation.collect import FeatureCache, Wanted
from ctflow.evaluation.compare import readings
from ctflow.evaluation.features import CaseFeatures, FeatureExtractor, FeaturePlan, Key, Samples, VolumeFacts
from ctflow.evaluation.results import MODEL, NOT_EXTRAPOLATED, Row, number
from ctflow.evaluation.rows import Compared, clip_rows, inception_row, report_rows, slice_rows
from ctflow.evaluation.settings import REAL, SETTINGS
from ctflow.metrics import frechet_from_features
from ctflow.metrics.backbones import Backbone, Backbones
from ctflow.metrics.monitors import MonitorRecord
from ctflow.processes import Ranks

from .conftest import assert_same_features

WIDTH = 6
SLICES = Key("inception", 32)
PLAN = FeaturePlan(resolutions=(32,), native=32, clip_lengths=(16,), clip_stride=8)


def backbone(name: str, metric: str, kernel: str = "") -> Backbone:
    return Backbone(name, metric, kernel, False, WIDTH, "0" * 64, nn.Identity(), lambda x: {"features": x})


STAND_IN = Backbones((backbone("inception", "fid", "kid"),), (backbone("i3d", "fvd"),), None)


def case(name: str, slices: int, seed: int, mean: float = 0.0, logits: bool = False) -> CaseFeatures:
    rng = np.random.default_rng(seed)
    starts = np.arange(0, slices - 15, 8)
    values = {SLICES: rng.normal(mean, 1, (slices, WIDTH)).astype(np.float32)}
    if logits:
        values[Key("inception", 32, "logits")] = 50 * np.eye(5)[np.arange(slices) % 5]
    clips = (starts[:, None] + 100 * seed + np.zeros((1, WIDTH))).astype(np.float32)
    record = MonitorRecord(
        ratios=torch.ones(max(slices - 1, 0)).double(),
        statistics=torch.from_numpy(rng.normal(size=(slices, 3))),
        checkerboard=torch.tensor([0.1, 0.2, 0.3, 0.4]).double(),
        white=torch.zeros(slices, dtype=torch.bool),
        sharpest=torch.tensor(1.1).double(),
    )
    return CaseFeatures(
        case_id=name,
        facts=VolumeFacts(slices=slices, side=32, requested=slices),
        slices=Samples(np.arange(slices, dtype=np.int32), values),
        clips={16: Samples(starts.astype(np.int32), {Key("i3d", 32): clips})},
        monitors=record,
        latent=rng.normal(size=4).astype(np.float32),
        findings={"Lung nodule": [Found("left", 8.0, "mm")]},
    )


def compared(fake, real, protocol="matched", setting=REAL) -> Compared:
    return Compared(setting, MODEL, fake, real, PLAN, 0, protocol)


def test_slice_rows_are_the_distances_of_all_slices():
    fake, real = [case(str(i), 20, i) for i in range(3)], [case(str(i), 24, 10 + i, 1.0) for i in range(3)]
    frechet, kernel = slice_rows(compared(fake, real), STAND_IN.slices[0], 32)
    stacks = [torch.from_numpy(np.concatenate([c.slices.values[SLICES] for c in s])) for s in (fake, real)]
    assert (frechet.metric, kernel.metric) == ("fid", "kid")
    assert frechet.value == pytest.approx(float(frechet_from_features(*stacks)), rel=1e-9)
    assert (frechet.samples, frechet.reference, frechet.cases) == (60, 72, 3)
    assert math.isnan(frechet.low) and "not extrapolated" in frechet.reason  # three cases only


def test_many_cases_have_intervals_and_an_extrapolated_value():
    fake, real = [case(str(i), 9, i) for i in range(10)], [case(str(i), 9, 50 + i) for i in range(10)]
    row = slice_rows(compared(fake, real), STAND_IN.slices[0], 32)[0]
    assert row.low < row.value < row.high
    assert row.extrapolated < row.value
    assert "[" in row.text() and "[" in row.extrapolated_text()


def test_matched_clips_come_from_common_windows():
    fake, real = [case(str(i), 40, i) for i in range(8)], [case(str(i), 64, i) for i in range(8)]
    row = clip_rows(compared(fake, real), STAND_IN.clips[0], 16, 32)[0]
    assert row.metric == "fvd_f16" and row.samples == row.reference == 8 * 4
    assert row.value == pytest.approx(0.0, abs=1e-5)  # the stand-in's clips depend on case and start alone


def test_stylegan_v_takes_one_clip_per_volume():
    fake, real = [case(str(i), 40, i) for i in range(20)], [case(str(i), 64, i) for i in range(20)]
    row = clip_rows(compared(fake, real, "stylegan-v"), STAND_IN.clips[0], 16, 32)[0]
    assert row.samples == row.reference == 20
    assert row.value > 1.0  # the real clips start anywhere


def test_too_few_and_too_short_are_not_numbers():
    few = [case("a", 40, 1), case("b", 40, 2)]
    rows = [
        clip_rows(compared(few, few), STAND_IN.clips[0], 16, 32)[0],
        clip_rows(compared([case("a", 10, 1)], [case("a", 10, 2)]), STAND_IN.clips[0], 16, 32)[0],
        slice_rows(compared([case("a", 10, 1)], [case("a", 10, 2)]), STAND_IN.slices[0], 32)[0],
        inception_row(compared([case("a", 10, 1, logits=True)], []), STAND_IN, 32),
        report_rows(compared(few, few), STAND_IN, {})[0],
    ]
    for row in rows:
        assert row.missing and row.text() == "n/a" and row.reason, row.metric
    spliced = clip_rows(compared(few, few, setting=SETTINGS["next-block"]), STAND_IN.clips[0], 128, 32)[0]
    assert spliced.text() == "–"


def test_inception_score_of_sure_and_equally_frequent_classes():
    fake = [case(str(i), 50, i, logits=True) for i in range(4)]
    row = inception_row(compared(fake, fake), STAND_IN, 32)
    assert row.metric == "is" and 4.0 < row.value <= 5.0 and row.samples == 200


class FakeScorer:
    name, sha256 = "clip_phantom", "0" * 64

    def __init__(self, latents):
        self.latents = latents

    def encode_reports(self, reports):
        return torch.stack([self.latents[text] for text in reports])

    def encode_volume(self, volume):
        raise AssertionError("the volumes' latents come from the cache")


def test_report_rows_and_their_zero_point():
    fake = [case(str(i), 20, i) for i in range(9)]
    latents = {f"report {c.case_id}": torch.from_numpy(c.latent) for c in fake}
    backbones = Backbones(STAND_IN.slices, STAND_IN.clips, FakeScorer(latents))
    reports = {c.case_id: f"report {c.case_id}" for c in fake}
    matched, shuffled = report_rows(compared(fake, fake), backbones, reports)
    assert (matched.metric, shuffled.metric) == ("clip_phantom", "clip_phantom_shuffled")
    assert matched.value == pytest.approx(100.0, abs=1e-3) and shuffled.value < 80
    equal = report_rows(compared(fake, fake), backbones, dict.fromkeys(reports, "report 0"))
    assert equal[1].missing and "equal" in equal[1].reason


def test_monitor_readings_and_alarms():
    cases = [case(str(i), 40, i) for i in range(6)]
    cases[0].monitors.ratios[15] = 40.0
    cases[1].monitors.white[-1] = True
    found = readings(SETTINGS["full-body"], MODEL, cases, cases, cases, STAND_IN.slices[0], 32)
    values = {r.monitor: r for r in found}
    assert values["seam_ratio"].value == pytest.approx(40 ** (1 / 12))  # boundaries 15 and 31 of six volumes
    assert values["seam_ratio"].alarm
    assert values["sharpest_steps"].value == pytest.approx(1.1) and not values["sharpest_steps"].alarm
    assert values["length_error"].value == pytest.approx(1 / 6)
    assert not values["checkerboard_4"].alarm and values["checkerboard_4"].value == pytest.approx(0.2)
    spliced = readings(SETTINGS["next-block"], MODEL, cases, cases, cases, STAND_IN.slices[0], 32)
    of_spliced = {r.monitor: r for r in spliced}
    assert not {"seam_ratio", "sharpest_steps", "drift_slope", "end_slices"} & set(of_spliced)
    assert of_spliced["length_error"].value == pytest.approx(1 / 6)
    rolled = [
        replace(case, facts=replace(case.facts, end_slices=ends))
        for case, ends in zip(cases, (3, 0, 0, 0, 0, 0), strict=True)
    ]
    spliced = readings(SETTINGS["next-block"], MODEL, rolled, cases, cases, STAND_IN.slices[0], 32)
    kept = {r.monitor: r for r in spliced}["end_slices"]
    assert kept.value == 0.5 and kept.alarm


def test_cache_returns_what_was_stored(tmp_path):
    def cache(plan):
        return FeatureCache(tmp_path, FeatureExtractor(plan, STAND_IN, torch.device("cpu")), Ranks())

    def wanted(name, **values):
        return Wanted("real", RealCase(name, "p", "", (20, 32, 32), (1.0, 1.0, 1.0), "d"), **values)

    stored = case("a", 20, 1, logits=True)
    cache(PLAN).store(stored, wanted("a"))
    loaded = cache(PLAN).load(wanted("a"))
    assert loaded is not None
    assert_same_features(loaded, stored)
    assert loaded.findings == stored.findings and loaded.picture is None
    assert cache(PLAN).load(wanted("b")) is None
    assert cache(PLAN).load(wanted("a", findings=True)) is None
    assert cache(replace(PLAN, native=64)).load(wanted("a")) is None
    assert len(list(tmp_path.iterdir())) == 1  # nothing half written is left


def test_features_are_kept_by_one_rule_for_slices_and_clips():
    kept = case("a", 40, 1).keep(lambda starts, frames: starts + frames <= 24)
    assert kept.slices.starts.tolist() == list(range(24)) and kept.clips[16].starts.tolist() == [0, 8]
    assert len(kept.slices.values[SLICES]) == 24 and len(kept.clips[16].values[Key("i3d", 32)]) == 2


def test_only_a_missing_extrapolation_is_printed_as_missing():
    row = Row("full-body", "model", "kid_rand2d", value=1.0)
    assert row.extrapolated_text() == ""  # an unbiased number needs none
    assert row.noted(f"{NOT_EXTRAPOLATED}few cases").extrapolated_text() == "n/a"
    assert Row("full-body", "model", "fid", empty="–").extrapolated_text() == "–"


def test_numbers_are_printed_with_four_digits():
    assert [number(x) for x in (0.0, 123.456, 0.012346, 12.0, 1234567.0)] == [
        "0",
        "123.5",
        "0.01235",
        "12.00",
        "1.23e+06",
    ]
    assert Row("s", "m", "fid").text() == "n/a"
