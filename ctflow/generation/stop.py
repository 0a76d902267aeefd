"""The end of a volume: white slices, recognised in whitened latents, and trimmed."""

from __future__ import annotations

from torch import Tensor

from ctflow.config.generation import StopConfig


def white_slices(latents: Tensor, white: Tensor, distance: float, fraction: float) -> Tensor:
    """Which slices are the latent of a white image.

    Args:
        latents: ``[..., C, S, h, w]``, whitened.
        white: ``[C, h, w]``, the whitened latent of a white image.
        distance: Greatest absolute difference of a value that counts as equal.
        fraction: A slice is white where more than this part of its values is equal.

    Returns:
        Bool ``[..., S]``.
    """
    near = (latents - white[:, None]).abs() < distance  # [..., C, S, h, w]
    return near.float().mean(dim=(-4, -2, -1)) > fraction  # [..., S]


def trailing_run(flags: Tensor) -> int:
    """Number of True values at the end of ``flags [S]``."""
    return int(flags.flip(0).int().cumprod(0).sum())


def end_run(flags: Tensor, rule: str) -> int:
    """Slices at the end of a block that belong to the volume's end.

    Nothing of a body follows an end slice, so that under ``every_slice`` the end of a block whose last slices
    are white begins at its first white slice, whatever a model drew between two white ones.

    Args:
        flags: Bool ``[S]``, the block's new slices.
        rule: As in ``is_end``; ``first_slice`` counts the white slices at the end alone, as published.
    """
    trailing = trailing_run(flags)
    if rule == "first_slice" or not trailing:
        return trailing
    return len(flags) - int(flags.int().argmax())


def is_end(flags: Tensor, rule: str) -> bool:
    """Whether a block with these white slices ends its volume.

    Args:
        flags: Bool ``[S]``, the block's new slices.
        rule: ``StopConfig.rule``: ``every_slice`` (the block's last slices are white) or ``first_slice``.
    """
    return bool(flags[0] if rule == "first_slice" else trailing_run(flags) > 0)


class StopRule:
    """A ``StopConfig`` applied to one A-VAE.

    Args:
        config: The rule.
        white: ``[C, h, w]``, whitened latent of a white slice.
        white_spread: RMS of the whitened deviation of sampled white latents from ``white``.
    """

    def __init__(self, config: StopConfig, white: Tensor, white_spread: float) -> None:
        self.config = config
        self.white = white
        self.distance = config.distance(white_spread)

    def white_slices(self, latents: Tensor) -> Tensor:
        """``[..., C, S, h, w]`` to bool ``[..., S]``."""
        return white_slices(latents, self.white, self.distance, self.config.fraction)

    def is_end(self, flags: Tensor) -> bool:
        """Whether a block whose new slices have these flags ends its volume."""
        return is_end(flags, self.config.rule)

    def end_run(self, flags: Tensor) -> int:
        """How many of a block's last slices belong to the volume's end."""
        return end_run(flags, self.config.rule)
