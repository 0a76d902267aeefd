"""Configuration of ``python -m ctflow.bench``."""

from __future__ import annotations

from dataclasses import dataclass, field

GROUPS = ("fmvt", "avae", "steps", "stream", "frechet", "ingest", "beside", "generation", "memory")
SIZES = ("tiny", "S", "B", "L")


@dataclass
class BenchConfig:
    """Keys of ``make bench`` (``ARGS="key=value …"``).

    Attributes:
        rows: What is measured: ``fmvt``, ``avae``, ``steps``, ``stream``, ``frechet``, ``ingest``, ``beside``
            (decoding beside the solver), ``generation``, ``memory`` (of a training, counted without one).
        sizes: Published sizes of the FMvT: ``S``, ``B``, ``L``; ``tiny`` is for tests.
        batch_size: Blocks per FMvT call.
        repeats: Pairs of stage and reference; medians count.
        precisions: ``fp32`` and ``bf16`` (autocast).
        peak_side: Side of the square matrices that the peak is measured with.
        checkpoint: As for ``ctflow generate``; its A-VAE and FMvT are timed.
        image_size: Rows and columns of the slices that its A-VAE is timed on.
        student: Checkpoint folder of a student; a block in its own sampling is then compared with the
            checkpoint's; empty: ``few_steps`` of the checkpoint itself.
        few_steps: Euler steps of a block that are compared where there is no student.
        many_steps: Euler steps of the reference, as published.
        latent_side: Rows and columns of the latents in the shards that are streamed.
        volume_slices: Slices of a volume in them.
        frechet_dimensions: Width of the features.
        ingest_volumes: Phantoms that are ingested.
        lengths: Slices of generated volumes.
        batches: Volumes side by side.
        steps: Solver steps per block.
        generation_steps: Solver steps where lengths and batches are compared.
        output: JSON written at the end, with a Markdown table in the same folder.
    """

    rows: list[str] = field(default_factory=lambda: list(GROUPS))
    sizes: list[str] = field(default_factory=lambda: ["S", "B", "L"])
    batch_size: int = 1
    repeats: int = 5
    precisions: list[str] = field(default_factory=lambda: ["fp32", "bf16"])
    peak_side: int = 2048
    checkpoint: str = ""
    image_size: int = 128
    student: str = ""
    few_steps: int = 4
    many_steps: int = 200
    latent_side: int = 32
    volume_slices: int = 256
    frechet_dimensions: int = 2048
    ingest_volumes: int = 8
    lengths: list[int] = field(default_factory=lambda: [64, 128, 256, 512, 1024])
    batches: list[int] = field(default_factory=lambda: [2, 4])
    steps: list[int] = field(default_factory=lambda: [4, 20])
    generation_steps: int = 2
    output: str = "runs/bench.json"

    def __post_init__(self) -> None:
        numbers = [self.batch_size, self.repeats, self.peak_side, self.image_size, self.few_steps]
        numbers += [self.many_steps, self.latent_side, self.volume_slices, self.frechet_dimensions]
        numbers += [self.ingest_volumes, self.generation_steps, *self.lengths, *self.batches, *self.steps]
        if min(numbers) < 1 or not self.lengths:
            raise ValueError(f"sizes, steps and repeats are at least 1, found {self}")
        choices = {"rows": GROUPS, "sizes": SIZES, "precisions": ("fp32", "bf16")}
        for name, known in choices.items():
            if strange := set(getattr(self, name)) - set(known):
                raise ValueError(f"{name} are of {known}, found {sorted(strange)}")
