"""LightningModule of the FMvT: flow matching over pairs of blocks."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from ctflow.config.tasks import FlowTask
from ctflow.data import BlockBatch
from ctflow.flow import FlowDraw, draw, flow_matching_loss, pair_difference_loss, training_path
from ctflow.models import Conditions, FMvT
from ctflow.models.fmvt_layers import FMvTBlock
from ctflow.training.base import CountingModule, unique_keys
from ctflow.training.cost import forward_gflop
from ctflow.training.decoded import metric_root, weighed
from ctflow.training.ema import averaged_copy
from ctflow.training.optim import build_optimizer
from ctflow.training.plain import from_plain, to_plain
from ctflow.training.randomness import SampleRandom

DECILES = 10


class DecileLoss(Metric):
    """Mean loss over all samples and per decile of the time, summed over processes."""

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(DECILES), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(DECILES), dist_reduce_fx="sum")

    def update(self, losses: Tensor, times: Tensor) -> None:
        """Add losses ``[B]`` at times ``[B]`` in [0, 1]."""
        index = (times * DECILES).long().clamp_max(DECILES - 1)
        self.total = self.total.index_add(0, index, losses.float())
        self.count = self.count.index_add(0, index, torch.ones_like(losses, dtype=torch.float32))

    def compute(self) -> tuple[Tensor, Tensor]:
        """Mean over all samples and means ``[10]`` per decile, NaN where there was no sample."""
        return self.total.sum() / self.count.sum(), self.total / self.count


class FlowModule(CountingModule):
    """Trains the FMvT to predict the velocity of the next block (paper, section on the FMvT).

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
        if typed.trained_parts:
            for name, parameter in self.network.named_parameters():
                parameter.requires_grad_(name.split(".")[0] in typed.trained_parts)
        self.averaged = averaged_copy(self.network)
        self.path = training_path(typed.flow)
        self.val_losses = DecileLoss()
        self.loss_root: Tensor | None
        self.register_buffer("loss_root", None, persistent=False)  # measured at every start

    @property
    def trained(self) -> FMvT:
        """The network to export: the moving average."""
        assert isinstance(self.averaged, FMvT)
        return self.averaged

    def count_as_decoded(self, metric: Tensor) -> None:
        """Let the loss count errors by a ``decoder_metric`` as far as ``flow.decoded_share`` says.

        Call it for a resumed training as well: a checkpoint does not hold the root.
        """
        self.loss_root = metric_root(metric, self.config.flow.decoded_share).to(self.device)

    def tokens_per_sample(self) -> int:
        """Tokens of a block."""
        return self.config.network.tokens

    def gflop_per_sample(self) -> float:
        """Three forwards: a backward computes two products for each of the forward's."""
        return 3 * forward_gflop(self.config.network)

    def configure_model(self) -> None:
        """Shard network and average alike where the strategy has a device mesh (FSDP2)."""
        if self.device_mesh is None or getattr(self, "_sharded", False):
            return
        from torch.distributed.fsdp import fully_shard

        mesh = self.device_mesh["data_parallel"]
        for network in (self.network, self.averaged):
            for module in network.modules():
                if isinstance(module, FMvTBlock):
                    fully_shard(module, mesh=mesh)
            # The root too is sharded again after a forward: the average's update pairs shard with shard.
            fully_shard(network, mesh=mesh, reshard_after_forward=True)
        self._sharded = True

    def training_step(self, batch: BlockBatch, batch_idx: int) -> Tensor:
        """Mean squared error of the predicted velocity."""
        chance = draw_samples(self.config, batch, self.random(block_keys(batch)))
        weight = self.config.flow.pair_weight
        loss = self.sample_losses(self.network, batch, chance, weight, self.loss_root).mean()
        self.batches += 1
        self.log_terms({"loss": loss}, len(batch.case_id))
        return loss

    def sample_losses(
        self,
        network: nn.Module,
        batch: BlockBatch,
        chance: FlowDraw,
        pair_weight: float = 1.0,
        root: Tensor | None = None,
    ) -> Tensor:
        """Mean squared velocity error of every sample, ``[B]`` float32.

        Args:
            network: What predicts.
            batch: Blocks with their conditions.
            chance: What is random.
            pair_weight: Weight of what partners differ in.
            root: ``[C, C]`` by which latents are multiplied before their errors are squared
                (``metric_root``); None: the errors themselves count.
        """
        point = self.path.sample(batch.target, chance.noise, chance.t)
        z = with_known(point.z_t, batch.target, chance.known)
        prediction = network(z, chance.t, self.conditions(batch, chance))
        velocity = point.velocity
        if root is not None:
            prediction, velocity = weighed(prediction, root), weighed(velocity, root)
        return velocity_losses(prediction, velocity, batch, chance, pair_weight)

    def conditions(self, batch: BlockBatch, chance: FlowDraw) -> Conditions:
        """What the network is told: previous blocks with their noise, dropped conditions gone."""
        text, mask = text_tokens(batch.text, batch.text_mask, batch.pooled, self.config.text)
        conditions = Conditions(
            text,
            batch.previous + chance.condition_noise,
            mask,
            chance.known,
            batch.position.float(),
            batch.length.float(),
            batch.spacing,
            chance.previous_noise,
        )
        return conditions.dropped(chance.drop_text, chance.drop_previous, chance.drop_length)

    def validation_step(self, batch: BlockBatch, batch_idx: int) -> None:
        """Loss of the averaged network at times and noise fixed per sample, over all and per decile of t."""
        chance = fixed_draw(batch, SampleRandom(self.seed, "validation", block_keys(batch), self.device))
        self.val_losses.update(self.sample_losses(self.averaged, batch, chance), chance.t)

    def on_validation_epoch_end(self) -> None:
        """Log the means over the whole set; a decile without samples is left out."""
        total, deciles = self.val_losses.compute()
        self.val_losses.reset()
        self.log("val/loss", total, prog_bar=True, rank_zero_only=True)
        for index, value in enumerate(deciles):
            if value.isfinite():
                self.log(f"val/loss_t{index / DECILES:.1f}", value, rank_zero_only=True)

    def configure_optimizers(self) -> dict[str, Any]:
        """The optimizer and its schedule, stepped with every update."""
        optimizer, scheduler = build_optimizer(self.network, self.config.optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def with_known(z: Tensor, target: Tensor, known: Tensor | None) -> Tensor:
    """Noisy blocks ``[B, C, T, h, w]`` with their ``known [B, T]`` slices clean."""
    return z if known is None else torch.where(known[:, None, :, None, None], target, z)


def velocity_losses(
    prediction: Tensor, velocity: Tensor, batch: BlockBatch, chance: FlowDraw, pair_weight: float = 1.0
) -> Tensor:
    """Mean squared error of every sample, ``[B]`` float32; what partners differ in weighs ``pair_weight``."""
    losses = flow_matching_loss(prediction, velocity, chance.known)
    if pair_weight > 1 and batch.partner is not None:
        difference = pair_difference_loss(prediction, velocity, batch.partner, chance.known)
        told = torch.ones_like(losses) if chance.drop_text is None else (~chance.drop_text).float()
        losses = losses + (pair_weight - 1) * difference * told
    return losses


def block_keys(batch: BlockBatch) -> list[str]:
    """A name for each pair of blocks of a batch; the two samples of a contrast pair share one."""
    places = zip(batch.case_id, batch.position.tolist(), strict=True)
    keys = unique_keys(f"{case}/{position}" for case, position in places)
    if batch.partner is None:
        return keys
    return [keys[min(row, partner)] for row, partner in enumerate(batch.partner.tolist())]


def draw_samples(config: FlowTask, batch: BlockBatch, random: SampleRandom) -> FlowDraw:
    """The batch's draw, each sample's from its own generator."""
    told = config.network.previous_noise_input
    draws = [draw(config.flow, batch.target[i : i + 1], g, told) for i, g in enumerate(random.generators)]
    parts = {f.name: [getattr(d, f.name) for d in draws] for f in fields(FlowDraw)}
    joined: dict[str, Any] = {
        name: None if values[0] is None else torch.cat(values) for name, values in parts.items()
    }
    return FlowDraw(**joined)


def fixed_draw(batch: BlockBatch, random: SampleRandom) -> FlowDraw:
    """Uniform times and plain noise for validation: no offset, nothing dropped, conditions as they are."""
    times = random.uniform()
    noise = random.normal(*batch.target.shape[1:])
    return FlowDraw(times, noise, torch.zeros_like(batch.previous), torch.zeros_like(times))


def text_tokens(tokens: Tensor, mask: Tensor, pooled: Tensor, mode: str) -> tuple[Tensor, Tensor | None]:
    """The network's input of reports: hidden states and mask, or one pooled vector.

    Args:
        tokens: ``[..., L, D]``.
        mask: ``[..., L]``.
        pooled: ``[..., D]``, normalised as the text encoder gives it.
        mode: ``tokens`` or ``pooled``.

    Returns:
        Text ``[..., L, D]`` and mask ``[..., L]``; in ``pooled`` mode ``[..., 1, D]`` and None.
    """
    if mode == "tokens":
        return tokens.float(), mask
    return pooled.float().unsqueeze(-2), None
