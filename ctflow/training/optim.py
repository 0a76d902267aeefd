"""Optimizer and schedule as every module builds them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from ctflow.config.training import OptimizerConfig
from ctflow.training.schedule import learning_rate


def build_optimizer(
    parameters: Iterable[nn.Parameter] | list[dict[str, Any]], config: OptimizerConfig
) -> tuple[AdamW, LambdaLR]:
    """AdamW and the warm-up + inverse-square-root schedule, stepped once per optimizer step.

    Groups of parameters may have base rates of their own.
    """
    beta1, beta2 = config.betas
    optimizer = AdamW(parameters, lr=config.lr, betas=(beta1, beta2), weight_decay=config.weight_decay)
    return optimizer, LambdaLR(optimizer, lambda step: learning_rate(step, config) / config.lr)
