"""The order of an epoch: a function of (seed, epoch), the same samples per step for any number of ranks."""

from __future__ import annotations

import numpy as np
import pytest

from ctflow.data.stream import epoch_order, rank_batches, rank_cases
from ctflow.errors import ConfigError

SHARDS = [5, 9, 1, 12, 7, 3, 10]
TOTAL = sum(SHARDS)


def order(seed=0, epoch=0, global_batch=8, shuffle_shards=2, shards=SHARDS):
    return epoch_order(shards, seed, epoch, global_batch, shuffle_shards)


def test_seed_and_epoch_decide_the_order():
    np.testing.assert_array_equal(order(3, 5), order(3, 5))
    assert not np.array_equal(order(3, 5), order(3, 6))
    assert not np.array_equal(order(3, 5), order(4, 5))


def test_each_sample_comes_at_most_once_and_in_whole_global_batches():
    for epoch in range(5):
        found = order(epoch=epoch)
        assert len(found) == TOTAL // 8 * 8
        assert len(set(found.tolist())) == len(found) and set(found.tolist()) <= set(range(TOTAL))


def test_the_dropped_remainder_rotates_through_the_whole_set():
    remainder = TOTAL % 8
    assert remainder == 7
    dropped = [set(range(TOTAL)) - set(order(epoch=epoch).tolist()) for epoch in range(TOTAL)]
    assert all(len(d) == remainder for d in dropped)
    counts = np.bincount([i for d in dropped for i in d], minlength=TOTAL)
    assert (counts == remainder).all(), "after as many epochs as samples, each was left out equally often"
    assert not dropped[0] & dropped[1]


def test_reading_stays_within_a_window_of_shards_whose_samples_are_mixed():
    shard_of = np.repeat(np.arange(20), 10)
    found = shard_of[order(global_batch=1, shuffle_shards=4, shards=[10] * 20)].reshape(5, 40)
    assert [len(set(window)) for window in found] == [4] * 5
    assert (found[:, :10] != found[:, :1]).any(), "samples of a window are mixed"
    assert len({tuple(sorted(set(w))) for w in found}) == 5


@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 8), (2, 4), (4, 2), (8, 1)])
def test_a_global_step_has_the_same_samples_on_any_number_of_ranks(world_size, batch_size):
    found = order()
    ranks = [rank_batches(found, rank, world_size, batch_size) for rank in range(world_size)]
    assert {r.shape for r in ranks} == {(len(found) // 8, batch_size)}
    steps = np.concatenate(ranks, axis=1)
    np.testing.assert_array_equal(np.sort(steps, axis=1), np.sort(found.reshape(-1, 8), axis=1))


def test_accumulated_micro_steps_have_the_samples_of_one_step():
    micro = rank_batches(order(), 0, 1, 4).reshape(-1, 8)
    np.testing.assert_array_equal(micro, rank_batches(order(), 0, 1, 8))


def test_a_set_smaller_than_a_global_batch_is_an_error_that_says_what_to_do():
    with pytest.raises(ConfigError, match=r"47 samples, one optimizer step takes 48[\s\S]*repeat"):
        order(global_batch=48)


def test_evaluation_takes_each_case_on_one_rank():
    for world_size in (1, 2, 3, 9):
        cases = [case for rank in range(world_size) for case in rank_cases(7, rank, world_size)]
        assert sorted(cases) == list(range(7))
