"""The one system that generates: streamed slices are those of the whole volume, for every caller."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from ctflow.checkpoint import load_system
from ctflow.config.commands import SamplingChoice
from ctflow.errors import CTFlowError
from ctflow.generation import Cancelled, RolloutCase, VolumeGenerator, seeded_noise
from ctflow.pipeline import CTFlow, GenerationRequest

FEW = SamplingChoice(steps=2, max_slices=40)


@pytest.fixture(scope="module")
def model(tiny_checkpoint) -> CTFlow:
    return CTFlow.from_pretrained(tiny_checkpoint, "cpu")


def test_streamed_slices_are_the_decoded_latents(tiny_checkpoint):
    system = load_system(tiny_checkpoint)
    config = FEW.applied_to(system.config.rollout)
    generator = VolumeGenerator(system.fmvt, system.avae, system.config.image_size)
    text = system.text_encoder.encode(["Nodule in the left lung.", "No effusion."])
    cases = [RolloutCase(name, text.tokens[i], text.mask[i], 20 + 15 * i) for i, name in enumerate("ab")]
    whole = generator.latents(cases, config, seeded_noise(3))
    updates = list(generator.stream(cases, config, seeded_noise(3)))
    for case, result in zip(cases, whole, strict=True):
        own = [u for u in updates if u.case_id == case.case_id]
        assert [u.first for u in own] == np.cumsum([0, *(len(u.hu) for u in own[:-1])]).tolist()
        assert [u.result is not None for u in own] == [False] * (len(own) - 1) + [True]
        assert [u.blocks for u in own] == list(range(1, len(own) + 1))
        joined = np.concatenate([u.hu for u in own])
        np.testing.assert_allclose(joined, generator.decode(result.latents), atol=0.05)


def test_decoding_beside_the_next_block_gives_equal_bytes(tiny_checkpoint):
    system = load_system(tiny_checkpoint)
    config = FEW.applied_to(system.config.rollout)
    generator = VolumeGenerator(system.fmvt, system.avae, system.config.image_size)
    text = system.text_encoder.encode(["Nodule in the left lung."] * 3)
    cases = [RolloutCase(name, text.tokens[i], text.mask[i], 20 + 15 * i) for i, name in enumerate("abc")]
    one, other = (
        list(generator.stream(cases, config, seeded_noise(3), side_by_side=2, beside=beside))
        for beside in (False, True)
    )
    assert len(one) == len(other) > 6
    for a, b in zip(one, other, strict=True):
        assert (a.case_id, a.first, a.blocks) == (b.case_id, b.first, b.blocks)
        assert a.hu.tobytes() == b.hu.tobytes()


def test_a_reader_that_goes_away_ends_the_thread_and_errors_reach_the_reader(tiny_checkpoint):
    system = load_system(tiny_checkpoint)
    config = FEW.applied_to(system.config.rollout)
    generator = VolumeGenerator(system.fmvt, system.avae, system.config.image_size)
    text = system.text_encoder.encode(["Nodule in the left lung."])
    cases = [RolloutCase("a", text.tokens[0], text.mask[0], 60)]
    stream = generator.stream(cases, config, seeded_noise(3), beside=True)
    next(stream)
    stream.close()
    assert "rollout" not in [thread.name for thread in threading.enumerate()]

    def broken(case_id, block, shape):
        raise RuntimeError("no noise")

    with pytest.raises(RuntimeError, match="no noise"):
        list(generator.stream(cases, config, broken, beside=True))


def test_any_number_of_volumes_fills_the_batch_and_comes_as_it_ends(model):
    lengths = [40, 10, 10, 18]
    requests = [
        GenerationRequest("Small nodule.", f"case{i}", seed=i, slices=n) for i, n in enumerate(lengths)
    ]
    widths: dict[int, int] = {}
    forward = model.fmvt.forward

    def counted(z, *rest):
        widths[len(z)] = widths.get(len(z), 0) + 1
        return forward(z, *rest)

    model.fmvt.forward = counted
    try:
        made = list(model.generate_each(requests, FEW, side_by_side=2))
    finally:
        del model.fmvt.forward
    assert [index for index, _ in made] == [1, 2, 0, 3] or [index for index, _ in made] == [1, 2, 3, 0]
    assert set(widths) <= {1, 2} and widths[2] >= 2 * widths.get(1, 0)
    together = model.generate_many(requests, FEW)
    for index, volume in made:
        np.testing.assert_allclose(volume.volume.hu, together[index].volume.hu, atol=0.5)
        assert len(volume.volume.hu) == lengths[index]


def test_a_volume_is_the_same_streamed_alone_and_in_a_batch(model):
    requests = [GenerationRequest("Small nodule.", f"case{i}", seed=i, slices=18 + i) for i in range(2)]
    seen: list[int] = []
    both = model.generate_many(requests, FEW, progress=lambda update: seen.append(len(update.hu)))
    alone = model.generate("Small nodule.", seed=1, slices=19, sampling=FEW)
    assert sum(seen) == sum(len(result.volume.hu) for result in both)
    # ``generate`` has a case id of its own: equal noise needs an equal one.
    (again,) = model.generate_many([requests[1]], FEW)
    np.testing.assert_allclose(again.volume.hu, both[1].volume.hu, atol=0.5)
    assert alone.hu.shape == again.volume.hu.shape


def test_generation_can_be_cancelled_between_two_evaluations(model):
    calls: list[None] = []

    def cancelled() -> bool:
        calls.append(None)
        return len(calls) > 3

    with pytest.raises(Cancelled):
        model.generate_many([GenerationRequest("Small nodule.", slices=40)], FEW, cancelled=cancelled)
    assert len(calls) in (4, 5)  # decoding beside the solver asks too


def test_spacing_is_what_the_model_was_told_or_an_error(model):
    own = model.system.config
    assert model.spacing(GenerationRequest("a"))[0] == own.z_spacing_mm
    with pytest.raises(CTFlowError, match="z_spacing of 9 mm"):
        model.spacing(GenerationRequest("a", z_spacing=9.0))
    with pytest.raises(CTFlowError, match=r"z_spacing of -1\.0 mm"):
        GenerationRequest("a", z_spacing=-1.0)
    wide = replace(own, z_spacing_range=[1.0, 5.0], pixel_spacing_range=[2.0, 10.0], height_mm=300.0)
    model.system.config = wide
    try:
        assert model.spacing(GenerationRequest("a", slices=150))[0] == 2.0
        assert model.spacing(GenerationRequest("a", slices=900))[0] == 1.0
        assert model.spacing(GenerationRequest("a", slices=150, z_spacing=4.0))[0] == 4.0
        assert model.spacing(GenerationRequest("a", pixel_spacing=3.0))[1:] == (3.0, 3.0)
        assert model.typical_slices(GenerationRequest("a", z_spacing=2.5)) == 120
        sampling = SamplingChoice(steps=1, max_slices=4)
        volume = model.generate("a nodule", slices=150, sampling=sampling)
        assert volume.spacing[0] == 2.0
        torch.manual_seed(0)
        other = model.generate("a nodule", slices=150, z_spacing=4.0, sampling=sampling)
        assert not np.allclose(other.hu[:4], volume.hu[:4])
    finally:
        model.system.config = own
