"""Configuration of ``python -m ctflow.pack``."""

from __future__ import annotations

from dataclasses import dataclass, field

from ctflow.config.commands import SamplingChoice


@dataclass
class PackConfig:
    """Keys of ``python -m ctflow.pack``.

    Attributes:
        source: Checkpoint folder of a run (``runs/flow/<name>/export``).
        output: Folder to write.
        mean_with: Checkpoint folder of another training of the same FMvT; the weights written are the mean of
            both (Wortsman et al. 2022), which often keeps what each of them learned. Empty: the source's own.
        avae: Folder of an A-VAE with the source's encoder and whitening, whose decoder was trained on; it is
            packed in place of the source's. Empty: the source's own.
        half: Store weights as float16: half the size, and 3 decimal digits of each weight.
        card: Markdown file that becomes the model card; empty: the source's own card.
        training: What the weights were trained on, in words, for the provenance record.
        sampling: Sampling recommended with the checkpoint; None keeps the source's value.
    """

    source: str = ""
    output: str = ""
    mean_with: str = ""
    avae: str = ""
    half: bool = True
    card: str = ""
    training: str = ""
    sampling: SamplingChoice = field(default_factory=SamplingChoice)
