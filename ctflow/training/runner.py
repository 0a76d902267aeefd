"""One training run from a configuration: folder, data, module, trainer, export."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import Strategy

from ctflow.config.training import TrainConfig
from ctflow.data import LatentDataModule
from ctflow.data.stream import EvaluationLoader
from ctflow.errors import ConfigError
from ctflow.outputs import check_writable
from ctflow.processes import leave_group_at_exit, log_threads
from ctflow.training.base import CountingModule
from ctflow.training.callbacks import LearningRate, Limits, PeriodicCheckpoint, SeedEachBatch, remove_partial
from ctflow.training.checkpoint_io import BesideTarget
from ctflow.training.cluster import check_cluster, first_process
from ctflow.training.curves import CurveFile
from ctflow.training.fitting import fitted_to_data
from ctflow.training.precision import resolve_precision
from ctflow.training.progress import RunProgress
from ctflow.training.resuming import (
    MissedValidation,
    OptimizerSettings,
    RunSettings,
    naming_wrong_weights,
    resumed_step,
)
from ctflow.training.runs import CONFIG_FILE, Run, held, locate_run
from ctflow.training.signals import StopOnSignal, ending_with_status
from ctflow.training.tasks import TASKS, Task
from ctflow.training.throughput import DataClock, Throughput

log = logging.getLogger("ctflow")

NAME_VARIABLE = "CTFLOW_RUN_NAME"
"""Carries the run's name to the processes Lightning starts for further devices."""


def run_training(config: TrainConfig, make_data: Callable[[TrainConfig], TrainConfig]) -> Run:
    """Train (unless ``export_only``) and write the sharing folder.

    Args:
        config: The run.
        make_data: Makes the data that are missing, before any are opened; returns the configuration that fits
            them.

    Returns:
        The run; its ``export`` folder holds the result.

    Raises:
        ConfigError: A combination that does not work, or nothing to resume from or to export.
        CTFlowError: Data or weights that do not fit.
    """
    config = replace(config, name=config.name or os.environ.get(NAME_VARIABLE, ""))
    check_cluster(config.loop.devices, config.loop.nodes, bool(config.name))
    device_type(config.loop.accelerator)
    run = locate_run(config)
    check_writable(run.folder)
    os.environ[NAME_VARIABLE] = run.folder.name
    task = TASKS[config.task]
    try:
        with ending_with_status():
            config = make_data(config)
            if config.export_only:
                assert run.checkpoint is not None
                _export(task.prepare(config, run), run, task, run.checkpoint)
                return run
            with held(run.folder) if first_process() else nullcontext():
                _train(config, run, task)
            return run
    finally:
        del os.environ[NAME_VARIABLE]


def _train(config: TrainConfig, run: Run, task: Task) -> None:
    """Fit and, in the first process, export."""
    config = task.prepare(config, run)
    from_disk = replace(config, data=replace(config.data, in_memory=False))
    config = fitted_to_data(config, task.data(from_disk))
    step = resumed_step(config, run.checkpoint) if run.checkpoint else 0
    data = task.data(config)
    log.info("run folder %s%s", run.folder, f", resuming {run.checkpoint}" if run.checkpoint else "")
    log_threads()
    if fit(config, run, task, data, step).is_global_zero:
        _export(config, run, task, run.last)


def _export(config: TrainConfig, run: Run, task: Task, checkpoint: Path) -> None:
    task.export(config, run, checkpoint)
    log.info("exported to %s", run.export)


