"""LightningModule of the FMvT: flow matching over pairs of blocks."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from ctflow.config.training import FlowTask
from ctflow.data import BlockBatch
from ctflow.flow import FlowDraw, draw, flow_matching_loss, training_path
from ctflow.models import FMvT
from ctflow.training.base import CountingModule, unique_keys
from ctflow.training.ema import averaged_copy
from ctflow.training.optim import build_optimizer
from ctflow.training.plain import from_plain, to_plain
from ctflow.training.randomness import SampleRandom

DECILES = 10


class FlowModule(CountingModule):
    """Trains the FMvT to predict the velocity of the next block (paper section on the FMvT; see ``LinearPath``).

    Args:
        config: ``FlowTask`` or its plain dictionary (as checkpoints store it).
        seed: The run's seed.
    """

    def __init__(self, config: FlowTask | dict[str, Any], seed: int = 0) -> None:
        typed = from_plain(FlowTask, config)
        super().__init__(seed, typed.ema_cap)
        self.config = typed
        self.save_hyperparameters({"config": to_plain(typed), "seed": seed})
        self.network: FMvT = FMvT(typed.network)
        self.averaged = averaged_copy(self.network)
        self.path = training_path(typed.flow)
        self.decile_losses = nn.ModuleList(MeanMetric() for _ in range(DECILES))
        self.val_loss = MeanMetric()

    @property
    def trained(self) -> FMvT:
        """The network to export: the moving average."""
        assert isinstance(self.averaged, FMvT)
        return self.averaged

    def configure_model(self) -> None:
        """Shard network and average alike where the strategy has a device mesh (FSDP2)."""
        if self.device_mesh is None or getattr(self, "_sharded", False):
            return
        from torch.distributed.fsdp import fully_shard

        mesh = self.device_mesh["data_parallel"]
        for network in (self.network, self.averaged):
            for block in network.blocks:  # type: ignore[union-attr]
                fully_shard(block, mesh=mesh)
            fully_shard(network, mesh=mesh)
        self._sharded = True

    def training_step(self, batch: BlockBatch, batch_idx: int) -> Tensor:
        """Mean squared error of the predicted velocity."""
        chance = draw_samples(self.config, batch, self.random(block_keys(batch)))
        loss = self.sample_losses(self.network, batch, chance).mean()
        self.batches += 1
        self.log_terms({"loss": loss}, len(batch.case_id))
        return loss

    def sample_losses(self, network: nn.Module, batch: BlockBatch, chance: FlowDraw) -> Tensor:
        """Mean squared velocity error of every sample, ``[B]`` float32."""
        point = self.path.sample(batch.target, chance.noise, chance.t)
        text, mask = text_input(batch, self.config.text)
        prediction = network(
            point.z_t,
            chance.t,
            text,
            batch.previous + chance.condition_noise,
            text_mask=mask,
            position=batch.position.float(),
            length=batch.length.float(),
            drop_text=chance.drop_text,
            drop_previous=chance.drop_previous,
            drop_length=chance.drop_length,
        )
        return flow_matching_loss(prediction, point.velocity)

    def validation_step(self, batch: BlockBatch, batch_idx: int) -> None:
        """Loss of the averaged network at times and noise fixed per sample, over all and per decile of t."""
        chance = fixed_draw(batch, SampleRandom(self.seed, "validation", block_keys(batch), self.device))
        losses = self.sample_losses(self.averaged, batch, chance)
        self.val_loss.update(losses)
        for index, metric in enumerate(self.decile_losses):
            inside = (chance.t * DECILES).long() == index
            if inside.any():
                metric.update(losses[inside])  # type: ignore[operator]

    def on_validation_epoch_end(self) -> None:
        """Log the means; a decile without samples is left out."""
        self.log("val/loss", self.val_loss.compute(), prog_bar=True)
        self.val_loss.reset()
        for index, metric in enumerate(self.decile_losses):
            assert isinstance(metric, MeanMetric)
            value = metric.compute()
            if torch.isfinite(value) and metric.update_called:
                self.log(f"val/loss_t{index / DECILES:.1f}", value)
            metric.reset()

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW and the published schedule, stepped with every update."""
        optimizer, scheduler = build_optimizer(self.network.parameters(), self.config.optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def block_keys(batch: BlockBatch) -> list[str]:
    """A name for each pair of blocks of a batch."""
    pairs = zip(batch.case_id, batch.position.tolist(), strict=True)
    return unique_keys(f"{case}/{position}" for case, position in pairs)


def draw_samples(config: FlowTask, batch: BlockBatch, random: SampleRandom) -> FlowDraw:
    """The batch's draw, each sample's from its own generator."""
    draws = [draw(config.flow, batch.target[i : i + 1], g) for i, g in enumerate(random.generators)]
    parts = {f.name: [getattr(d, f.name) for d in draws] for f in fields(FlowDraw)}
    return FlowDraw(
        **{name: None if values[0] is None else torch.cat(values) for name, values in parts.items()}
    )


def fixed_draw(batch: BlockBatch, random: SampleRandom) -> FlowDraw:
    """Uniform times and plain noise for validation: no offset, nothing dropped, conditions as they are."""
    times = random.uniform()
    noise = random.normal(*batch.target.shape[1:])
    return FlowDraw(times, noise, torch.zeros_like(batch.previous))


def text_input(batch: BlockBatch, mode: str) -> tuple[Tensor, Tensor | None]:
    """What the network reads of a batch's reports: hidden states and mask, or one normalised pooled vector.

    Returns:
        Text ``[B, L, D]`` and mask ``[B, L]``; in ``pooled`` mode ``[B, 1, D]`` and None.
    """
    if mode == "tokens":
        return batch.text.float(), batch.text_mask
    pooled = batch.pooled.float()
    return (pooled / (pooled.norm(dim=-1, keepdim=True) + 1e-6))[:, None], None
