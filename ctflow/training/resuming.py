"""Going on with a run: what may change and is applied, what may not and is refused by name."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
from torch.optim.lr_scheduler import LambdaLR

from ctflow.config import config_to_yaml
from ctflow.config.training import TrainConfig
from ctflow.errors import ConfigError
from ctflow.training.callbacks import validation_due
from ctflow.training.checkpoint_io import read_checkpoint
from ctflow.training.plain import from_plain, to_plain

log = logging.getLogger("ctflow")

SETTINGS_KEY = "ctflow_settings"
"""In a checkpoint: the sections ``data`` and ``loop`` of the configuration it was trained with."""
FIXED = {
    "autoencoder": r"network\..*|init_from|train_encoder|adversary\.(channels|layers)|(.*\.)?optimizer\.name",
    "clip": r"network\..*|init_from|train_text|sentence_attention|vocabulary_size|column_least"
    r"|optimizer\.name",
    "flow": r"network\.(?!activation_checkpointing$).*|text|init_from|trained_parts|optimizer\.name",
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
    was, now = content.get(SETTINGS_KEY, {}), _settings(config)
    changed |= {key: (was[key], now[key]) for key in now if key in was and was[key] != now[key]}
    for key, (old, new) in changed.items():
        log.info("the run goes on with %s=%s (before: %s)", key, new, old)
    try:
        # Lightning saves the number before it counts the batch that the checkpoint follows.
        return int(content["loops"]["fit_loop"]["epoch_loop.state_dict"]["_batches_that_stepped"]) + 1
    except (KeyError, TypeError):
        raise ConfigError(
            f"{path} does not say how many steps were done",
            "a checkpoint that a training of this program wrote",
            "give resume=PATH of another, or start anew with resume=none or another name=…",
        ) from None


@contextmanager
def naming_wrong_weights(path: Path | None) -> Iterator[None]:
    """Say it in words where a checkpoint's weights have other names than the network's.

    Raises:
        ConfigError: So it is; with the first names.
    """
    try:
        yield
    except RuntimeError as error:
        first, *lines = str(error).splitlines() or [""]
        if not first.startswith("Error(s) in loading state_dict"):
            raise
        told = "; ".join(" ".join(line.split())[:160] for line in lines[:2])
        raise ConfigError(
            f"the weights in {path} are not those of this network: {told}",
            "a checkpoint as a training of this program wrote it",
            "give resume=PATH of another, or start anew with resume=none or another name=…",
        ) from None


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


def _settings(config: TrainConfig) -> dict[str, Any]:
    return _flat(to_plain(config.data), "data") | _flat(to_plain(config.loop), "loop")


class RunSettings(L.Callback):
    """Writes the configuration when a training begins, so that a refused one leaves the last one's.

    Checkpoints get the sections ``data`` and ``loop``. Where a step now takes another number of batches, the
    place in the epoch is counted in those.

    Args:
        config: Completed by the task.
        path: Where the configuration goes.
    """

    def __init__(self, config: TrainConfig, path: Path) -> None:
        self.config, self.path = config, path

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write it; checkpoint and data were accepted."""
        if trainer.is_global_zero:
            self.path.write_text(config_to_yaml(self.config), encoding="utf-8")

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add what the section of the task does not hold."""
        checkpoint[SETTINGS_KEY] = _settings(self.config)

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Count the epoch's batches as this run makes them: Lightning steps at every so many of them."""
        loops = checkpoint["loops"]["fit_loop"]
        (place,) = loops["state_dict"]["combined_loader"]
        done = loops["epoch_loop.batch_progress"]["current"]
        if place["samples"]:
            batches = place["samples"] * self.config.loop.accumulate // place["global_batch"]
            done |= {name: count + batches - done["ready"] for name, count in done.items()}


class OptimizerSettings(L.Callback):
    """Gives optimizers and schedules the configuration's values after a checkpoint has restored its own."""

    def __init__(self) -> None:
        self._configured: list[list[dict[str, Any]]] = []

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep what the configuration says, before a checkpoint is restored."""
        self._configured = [
            [
                {key: value for key, value in group.items() if key != "params"}
                for group in optimizer.param_groups
            ]
            for optimizer in trainer.optimizers
        ]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Apply learning rates, betas and weight decay; unchanged ones stay equal to the bit."""
        schedules = trainer.lr_scheduler_configs
        for optimizer, schedule, groups in zip(trainer.optimizers, schedules, self._configured, strict=True):
            scheduler = schedule.scheduler
            assert isinstance(scheduler, LambdaLR)
            bases = [group["initial_lr"] for group in groups]
            rates = [
                base * factor(scheduler.last_epoch)
                for base, factor in zip(bases, scheduler.lr_lambdas, strict=True)
            ]
            for group, configured, rate in zip(optimizer.param_groups, groups, rates, strict=True):
                group |= configured | {"lr": rate}
            scheduler.base_lrs, scheduler._last_lr = bases, rates


class MissedValidation(L.Callback):
    """Validates at the start where the run was stopped before its last step's validation was done.

    Lightning holds a validation that was due for done. To be listed last.

    Args:
        done: Whether it was done.
    """

    def __init__(self, done: bool) -> None:
        self.done = done

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Run it as Lightning would have done after the checkpoint's batch."""
        if trainer.strategy.broadcast(self.done) or not validation_due(trainer):
            return
        loop, connector = trainer.fit_loop.epoch_loop.val_loop, trainer._logger_connector
        first = connector._first_loop_iter
        loop.restarting, trainer.validating = False, True
        loop.run()
        trainer.training, connector._first_loop_iter = True, first