def quiet_lightning() -> None:
    """Keep Lightning's greetings out of the output; its warnings stay, but for two."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    # The moving average is meant to be in evaluation mode; PyTorch renamed LeafSpec.
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")


def fit(config: TrainConfig, run: Run, task: Task, data: LatentDataModule, step: int) -> L.Trainer:
    """Train from the run's checkpoint (at ``step``), or from scratch, to a limit; ``last.ckpt`` is current.

    Raises:
        Stopped: A signal asked for it; ``last.ckpt`` is current too.
    """
    quiet_lightning()
    torch.set_float32_matmul_precision("high")
    L.seed_everything(config.seed, workers=True, verbose=False)
    module = task.module(config, run)
    if config.loop.compile:
        module.compile_networks()
    remove_partial(run.folder)
    trainer = build_trainer(config, run, task, module, validation_batches(config, data), step)
    checkpoint = str(run.checkpoint) if run.checkpoint else None
    stop = next(callback for callback in trainer.callbacks if isinstance(callback, StopOnSignal))  # type: ignore[attr-defined]
    # Lightning's own handlers end a training with status 0 and save nothing.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    leave_group_at_exit()
    with stop.listening(), naming_wrong_weights(run.checkpoint):
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    return trainer


def validation_batches(config: TrainConfig, data: LatentDataModule) -> int:
    """Most batches of a validation: with a sharded network as many as the process with the fewest has.

    Every forward of a sharded network is a collective; a process with one batch more would wait for ever.

    Raises:
        ConfigError: A process would have none; it would skip the validation, where the others wait for it.
    """
    ranks = config.loop.devices * config.loop.nodes
    if not config.data.valid or not config.loop.val_batches:
        return 0
    if ranks == 1:
        return config.loop.val_batches
    size, view = data.config.valid_batch_size or data.config.batch_size, data.view("valid")
    loaders = [EvaluationLoader(view, batch_size=size, rank=rank, world_size=ranks) for rank in range(ranks)]
    least = min(map(len, loaders))
    if not least:
        raise ConfigError(
            f"{config.data.valid} has {len(view.scans)} validation cases for {ranks} processes",
            "a case for every process",
            "give more cases, fewer processes, or data.valid= (no validation)",
        )
    return min(config.loop.val_batches, least) if config.loop.strategy == "fsdp" else config.loop.val_batches


def build_trainer(
    config: TrainConfig, run: Run, task: Task, module: CountingModule, val_batches: int, step: int
) -> L.Trainer:
    """Lightning's Trainer as every task uses it; limits, checkpoints and curves are callbacks of ours."""
    loop = config.loop
    accelerator = device_type(loop.accelerator)
    checkpoints = PeriodicCheckpoint(run.folder, loop.checkpoint_every, loop.checkpoint_minutes)
    clock = DataClock()
    callbacks: list[L.Callback] = [
        RunSettings(config, run.folder / CONFIG_FILE),
        OptimizerSettings(),
        Throughput(clock, loop.log_every * loop.accumulate),
        SeedEachBatch(),
        LearningRate(),
        *task.callbacks(config, run),
        Limits(loop.max_steps, loop.max_minutes),
        checkpoints,
        StopOnSignal(checkpoints),
    ]
    curves = CurveFile(run.folder, step)
    if step:
        callbacks.append(MissedValidation(curves.validated))
    if loop.progress:
        callbacks.append(RunProgress(loop.max_steps, loop.max_minutes))
    logged = run.folder / "tensorboard"
    # What was logged after the checkpoint, or before a start from scratch, is logged again.
    purge = {"purge_step": step} if logged.is_dir() else {}
    board = TensorBoardLogger(logged, name="", version="", **purge)
    clip = task.gradient_clip(config) if module.automatic_optimization else 0.0
    return L.Trainer(
        accelerator="gpu" if accelerator == "cuda" else accelerator,
        devices=loop.devices,
        num_nodes=loop.nodes,
        strategy=build_strategy(config),
        precision=resolve_precision(loop.precision, accelerator),  # type: ignore[arg-type]
        max_epochs=-1,
        accumulate_grad_batches=loop.accumulate,
        gradient_clip_val=clip or None,
        val_check_interval=loop.val_every,
        check_val_every_n_epoch=None,
        limit_val_batches=val_batches,
        num_sanity_val_steps=0,
        log_every_n_steps=loop.log_every,
        logger=[board, curves],
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=loop.progress,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=run.folder,
        plugins=[BesideTarget()],
        profiler=clock,
    )


def device_type(accelerator: str) -> str:
    """``cuda`` or ``cpu`` for Lightning's accelerator names."""
    if accelerator == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if accelerator in ("gpu", "cuda"):
        if not torch.cuda.is_available():
            raise ConfigError(
                "loop.accelerator=gpu on a machine without a CUDA device", "", "leave accelerator=auto"
            )
        return "cuda"
    return accelerator


def build_strategy(config: TrainConfig) -> str | Strategy:
    """The strategy for one or many processes.

    Parameters may go without a gradient (the discriminator before its start, queries of single-token
    cross-attention, nulls that no sample of a batch used), so DDP looks for unused ones.
    """
    many = config.loop.devices * config.loop.nodes > 1
    if config.loop.strategy == "fsdp":
        from lightning.pytorch.strategies import ModelParallelStrategy

        return ModelParallelStrategy(
            data_parallel_size=config.loop.devices * config.loop.nodes,
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
        )
    return "ddp_find_unused_parameters_true" if many or config.loop.strategy == "ddp" else "auto"
