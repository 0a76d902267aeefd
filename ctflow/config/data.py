"""Configuration of the streams over shards."""

from __future__ import annotations

from dataclasses import dataclass, field

from ctflow.config.commands import DEVICES, MAX_UNKNOWN
from ctflow.config.encoders import VolumeGrid

VIEWS = ("slices", "blocks", "volumes")
RECONSTRUCTIONS = ("soft", "sharp", "all")


@dataclass
class CaseChoice:
    """Which volumes of a set represent its patients in an evaluation.

    Attributes:
        reconstruction: ``soft`` or ``sharp``: one reconstruction of each scan, of this kind by its kernel;
            ``all``: every one.
        every_scan: Every scan of a patient; false: the first.
    """

    reconstruction: str = "soft"
    every_scan: bool = False

    def __post_init__(self) -> None:
        if self.reconstruction not in RECONSTRUCTIONS:
            raise ValueError(
                f"reconstruction is {', '.join(RECONSTRUCTIONS[:-1])} or {RECONSTRUCTIONS[-1]}, "
                f"found {self.reconstruction!r}"
            )


@dataclass
class DataConfig:
    """Configuration of the DataModule.

    Attributes:
        train: Folder of training shards; slice shards for ``slices`` and ``volumes`` (a training of another
            network than the FMvT then takes ``runs/shards/slices/…`` by default), latent ones else.
        valid: Folder of validation shards; empty: no validation.
        view: ``slices`` (A-VAE), ``blocks`` (FMvT) or ``volumes`` (embedded pair); a training takes its own.
        batch_size: Samples per process and micro-step.
        valid_batch_size: Samples per process and validation step; 0 takes ``batch_size``.
        num_workers: Loader processes; 0 reads in the training process.
        seed: Seed of the order and of the posterior noise; a training takes its own ``seed``.
        p_start: Probability that a training pair of ``blocks`` is (start block, first block): StartBoost.
        pairs: Read contrast pairs (two cases of a patient that differ in one finding) side by side; cases
            without partner are left out.
        redrawn: Folder of latent shards of training scans that ``data_prep.redraw`` made: ``slices`` reads
            them beside the images of the scans that it holds. Empty: none.
        differing_share: With ``pairs``, probability that a training block is drawn where the two differ.
        posterior_noise: Latents of ``blocks`` are the posterior's mean plus this many of its deviations of
            noise: 1 samples the posterior, 0 takes its mean.
        repeat: Times the data set is seen in one epoch; raised by itself where a set is smaller than a step.
        shuffle_shards: Shards mixed with each other at a time; reading stays within that many files.
        in_memory: Keep all arrays in memory (latents of 600 phantoms are 180 MB), where half of what is free
            holds them.
        max_valid_cases: Validation cases used, the first of the manifest; 0 takes all.
        valid_choice: Which scans and reconstructions of the validation shards are used; training draws a
            scan, then one of its reconstructions.
        grid: What ``volumes`` resamples to; the same as the volume tower's.
    """

    train: str = "runs/shards/latents/train"
    valid: str = "runs/shards/latents/valid"
    view: str = "blocks"
    batch_size: int = 16
    valid_batch_size: int = 0
    num_workers: int = 0
    seed: int = 0
    p_start: float = 0.15
    pairs: bool = False
    redrawn: str = ""
    differing_share: float = 0.5
    posterior_noise: float = 1.0
    repeat: int = 1
    shuffle_shards: int = 8
    in_memory: bool = False
    max_valid_cases: int = 0
    valid_choice: CaseChoice = field(default_factory=CaseChoice)
    grid: VolumeGrid = field(default_factory=VolumeGrid)

    def __post_init__(self) -> None:
        if self.view not in VIEWS:
            raise ValueError(f"view must be one of {', '.join(VIEWS)}, found {self.view!r}")
        if not 0.0 <= self.p_start <= 1.0:
            raise ValueError(f"p_start must be in [0, 1], found {self.p_start}")
        if not 0.0 <= self.differing_share <= 1.0:
            raise ValueError(f"differing_share must be in [0, 1], found {self.differing_share}")
        if self.pairs and (self.batch_size % 2 or self.valid_batch_size % 2):
            raise ValueError(
                f"pairs need even batch sizes, found {self.batch_size} and {self.valid_batch_size}"
            )
        if self.posterior_noise < 0:
            raise ValueError(f"posterior_noise must not be negative, found {self.posterior_noise}")
        for name in ("batch_size", "repeat", "shuffle_shards"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        for name in ("valid_batch_size", "num_workers", "max_valid_cases"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, found {getattr(self, name)}")


@dataclass
class EncodeConfig:
    """``python -m data_prep.encode``: slice shards to latent shards.

    Attributes:
        avae: Folder of the A-VAE, or of a checkpoint with one; empty: the newest run's in ``runs_dir``, else
            the embedded one.
        clip: Folder of the text encoder (CT-CLIP or the embedded pair), or of a checkpoint with one; empty:
            as for ``avae``.
        runs_dir: Where the runs lie.
        source: Folder of slice shards, or of such folders (``train``, ``valid``), which are all encoded.
        output: Folder of latent shards, with the sub-folders of ``source``; complete ones in it are kept.
        batch_slices: Slices per forward. A batch never leaves its volume: this decides the rounding, the
            number of processes does not.
        precision: ``fp32`` or ``bf16``.
        max_unknown: Largest share of a report's words that the text encoder does not know (another language).
            Reports beyond it are named, and refused if they are more than half of all; 1 refuses none.
        accelerator: Lightning's name: ``auto``, ``cpu``, ``gpu``.
        devices: Processes (CPU; one thread each, so that any number writes equal bytes) or devices (GPU).
        whitening: ``model`` takes the A-VAE's own; ``measured`` measures it on the first split of ``source``
            and writes an A-VAE with it to ``avae_output``, to be decoded with. One already there is used.
        avae_output: Folder for ``whitening=measured``.
        posteriors: Latent shards of the same slices and A-VAE: their posteriors are taken over and the
            reports alone are encoded, for another text encoder.
        part: Which share of the shards this run encodes, from 0; null: what SLURM's array, ``srun`` or
            ``torchrun`` say of the process, else all of them. Parts know nothing of each other.
        parts: Shares in all; null: as for ``part``.
    """

    avae: str = ""
    clip: str = ""
    runs_dir: str = "runs"
    source: str = "runs/shards/slices"
    output: str = "runs/shards/latents"
    batch_slices: int = 64
    precision: str = "fp32"
    max_unknown: float = MAX_UNKNOWN
    accelerator: str = "auto"
    devices: int = 1
    whitening: str = "model"
    avae_output: str = ""
    posteriors: str = ""
    part: int | None = None
    parts: int | None = None

    def __post_init__(self) -> None:
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"precision must be fp32 or bf16, found {self.precision!r}")
        if self.whitening not in ("model", "measured"):
            raise ValueError(f"whitening must be model or measured, found {self.whitening!r}")
        if (self.whitening == "measured") != bool(self.avae_output):
            raise ValueError(
                f"whitening=measured and avae_output=FOLDER go together, found {self.whitening!r} and "
                f"{self.avae_output!r}"
            )
        if self.batch_slices < 1 or self.devices < 1:
            raise ValueError(
                f"batch_slices and devices must be at least 1, found {self.batch_slices} and {self.devices}"
            )


@dataclass
class RedrawConfig:
    """``python -m data_prep.redraw``: latent shards as a checkpoint draws them.

    Attributes:
        checkpoint: Checkpoint folder, ``run:NAME`` or ``latest``; empty: the embedded checkpoint.
        source: Folder of latent shards of the checkpoint's A-VAE and text encoder.
        output: Folder of latent shards; complete ones in it are kept.
        most_steps: A volume is noised to the beginning of one of the last so many steps of the checkpoint's
            grid, drawn evenly, and solved from there. More steps leave less of the volume.
        seed: Seed of the noise and of the number of steps.
        device: ``auto`` (CUDA where there is one), ``cpu`` or ``cuda``.
        part: Which share of the shards this run redraws, from 0; null: what the scheduler says of the
            process, else all of them.
        parts: Shares in all; null: as for ``part``.
    """

    checkpoint: str = ""
    source: str = "runs/shards/latents/train"
    output: str = "runs/shards/redrawn/train"
    most_steps: int = 5
    seed: int = 0
    device: str = "auto"
    part: int | None = None
    parts: int | None = None

    def __post_init__(self) -> None:
        if self.most_steps < 1:
            raise ValueError(f"most_steps is at least 1, found {self.most_steps}")
        if self.device not in DEVICES:
            raise ValueError(f"device is one of {DEVICES}, found {self.device!r}")


@dataclass
class CheckConfig:
    """``python -m data_prep.check DIR``: checksums, manifest, statistics, contact sheet.

    Attributes:
        columns: Volumes on the contact sheet, evenly spread over the set.
    """

    columns: int = 6

    def __post_init__(self) -> None:
        if self.columns < 1:
            raise ValueError(f"columns must be at least 1, found {self.columns}")


@dataclass
class MergeConfig:
    """``python -m data_prep.merge NAME=DIR NAME=DIR …``: several encoded data sets in one.

    Attributes:
        output: New folder of latent shards.
    """

    output: str = "runs/merged/latents"
