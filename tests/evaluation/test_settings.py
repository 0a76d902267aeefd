"""Given slices cannot reach a score; settings leave what they may score, and nothing else."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ctflow.config.data import CaseChoice
from ctflow.config.evaluation import BackboneFiles, EvalConfig
from ctflow.config.generation import RolloutConfig, StopConfig
from ctflow.errors import EvaluationError
from ctflow.evaluation.cases import CaseReader, case_set_hash, choose_cases
from ctflow.evaluation.features import FeatureExtractor, FeaturePlan, Key, real_volume
from ctflow.evaluation.settings import SETTINGS, ScoredVolume
from ctflow.evaluation.system import generate_batch, usable_in
from ctflow.generation.volumes import StopRule
from ctflow.metrics import MetricError
from ctflow.metrics.backbones import build_backbones
from ctflow.metrics.images import slices_at
from ctflow.types import Acquisition, HUVolume

from .conftest import assert_same_features

SPACING = (4.0, 9.0, 9.0)
PLAN = FeaturePlan.of(EvalConfig(clip_lengths=[16, 24], clip_stride=8), 32)
OPEN_END = StopConfig(threshold=0.001)


@pytest.fixture(scope="module")
def extractor() -> FeatureExtractor:
    return FeatureExtractor(
        PLAN, build_backbones(BackboneFiles(), None, torch.device("cpu")), torch.device("cpu")
    )


def volume(slices: int, value: float = 0.0) -> np.ndarray:
    noise = np.random.default_rng(slices).normal(size=(slices, 32, 32)) * 30
    return (noise + value).astype(np.float32)


def test_a_real_slice_cannot_be_put_into_a_gt_head_score():
    hu = volume(40)
    with pytest.raises(EvaluationError, match="given"):
        ScoredVolume("a", SETTINGS["gt-head"], hu, SPACING, 40)
    one_left = ScoredVolume.of_rollout("a", SETTINGS["gt-head"], hu, SPACING, 40).hu.copy()
    one_left[7] = hu[7]
    with pytest.raises(EvaluationError, match="given"):
        ScoredVolume("a", SETTINGS["gt-head"], one_left, SPACING, 40)


def test_masked_slices_are_refused_wherever_they_turn_up():
    masked = ScoredVolume.of_rollout("a", SETTINGS["gt-head"], volume(40), SPACING, 40)
    with pytest.raises(MetricError, match="given slices"):
        slices_at(torch.from_numpy(masked.hu).unsqueeze(1), 32)


def test_the_given_block_changes_no_feature(extractor):
    """Two rollouts that differ in nothing but the given block have equal features of every kind."""
    first, second = volume(44), volume(44)
    second[:16] = volume(16, 600.0)
    one, two = (
        extractor.extract(ScoredVolume.of_rollout("a", SETTINGS["gt-head"], hu, SPACING, 44))
        for hu in (first, second)
    )
    assert_same_features(one, two)
    assert one.slices.starts.min() == one.clips[16].starts.min() == 16


def test_a_generator_that_returns_the_given_block_gains_nothing(tiny_system, tiny_shards, extractor):
    """The whole way: a slice decoded from real latents is masked in gt-head, absent in next-block."""
    reader = CaseReader(tiny_shards)
    cases = [c for c in reader.cases() if usable_in(SETTINGS["gt-head"], c)][:2]
    config = RolloutConfig(steps=1, stop=OPEN_END)
    for name in SETTINGS:
        for scored, case in zip(
            generate_batch(tiny_system, SETTINGS[name], cases, reader.volume, config, 0), cases, strict=True
        ):
            truth = tiny_system.decode(tiny_system.encode(reader.volume(case)))
            features = extractor.extract(scored)
            for position, row in zip(features.slices.starts, scored.scored().hu, strict=True):
                assert not np.allclose(row, truth[position], atol=1.0), (name, position)


def test_case_of_one_block_is_left_out_of_gt_head(tiny_shards):
    short = [c for c in CaseReader(tiny_shards).cases() if c.shape[0] <= 16]
    assert len(short) == 1
    assert not usable_in(SETTINGS["gt-head"], short[0]) and usable_in(SETTINGS["full-body"], short[0])


def test_next_block_has_as_many_slices_as_the_real_volume(tiny_system, tiny_shards):
    reader = CaseReader(tiny_shards)
    cases = reader.cases()[:3]
    config = RolloutConfig(steps=1, stop=OPEN_END)
    made = list(generate_batch(tiny_system, SETTINGS["next-block"], cases, reader.volume, config, 0))
    assert [len(v.hu) for v in made] == [c.shape[0] for c in cases]


def test_end_slices_before_the_last_slice_are_counted(tiny_system, tiny_shards, extractor, monkeypatch):
    """Only next-block goes on past an end: the third slice of each of its blocks is made to look like one."""
    reader = CaseReader(tiny_shards)
    cases = reader.cases()[:2]

    def made(name):
        config = RolloutConfig(steps=1, stop=OPEN_END)
        volumes = list(generate_batch(tiny_system, SETTINGS[name], cases, reader.volume, config, 0))
        assert all(extractor.extract(v).facts.end_slices == v.end_slices for v in volumes)
        return volumes

    assert [v.end_slices for v in made("next-block")] == [0, 0]
    third = torch.arange(16) == 2
    monkeypatch.setattr(StopRule, "white_slices", lambda self, block: third[: block.shape[1]])
    volumes = made("next-block")
    assert [len(v.hu) for v in volumes] == [c.shape[0] for c in cases]
    assert [v.end_slices for v in volumes] == [len(range(2, c.shape[0], 16)) for c in cases]
    assert real_volume("a", HUVolume(volume(20), SPACING)).end_slices is None


def test_volumes_end_where_their_end_slices_begin(tiny_system, tiny_shards):
    """In every setting; with a threshold so wide that every latent is the end slice's, at once."""
    reader = CaseReader(tiny_shards)
    config = RolloutConfig(steps=1, stop=StopConfig(threshold=1e9))
    for setting in SETTINGS.values():
        volumes = generate_batch(tiny_system, setting, reader.cases()[:2], reader.volume, config, 0)
        assert [(len(v.hu), v.end_slices, v.stopped) for v in volumes] == 2 * [(setting.given, 0, True)]


