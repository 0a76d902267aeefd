"""The A-VAE: a slice autoencoder in FLUX topology (diffusers' ``AutoencoderKL``)."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import asdict, replace
from typing import NamedTuple

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from ctflow.config.encoders import AVAEConfig
from ctflow.errors import CTFlowError
from ctflow.types import AIR_HU
from ctflow.whitening import Whitening


class Posterior(NamedTuple):
    """A diagonal Gaussian over the latents of N slices, unwhitened.

    Attributes:
        mean: ``[N, C, h, w]``.
        logvar: ``[N, C, h, w]``, natural logarithm of the variance.
    """

    mean: Tensor
    logvar: Tensor

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """One latent per slice, ``[N, C, h, w]``; noise is drawn on the generator's device."""
        device = generator.device if generator is not None else self.mean.device
        noise = torch.randn(self.mean.shape, generator=generator, device=device, dtype=self.mean.dtype)
        return self.mean + torch.exp(0.5 * self.logvar) * noise.to(self.mean.device)

    def kl(self) -> Tensor:
        """Kullback-Leibler divergence from the standard normal, ``[N]``, summed over a latent."""
        terms = self.mean.square() + self.logvar.exp() - 1.0 - self.logvar
        return 0.5 * terms.flatten(1).sum(dim=1)


class AVAE(nn.Module):
    """Slices to latents and back, with the intensity window and the whitening that belong to the weights.

    Names of the stages: HU ``[N, H, W]`` → images ``[N, C_img, H, W]`` in the intensity range → posterior →
    (sampled) latents ``[N, C, h, w]`` → whitened latents of about unit variance.

    Args:
        config: See ``AVAEConfig``; ``h = H / config.downscale``.
    """

    def __init__(self, config: AVAEConfig) -> None:
        super().__init__()
        self.config = config
        levels = len(config.block_out_channels)
        self.net = AutoencoderKL(
            in_channels=config.in_channels,
            out_channels=config.in_channels,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=tuple(config.block_out_channels),
            layers_per_block=config.layers_per_block,
            latent_channels=config.latent_channels,
            norm_num_groups=config.norm_num_groups,
            use_quant_conv=False,
            use_post_quant_conv=False,
            mid_block_add_attention=True,
        )

    @property
    def downscale(self) -> int:
        """Pixels per latent position along a side."""
        return self.config.downscale

    @property
    def last_layer(self) -> nn.Parameter:
        """The decoder's output weight, where the adaptive adversarial weight compares gradients."""
        return self.net.decoder.conv_out.weight

    def encode(self, images: Tensor) -> Posterior:
        """Images ``[N, 1 or in_channels, H, W]`` in the intensity range to the posterior of their latents.

        Raises:
            CTFlowError: The sides are not divisible by ``downscale``, or the channels do not fit.
        """
        if images.ndim != 4 or images.shape[1] not in (1, self.config.in_channels):
            raise CTFlowError(
                f"images of shape {list(images.shape)}", f"[N, {self.config.in_channels}, H, W]"
            )
        if images.shape[2] % self.downscale or images.shape[3] % self.downscale:
            raise CTFlowError(
                f"slices of {images.shape[2]}×{images.shape[3]} pixels",
                f"sides divisible by {self.downscale}",
                "resize or pad the slices (data_prep does)",
            )
        images = images.expand(-1, self.config.in_channels, -1, -1)
        mean, logvar = self.net.encoder(images).chunk(2, dim=1)  # each [N, C, h, w]
        if self.config.clamp_logvar:
            logvar = logvar.clamp(-30.0, 20.0)
        return Posterior(mean, logvar)

    def decode(self, latents: Tensor) -> Tensor:
        """Unwhitened latents ``[N, C, h, w]`` to images ``[N, in_channels, H, W]`` (not clipped)."""
        if latents.ndim != 4 or latents.shape[1] != self.config.latent_channels:
            expected = f"[N, {self.config.latent_channels}, h, w]"
            raise CTFlowError(f"latents of shape {list(latents.shape)}", expected)
        return self.net.decoder(latents)

    def forward(self, images: Tensor) -> tuple[Tensor, Posterior]:
        """Reconstruction of the images from a posterior sample, and the posterior (training)."""
        posterior = self.encode(images)
        return self.decode(posterior.sample()), posterior

    def encode_hu(self, hu: Tensor) -> Posterior:
        """HU slices ``[N, H, W]`` or ``[N, 1, H, W]`` to their posterior; HU are clipped to the window."""
        images = hu[:, None] if hu.ndim == 3 else hu
        return self.encode(self.config.intensity.to_model(images))

    def decode_to_hu(self, whitened: Tensor, batch_size: int = 16) -> Tensor:
        """Whitened latents ``[N, C, h, w]`` to HU ``[N, H, W]``: channels averaged, clipped to the window.

        At most ``batch_size`` slices are decoded at a time, which bounds the memory of a whole volume.
        """
        images = [self.decode(self.unwhiten(part)).mean(dim=1) for part in whitened.split(batch_size)]
        return self.config.intensity.to_hu(torch.cat(images))

    def whiten(self, latents: Tensor, channel_dim: int = 1) -> Tensor:
        """Latents to about unit variance; returns a new tensor."""
        return self.config.whitening.whiten(latents, channel_dim)

    def unwhiten(self, whitened: Tensor, channel_dim: int = 1) -> Tensor:
        """Inverse of ``whiten``; returns a new tensor."""
        return self.config.whitening.unwhiten(whitened, channel_dim)

    @torch.no_grad()
    def air_latent(self, image_size: int | tuple[int, int]) -> Tensor:
        """Whitened posterior mean ``[C, h, w]`` of an all-air slice (start block).

        Args:
            image_size: Pixels along the sides, one number for square slices.
        """
        return self.whiten(self._flat_posterior(AIR_HU, image_size).mean)[0]

    @torch.no_grad()
    def white_latent(self, image_size: int | tuple[int, int]) -> Tensor:
        """Whitened posterior mean ``[C, h, w]`` of a slice at the top of the window (the end slice)."""
        return self.whiten(self._flat_posterior(self.config.intensity.hu_max, image_size).mean)[0]

    @torch.no_grad()
    def white_spread(self, image_size: int | tuple[int, int]) -> float:
        """How far sampled white latents lie from ``white_latent``: RMS of the whitened deviation."""
        std = torch.exp(0.5 * self._flat_posterior(self.config.intensity.hu_max, image_size).logvar)
        scale = torch.tensor(self.config.whitening.scale, dtype=std.dtype, device=std.device).view(
            1, -1, 1, 1
        )
        return float((std * scale).square().mean().sqrt())

    def _flat_posterior(self, hu: float, image_size: int | tuple[int, int]) -> Posterior:
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        weight = self.last_layer
        return self.encode_hu(torch.full((1, height, width), hu, device=weight.device, dtype=weight.dtype))

    def with_whitening(self, whitening: Whitening) -> AVAE:
        """The same networks under another whitening; this A-VAE stays as it is."""
        twin = copy.copy(self)
        twin.config = replace(self.config, whitening=whitening)
        return twin

    def fingerprint(self) -> str:
        """SHA-256 of all a stored posterior depends on: encoder weights (as float32) and intensity window."""
        digest = hashlib.sha256(json.dumps(asdict(self.config.intensity), sort_keys=True).encode())
        for name, value in sorted(self.net.encoder.state_dict().items()):
            digest.update(f"{name}{list(value.shape)}".encode())
            digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()
