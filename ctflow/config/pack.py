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
        avae_share: Share of that decoder's weights, 0 to 1; the rest is the source's decoder. In between the
            decoder keeps a part of what each of them learned (Wortsman et al. 2022).
        half: Store weights as float16: half the size, and 3 decimal digits of each weight.
        card: Markdown file that becomes the model card; empty: the source's own card.
        training: What the weights were trained on, in words, for the provenance record.
        sampling: Sampling recommended with the checkpoint; None keeps the source's value.
    """

    source: str = ""
    output: str = ""
    mean_with: str = ""
    avae: str = ""
    avae_share: float = 1.0
    half: bool = True
    card: str = ""
    training: str = ""
    sampling: SamplingChoice = field(default_factory=SamplingChoice)

    def __post_init__(self) -> None:
        if not 0 <= self.avae_share <= 1:
            raise ValueError(f"avae_share lies in [0, 1], found {self.avae_share}")
