"""The published learning-rate and moving-average tables, and what uses them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from ctflow.config.tasks import OptimizerConfig
from ctflow.training.ema import averaged_copy, update_average
from ctflow.training.optim import build_optimizer
from ctflow.training.schedule import ema_decay, learning_rate


@pytest.fixture
def one_step(parity_dir: Path) -> Path:
    return parity_dir / "train" / "one_step.safetensors"


def test_published_learning_rates(one_step: Path) -> None:
    with safe_open(one_step, "pt") as file:
        steps, values = file.get_tensor("lr_steps").tolist(), file.get_tensor("lr_values").tolist()
        said = json.loads(file.metadata()["lr"])
    config = OptimizerConfig(
        lr=said["base"],
        warmup_steps=said["warmup"],
        ref_steps=said["ref_steps"],
        eta_min=said["eta_min"],
        decay_rate=said["decay_rate"],
    )
    for step, value in zip(steps, values, strict=True):
        assert learning_rate(step, config) == pytest.approx(value, rel=1e-6, abs=1e-15)


def test_published_ema_decays(one_step: Path) -> None:
    with safe_open(one_step, "pt") as file:
        table = file.get_tensor("ema_decay_first12").tolist()
    assert [ema_decay(step) for step in range(1, 13)] == pytest.approx(table, abs=1e-6)
    assert ema_decay(10**7) == 0.9999
    assert ema_decay(10**7, cap=0.99) == 0.99


def test_learning_rate_has_a_floor_after_the_warm_up() -> None:
    config = OptimizerConfig(lr=1e-3, warmup_steps=10, ref_steps=1, decay_rate=100.0, eta_min=5e-4)
    assert learning_rate(0, config) == 0.0
    assert learning_rate(10, config) == 1e-3
    assert learning_rate(1000, config) == 5e-4


def test_the_scheduler_follows_the_function() -> None:
    config = OptimizerConfig(lr=1e-3, warmup_steps=4, ref_steps=3)
    module = nn.Linear(1, 1)
    optimizer, scheduler = build_optimizer(module, config)
    rates = []
    for _ in range(8):
        rates.append(optimizer.param_groups[0]["lr"])
        module.weight.sum().backward()
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([learning_rate(step, config) for step in range(8)])


def test_the_rate_falls_to_zero_at_the_end_step() -> None:
    config = OptimizerConfig(lr=2.0, warmup_steps=10, decay_rate=0.0, end_step=100, fall_share=0.4)
    assert [learning_rate(step, config) for step in (5, 10, 60, 80, 100, 120)] == [1, 2, 2, 1, 0, 0]


def test_muon_turns_matrices_and_leaves_the_rest_to_adamw() -> None:
    torch.manual_seed(0)
    module = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(6, 12, bias=True)]), "head": nn.Linear(12, 3)})
    config = OptimizerConfig(name="muon", lr=1e-2, matrix_lr=1e-1, warmup_steps=0, decay_rate=0.0)
    optimizer, scheduler = build_optimizer(module, config)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    for parameter in module.parameters():
        parameter.grad = torch.randn_like(parameter)
    gradient = module["blocks"][0].weight.grad.clone()
    optimizer.step()
    scheduler.step()
    moved = before["blocks.0.weight"] - module["blocks"][0].weight
    # Against the exact polar factor, by its singular value decomposition.
    u, _, vh = torch.linalg.svd(gradient, full_matrices=False)
    values = torch.linalg.svdvals(moved) / (0.1 * 0.2 * 12**0.5)
    assert values.min() > 0.6 and values.max() < 1.3
    assert float((moved * (u @ vh)).sum() / (moved.norm() * (u @ vh).norm())) > 0.97
    reference = nn.Linear(12, 3)
    reference.load_state_dict({k: before[f"head.{k}"] for k in ("weight", "bias")})
    adamw = torch.optim.AdamW(reference.parameters(), lr=1e-2, betas=(0.9, 0.999), weight_decay=0.0)
    for p, q in zip(reference.parameters(), module["head"].parameters(), strict=True):
        p.grad = q.grad.clone()
    adamw.step()
    torch.testing.assert_close(module["head"].weight, reference.weight)
    state = optimizer.state_dict()
    again, _ = build_optimizer(module, config)
    again.load_state_dict(state)
    assert len(again.state) == len(optimizer.state) == 4


def test_average_follows_the_published_decay() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    averaged = averaged_copy(network)
    assert not any(p.requires_grad for p in averaged.parameters())
    expected = [p.detach().clone().double() for p in network.parameters()]
    for step in range(1, 5):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter))
            network[1].running_mean.fill_(step)
        decay = ema_decay(step)
        expected = [
            decay * e + (1 - decay) * p.detach().double()
            for e, p in zip(expected, network.parameters(), strict=True)
        ]
        update_average(averaged, network, step, cap=0.9999)
    for ours, right in zip(averaged.parameters(), expected, strict=True):
        torch.testing.assert_close(ours.double(), right, rtol=1e-6, atol=1e-6)
    assert (averaged[1].running_mean == 4).all()
