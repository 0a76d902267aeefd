"""Precision, recall, density and coverage on points of a line, worked out by hand."""

import pytest
import torch

from ctflow.metrics import MetricError, bias
from ctflow.metrics.neighbours import NAMES, NeighbourStatistic

REAL = torch.tensor([[0.0], [1.0], [3.0], [10.0]])  # radii of the nearest neighbour: 1, 1, 2, 7
FAKE = torch.tensor([[0.5], [0.6], [20.0]])  # radii: 0.1, 0.1, 19.4


def values(fake, real, neighbours=1):
    chosen = list(range(len(fake))), list(range(len(real)))
    return {name: NeighbourStatistic(name, fake, real, neighbours)(*chosen) for name in NAMES}


def test_by_hand():
    # 0.5 and 0.6 lie in the balls of 0 and 1; 20 in none. Of the real ones 1, 3 and 10 lie within 19.4 of 20,
    # 0 in no ball of a fake one (20 ends at 0.6).
    assert values(FAKE, REAL) == pytest.approx(
        {"precision": 2 / 3, "recall": 3 / 4, "density": (2 + 2 + 0) / 3, "coverage": 2 / 4}
    )


def test_equal_and_far_sets():
    generator = torch.Generator().manual_seed(0)
    sets = torch.randn(3, 40, 3, generator=generator)
    same = values(sets[0], sets[0], 5)
    assert same["precision"] == same["recall"] == same["coverage"] == 1 and same["density"] > 1
    assert set(values(sets[0], sets[1] + 100, 5).values()) == {0.0}
    one = values(sets[0], 0.01 * sets[1] + sets[0][:1], 5)  # the reference is one place of the scored set
    assert one["recall"] > 0.9 and one["precision"] < 0.2


def test_intervals_over_cases():
    sets = torch.randn(2, 30, 3, generator=torch.Generator().manual_seed(1))
    for name in NAMES:
        interval = bias.jackknife(NeighbourStatistic(name, *sets))
        assert interval.low <= interval.value <= interval.high


def test_too_few_and_bad_values_are_refused():
    with pytest.raises(MetricError, match="more than 5"):
        NeighbourStatistic("recall", torch.zeros(5, 2), torch.zeros(9, 2))
    with pytest.raises(MetricError, match="NaN"):
        NeighbourStatistic("recall", torch.full((9, 2), float("nan")), torch.zeros(9, 2))
    with pytest.raises(MetricError, match=r"\[N, d\]"):
        NeighbourStatistic("recall", torch.zeros(9, 2), torch.zeros(9, 3))
