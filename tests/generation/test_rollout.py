"""Rollouts of a scripted network (what goes in, when it stops, what is trimmed) and of a real tiny one."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from ctflow.config.generation import RolloutConfig, StopConfig
from ctflow.config.models import FMvTConfig
from ctflow.generation import (
    BlockMemo,
    Cancelled,
    RolloutCase,
    StopReason,
    StopRule,
    rollout,
    rollout_stream,
    seeded_noise,
)
from ctflow.generation.rollout import encode_reports, evaluations, guided_velocity
from ctflow.generation.volumes import GrowingVolume
from ctflow.models import Conditions, FMvT, TextCondition
from ctflow.seeding import case_noise

C, SIDE = 4, 4
WHITE = torch.full((C, SIDE, SIDE), 5.0)
AIR = torch.full((C, SIDE, SIDE), -3.0)
TINY = FMvTConfig(
    input_size=[16, SIDE, SIDE],
    latent_channels=C,
    hidden_size=16,
    depth=1,
    num_heads=2,
    text_dim=6,
    text_tokens=3,
)
EULER = RolloutConfig(steps=4, max_slices=64)


class Scripted(nn.Module):
    """Generates slices ``position … position + 15`` of a scripted volume, whatever the solver."""

    def __init__(self, volumes: dict[float, torch.Tensor]) -> None:
        super().__init__()
        self.config = TINY
        self.pos_embed = torch.zeros(1)
        self.volumes = volumes  # by the case's only text value
        self.calls: list[dict[str, torch.Tensor]] = []

    def encode_text(self, text, mask=None, batch=1):
        return TextCondition(text[:, 0], ())

    def forward(self, z, t, conditions):
        text, position = conditions.text, conditions.position
        self.calls.append(
            {
                "z": z,
                "known": conditions.known,
                "previous": conditions.previous,
                "position": position,
                "length": conditions.length,
            }
        )
        target = torch.stack(
            [
                self.volumes[float(key[0])][:, int(start) : int(start) + 16]
                for key, start in zip(text.summary, position, strict=True)
            ]
        )
        return (z - target) / t


def scripted_volume(slices: int, seed: int = 0) -> torch.Tensor:
    """Random slices, then white without end."""
    body = torch.randn(C, slices, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    return torch.cat([body, WHITE[:, None].expand(-1, 160, -1, -1)], dim=1)


def case(key: float, **options) -> RolloutCase:
    return RolloutCase(f"case{key}", torch.full((1, 6), key), **options)


def stop_rule(**options) -> StopRule:
    return StopRule(StopConfig(**options), WHITE, white_spread=0.01)


def real_model() -> FMvT:
    """Random weights everywhere; slow in t, as a trained network is, so that dopri5 ends."""
    torch.manual_seed(0)
    model = FMvT(replace(TINY, time_multiplier=1.0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1)
    return model.eval()


def real_cases(*names: str) -> list[RolloutCase]:
    generator = torch.Generator().manual_seed(3)
    lengths = (3, 2, 3)
    return [
        RolloutCase(name, torch.randn(length, 6, generator=generator), length=40)
        for name, length in zip(names, lengths, strict=False)
    ]


def test_full_body_is_generated_trimmed_and_stopped():
    volume = scripted_volume(37)
    model = Scripted({1.0: volume})
    rounds = []
    (result,) = rollout(model, [case(1.0)], AIR, stop_rule(), EULER, progress=rounds.append)
    torch.testing.assert_close(result.latents, volume[:, :37], rtol=1e-4, atol=1e-4)
    assert result.stop is StopReason.END_RECOGNISED
    assert result.white.tolist() == [False] * 37 + [True] * 11
    assert result.positions == [0, 16, 32]
    assert [(r.index, list(r.slices), len(r.finished)) for r in rounds] == [
        (0, ["case1.0"], 0), (1, ["case1.0"], 0), (2, ["case1.0"], 1)
    ]  # fmt: skip
    firsts = model.calls[:: EULER.steps]
    assert torch.equal(firsts[0]["previous"][0], AIR[:, None].expand(-1, 16, -1, -1))
    torch.testing.assert_close(firsts[2]["previous"][0], volume[:, 16:32], rtol=1e-4, atol=1e-4)
    assert firsts[0]["length"].isnan().all()


def test_an_exact_multiple_of_sixteen_ends_with_a_white_block():
    (result,) = rollout(Scripted({1.0: scripted_volume(32)}), [case(1.0)], AIR, stop_rule(), EULER)
    assert result.slices == 32
    assert len(result.blocks) == 3
    assert result.white[32:].all()


def test_no_body_follows_an_end_slice():
    volume = scripted_volume(44)
    volume[:, 4] = WHITE  # in a block that does not end the volume: kept, and seen by the monitors
    volume[:, 37] = WHITE  # the last block's first end slice; 38 … 43 are no body any more
    (result,) = rollout(Scripted({1.0: volume}), [case(1.0)], AIR, stop_rule(), EULER)
    assert result.stop is StopReason.END_RECOGNISED and result.slices == 37
    assert result.white[[4, 37]].all() and result.white[44:].all() and not result.white[38:44].any()
    published = stop_rule(rule="first_slice")
    assert published.end_run(result.white[32:]) == 4 and stop_rule().end_run(result.white[32:]) == 11
    (limited,) = rollout(Scripted({1.0: volume}), [case(1.0, length=37)], AIR, stop_rule(), EULER)
    assert limited.stop is StopReason.LENGTH_REACHED and limited.slices == 37


class Hesitant(Scripted):
    """From noise above zero it draws an end slice in the middle of the block."""

    def forward(self, z, t, conditions):
        if float(t) == 1:
            self.hesitates = z.mean(dim=(1, 2, 3, 4)) > 0
        velocity = super().forward(z, t, conditions)
        ends = (z[:, :, 5] - WHITE) / t
        velocity[:, :, 5] = torch.where(self.hesitates[:, None, None, None], ends, velocity[:, :, 5])
        return velocity


@pytest.mark.parametrize("spliced", [False, True])
def test_a_block_with_a_body_after_an_end_slice_is_drawn_again(spliced):
    """Only the case in question, with other noise, and not without end."""
    volumes = {1.0: scripted_volume(40), 2.0: scripted_volume(40, seed=1)}

    def noise(name, index, shape):
        values = torch.full(tuple(shape), -1.0)
        if name == "a" and index == 1:
            values.view(-1, C, 16, SIDE, SIDE)[0] = 1
        return values

    def drawn(redraws, source=noise, rule="every_slice"):
        real = {key: {"real": volume[:, :40]} if spliced else {} for key, volume in volumes.items()}
        cases = [
            replace(case(1.0, **real[1.0]), case_id="a"),
            replace(case(2.0, **real[2.0]), case_id="b"),
        ]
        stop = StopRule(StopConfig(rule=rule, threshold=0.1, redraws=redraws), WHITE, 0.0)
        return rollout(Hesitant(volumes), cases, AIR, stop, EULER, source)

    first, second = drawn(3)
    assert (first.redrawn, second.redrawn) == (1, 0)
    torch.testing.assert_close(first.latents, volumes[1.0][:, :40])
    torch.testing.assert_close(second.latents, volumes[2.0][:, :40])
    assert not first.white[:40].any()

    before, _ = drawn(0)
    assert before.redrawn == 0 and before.white.nonzero()[0].item() == 21
    always, _ = drawn(3, lambda name, index, shape: torch.ones(tuple(shape)))
    assert always.redrawn == 3 * len(always.blocks) - 3 * (not spliced)
    published, _ = drawn(3, rule="first_slice")
    assert published.redrawn == 0


def test_cases_that_ended_leave_the_batch():
    model = Scripted({1.0: scripted_volume(10), 2.0: scripted_volume(40, seed=1)})
    results = rollout(model, [case(1.0), case(2.0)], AIR, stop_rule(), EULER)
    assert [r.slices for r in results] == [10, 40]
    assert [call["z"].shape[0] for call in model.calls[:: EULER.steps]] == [2, 1, 1]
    torch.testing.assert_close(results[1].latents, model.volumes[2.0][:, :40], rtol=1e-4, atol=1e-4)


def test_limits():
    endless = Scripted({1.0: scripted_volume(500)})
    (result,) = rollout(endless, [case(1.0)], AIR, stop_rule(), RolloutConfig(steps=2, max_slices=40))
    assert (result.slices, result.stop) == (40, StopReason.LIMIT_REACHED)
    (result,) = rollout(endless, [case(1.0, length=20)], AIR, stop_rule(), EULER)
    assert (result.slices, result.stop) == (20, StopReason.LENGTH_REACHED)
    assert endless.calls[-1]["length"].tolist() == [20]
    # An end recognised beyond the limit is not what ended the volume.
    late = Scripted({1.0: scripted_volume(30)})
    (result,) = rollout(late, [case(1.0, length=20)], AIR, stop_rule(), EULER)
    assert (result.slices, result.stop) == (20, StopReason.LENGTH_REACHED)


def test_published_rule_reads_the_first_slice_only():
    volume = scripted_volume(37)
    (result,) = rollout(
        Scripted({1.0: volume}), [case(1.0)], AIR, stop_rule(rule="first_slice", threshold=0.1), EULER
    )
    assert (result.slices, len(result.blocks)) == (37, 4)


def test_gt_head_continues_the_given_slices():
    volume = scripted_volume(37)
    model = Scripted({1.0: volume})
    given = torch.randn(C, 16, SIDE, SIDE)
    (result,) = rollout(model, [case(1.0, given=given)], AIR, stop_rule(), EULER)
    assert torch.equal(result.latents[:, :16], given)
    torch.testing.assert_close(result.latents[:, 16:], volume[:, 16:37], rtol=1e-4, atol=1e-4)
    assert (result.given_slices, result.slices, result.positions) == (16, 37, [16, 32])
    assert torch.equal(model.calls[0]["previous"][0], given)


def test_given_slices_are_never_trimmed():
    white_head = WHITE[:, None].expand(-1, 16, -1, -1)
    model = Scripted({1.0: scripted_volume(0)})
    (result,) = rollout(model, [case(1.0, given=white_head)], AIR, stop_rule(), EULER)
    assert result.slices == result.given_slices == 16


def test_next_block_follows_the_real_slices():
    real = torch.randn(C, 37, SIDE, SIDE)
    model = Scripted({1.0: scripted_volume(64)})
    (result,) = rollout(model, [case(1.0, real=real)], AIR, stop_rule(), EULER)
    assert (result.slices, result.stop, len(result.blocks)) == (37, StopReason.REAL_LENGTH, 3)
    firsts = model.calls[:: EULER.steps]
    assert torch.equal(firsts[1]["previous"][0], real[:, :16])
    assert torch.equal(firsts[2]["previous"][0], real[:, 16:32])
    assert not torch.isclose(result.latents, real, atol=1e-3).all(dim=(0, 2, 3)).any()


def test_end_slices_end_next_block_too_and_only_behind_the_last_other_slice():
    real = torch.randn(C, 37, SIDE, SIDE)
    model = Scripted({1.0: scripted_volume(34)})
    (result,) = rollout(model, [case(1.0, real=real)], AIR, stop_rule(), EULER)
    assert (result.slices, result.stop, len(result.blocks)) == (34, StopReason.END_RECOGNISED, 3)
    assert result.white.tolist() == 34 * [False] + 3 * [True]
    gap = scripted_volume(40)
    gap[:, 28:32] = WHITE[:, None]
    (result,) = rollout(Scripted({1.0: gap}), [case(1.0, real=real)], AIR, stop_rule(), EULER)
    assert (result.slices, result.stop) == (37, StopReason.REAL_LENGTH)
    assert result.white.nonzero().flatten().tolist() == [28, 29, 30, 31]


@pytest.mark.parametrize("overlap", [1, 4, 7])
def test_overlap(overlap):
    volume = scripted_volume(37)
    model = Scripted({1.0: volume})
    config = RolloutConfig(steps=4, overlap=overlap)
    (result,) = rollout(model, [case(1.0)], AIR, stop_rule(), config)
    torch.testing.assert_close(result.latents, volume[:, :37], rtol=1e-4, atol=1e-4)
    starts = [0]
    while starts[-1] + 16 <= 37:
        starts.append(starts[-1] + 16 - overlap)
    assert result.positions == starts
    assert result.white.shape[0] == starts[-1] + 16
    for call, start in zip(model.calls[::4][1:], starts[1:], strict=True):
        before = torch.cat([AIR[:, None].expand(-1, 16, -1, -1), volume], dim=1)[:, start : start + 16]
        torch.testing.assert_close(call["previous"][0], before, rtol=1e-4, atol=1e-4)


def two_versions(fade: int, white_at: int | None = None, **options):
    """A rollout with overlap 4 whose second block draws other slices than its first; and the two versions."""
    first, second = scripted_volume(40), scripted_volume(40, seed=1)
    if white_at is not None:
        second[:, white_at] = WHITE

    class Changing(Scripted):
        def forward(self, z, t, conditions):
            self.volumes = {1.0: first if float(conditions.position[0]) == 0 else second}
            return super().forward(z, t, conditions)

    model = Changing({})
    config = replace(EULER, overlap=4, fade=fade, max_slices=28)
    (result,) = rollout(model, [case(1.0, **options)], AIR, stop_rule(redraws=0), config)
    return result, first, second, model


def test_faded_slices_pass_from_one_block_to_the_next():
    result, first, second, model = two_versions(3)
    assert (result.positions, result.slices) == ([0, 12], 28)
    assert model.calls[-1]["known"].tolist() == [[True] + 15 * [False]]
    torch.testing.assert_close(result.blocks[1][:, 0], first[:, 12], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(result.latents[:, :13], first[:, :13], rtol=1e-4, atol=1e-4)
    for i, share in ((13, 0.5 - 0.125**0.5), (14, 0.5), (15, 0.5 + 0.125**0.5)):
        mixed = first[:, i] + share * (second[:, i] - first[:, i])
        torch.testing.assert_close(result.latents[:, i], mixed, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(result.latents[:, 16:], second[:, 16:28], rtol=1e-4, atol=1e-4)
    plain = two_versions(0)[0]
    torch.testing.assert_close(plain.latents[:, :16], first[:, :16], rtol=1e-4, atol=1e-4)


def test_neither_white_nor_given_slices_are_faded():
    result, first, second, _ = two_versions(2, white_at=14)
    torch.testing.assert_close(result.latents[:, 14], first[:, 14], rtol=1e-4, atol=1e-4)
    mixed = first[:, 15] + (second[:, 15] - first[:, 15]) * 3 / 4
    torch.testing.assert_close(result.latents[:, 15], mixed, rtol=1e-4, atol=1e-4)
    given = torch.randn(C, 16, SIDE, SIDE)
    result, _, second, _ = two_versions(3, given=given)
    assert torch.equal(result.latents[:, :16], given) and result.positions == [12]
    torch.testing.assert_close(result.latents[:, 16:], second[:, 16:28], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("churn", "start_steps"), [(0.0, 0), (0.5, 0), (0.5, 2)])
def test_faded_slices_are_drawn_again_from_their_own_noise(churn, start_steps):
    config = RolloutConfig(steps=3, overlap=4, fade=3, churn=churn, start_steps=start_steps, max_slices=40)
    growing = GrowingVolume(case(1.0), 0, AIR[:, None].repeat(1, 16, 1, 1), config, stop_rule(), True)
    source, noises = seeded_noise(2), list[torch.Tensor]()
    for block in range(3):
        draws = config.draws(growing.starts)
        noises.append(growing.noise(source, draws))
        assert torch.equal(noises[-1], growing.noise(source, draws))  # asking again changes nothing
        other = growing.noise(source, draws, attempt=1)
        own = case_noise(2, "case1.0", block, (draws, *other.shape[1:]) if draws > 1 else other.shape[1:])
        rest = slice(4, None) if block else slice(None)
        assert torch.equal(noises[-1][:, :, rest], own.view_as(other)[:, :, rest])
        assert not torch.equal(other[:, :, rest], noises[-1][:, :, rest])
        if block:
            again = noises[-1][:, :, 1:4]
            assert torch.equal(again, other[:, :, 1:4])
            before = noises[-2][:, :, 13:]
            assert torch.equal(again[0], before[0])
            assert draws == 1 or torch.equal(again[1:], before[1 - draws :])
        growing.append(torch.randn(C, 16, SIDE, SIDE), stop_rule())


def test_blocks_that_follow_real_slices_repeat_none():
    real, model = torch.zeros(C, 40, SIDE, SIDE), Scripted({1.0: scripted_volume(60)})
    made = [
        rollout(model, [case(1.0, real=real)], AIR, stop_rule(), RolloutConfig(steps=2, overlap=k))[0]
        for k in (0, 3)
    ]
    assert made[1].positions == [0, 16, 32] and torch.equal(made[0].latents, made[1].latents)


def test_overlap_changes_what_a_real_network_generates():
    model, cases = real_model(), real_cases("a")
    results = {
        k: rollout(model, cases, AIR, stop_rule(), RolloutConfig(steps=3, overlap=k))[0] for k in (0, 2, 6)
    }
    assert [len(r.blocks) for r in results.values()] == [3, 3, 4]
    assert all(r.slices == 40 for r in results.values())
    for k in (2, 6):
        assert torch.equal(results[k].blocks[1][:, :k], results[k].blocks[0][:, 16 - k :])
        assert not torch.allclose(results[k].latents[:, 16:], results[0].latents[:, 16:], atol=1e-2)
    assert not torch.allclose(results[2].latents[:, 16:], results[6].latents[:, 16:], atol=1e-2)


@pytest.mark.parametrize(
    ("solver", "churn"),
    [("euler", 0.0), ("midpoint", 0.0), ("midpoint", 0.8), ("heun", 0.0), ("dopri5", 0.0)],
)
def test_a_case_does_not_depend_on_the_others(solver, churn):
    model, cases = real_model(), real_cases("a", "b", "c")
    config = RolloutConfig(steps=3, solver=solver, churn=churn, churn_below=0.7)
    together = rollout(model, cases, AIR, stop_rule(), config, noise=seeded_noise(4))
    (alone,) = rollout(model, cases[1:2], AIR, stop_rule(), config, noise=seeded_noise(4))
    reordered = rollout(model, cases[::-1], AIR, stop_rule(), config, noise=seeded_noise(4))
    for other in (alone, reordered[1]):
        assert (other.latents - together[1].latents).norm() < 1e-4 * together[1].latents.norm()
    (other_seed,) = rollout(model, cases[1:2], AIR, stop_rule(), config, noise=seeded_noise(5))
    assert not torch.allclose(other_seed.latents, alone.latents, atol=1e-2)


def test_the_block_that_no_slice_precedes_has_steps_and_a_temperature_of_its_own():
    model, cases = real_model(), real_cases("a", "b")
    given = replace(cases[1], given=torch.randn(C, 5, SIDE, SIDE))
    plain = RolloutConfig(steps=3, churn=0.5)
    apart = (replace(plain, start_steps=2), replace(plain, start_temperature=1.3))
    run = partial(rollout, model, start=AIR, rule=stop_rule(), noise=seeded_noise(4))
    base, continued = run(cases=cases, config=plain), run(cases=[given], config=plain)[0]
    for config in apart:
        assert config.starts_apart and not plain.starts_apart
        for old, new in zip(base, run(cases=cases, config=config), strict=True):
            assert not torch.allclose(old.blocks[0], new.blocks[0], atol=1e-2)
        # What continues given slices is sampled as before, also beside a case that starts.
        both = run(cases=[cases[0], given], config=config)
        torch.testing.assert_close(both[1].latents, continued.latents, rtol=1e-4, atol=1e-4)


def test_start_steps_are_evaluations_of_the_first_block_alone():
    model = Scripted({1.0: scripted_volume(40)})
    config = replace(EULER, start_steps=2)
    (result,) = rollout(model, [case(1.0)], AIR, stop_rule(), config)
    blocks = len(result.blocks)
    assert len(model.calls) == evaluations(config) * blocks + 2 and blocks > 1
    single = replace(config, steps=1)
    assert (single.early(True), config.early(True), config.early(False)) == (0, 2, 0)


@torch.no_grad()
def test_guidance_is_the_stated_sum():
    model = real_model()
    z, previous = torch.randn(2, C, 16, SIDE, SIDE), torch.randn(2, C, 16, SIDE, SIDE)
    text, no_text = encode_reports(model, [torch.randn(3, 6), torch.randn(2, 6)], [None, None], guided=True)
    place = {"position": torch.tensor([0.0, 16.0]), "length": torch.tensor([40.0, torch.nan])}
    conditions = Conditions(text, previous, **place)
    t = torch.tensor(0.4)
    full = model(z, t, Conditions(text, previous, **place))
    without_text = model(z, t, Conditions(None, previous, **place))
    without_previous = model(z, t, Conditions(text, None, **place))
    expected = full + 2 * (full - without_text) - 0.5 * (full - without_previous)
    scales = RolloutConfig(text_guidance=3.0, previous_guidance=0.5)
    found = guided_velocity(model, conditions, no_text, scales)(z, t)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    early = replace(scales, guidance_from=0.5)
    below = guided_velocity(model, conditions, no_text, early)(z, t)
    torch.testing.assert_close(below, full - 0.5 * (full - without_previous), rtol=1e-4, atol=1e-4)


def test_guidance_scales_act_separately():
    model, cases = real_model(), real_cases("a", "b")
    results = [
        rollout(
            model,
            cases,
            AIR,
            stop_rule(),
            RolloutConfig(steps=2, text_guidance=text, previous_guidance=previous),
        )
        for text, previous in ((1, 1), (3, 1), (1, 3), (3, 3))
    ]
    for i, one in enumerate(results):
        for other in results[:i]:
            assert not torch.allclose(one[0].latents, other[0].latents, atol=1e-3)


def test_threshold_comes_from_the_spread():
    assert StopConfig(spread_multiple=4, least_threshold=0.25).distance(0.1) == pytest.approx(0.4)
    assert StopConfig(spread_multiple=4, least_threshold=0.25).distance(0.01) == 0.25
    assert StopConfig(threshold=0.1).distance(9.0) == 0.1
    assert StopConfig(most_threshold=0.7).distance(9.0) == 0.7


def test_impossible_requests():
    model = Scripted({1.0: scripted_volume(5)})
    with pytest.raises(ValueError, match="different ids"):
        rollout(model, [case(1.0), case(1.0)], AIR, stop_rule(), EULER)
    with pytest.raises(ValueError, match="different ids, found \\[\\]"):
        rollout(model, [], AIR, stop_rule(), EULER)
    real = torch.zeros(C, 20, SIDE, SIDE)
    with pytest.raises(ValueError, match="20 slices are given, the limit is 8"):
        rollout(model, [case(1.0, given=real, length=8)], AIR, stop_rule(), EULER)
    with pytest.raises(ValueError, match=r"found \[4, 3, 4, 4\]"):
        rollout(model, [case(1.0)], AIR[:, None].expand(-1, 3, -1, -1), stop_rule(), EULER)
    with pytest.raises(ValueError, match="exclude each other"):
        case(1.0, given=real, real=real)
    with pytest.raises(ValueError, match="length must be at least 1"):
        case(1.0, length=0)
    for bad in ({"overlap": 16}, {"steps": 0}, {"text_guidance": -1.0}):
        with pytest.raises(ValueError, match=str(next(iter(bad.values())))):
            RolloutConfig(**bad)
    for overlap, fade in ((4, 4), (0, 1), (4, -1)):
        with pytest.raises(ValueError, match=f"found {fade} of {overlap}"):
            RolloutConfig(overlap=overlap, fade=fade)
    with pytest.raises(ValueError, match="'sometimes'"):
        StopConfig(rule="sometimes")


def test_settings_share_the_blocks_they_begin_with_and_no_others():
    model, rule, real = real_model(), stop_rule(), scripted_volume(40)[:, :40]
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    full = real_cases("a")[0]
    settings = [full, replace(full, given=real[:, :16]), replace(full, real=real)]
    alone = [rollout(model, [one], AIR, rule, EULER, noise=seeded_noise(1))[0] for one in settings]
    assert len(calls) == EULER.steps * (3 + 2 + 3)
    calls.clear()
    memo = BlockMemo(8, first=2)
    shared = [
        rollout(model, [one], AIR, rule, EULER, noise=seeded_noise(1), memo=memo)[0] for one in settings
    ]
    # next-block's blocks 0 and 1 are full-body's first and gt-head's first
    assert len(calls) == EULER.steps * (3 + 2 + 1)
    for one, other in zip(alone, shared, strict=True):
        assert torch.equal(one.blocks, other.blocks) and torch.equal(one.latents, other.latents)
    for changed, seed in ((replace(full, text=full.text + 1), 1), (replace(full, length=39), 1), (full, 2)):
        calls.clear()
        rollout(model, [changed], AIR, rule, EULER, noise=seeded_noise(seed), memo=memo)
        assert len(calls) == EULER.steps * 3
    calls.clear()
    rollout(model, [full], AIR, rule, replace(EULER, steps=5), noise=seeded_noise(1), memo=memo)
    assert len(calls) == 5 * 3


def test_memo_keeps_the_newest_blocks():
    memo = BlockMemo(2, first=2)
    for name in (b"a", b"b", b"c"):
        memo.put(name, torch.zeros(1))
    assert memo.get(b"a") is None and memo.get(b"b") is not None and memo.get(b"c") is not None


def test_a_stream_gives_the_slices_of_the_whole_volumes_as_they_become_final():
    volume = scripted_volume(40)
    volume[:, 30:32] = WHITE[:, None]  # white in the body: held back until the next block goes on
    model = Scripted({1.0: volume, 2.0: scripted_volume(20, seed=1)})
    cases = [case(1.0, given=volume[:, :3]), case(2.0)]
    config = RolloutConfig(steps=2, stop=StopConfig(rule="first_slice"))
    whole = rollout(model, cases, AIR, stop_rule(rule="first_slice"), config)
    rounds = list(rollout_stream(model, cases, AIR, stop_rule(rule="first_slice"), config))
    for result in whole:
        parts = [r.slices[result.case_id] for r in rounds if result.case_id in r.slices]
        assert torch.equal(torch.cat(parts, dim=1), result.latents)
    assert [r.case_id for r in rounds[-1].finished] == ["case1.0"]
    assert rounds[0].slices["case1.0"].shape[1] == 19


@pytest.mark.parametrize(("overlap", "fade"), [(0, 0), (4, 0), (4, 3)])
def test_without_latents_kept_the_same_slices_come_and_few_are_held(overlap, fade, monkeypatch):
    held = []
    forget = GrowingVolume.forget

    def measured(self, told):
        forget(self, told)
        held.append(self.volume.untyped_storage().nbytes() // self.volume[:, 0].nbytes)

    monkeypatch.setattr(GrowingVolume, "forget", measured)
    model = Scripted({1.0: scripted_volume(130), 2.0: scripted_volume(20, seed=1)})
    config = replace(EULER, overlap=overlap, fade=fade, max_slices=200)
    streams = [
        list(rollout_stream(model, [case(1.0), case(2.0)], AIR, stop_rule(), config, keep=keep))
        for keep in (True, False)
    ]
    assert max(held[len(held) // 2 :]) <= 16 + 2 * overlap + 16 < 60 < max(held[: len(held) // 2])
    for one, other in zip(*streams, strict=True):
        assert one.slices.keys() == other.slices.keys()
        assert all(torch.equal(one.slices[name], other.slices[name]) for name in one.slices)
        for kept, bare in zip(one.finished, other.finished, strict=True):
            assert (kept.slices, kept.stop, kept.positions) == (bare.slices, bare.stop, bare.positions)
            assert bare.latents.shape[1] == 0 and kept.latents.shape[1] == kept.slices
    for name in ("case1.0", "case2.0"):  # no slice is told before its last change
        told = torch.cat([r.slices[name] for r in streams[1] if name in r.slices], dim=1)
        (whole,) = (r for round_ in streams[0] for r in round_.finished if r.case_id == name)
        assert torch.equal(told, whole.latents)


def test_the_next_case_takes_the_place_of_one_that_has_ended():
    model = Scripted({float(i): scripted_volume(n, seed=i) for i, n in enumerate((50, 12, 12, 30), start=1)})
    cases = [case(float(i)) for i in range(1, 5)]
    rounds = list(rollout_stream(model, cases, AIR, stop_rule(), EULER, side_by_side=2))
    assert all(len(r.slices) == 2 for r in rounds[:4])
    assert [r.case_id for r in rounds[0].finished] == ["case2.0"] and "case3.0" in rounds[1].slices
    alone = rollout(model, [cases[3]], AIR, stop_rule(), EULER)[0]
    last = torch.cat([r.slices["case4.0"] for r in rounds if "case4.0" in r.slices], dim=1)
    torch.testing.assert_close(last, alone.latents)


def test_a_stream_is_cancelled_between_two_evaluations():
    model = Scripted({1.0: scripted_volume(60)})
    stream = rollout_stream(
        model, [case(1.0)], AIR, stop_rule(), EULER, cancelled=lambda: len(model.calls) > 5
    )
    assert next(stream).slices["case1.0"].shape[1] == 16
    with pytest.raises(Cancelled):
        next(stream)
    assert len(model.calls) == 6


@pytest.mark.parametrize(
    ("choice", "count"),
    [
        ({"solver": "euler", "steps": 5}, 5),
        ({"solver": "heun", "steps": 2, "text_guidance": 3.0}, 8),
        ({"solver": "euler", "steps": 4, "text_guidance": 3.0, "guidance_from": 0.5}, 7),
        ({"solver": "midpoint", "steps": 4, "churn": 0.5}, 7),
        ({"solver": "euler", "steps": 4, "text_guidance": 3.0, "previous_guidance": 2.0}, 12),
        ({"solver": "dopri5"}, 0),
    ],
)
def test_evaluations_count_guidance(choice, count):
    assert evaluations(RolloutConfig(**choice)) == count
