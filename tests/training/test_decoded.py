"""What the decoder makes of errors in latents, and the loss that counts them so."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from ctflow.checkpoint import load_avae
from ctflow.config import load_config
from ctflow.config.training import TrainConfig
from ctflow.data import LatentShards
from ctflow.flow import flow_matching_loss
from ctflow.models import AVAE
from ctflow.pipeline import EMBEDDED
from ctflow.training.decoded import decoder_metric, metric_root, weighed
from ctflow.training.task_flow import FlowTraining

if TYPE_CHECKING:
    from tests.training.conftest import TinyData


@pytest.fixture(scope="module")
def avae() -> AVAE:
    return load_avae(EMBEDDED / "avae")


@pytest.fixture(scope="module")
def latents(avae: AVAE) -> Tensor:
    """A body of water with two lungs of air, in eight sizes: ``[8, C, 16, 16]``."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 128), torch.linspace(-1, 1, 128), indexing="ij")
    slices = []
    for size in torch.linspace(0.5, 0.9, 8):
        body = (x / size) ** 2 + (y / (0.7 * size)) ** 2 < 1
        lungs = ((x.abs() / size - 0.45) / 0.3) ** 2 + (y / (0.45 * size)) ** 2 < 1
        slices.append(torch.where(body, torch.where(lungs, -850.0, 40.0), -1000.0))
    with torch.no_grad():
        return avae.whiten(avae.encode_hu(torch.stack(slices)).mean)


@torch.no_grad()
def test_the_metric_foretells_what_the_decoder_makes_of_a_smooth_error(avae: AVAE, latents: Tensor) -> None:
    """Against decoding: directions nobody chose, over the same slices, in HU² a deviation²."""
    metric = decoder_metric(avae, latents)
    channels = len(metric)
    assert metric.trace() == pytest.approx(channels) and torch.equal(metric, metric.T)
    directions = torch.randn(24, channels)
    directions /= directions.norm(dim=1, keepdim=True)
    before = avae.decode_to_hu(latents)
    found = torch.stack(
        [
            ((avae.decode_to_hu(latents + 0.1 * d[:, None, None]) - before) / 0.1).square().mean()
            for d in directions
        ]
    )
    foretold = torch.einsum("nc,cd,nd->n", directions, metric, directions)
    ratio = found / foretold  # one factor for all: the scale that the trace took away
    assert ratio.std() < 0.15 * ratio.mean()
    # Channels do not count alike, else all this would be idle: one direction holds most of the trace.
    assert torch.linalg.eigvalsh(metric)[-1] > 0.75 * channels


def test_a_linear_decoder_has_its_own_product_as_metric() -> None:
    """``HU = Σ a_c z_c`` at every place: J^T J = a a^T."""

    class Linear:
        def decode_to_hu(self, whitened: Tensor) -> Tensor:
            return torch.einsum("c,nchw->nhw", torch.tensor([3.0, 0.0, -1.0]), whitened)

    metric = decoder_metric(Linear(), torch.randn(5, 3, 4, 4))  # type: ignore[arg-type]
    wanted = torch.tensor([[9.0, 0.0, -3.0], [0.0, 0.0, 0.0], [-3.0, 0.0, 1.0]]) * 3 / 10
    torch.testing.assert_close(metric, wanted, atol=1e-4, rtol=1e-4)


def test_a_decoder_that_answers_to_nothing_is_refused() -> None:
    class Deaf:
        def decode_to_hu(self, whitened: Tensor) -> Tensor:
            return torch.zeros(len(whitened), 8, 8)

    with pytest.raises(ValueError, match="do not change"):
        decoder_metric(Deaf(), torch.zeros(2, 3, 4, 4))  # type: ignore[arg-type]


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_the_loss_is_a_mean_of_both_ways_to_count(share: float) -> None:
    half = torch.randn(6, 6)
    metric = half @ half.T
    metric = metric * 6 / metric.trace()
    error = torch.randn(3, 6, 2, 4, 4)
    zero = torch.zeros_like(error)
    root = metric_root(metric, share)
    loss = flow_matching_loss(weighed(error, root), weighed(zero, root))
    plain = error.square().flatten(1).mean(dim=1)
    decoded = torch.einsum("bcthw,cd,bdthw->bthw", error, metric, error).flatten(1).mean(dim=1) / 6
    torch.testing.assert_close(loss, (1 - share) * plain + share * decoded)


def test_a_training_measures_its_own_decoder_also_where_it_goes_on(tiny: TinyData, tmp_path: Path) -> None:
    from ctflow.train import main
    from ctflow.training.runs import locate_run

    asked = ("name=hu", "flow.flow.decoded_share=0.5")
    for steps in (2, 3):  # the second command goes on
        main(tiny.arguments("flow", tmp_path, *asked, f"loop.max_steps={steps}"))
    folder = tmp_path / "flow" / "hu"
    assert "loss_root" not in torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
    config = load_config(TrainConfig, folder / "config.yaml")
    run = locate_run(config)
    assert run.checkpoint is not None
    root = FlowTraining().module(config, run).loss_root
    shards = LatentShards(config.data.train)
    avae = load_avae(tiny.avae).with_whitening(shards.header.whitening)
    count = len(shards)
    slices = []
    for index in range(count):
        x = shards.whitened(index)
        slices.append(x[:, int((index + 0.5) / count * x.shape[1])])
    wanted = 0.5 * decoder_metric(avae, torch.stack(slices)) + 0.5 * torch.eye(4)
    assert root is not None
    torch.testing.assert_close(root @ root, wanted, atol=1e-5, rtol=1e-5)
