"""The start head: its directions, Wiener's estimate along them, its use in the FMvT."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from ctflow.config.models import FMvTConfig
from ctflow.models import Conditions, FMvT
from ctflow.models.start_head import StartHead

BLOCK = (2, 4, 3, 5)
DIRECTIONS = 4
HIDDEN = 8
TINY = FMvTConfig(
    input_size=[16, 4, 4],
    latent_channels=4,
    hidden_size=32,
    depth=1,
    num_heads=4,
    text_dim=12,
    start_directions=3,
)


def blocks(n: int, seed: int) -> Tensor:
    """Four directions with the deviations 6, 4, 3 and 2 over white noise of 0.3, about a mean."""
    spread = np.linalg.qr(np.random.default_rng(9).normal(size=(120, DIRECTIONS)))[0] * [6.0, 4.0, 3.0, 2.0]
    rng = np.random.default_rng(seed)
    data = 0.7 + rng.normal(size=(n, DIRECTIONS)) @ spread.T + 0.3 * rng.normal(size=(n, 120))
    return torch.from_numpy(data.astype(np.float32)).view(n, *BLOCK)


@pytest.fixture(scope="module")
def head() -> StartHead:
    torch.manual_seed(0)
    head = StartHead(BLOCK, DIRECTIONS, HIDDEN)
    assert head.measure(blocks(1500, seed=1).split(400)) == 1500
    return head


def silent(head: StartHead) -> None:
    """Only the gates' constants speak."""
    for layer in (head.gates, head.proj):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)


def test_directions_variance_and_mean_are_those_of_principal_components(head: StartHead) -> None:
    data = blocks(1500, seed=1).flatten(1)
    values, vectors = np.linalg.eigh(np.cov(data.numpy(), rowvar=False, bias=True))  # rising
    of_covariance = torch.from_numpy(vectors[:, : -DIRECTIONS - 1 : -1].copy()).float()
    torch.testing.assert_close(
        (head.unit_directions() @ of_covariance).abs(), torch.eye(DIRECTIONS), atol=2e-3, rtol=0
    )
    greatest = torch.from_numpy(values[: -DIRECTIONS - 1 : -1].copy()).float()
    torch.testing.assert_close(head.variance, greatest, rtol=2e-3, atol=0)
    torch.testing.assert_close(head.mean, head.unit_directions() @ data.mean(dim=0), rtol=2e-3, atol=2e-3)


@torch.no_grad()
@pytest.mark.parametrize("t", [0.99, 0.9, 0.5, 0.05])
def test_one_gate_turns_any_estimate_into_that_of_least_squares(head: StartHead, t: float) -> None:
    """Along the directions, compared with a regression; across them the estimate stays as it is."""
    silent(head)
    head.gates.bias[DIRECTIONS:] = -1.0  # the distance from Wiener's estimate, taken away
    torch.manual_seed(1)
    x = blocks(20_000, seed=2)
    z = (1 - t) * x + t * torch.randn_like(x)
    wrong = torch.randn_like(x)
    velocity = (z - wrong) / t
    mended = z - t * (velocity + head(z, wrong, torch.full((len(z),), t), torch.zeros(len(z), 1, HIDDEN)))

    found = mended.flatten(1) @ head.unit_directions().T
    noisy, true = (block.flatten(1) @ head.unit_directions().T for block in (z, x))
    for k in range(DIRECTIONS):
        slope, offset = np.polyfit(noisy[:, k].numpy(), true[:, k].numpy(), 1)
        error = (found[:, k] - true[:, k]).square().mean()
        least = (slope * noisy[:, k] + offset - true[:, k]).square().mean()
        assert least * 0.999 <= error <= 1.02 * least
    change = (mended - wrong).flatten(1)
    rest = change - change @ head.unit_directions().T @ head.unit_directions()
    assert rest.abs().max() < 1e-2 * change.abs().max()  # eight bits: orthogonal but for the rounding


