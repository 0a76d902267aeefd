"""The embedded pair's training as a task: volumes and reports in, a sharing folder with vocabulary out."""

from __future__ import annotations

import logging
import shutil
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import lightning as L

from ctflow.checkpoint import load_ctclip, load_tokenizer, save_ctclip
from ctflow.config.training import TrainConfig
from ctflow.data import LatentDataModule, SliceShards
from ctflow.errors import ConfigError
from ctflow.files import write_text
from ctflow.models.text import clean_text
from ctflow.models.tokenizer import train_wordpiece
from ctflow.training.checkpoint_io import read_checkpoint
from ctflow.training.cluster import first_process
from ctflow.training.columns import Columns, mine
from ctflow.training.contrastive import ClipModule
from ctflow.training.runs import Run
from ctflow.training.task import card

log = logging.getLogger("ctflow")

SENTENCE_ENDS = (".", "!", "?", ";")
TOKENIZER_FILE = "tokenizer.json"


def write_vocabulary(config: TrainConfig, path: Path) -> None:
    """Write the vocabulary whole or not at all: that of ``init_from``, or one of the training reports."""
    limit = config.clip.network.max_tokens
    if config.clip.init_from:
        tokenizer = load_tokenizer(config.clip.init_from, limit)
    else:
        tokenizer = train_wordpiece(training_reports(config), config.clip.vocabulary_size, limit)
    write_text(path, tokenizer.to_json())


def training_reports(config: TrainConfig) -> list[str]:
    """The training reports that have words, cleaned.

    Raises:
        ConfigError: There are none.
    """
    shards = SliceShards(config.data.train)
    reports = [clean_text(shards.metadata(i)["report"]) for i in range(len(shards))]
    reports = [report for report in reports if report]
    if not reports:
        raise ConfigError(
            f"no case in {config.data.train} has a report",
            "reports to train the pair on",
            "give --reports to data_prep.ct_rate, or leave this training out: the embedded pair is then used",
        )
    return reports


def reports_of_patients(shards: SliceShards) -> dict[str, list[str]]:
    """By case the reports of the same patient's other scans."""
    patients: dict[str, list[int]] = defaultdict(list)
    for i in range(len(shards)):
        patients[shards.cases[i].patient_id].append(i)
    reports = [shards.metadata(i)["report"] for i in range(len(shards))]
    return {
        shards.cases[i].case_id: others
        for group in patients.values()
        for i in group
        if (others := [reports[j] for j in group if j != i and reports[j] != reports[i]])
    }


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


def columns_of_run(checkpoint: Path, names: list[str]) -> Columns:
    """The columns that a run began with: its heads answer these, whatever reports it goes on with.

    Args:
        checkpoint: That the run goes on from.
        names: The label columns of the data.

    Raises:
        ConfigError: The run began with other label columns.
    """
    hyper = read_checkpoint(checkpoint)["hyper_parameters"]
    if hyper["label_names"] != names:
        raise ConfigError(
            f"the data have the label columns {names}",
            f"those that {checkpoint} was trained with: {hyper['label_names']}",
            "prepare the data with the same label CSVs, or start a new run with another name=…",
        )
    return Columns(**hyper["columns"])


class ClipTraining:
    """The embedded pair from slice shards with reports and labels."""

    def prepare(self, config: TrainConfig, run: Run) -> TrainConfig:
        """Write the run's vocabulary (once) and fit the text tower to it, or take ``init_from``'s network."""
        label_names(config)  # before anything is written
        width = config.clip.network.adapter_width
        if config.clip.init_from:
            network = load_ctclip(config.clip.init_from).config
            network = replace(network, adapter_width=width or network.adapter_width)
            config = replace(config, clip=replace(config.clip, network=network))
        elif width:
            raise ConfigError(
                f"clip.network.adapter_width={width} without weights to adapt", "clip.init_from=FOLDER"
            )
        network = config.clip.network
        path = run.tokenizer / TOKENIZER_FILE
        beside = run.checkpoint.parent / run.tokenizer.name / TOKENIZER_FILE if run.checkpoint else path
        if first_process() and not path.is_file() and beside.is_file():  # a run goes on under another name
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(beside, path)
        if first_process() and not path.is_file():
            write_vocabulary(config, path)
        wait_for(path)
        tokenizer = load_tokenizer(run.tokenizer, network.max_tokens)
        if config.clip.sentence_attention and not network.adapter_width:
            ids = [tokenizer.backend.token_to_id(stop) for stop in SENTENCE_ENDS]
            network = replace(network, sentence_ends=[i for i in ids if i is not None])
        if not config.clip.init_from:
            network = replace(network, bert=replace(network.bert, vocab_size=tokenizer.vocab_size))
        return replace(config, clip=replace(config.clip, network=network))

    def data(self, config: TrainConfig) -> LatentDataModule:
        """Whole volumes on the image tower's grid; with an adapter they are not used."""
        grid = config.clip.network.grid
        if config.clip.network.adapter_width:
            grid = replace(grid, shape=[1, 1, 1], spacing_mm=[10.0, 10.0, 10.0])
        return LatentDataModule(replace(config.data, view="volumes", seed=config.seed, grid=grid))

    def module(self, config: TrainConfig, run: Run) -> ClipModule:
        """The pair with the heads of its training; from ``init_from`` where a run begins."""
        text = (run.tokenizer / TOKENIZER_FILE).read_text(encoding="utf-8")
        reports, names = training_reports(config), label_names(config)
        if run.checkpoint is None:
            columns = mine(reports, config.clip.column_least)
        else:
            columns = columns_of_run(run.checkpoint, names)
        log.info("%d columns and %d sizes mined from the reports", len(columns.stated), len(columns.sizes))
        module = ClipModule(config.clip, text, names, columns, config.seed)
        module.reports = reports
        module.others = reports_of_patients(SliceShards(config.data.train))
        if config.clip.init_from and run.checkpoint is None:
            clip = module.network.clip
            clip.load_state_dict(clip.state_dict() | load_ctclip(config.clip.init_from).state_dict())
        return module

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
