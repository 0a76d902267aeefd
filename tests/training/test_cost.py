"""What a training costs, counted without one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ctflow.config.models import FMvTConfig
from ctflow.models import Conditions, FMvT
from ctflow.training.cost import activation_bytes, forward_gflop, training_gib

SMALL = FMvTConfig(
    input_size=[16, 8, 8], latent_channels=4, hidden_size=32, depth=2, num_heads=2, text_dim=8, text_tokens=5
)


def test_operations_are_those_of_a_real_forward():
    network = FMvT(SMALL)
    block = torch.randn(1, 4, 16, 8, 8)
    conditions = Conditions(torch.randn(1, 5, 8), torch.randn_like(block))
    # The counter does not know the CPU's fused attention.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        network(block, torch.rand(1), conditions)
    assert forward_gflop(SMALL) == pytest.approx(counter.get_total_flops() / 1e9)
    assert SMALL.tokens == 16 // SMALL.patch_size[0] * (8 // SMALL.patch_size[1]) ** 2


def test_memory_grows_with_the_batch_and_falls_with_recomputing_and_shards():
    recomputed = replace(SMALL, activation_checkpointing=True)
    one, four = (activation_bytes(SMALL, batch) for batch in (1, 4))
    assert one > 10 * 4 * SMALL.tokens * SMALL.hidden_size and 3 * one < four < 5 * one
    assert activation_bytes(recomputed, 4) < four / 2
    weights = sum(p.numel() for p in FMvT(SMALL).parameters())
    held = training_gib(SMALL, 1) - training_gib(SMALL, 1, shards=4)
    assert held * 2**30 == pytest.approx(0.75 * 20 * weights)
