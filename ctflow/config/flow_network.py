"""The FMvT as a training asks for it: what the data decide is left open."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from ctflow.config.models import FMvTConfig


@dataclass
class FlowNetworkConfig(FMvTConfig):
    """Architecture of the FMvT to train; all other keys are those of ``FMvTConfig``.

    Attributes:
        input_size: Latent block (slices, rows, columns); null takes it from the latent shards.
        latent_channels: Channels of a latent; null takes them from the latent shards.
        text_dim: Width of the text encoder's vectors; null takes it from the latent shards.
    """

    input_size: list[int] | None = None  # type: ignore[assignment]
    latent_channels: int | None = None  # type: ignore[assignment]
    text_dim: int | None = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        """Check the given values, all but those that ``check_parts`` checks."""
        self._check({"local_blocks": 0, "fine_size": 0, "fine_depth": 0, "spectrum": False})

    def check_parts(self) -> None:
        """Check heads, fine stage and spectrum against the network they belong to, which this one describes.

        The network of a fine-tuning is that of ``init_from``, which the configuration does not describe.

        Raises:
            ValueError: A part does not fit.
        """
        self._check({})

    def _check(self, left_out: dict[str, Any]) -> None:
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        stand_in = {"input_size": list(self.patch_size), "latent_channels": 1, "text_dim": 1}
        given |= {k: v for k, v in stand_in.items() if given[k] is None}
        FMvTConfig(**given | left_out)

    @classmethod
    def of(cls, network: FMvTConfig) -> FlowNetworkConfig:
        """The architecture of a network that exists already."""
        return cls(**{f.name: getattr(network, f.name) for f in fields(network)})

    def completed(self, input_size: list[int], latent_channels: int, text_dim: int) -> FlowNetworkConfig:
        """With what was left open filled in from the data.

        Raises:
            ValueError: The data's latents do not divide into patches.
        """
        found = {"input_size": input_size, "latent_channels": latent_channels, "text_dim": text_dim}
        return replace(self, **{k: v for k, v in found.items() if getattr(self, k) is None})  # type: ignore[arg-type]
