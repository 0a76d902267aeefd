"""What the samples of the three views are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lightning.fabric.utilities import move_data_to_device

from ctflow.config.data import DataConfig
from ctflow.config.encoders import VolumeGrid
from ctflow.data import LatentDataModule, LatentShards, SliceShards, SliceShardWriter, padded_slices
from ctflow.data.views import BlockView, SliceView, VolumeView
from ctflow.errors import ShardError
from ctflow.models.ctclip import volume_input
from ctflow.types import HUVolume
from ctflow.volume_grid import to_grid

NO_NOISE = -30.0
"""Log-variance whose standard deviation, 3e-7, disappears in float32 latents of size 1."""


@pytest.mark.parametrize(("slices", "padded"), [(1, 16), (15, 16), (16, 32), (17, 32), (31, 32), (32, 48)])
def test_end_slices_fill_the_last_block_and_an_exact_multiple_gets_one_whole_block(slices, padded):
    assert padded_slices(slices) == padded


@pytest.mark.parametrize("slices", [1, 15, 16, 17, 32, 40])
def test_evaluation_reads_each_block_with_the_one_before(make_latents, slices):
    shards = LatentShards(make_latents([slices], logvar=NO_NOISE))
    view = BlockView(shards, seed=0, p_start=0.5)
    blocks = padded_slices(slices) // 16
    batch = view.batch(range(len(view)), epoch=None)
    assert batch.position.tolist() == [16 * i for i in range(blocks)]
    assert batch.length.tolist() == [slices] * blocks
    volume = torch.cat(list(batch.target), dim=1)
    mean = shards.header.whitening.whiten(torch.from_numpy(shards.record(0).mean).float()).transpose(0, 1)
    torch.testing.assert_close(volume[:, :slices], mean, rtol=0, atol=1e-5)
    white = torch.full((4, 1, 2, 2), 5.0) - torch.tensor([0.1, 0.2, 0.3, 0.4])[:, None, None, None]
    white = white * torch.tensor([2.0, 1.0, 0.5, 1.5])[:, None, None, None]
    assert torch.equal(volume[:, slices:], white.expand(-1, 16 * blocks - slices, -1, -1))
    air = (-3.0 - torch.tensor([0.1, 0.2, 0.3, 0.4])) * torch.tensor([2.0, 1.0, 0.5, 1.5])
    assert torch.equal(batch.previous[0], air[:, None, None, None].expand(-1, 16, 2, 2))
    torch.testing.assert_close(batch.previous[1:], batch.target[:-1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("noise", [0.0, 0.5, 1.0])
def test_latents_are_the_mean_plus_so_many_deviations(noise, make_latents):
    folder = make_latents([48], logvar=0.0)
    module = LatentDataModule(
        DataConfig(str(folder), str(folder), posterior_noise=noise, batch_size=3, in_memory=True)
    )
    module.setup("validate")
    shards = LatentShards(folder)
    (batch, *_) = module.val_dataloader()
    mean = shards.whitened(0)
    scale = torch.tensor(shards.header.whitening.scale)
    found = torch.cat(list(batch.target), dim=1)[:, :48] - mean
    spread = found.flatten(1).std(dim=1) / scale
    torch.testing.assert_close(spread, torch.full_like(spread, noise), rtol=0.12, atol=1e-5)


def test_training_pairs_are_neighbours_that_begin_at_any_slice(make_latents):
    shards = LatentShards(make_latents([50], logvar=NO_NOISE), in_memory=True)
    view = BlockView(shards, seed=0, p_start=0.0)
    volume = torch.cat(list(view.batch(range(len(view)), epoch=None).target), dim=1)
    assert volume.shape[1] == 64
    seen = set()
    for epoch in range(60):
        batch = view.batch(range(len(view)), epoch)
        for first, previous, target in zip(
            batch.position.tolist(), batch.previous, batch.target, strict=True
        ):
            seen.add(first)
            torch.testing.assert_close(target, volume[:, first : first + 16], rtol=0, atol=1e-5)
            if first:
                torch.testing.assert_close(previous, volume[:, first - 16 : first], rtol=0, atol=1e-5)
            else:
                assert torch.equal(previous, shards.start_block())
    assert seen == {0, *range(16, 49)}, "every start, none whose previous block would mix air and body"


@pytest.mark.parametrize(
    ("slices", "p_start", "expected"), [(50, 0.0, 1 / 34), (50, 0.4, 0.4 + 0.6 / 34), (9, 0.1, 1)]
)
def test_start_boost_has_its_frequency(make_latents, slices, p_start, expected):
    view = BlockView(LatentShards(make_latents([slices])), seed=1, p_start=p_start)
    starts = [view.first_slice(view.locate(i), epoch) == 0 for epoch in range(300) for i in range(len(view))]
    spread = np.sqrt(expected * (1 - expected) / len(starts))
    assert abs(np.mean(starts) - expected) <= 4 * spread


def test_posterior_noise_is_a_function_of_seed_epoch_case_and_start(make_latents):
    folder = make_latents([40, 40, 40])
    view = BlockView(LatentShards(folder), seed=3, p_start=0.2)
    again = BlockView(LatentShards(folder, in_memory=True), seed=3, p_start=0.2)
    one = view.batch([4], 7)
    both = again.batch([1, 4], 7)
    assert torch.equal(one.target[0], both.target[1]) and torch.equal(one.previous[0], both.previous[1])
    first = int(one.position[0])
    same_start = [view.pair(1, first, epoch)[1] for epoch in (7, 8)]
    assert torch.equal(same_start[0], one.target[0])
    assert not torch.equal(same_start[0], same_start[1])
    other = BlockView(LatentShards(folder), seed=4, p_start=0.2).pair(1, first, 7)[1]
    assert not torch.equal(other, one.target[0])


def test_posterior_samples_have_the_stored_moments(make_latents):
    shards = LatentShards(make_latents([16], logvar=-1.0), in_memory=True)
    view = BlockView(shards, seed=0, p_start=0.0)
    samples = torch.stack([view.pair(0, 0, epoch)[1] for epoch in range(150)])
    scale = torch.tensor([2.0, 1.0, 0.5, 1.5])[:, None, None, None]
    torch.testing.assert_close(samples.mean(0) / scale, shards.whitened(0) / scale, rtol=0, atol=0.25)
    std = (samples.std(0) / scale).mean()
    assert abs(float(std) - np.exp(-0.5)) < 0.01


def test_text_is_padded_to_the_longest_of_the_set(make_latents):
    shards = LatentShards(make_latents([20, 20, 20]))
    view = BlockView(shards, seed=0, p_start=0.0)
    batch = view.batch([0, 2], epoch=0)
    assert batch.text.shape == (2, 5, 6) and batch.text_mask.sum(1).tolist() == [3, 4]
    assert not batch.text[~batch.text_mask].any()
    np.testing.assert_array_equal(batch.text[1, :4].numpy(), shards.record(1).text.astype(np.float32))
    np.testing.assert_array_equal(batch.pooled[1].numpy(), shards.record(1).pooled)


def test_further_passes_over_a_set_draw_anew(make_latents):
    view = BlockView(LatentShards(make_latents([200])), seed=0, p_start=0.0)
    assert view.locate(len(view) + 3) == (0, 3, 1)
    first = view.batch(range(len(view)), 0).position.tolist()
    second = view.batch(range(len(view), 2 * len(view)), 0).position.tolist()
    assert first != second


def test_slices_of_two_sizes_are_refused_before_training(tmp_path, records):
    with SliceShardWriter(tmp_path) as writer:
        writer.append(records["slice"](0, 3, side=16))
        writer.append(records["slice"](1, 3, side=24))
    with pytest.raises(ShardError, match=r"\[\(16, 16\), \(24, 24\)\]"):
        SliceView(SliceShards(tmp_path))


def test_slices_view_gives_hu(make_slices):
    shards = SliceShards(make_slices([3, 4]))
    batch = SliceView(shards).batch([1, 5], epoch=0)
    assert batch.images.shape == (2, 1, 16, 16) and batch.images.dtype == torch.float32
    np.testing.assert_array_equal(batch.images[1, 0].numpy(), shards.record(1).hu[2])
    assert batch.case_id == ["case_0", "case_1"] and batch.slice_index.tolist() == [1, 2]
    assert batch.spacing.tolist() == [[4.0, 2.5, 2.0]] * 2


@pytest.mark.parametrize("axes", ["SPR", "SLP"])
def test_volumes_lie_on_the_towers_grid(make_slices, axes):
    shards = SliceShards(make_slices([9, 20]))
    grid = VolumeGrid(axes=axes, shape=[10, 12, 16], spacing_mm=[4.5, 3.0, 2.2])
    for in_memory in (False, True):
        batch = VolumeView(shards, grid, in_memory).batch([1, 0], epoch=0)
        assert batch.hu.shape == (2, 1, 10, 12, 16)
        volume = HUVolume(shards.hu(1).astype(np.float32), shards.cases[1].spacing)
        atol = 1.0 if in_memory else 1e-3
        torch.testing.assert_close(batch.hu[:1], volume_input(volume, grid) * 1000, rtol=0, atol=atol)
    assert batch.reports[0].startswith("Nodule of 1 mm")
    assert batch.label_names == ["Lung nodule"] and batch.labels.tolist() == [[1.0], [0.0]]


def test_a_volume_smaller_than_the_grid_is_surrounded_by_air():
    grid = VolumeGrid(shape=[4, 4, 4], spacing_mm=[1.0, 1.0, 1.0])
    found = to_grid(HUVolume(np.full((2, 2, 2), 50.0, np.float32), (1.0, 1.0, 1.0)), grid)
    assert (found[1:3, 1:3, 1:3] == 50).all() and (found == -1000).sum() == 64 - 8


def test_bundles_move_with_lightning(make_latents):
    batch = BlockView(LatentShards(make_latents([20])), 0, 0.0).batch([0, 1], 0)
    moved = move_data_to_device(batch, torch.device("meta"))
    assert moved.target.device.type == moved.text_mask.device.type == "meta"
    assert moved.case_id == batch.case_id and batch.target.device.type == "cpu" and len(moved) == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"view": "voxels"}, "voxels"),
        ({"p_start": 1.5}, "1.5"),
        ({"batch_size": 0}, "0"),
        ({"num_workers": -1}, "-1"),
    ],
)
def test_impossible_settings_are_refused_with_their_value(values, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**values)
