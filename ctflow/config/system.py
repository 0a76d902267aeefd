"""Image size and spacings of a whole system (A-VAE, FMvT, text encoder)."""

from __future__ import annotations

from dataclasses import dataclass, field

from ctflow.config.generation import RolloutConfig


@dataclass
class SystemConfig:
    """The parts of a checkpoint folder that belong to none of its networks.

    Attributes:
        image_size: Rows and columns of a slice in pixels; rows and columns of a latent are this over the
            A-VAE's downscale.
        z_spacing_mm: Distance between slices of a generated volume, unless another is requested.
        pixel_spacing_mm: Distance between pixels of a generated volume (square). Where training resized whole
            fields of view, the typical one.
        z_spacing_range: Least and greatest distance between slices in training; empty: one alone.
        pixel_spacing_range: Least and greatest distance between pixels in training; empty: one alone.
        height_mm: Typical height of a scan: a volume of N slices is generated at this over N where no spacing
            is requested and the network takes one.
        text_mode: ``tokens`` or ``pooled``, see ``ctflow.models.text``.
        max_slices: The longest volume the model was trained on.
        rollout: Sampling recommended for these weights, where generation and evaluation start from.
        provenance: What the weights came from: data, commands, source files and their sha256.
    """

    image_size: int = 256
    z_spacing_mm: float = 1.5
    pixel_spacing_mm: float = 1.5
    z_spacing_range: list[float] = field(default_factory=list)
    pixel_spacing_range: list[float] = field(default_factory=list)
    height_mm: float = 300.0
    text_mode: str = "tokens"
    max_slices: int = 256
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    provenance: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if min(self.image_size, self.z_spacing_mm, self.pixel_spacing_mm, self.max_slices) <= 0:
            raise ValueError(f"sizes and spacings must be positive, found {self}")
        for name in ("z_spacing_range", "pixel_spacing_range"):
            ends = getattr(self, name)
            if ends and (len(ends) != 2 or not 0 < ends[0] <= ends[1]):
                raise ValueError(f"{name} is empty or two rising millimetres, found {ends}")
        if self.text_mode not in ("tokens", "pooled"):
            raise ValueError(f"text_mode is 'tokens' or 'pooled', found {self.text_mode!r}")