@torch.no_grad()
def test_it_is_finite_at_both_ends_of_time_and_in_half_precision(head: StartHead) -> None:
    head.gates.bias.fill_(0.5)
    x, told = blocks(2, seed=4), torch.zeros(2, 1, HIDDEN)
    for t in (0.0, 1.0):
        assert head(x, x, torch.full((2,), t), told).isfinite().all()
    t = torch.full((2,), 0.4)
    alone = head(x, x, t, told)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head(x, x, t, told), alone)


def test_eight_bits_hold_the_directions_and_weights_in_float16_still_load(head: StartHead) -> None:
    """The exact directions of a wide block against what is kept of them."""
    torch.manual_seed(2)
    exact = torch.linalg.qr(torch.randn(6000, DIRECTIONS)).Q.T  # [K, D]
    wide = StartHead((6000, 1, 1, 1), DIRECTIONS, HIDDEN)
    old = wide.state_dict() | {"directions": exact.half(), "variance": torch.ones(DIRECTIONS)}
    wide.load_state_dict(old)
    assert wide.directions.dtype == torch.int8
    assert old["directions"].dtype == torch.float16
    cosines = (wide.unit_directions() * exact).sum(dim=1)
    assert cosines.min() > 0.9998
    z = torch.randn(3, 6000)
    # A component of white noise is off by a hundredth of the noise's deviation.
    assert (z @ wide.unit_directions().T - z @ exact.T).std() < 0.02
    again = StartHead(BLOCK, DIRECTIONS, HIDDEN)
    again.load_state_dict(head.state_dict())
    assert torch.equal(again.directions, head.directions)
    assert not StartHead(BLOCK, DIRECTIONS, HIDDEN).unit_directions().any()


def test_too_few_blocks_and_other_sizes(head: StartHead) -> None:
    for few in ([], [blocks(4, seed=0)]):
        with pytest.raises(ValueError, match=f"more than 4 first blocks, found {sum(map(len, few))}"):
            head.measure(few)
    other = torch.zeros(1, 2, 4, 6, 5)
    with pytest.raises(ValueError, match=r"blocks \[2, 4, 3, 5\], found \[2, 4, 6, 5\]"):
        head(other, other, torch.ones(1), torch.zeros(1, 1, HIDDEN))
    with pytest.raises(ValueError, match="start_directions is 0 or more, found -1"):
        replace(TINY, start_directions=-1)


@torch.no_grad()
def test_a_fresh_head_leaves_a_network_as_it_is_and_a_trained_one_corrects_first_blocks() -> None:
    torch.manual_seed(0)
    without = FMvT(replace(TINY, start_directions=0)).eval()
    for parameter in without.parameters():
        parameter.normal_(std=0.1)
    network = FMvT(TINY).eval()
    assert network.start_head is not None
    network.load_state_dict(network.state_dict() | without.state_dict())
    network.start_head.measure([torch.randn(8, 4, 16, 4, 4)])
    z, t = torch.randn(4, 4, 16, 4, 4), torch.tensor([0.3, 0.9, 0.5, 0.5])
    known = torch.arange(16).expand(4, -1) < torch.tensor([0, 0, 0, 3])[:, None]
    position = torch.tensor([0.0, 0.0, 5.0, 0.0])
    conditions = Conditions(torch.randn(4, 1, 12), torch.randn_like(z), known=known, position=position)
    before = without(z, t, conditions)
    assert torch.equal(network(z, t, conditions), before)
    network.start_head.proj.bias.fill_(0.3)
    change = (network(z, t, conditions) - before).flatten(1)
    assert change[:2].abs().amax(dim=1).min() > 1e-3
    # A later block and one that continues given slices stay as they are, and so does one without a place.
    assert not change[2:].any()
    nowhere = replace(conditions, position=None)
    assert torch.equal(network(z, t, nowhere), without(z, t, nowhere))
    directions = network.start_head.unit_directions()
    torch.testing.assert_close(
        change @ directions.T @ directions, change, rtol=0, atol=0.01 * float(change.abs().max())
    )
