"""The two published tables: learning rate by step and decay of the moving average by step."""

from __future__ import annotations

import math

from ctflow.config.tasks import OptimizerConfig


def learning_rate(step: int, config: OptimizerConfig) -> float:
    """Linear warm-up, then inverse square root with a floor (published-model facts, item 9).

    Args:
        step: Optimizer steps taken so far; 0 before the first.
        config: ``lr`` is the base; ``decay_rate`` 0 keeps it constant after the warm-up.

    Returns:
        ``lr · step / warmup`` up to ``warmup_steps``, then
        ``max(eta_min, lr / √(1 + decay_rate · (step − warmup) / ref_steps))``; where there is an
        ``end_step``, times what falls linearly from 1 to 0 over the last ``fall_share`` of it.
    """
    if step < config.warmup_steps:
        return config.lr * step / config.warmup_steps
    decay = 1.0 + config.decay_rate * (step - config.warmup_steps) / config.ref_steps
    rate = max(config.eta_min, config.lr / math.sqrt(decay))
    if not config.end_step:
        return rate
    left = (config.end_step - step) / (config.fall_share * config.end_step)
    return rate * min(max(left, 0.0), 1.0)


def ema_decay(step: int, cap: float = 0.9999) -> float:
    """Decay of the moving average at an optimizer step counted from 1: ``(1+s)/(10+s)``, ``s = step − 1``.

    Step 1 copies the weights (decay 0), as published.
    """
    s = step - 1
    return 0.0 if s <= 0 else min(cap, (1.0 + s) / (10.0 + s))