def test_windows_hold_no_given_slice_and_no_splice():
    def starts(name, frames, stride=8):
        return ScoredVolume.of_rollout("a", SETTINGS[name], volume(50), SPACING, 50).window_starts(
            frames, stride
        )

    assert starts("full-body", 16) == [0, 8, 16, 24, 32]
    assert starts("gt-head", 16) == [16, 24, 32]
    assert starts("next-block", 16) == [0, 16, 32]
    assert starts("next-block", 24) == []
    assert starts("gt-head", 24, 12) == [24]


def test_real_features_are_restricted_like_the_setting(extractor):
    real = extractor.extract(real_volume("a", HUVolume(volume(50), SPACING)))
    for name in SETTINGS:
        scored = extractor.extract(ScoredVolume.of_rollout("a", SETTINGS[name], volume(50), SPACING, 50))
        seen = real.restricted(SETTINGS[name])
        for frames, key in ((1, Key("rand2d", 32)), (16, Key("rand3d", 32)), (24, Key("rand3d", 32))):
            mine, its = seen.samples(frames), scored.samples(frames)
            np.testing.assert_array_equal(mine.starts, its.starts)
            if len(mine):
                np.testing.assert_allclose(mine.values[key], its.values[key], rtol=1e-5, atol=1e-6)


def test_nan_in_a_scored_slice_is_an_error():
    hu = volume(20)
    hu[18, 3, 3] = np.nan
    with pytest.raises(EvaluationError, match="slice 18"):
        ScoredVolume.of_rollout("a", SETTINGS["gt-head"], hu, SPACING, 20)


def test_floor_cases_are_other_patients(tiny_shards):
    cases = CaseReader(tiny_shards).cases()
    sets = choose_cases(cases, 6, floors=True)
    assert len(sets.evaluated) == len(sets.others) == 6
    assert not {c.patient_id for c in sets.evaluated} & {c.patient_id for c in sets.others}
    assert len(choose_cases(cases, 100, floors=True).evaluated) == len(cases) // 2
    assert len(choose_cases(cases, 100, floors=False).evaluated) == len(cases)
    assert case_set_hash(sets.evaluated) != case_set_hash(sets.others)


def test_duplicate_and_missing_cases_are_errors(tiny_shards):
    cases = CaseReader(tiny_shards).cases()
    with pytest.raises(EvaluationError, match="twice"):
        choose_cases([*cases, cases[3]], 4, floors=False)
    with pytest.raises(EvaluationError, match="no cases"):
        choose_cases([], 4, floors=False)


def test_model_finer_than_the_scans_is_an_error(tiny_system):
    with pytest.raises(EvaluationError, match="at least 32"):
        tiny_system.encode(HUVolume(np.zeros((4, 16, 16), np.float32), SPACING))


def test_a_patients_other_scans_and_reconstructions_are_no_cases_unless_asked(tiny_shards):
    names = [
        ("1", "a", "1", "sharp"),
        ("1", "a", "2", "soft"),
        ("1", "b", "1", "soft"),
        ("2", "a", "1", "soft"),
    ]
    cases = [
        replace(
            case,
            case_id=f"valid_{patient}_{scan}_{number}",
            patient_id=f"valid_{patient}",
            acquisition=Acquisition(f"valid_{patient}_{scan}", number, "", kind),
        )
        for case, (patient, scan, number, kind) in zip(CaseReader(tiny_shards).cases(), names, strict=False)
    ]

    def ids(choice=None):
        return [case.case_id for case in choose_cases(cases, 9, False, choice).evaluated]

    assert ids() == ["valid_1_a_2", "valid_2_a_1"]
    assert ids(CaseChoice("sharp")) == ["valid_1_a_1", "valid_2_a_1"]
    assert ids(CaseChoice("all", every_scan=True)) == [case.case_id for case in cases]
