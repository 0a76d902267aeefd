"""LightningModule of the A-VAE with its discriminator (manual optimisation)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from ctflow.config.tasks import AutoencoderTask
from ctflow.data import SliceBatch
from ctflow.models import AVAE, Posterior
from ctflow.training.base import CountingModule, unique_keys
from ctflow.training.ema import averaged_copy
from ctflow.training.losses import Adversary, PerceptualTerm, adaptive_weight, gradient_at
from ctflow.training.optim import build_optimizer
from ctflow.training.plain import from_plain, to_plain
from ctflow.training.randomness import SampleRandom

HU_RANGE = 2000.0
"""Peak of PSNR and SSIM: [-1000, 1000] HU for any window of the network."""


class AutoencoderModule(CountingModule):
    """L1 + KL + perceptual + adversarial training of the A-VAE (paper section on the A-VAE).

    Args:
        config: ``AutoencoderTask`` or its plain dictionary (as checkpoints store it).
        seed: The run's seed.
    """

    def __init__(self, config: AutoencoderTask | dict[str, Any], seed: int = 0) -> None:
        typed = from_plain(AutoencoderTask, config)
        super().__init__(seed, typed.ema_cap)
        self.config = typed
        self.save_hyperparameters({"config": to_plain(self.config), "seed": seed})
        self.automatic_optimization = False
        # Channels last: convolutions in bfloat16 take half the time on CPUs.
        self.network: AVAE = AVAE(self.config.network).to(memory_format=torch.channels_last)
        self.network.net.encoder.requires_grad_(self.config.train_encoder)
        self.averaged = averaged_copy(self.network)
        self.adversary: Adversary | None = None
        if self.config.adversary.start_step >= 0:
            self.adversary = Adversary(self.config.adversary, self.config.network.in_channels)
        # In a list, so that the fixed ruler stays out of checkpoints; made when a fit starts.
        self.perceptual: list[PerceptualTerm] = []
        self.psnr = PeakSignalNoiseRatio(data_range=HU_RANGE)
        self.ssim = StructuralSimilarityIndexMeasure(data_range=HU_RANGE)

    @property
    def trained(self) -> AVAE:
        """The network to export: the moving average."""
        assert isinstance(self.averaged, AVAE)
        return self.averaged

    def compile_networks(self) -> None:
        """Encoder and decoder, which the step calls one by one."""
        self.network.net.encoder.compile()
        self.network.net.decoder.compile()

    def on_fit_start(self) -> None:
        """Read the weights of the perceptual term."""
        if self.config.perceptual_weight > 0:
            self.perceptual = [PerceptualTerm(self.config.perceptual_weights_path).to(self.device)]

    def training_step(self, batch: SliceBatch, batch_idx: int) -> None:
        """One step of the A-VAE, then, from ``adversary.start_step`` on, one of the discriminator."""
        random = self.random(sample_keys(batch))
        images, flat = self._images(batch, random)
        posterior = self.network.encode(images)
        latents = self._sample(posterior, random)
        if self.config.redrawn_share > 0:
            latents = self._with_redrawn(latents, batch, flat, random)
        output = self.network.decode(latents).float()
        terms = {"l1": (output - images).abs().mean(), "perceptual": self._perceptual(output, images)}
        terms["kl"] = posterior.kl().mean() / posterior.mean[0].numel()
        loss = terms["l1"] + self.config.perceptual_weight * terms["perceptual"]
        terms["adversarial"] = self._adversarial(loss, output)
        terms["loss"] = loss + self.config.kl_weight * terms["kl"] + terms["adversarial"]
        self._step(0, self.network, terms["loss"])
        self.count_update()
        if self._adversary_on():
            assert self.adversary is not None
            terms["discriminator"] = self.adversary.discriminator_loss(images, output).float()
            self._step(1, self.adversary, terms["discriminator"])
        self.batches += 1
        self.log_terms(terms, len(images))

    def _images(self, batch: SliceBatch, random: SampleRandom) -> tuple[Tensor, Tensor]:
        """Training images ``[N, C, H, W]``, and which of them ``[N]`` were made flat."""
        window = self.network.config.intensity
        images = window.to_model(batch.images)
        flat = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        if self.config.flat_fraction > 0:
            chance = random.uniform()[:, None, None, None] / self.config.flat_fraction
            images = torch.where(chance < 0.5, window.low, torch.where(chance < 1.0, window.high, images))
            flat = chance.flatten() < 1.0
        images = images.expand(-1, self.network.config.in_channels, -1, -1)
        return images.contiguous(memory_format=torch.channels_last), flat

    def _sample(self, posterior: Posterior, random: SampleRandom) -> Tensor:
        """A latent per slice, its noises a function of (seed, batch number, slice)."""
        mean, std = posterior.mean.float(), torch.exp(0.5 * posterior.logvar.float())
        latents = mean + std * random.normal(*mean.shape[1:])
        if self.config.latent_noise > 0:
            level = self.config.latent_noise * random.uniform()[:, None, None, None]
            whitened = self.network.whiten(latents) + level * random.normal(*mean.shape[1:])
            latents = self.network.unwhiten(whitened)
        return latents

    def _with_redrawn(self, latents: Tensor, batch: SliceBatch, flat: Tensor, random: SampleRandom) -> Tensor:
        """A share of the latents as a generator draws them, where there are such and no image is flat."""
        assert batch.redrawn is not None
        known = batch.redrawn.isfinite().all(dim=3).all(dim=2).all(dim=1)
        chosen = (random.uniform() < self.config.redrawn_share) & known & ~flat
        redrawn = self.network.unwhiten(batch.redrawn.nan_to_num())
        return torch.where(chosen[:, None, None, None], redrawn, latents)

    def _perceptual(self, output: Tensor, images: Tensor) -> Tensor:
        window = self.network.config.intensity
        pair = [(x - window.low) / (window.high - window.low) for x in (output, images)]
        return self.perceptual[0](*pair) if self.perceptual else output.new_zeros(())

    def _adversary_on(self) -> bool:
        return self.adversary is not None and self.batches >= self.config.adversary.start_step

    def _adversarial(self, reconstruction: Tensor, output: Tensor) -> Tensor:
        """The weighted generator term; 0 before the discriminator starts."""
        if not self._adversary_on():
            return reconstruction.new_zeros(())
        assert self.adversary is not None
        self.adversary.requires_grad_(False)
        term = self.adversary.generator_loss(output).float()
        self.adversary.requires_grad_(True)
        # Gradients are averaged over processes before the ratio, so that it does not depend on their number.
        grads = [
            self._mean_over_ranks(gradient_at(t, self.network.last_layer)) for t in (reconstruction, term)
        ]
        weight = adaptive_weight(grads[0], grads[1])
        return self.config.adversary.weight * weight * term

    def _mean_over_ranks(self, value: Tensor) -> Tensor:
        return self.trainer.strategy.reduce(value, reduce_op="mean") if self.trainer.world_size > 1 else value

    def _step(self, index: int, network: nn.Module, loss: Tensor) -> None:
        """Backward, clip and step one of the two optimizers and its schedule."""
        optimizers, schedulers = self.optimizers(), self.lr_schedulers()
        optimizer = optimizers[index] if isinstance(optimizers, list) else optimizers
        scheduler = schedulers[index] if isinstance(schedulers, list) else schedulers
        optimizer.zero_grad()
        self.manual_backward(loss)
        if self.config.gradient_clip > 0:
            nn.utils.clip_grad_norm_(network.parameters(), self.config.gradient_clip)
        optimizer.step()
        scheduler.step()  # type: ignore[union-attr,call-arg]

    def validation_step(self, batch: SliceBatch, batch_idx: int) -> Tensor:
        """PSNR (pooled MSE) and SSIM in HU of the averaged network's reconstruction of posterior means.

        Returns:
            The reconstruction ``[N, H, W]`` in HU, for the image callback.
        """
        target = batch.images[:, 0].clamp(-HU_RANGE / 2, HU_RANGE / 2)
        latents = self.trained.whiten(self.trained.encode_hu(batch.images).mean.float())
        output = self.trained.decode_to_hu(latents).float().clamp(-HU_RANGE / 2, HU_RANGE / 2)
        # SSIM's luminance term needs values that start at 0.
        self.ssim.update((output + HU_RANGE / 2)[:, None], (target + HU_RANGE / 2)[:, None])
        self.psnr.update(output, target)
        self.log("val/psnr", self.psnr, prog_bar=True, batch_size=len(output))
        self.log("val/ssim", self.ssim, batch_size=len(output))
        self.log("val/l1_hu", (output - target).abs().mean(), sync_dist=True, batch_size=len(output))
        return output

    def configure_optimizers(self) -> tuple[list[torch.optim.Optimizer], list[Any]]:
        """One AdamW with schedule for the A-VAE, one for the discriminator."""
        pairs = [build_optimizer(self.network, self.config.optimizer)]
        if self.adversary is not None:
            pairs.append(build_optimizer(self.adversary, self.config.adversary.optimizer))
        return [p[0] for p in pairs], [p[1] for p in pairs]


def sample_keys(batch: SliceBatch) -> list[str]:
    """A name for each slice of a batch."""
    pairs = zip(batch.case_id, batch.slice_index, strict=True)
    return unique_keys(f"{case}/{int(index)}" for case, index in pairs)
