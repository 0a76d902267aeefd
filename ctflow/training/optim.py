"""Optimizer and schedule as every module builds them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from ctflow.config.tasks import OptimizerConfig
from ctflow.processes import bf16_supported
from ctflow.training.schedule import learning_rate

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_NEWTON_SCHULZ_STEPS = 5
_RMS = 0.2
"""Root mean square of an update over the rate: about AdamW's (Liu et al. 2025, section 2.2)."""


class Muon(AdamW):
    """Muon for matrices (Jordan et al. 2024), AdamW for the rest, as one optimizer.

    ``torch.optim.Muon`` orthogonalises matrix by matrix in bfloat16, which takes seconds a step where a
    processor emulates it. Here equal shapes are one batch, in bfloat16 where the device has it, else in
    float32.

    Args:
        groups: Parameter groups; those with ``matrices=True`` hold matrices, for Muon.
        momentum: Muon's momentum.
        **adamw: Arguments of AdamW.
    """

    def __init__(self, groups: list[dict[str, Any]], momentum: float, **adamw: Any) -> None:
        super().__init__(groups, **adamw)
        self.momentum = momentum

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore; AdamW looks for a step count in every parameter's state, and matrices have none."""
        for values in state["state"].values():
            values.setdefault("step", torch.zeros(()))
        super().__setstate__(state)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step of both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        for group in groups:
            if group["matrices"]:
                self._step_matrices(group)
        self.param_groups = [group for group in groups if not group["matrices"]]
        try:
            super().step()
        finally:
            self.param_groups = groups
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        shapes: dict[torch.Size, list[Tensor]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                shapes.setdefault(parameter.shape, []).append(parameter)
        for shape, parameters in shapes.items():
            gradients = [p.grad for p in parameters if p.grad is not None]
            means = [self._mean(p) for p in parameters]
            torch._foreach_lerp_(means, gradients, 1 - self.momentum)
            ahead = torch._foreach_lerp(gradients, means, self.momentum)  # Nesterov
            updates = orthogonalise(torch.stack(list(ahead)))
            scale = group["lr"] * _RMS * max(shape) ** 0.5
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(parameters, list(updates.unbind(0)), alpha=-scale)

    def _mean(self, parameter: Tensor) -> Tensor:
        """Running mean of a matrix's gradients."""
        state = self.state[parameter]
        if not state:
            # AdamW reads the step of every parameter when a state is loaded.
            state.update(step=torch.zeros(()), mean=torch.zeros_like(parameter))
        state["step"] += 1
        return state["mean"]


def orthogonalise(matrices: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly: singular values near 1 (Jordan et al. 2024).

    Args:
        matrices: ``[N, rows, columns]``, float32.

    Returns:
        Same shape, float32; singular values of about 0.7 to 1.2.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    if bf16_supported(x.device.type):
        x = x.bfloat16()
    a, b, c = _NEWTON_SCHULZ
    for _ in range(_NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).float()


def build_optimizer(
    module: nn.Module, config: OptimizerConfig, factor: Callable[[str], float] | None = None
) -> tuple[AdamW, LambdaLR]:
    """The optimizer of a module's trainable parameters and its schedule, stepped once per optimizer step.

    Args:
        module: What is trained.
        config: Optimizer and schedule.
        factor: AdamW's base rate of a parameter over ``config.lr``, by its name; None: 1 for all.
    """
    beta1, beta2 = config.betas
    parameters = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    common: dict[str, Any] = {"betas": (beta1, beta2), "weight_decay": config.weight_decay}
    common["fused"] = config.fused or None
    optimizer: AdamW
    if config.name == "muon":
        hidden = [p for name, p in parameters if _is_hidden_matrix(name, p)]
        own = {id(p) for p in hidden}
        rest = [p for _, p in parameters if id(p) not in own]
        groups = [
            {"params": hidden, "lr": config.matrix_lr, "matrices": True},
            {"params": rest, "lr": config.lr, "matrices": False},
        ]
        optimizer = Muon(groups, config.momentum, **common)
    else:
        rates: dict[float, list[nn.Parameter]] = {}
        for name, parameter in parameters:
            rates.setdefault(1.0 if factor is None else factor(name), []).append(parameter)
        groups = [{"params": own, "lr": rate * config.lr} for rate, own in sorted(rates.items())]
        optimizer = AdamW(groups, lr=config.lr, **common)
    return optimizer, LambdaLR(optimizer, lambda step: learning_rate(step, config) / config.lr)


def _is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """A matrix inside a transformer block: tables of modulation and the layers around the blocks are none."""
    return parameter.ndim == 2 and "blocks." in name and "table" not in name
