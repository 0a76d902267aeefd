"""Going on with a run: what may change and is applied, what may not and is refused by name."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import lightning as L

from ctflow.config.training import OptimizerConfig, TrainConfig
from ctflow.errors import ConfigError
from ctflow.training.base import CountingModule
from ctflow.training.checkpoint_io import read_checkpoint
from ctflow.training.plain import from_plain, to_plain
from ctflow.training.schedule import learning_rate

log = logging.getLogger("ctflow")

FIXED = {
    "autoencoder": r"network\..*|init_from|train_encoder|adversary\.(channels|layers)",
    "clip": r"network\..*|vocabulary_size",
    "flow": r"network\.(?!activation_checkpointing$).*|text|init_from",
}
"""Keys of a task's section that belong to the weights: a run cannot go on with others."""


def resumed_step(config: TrainConfig, path: Path) -> int:
    """Check that a run can go on from a checkpoint with this configuration; says what changes.

    Args:
        config: Completed by the task.
        path: The Lightning checkpoint.

    Returns:
        The step at which curves go on.

    Raises:
        ConfigError: The checkpoint is damaged or another task's, or a setting cannot change in mid-run.
    """
    content = read_checkpoint(path)
    hyper = content["hyper_parameters"]
    section = getattr(config, config.task)
    stranger = sorted(set(hyper.get("config", {})) - set(to_plain(section)))
    if stranger:
        raise ConfigError(
            f"{path} is not of task={config.task}: it has {', '.join(stranger)}",
            f"a checkpoint of task={config.task}",
            "give the task, or --config file, that the run was trained with",
        )
    was = {"seed": hyper["seed"], **_flat(to_plain(from_plain(type(section), hyper["config"])), config.task)}
    now = {"seed": config.seed, **_flat(to_plain(section), config.task)}
    changed = {key: (was[key], now[key]) for key in now if key in was and was[key] != now[key]}
    fixed = {key: values for key, values in changed.items() if _is_fixed(key, config.task, values)}
    if fixed:
        raise ConfigError(
            f"{path} was trained with " + ", ".join(f"{key}={old}" for key, (old, _) in fixed.items()),
            "the same when the run goes on, found "
            + ", ".join(f"{k}={new}" for k, (_, new) in fixed.items()),
            "leave these keys out to go on, or start a new run with another name=…",
        )
    for key, (old, new) in changed.items():
        log.info("the run goes on with %s=%s (before: %s)", key, new, old)
    return int(content["loops"]["fit_loop"]["epoch_loop.state_dict"].get("_batches_that_stepped", 0))


def _is_fixed(key: str, task: str, values: tuple[Any, Any]) -> bool:
    if key == "seed":
        return True
    name = key.removeprefix(f"{task}.")
    if name == "adversary.start_step":  # whether there is a discriminator at all
        return (values[0] < 0) != (values[1] < 0)
    return re.fullmatch(FIXED[task], name) is not None


def _flat(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}.{key}")
        else:
            flat[f"{prefix}.{key}"] = value
    return flat


class OptimizerSettings(L.Callback):
    """Gives optimizers and schedules the configuration's values after a checkpoint has restored its own."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Apply learning rate, betas and weight decay; unchanged ones stay equal to the bit."""
        assert isinstance(pl_module, CountingModule)
        for optimizer, schedule, config in zip(
            trainer.optimizers,
            trainer.lr_scheduler_configs,
            pl_module.optimizer_configs(),
            strict=True,
        ):
            scheduler: Any = schedule.scheduler
            rate = config.lr * _factor(scheduler.last_epoch, config)
            for group in optimizer.param_groups:
                group |= {
                    "lr": rate,
                    "initial_lr": config.lr,
                    "betas": tuple(config.betas),
                    "weight_decay": config.weight_decay,
                }
            scheduler.base_lrs = [config.lr for _ in optimizer.param_groups]
            scheduler._last_lr = [rate for _ in optimizer.param_groups]


def _factor(step: int, config: OptimizerConfig) -> float:
    """What the schedule multiplies the base rate by (``build_optimizer``)."""
    return learning_rate(step, config) / config.lr
