"""Configuration of ``python -m ctflow.train``: one schema for the three trainings."""

from __future__ import annotations

from dataclasses import dataclass, field

from ctflow.config.data import DataConfig
from ctflow.config.tasks import TASKS, AutoencoderTask, ClipTask, FlowTask


@dataclass
class LoopConfig:
    """How long and on what a training runs.

    Attributes:
        max_steps: Optimizer steps (of the trained network) at which it ends.
        max_minutes: Wall-clock minutes of this process after which it ends; 0: no limit.
        val_every: Training batches between validations.
        val_batches: Most batches of a validation per process.
        log_every: Optimizer steps between logged values.
        checkpoint_every: Optimizer steps between checkpoints; 0: by time alone.
        checkpoint_minutes: Minutes between checkpoints; 0: by steps alone.
        accelerator: Lightning's name: ``auto``, ``cpu``, ``gpu``.
        devices: Processes on each machine.
        nodes: Machines.
        strategy: ``auto``, ``ddp`` or ``fsdp`` (FSDP2; FMvT only).
        precision: ``auto`` (bfloat16 where the processor has it), ``bf16-mixed``, ``32-true``.
        accumulate: Batches per optimizer step; batch × devices × accumulate is the global batch.
        compile: Compile the network (worth it on a GPU).
        progress: Show a progress bar.
    """

    max_steps: int = 10_000
    max_minutes: float = 0.0
    val_every: int = 500
    val_batches: int = 16
    log_every: int = 10
    checkpoint_every: int = 500
    checkpoint_minutes: float = 10.0
    accelerator: str = "auto"
    devices: int = 1
    nodes: int = 1
    strategy: str = "auto"
    precision: str = "auto"
    accumulate: int = 1
    compile: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        positive = (self.max_steps, self.val_every, self.log_every, self.devices, self.nodes, self.accumulate)
        if min(positive) < 1 or min(self.max_minutes, self.checkpoint_minutes, self.checkpoint_every) < 0:
            raise ValueError(
                f"steps, devices and accumulate must be at least 1, minutes not negative, found {self}"
            )
        if self.strategy not in ("auto", "ddp", "fsdp"):
            raise ValueError(f"strategy must be auto, ddp or fsdp, found {self.strategy!r}")
        if self.precision not in ("auto", "bf16-mixed", "32-true"):
            raise ValueError(f"precision must be auto, bf16-mixed or 32-true, found {self.precision!r}")


@dataclass
class DefaultDataConfig:
    """Phantoms that the default shards are made from, where those are missing.

    Attributes:
        make: Whether to make them.
        volumes: Number of phantoms.
        size: Rows and columns.
        z_spacing: Millimetres between slices.
        seed: Seed of the set.
    """

    make: bool = True
    volumes: int = 64
    size: int = 128
    z_spacing: float = 4.0
    seed: int = 0


@dataclass
class TrainConfig:
    """One training run.

    Attributes:
        task: ``autoencoder``, ``clip`` or ``flow``: which of the sections below counts.
        name: Folder of the run under ``runs_dir/task``; empty: date and time.
        runs_dir: Where runs go.
        resume: ``auto`` (the run folder's own last checkpoint, if any), a path of a checkpoint, or ``none``.
        export_only: Train nothing; write the sharing folder from the checkpoint that ``resume`` finds.
        seed: Seeds initialisation, order of the data and every random number of training.
        default_data: Phantoms for the default shards.
        loop: Length, device, precision, checkpoints.
        data: Shards and batches.
        autoencoder: The A-VAE.
        clip: The embedded pair.
        flow: The FMvT.
    """

    task: str = "autoencoder"
    name: str = ""
    runs_dir: str = "runs"
    resume: str = "auto"
    export_only: bool = False
    seed: int = 0
    default_data: DefaultDataConfig = field(default_factory=DefaultDataConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    data: DataConfig = field(default_factory=DataConfig)
    autoencoder: AutoencoderTask = field(default_factory=AutoencoderTask)
    clip: ClipTask = field(default_factory=ClipTask)
    flow: FlowTask = field(default_factory=FlowTask)

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"task must be one of {', '.join(TASKS)}, found {self.task!r}")
        if self.task != "flow":  # the schema's default shards are those of the FMvT
            for split in ("train", "valid"):
                if getattr(self.data, split) == f"runs/shards/latents/{split}":
                    setattr(self.data, split, f"runs/shards/slices/{split}")
        if self.loop.strategy == "fsdp" and self.flow.optimizer.name == "muon":
            raise ValueError(
                "Muon needs whole matrices, FSDP2 shards them: give flow.optimizer.name=adamw, "
                "or loop.strategy=ddp"
            )
        if self.loop.strategy == "fsdp" and self.flow.student.teacher:
            raise ValueError(
                "a student's own steps differ in number from process to process, which FSDP2 does not allow: "
                "give loop.strategy=ddp"
            )
        if self.task == "autoencoder" and (self.loop.accumulate > 1 or self.loop.strategy == "fsdp"):
            raise ValueError(
                "the A-VAE trains with two optimizers: accumulate=1 and strategy auto or ddp, found "
                f"accumulate={self.loop.accumulate}, strategy={self.loop.strategy}"
            )
