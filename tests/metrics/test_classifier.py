"""The classifier of findings learns what volumes show, and its AUROC is the one counted by hand."""

import math

import numpy as np
import pytest
import torch

from ctflow.metrics import bias
from ctflow.metrics.classifier import AurocStatistic, as_grid, predict, train_classifier


def test_a_classifier_learns_what_can_be_seen():
    labels = torch.tensor([[float(i % 2)] for i in range(12)])
    noise = torch.randn(12, 1, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    x = (0.5 * labels - 0.25).view(12, 1, 1, 1, 1) + 0.05 * noise
    network = train_classifier(x, labels, 60, seed=0)
    statistic = AurocStatistic(predict(network, x), labels)
    assert statistic(range(12), range(12)) == 1.0
    assert as_grid(np.full((3, 5, 5), -2000)).unique().tolist() == [-1.0]


def test_auroc_by_hand():
    scores = torch.tensor([[0.1, 0.9], [0.4, 0.2], [0.35, 0.3], [0.8, 0.1]])
    targets = torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 1.0], [1.0, math.nan]])
    statistic = AurocStatistic(scores, targets)
    statistic.column = 0
    assert statistic(range(4), range(4)) == pytest.approx(3 / 4)
    statistic.column = 1
    assert math.isnan(statistic(range(4), range(4)))  # all known ones agree
    statistic.column = None
    assert statistic(range(4), range(4)) == pytest.approx(3 / 4)
    assert math.isnan(bias.jackknife(statistic).low)  # four cases give no interval


def test_an_interval_of_auroc_ends_at_one():
    generator = torch.Generator().manual_seed(0)
    targets = (torch.arange(40) % 2).float()[:, None]
    scores = targets + 0.4 * torch.randn(40, 1, generator=generator)
    statistic = AurocStatistic(scores, targets)
    statistic.column = 0
    open_ended, cut = bias.jackknife(statistic), bias.jackknife(statistic, bounds=(0, 1))
    assert open_ended.high > 1 and cut.high == 1
    assert (cut.value, cut.low) == (open_ended.value, open_ended.low)
