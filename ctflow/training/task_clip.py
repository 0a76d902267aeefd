"""The embedded pair's training as a task: volumes and reports in, a sharing folder with vocabulary out."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import lightning as L

from ctflow.checkpoint import load_tokenizer, save_ctclip
from ctflow.config.training import TrainConfig
from ctflow.data import LatentDataModule, SliceShards
from ctflow.errors import ConfigError
from ctflow.files import write_text
from ctflow.models.text import clean_text
from ctflow.models.tokenizer import train_wordpiece
from ctflow.training.contrastive import ClipModule
from ctflow.training.runs import Run, first_process
from ctflow.training.task import card

TOKENIZER_FILE = "tokenizer.json"


def train_vocabulary(config: TrainConfig, path: Path) -> None:
    """Train the WordPiece vocabulary on the training reports and write it whole or not at all."""
    shards = SliceShards(config.data.train)
    reports = [clean_text(shards.metadata(i)["report"]) for i in range(len(shards))]
    reports = [report for report in reports if report]
    if not reports:
        raise ConfigError(
            f"no case in {config.data.train} has a report",
            "reports to train the pair on",
            "give --reports to data_prep.ct_rate, or leave this training out: the embedded pair is then used",
        )
    limit = config.clip.network.max_tokens
    tokenizer = train_wordpiece(reports, config.clip.vocabulary_size, limit)
    write_text(path, tokenizer.to_json())


def wait_for(path: Path, seconds: float = 600.0) -> None:
    """Wait until the first process has written ``path``.

    Raises:
        ConfigError: It did not come.
    """
    until = time.monotonic() + seconds
    while not path.is_file():
        if time.monotonic() > until:
            raise ConfigError(f"no {path} after {seconds:.0f} s", "the first process to write it")
        time.sleep(0.2)


def label_names(config: TrainConfig) -> list[str]:
    """The label columns that training and validation shards share.

    Raises:
        ConfigError: They differ.
    """
    names = []
    for folder in filter(None, (config.data.train, config.data.valid)):
        shards = SliceShards(folder)
        names.append(sorted({name for i in range(len(shards)) for name in shards.metadata(i)["labels"]}))
    if names[0] != names[-1]:
        raise ConfigError(
            f"training labels {names[0]} and validation labels {names[-1]} differ",
            "the same label columns in both splits",
            "prepare both splits with the same label CSVs",
        )
    return names[0]


class ClipTraining:
    """The embedded pair from slice shards with reports and labels."""

    def prepare(self, config: TrainConfig, run: Run) -> TrainConfig:
        """Learn the vocabulary from the training reports (once per run) and fit the text tower to it."""
        label_names(config)  # before anything is written
        network = config.clip.network
        path = run.tokenizer / TOKENIZER_FILE
        if first_process() and not path.is_file():
            train_vocabulary(config, path)
        wait_for(path)
        size = load_tokenizer(run.tokenizer, network.max_tokens).vocab_size
        network = replace(network, bert=replace(network.bert, vocab_size=size))
        return replace(config, clip=replace(config.clip, network=network))

    def data(self, config: TrainConfig) -> LatentDataModule:
        """Whole volumes on the image tower's grid."""
        grid = config.clip.network.grid
        return LatentDataModule(replace(config.data, view="volumes", seed=config.seed, grid=grid))

    def module(self, config: TrainConfig, run: Run) -> ClipModule:
        """The pair with its label heads."""
        text = (run.tokenizer / TOKENIZER_FILE).read_text(encoding="utf-8")
        return ClipModule(config.clip, text, label_names(config), config.seed)

    def callbacks(self, config: TrainConfig, run: Run) -> list[L.Callback]:
        """None of its own."""
        return []

    def gradient_clip(self, config: TrainConfig) -> float:
        """As configured."""
        return config.clip.gradient_clip

    def export(self, config: TrainConfig, run: Run, checkpoint: Path) -> None:
        """The averaged pair and its tokenizer."""
        module = ClipModule.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True)
        text = card("Embedded pair of text and volume encoder", config, module.updates)
        save_ctclip(run.export, module.trained.eval(), module.tokenizer, card=text)
