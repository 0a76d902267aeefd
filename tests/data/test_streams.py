"""The loaders: equal shares, every case once, resumable in mid-epoch, with Lightning and without."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from ctflow.config.data import CaseChoice, DataConfig
from ctflow.data import LatentDataModule, LatentShards
from ctflow.data.stream import EvaluationLoader, TrainLoader
from ctflow.data.views import BlockView
from ctflow.errors import ConfigError

LENGTHS = [20, 33, 16, 50, 7, 40, 64]
BLOCKS = 2 + 3 + 2 + 4 + 1 + 3 + 5


def key(batch):
    """What identifies the samples of a batch, their noise included."""
    return [
        (case, first, round(float(target.sum()), 4))
        for case, first, target in zip(batch.case_id, batch.position.tolist(), batch.target, strict=True)
    ]


def loader(folder, **settings):
    view = BlockView(LatentShards(folder), seed=5, p_start=0.2)
    return TrainLoader(view, **{"batch_size": 4, "seed": 5, "shuffle_shards": 2, **settings})


def epochs(stream, count):
    found = []
    for epoch in range(count):
        stream.set_epoch(epoch)
        found += [key(batch) for batch in stream]
    return found


def test_an_epoch_has_its_length_and_differs_from_the_next(make_latents):
    stream = loader(make_latents(LENGTHS))
    assert len(stream.view) == BLOCKS and len(stream) == BLOCKS // 4
    found = epochs(stream, 2)
    assert len(found) == 2 * len(stream)
    assert found[: len(stream)] != found[len(stream) :]
    assert found == epochs(loader(stream.view.shards.folder), 2)


def test_two_ranks_share_the_samples_of_one(make_latents):
    folder = make_latents(LENGTHS)
    whole = epochs(loader(folder, batch_size=6), 3)
    halves = [epochs(loader(folder, batch_size=3, rank=rank, world_size=2), 3) for rank in (0, 1)]
    micro = epochs(loader(folder, batch_size=3, accumulate=2), 3)
    assert [sorted(step) for step in whole] == [sorted(a + b) for a, b in zip(*halves, strict=True)]
    assert [sorted(step) for step in whole] == [
        sorted(a + b) for a, b in zip(micro[::2], micro[1::2], strict=True)
    ]


def test_worker_processes_change_nothing(make_latents):
    folder = make_latents(LENGTHS)
    assert epochs(loader(folder, num_workers=2), 1) == epochs(loader(folder), 1)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("consumed", [3, 5])
def test_a_stream_goes_on_in_mid_epoch(make_latents, num_workers, consumed):
    folder = make_latents(LENGTHS)
    whole = epochs(loader(folder), 2)
    stopped = loader(folder, num_workers=num_workers)
    iterator = iter(stopped)
    assert [key(next(iterator)) for _ in range(consumed)] == whole[:consumed]
    state = stopped.state_dict()
    del iterator
    resumed = loader(folder, num_workers=num_workers)
    resumed.load_state_dict(state)
    rest = [key(batch) for batch in resumed]
    resumed.set_epoch(resumed.epoch)
    if consumed < len(stopped):
        assert rest == whole[consumed : len(stopped)]
        assert resumed.state_dict()["epoch"] == 1
    else:
        assert rest == whole[len(stopped) :], "a finished epoch resumes with the next one"


def test_a_place_is_kept_when_the_ranks_change_and_refused_when_the_data_do(make_latents):
    folder = make_latents(LENGTHS)
    one = loader(folder, batch_size=4)
    iterator = iter(one)
    for _ in range(3):
        next(iterator)
    state = one.state_dict()
    two = loader(folder, batch_size=2, world_size=2)
    two.load_state_dict(state)
    assert two.position == 3
    with pytest.raises(ConfigError, match="global_batch=4, now global_batch=8"):
        loader(folder, batch_size=8).load_state_dict(state)
    loader(folder, batch_size=8).load_state_dict(state | {"samples": 0})


def test_repeat_makes_small_sets_long_enough(make_latents):
    folder = make_latents([20])
    with pytest.raises(ConfigError, match="raise data"):
        loader(folder)
    stream = loader(folder, repeat=6)
    assert len(stream) == 3 and len(epochs(stream, 1)) == 3


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 0), (3, 0), (9, 0), (2, 2)])
def test_evaluation_sees_every_block_of_every_case_once(make_latents, world_size, num_workers):
    view = BlockView(LatentShards(make_latents(LENGTHS)), seed=5, p_start=0.2)
    ranks = [
        EvaluationLoader(view, batch_size=4, rank=r, world_size=world_size, num_workers=num_workers)
        for r in range(world_size)
    ]
    per_rank = [[sample for batch in rank for sample in key(batch)] for rank in ranks]
    found = Counter((case, first) for rank in per_rank for case, first, _ in rank)
    assert len(found) == BLOCKS and set(found.values()) == {1}
    cases = [{case for case, _, _ in rank} for rank in per_rank]
    assert sum(len(c) for c in cases) == len(LENGTHS), "a case lies on one rank"
    assert [len(list(rank)) for rank in ranks] == [len(rank) for rank in ranks]


class Recorder(LightningModule):
    """Trains one number and writes down what it saw."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen, self.validated = [], []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, key(batch)))
        return (self.weight - batch.target.mean()) ** 2

    def validation_step(self, batch, batch_idx):
        self.validated.append(key(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Stop(Callback):
    def __init__(self, after):
        self.after = after

    def on_train_batch_end(self, trainer, pl_module, *args):
        if len(pl_module.seen) == self.after:
            raise KeyError("stop")


def fit(folder, path, resume=None, stop=None, num_workers=0, **settings):
    config = DataConfig(
        train=str(folder),
        valid=str(folder),
        batch_size=4,
        seed=5,
        p_start=0.2,
        num_workers=num_workers,
        valid_choice=CaseChoice(every_scan=True),
    )
    module = Recorder()
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(path, "{step}", every_n_train_steps=1, save_top_k=-1), Stop(stop)],
        **{"max_epochs": 3, "limit_val_batches": 0, **settings},
    )
    try:
        trainer.fit(module, LatentDataModule(config), ckpt_path=resume)
    except KeyError:
        assert stop is not None
    return module


@pytest.mark.parametrize(
    ("stop", "from_step", "settings"),
    [
        (7, 6, {}),  # in mid-epoch, one batch is lost and seen again
        (6, 5, {}),  # at the very end of an epoch
        (5, 4, {}),
        (8, 7, {"max_epochs": -1, "max_steps": 13}),
        (6, 5, {"max_epochs": -1, "max_steps": 13, "num_workers": 2}),
    ],
)
def test_a_run_stopped_anywhere_sees_the_same_samples_after_resuming(
    make_latents, tmp_path, stop, from_step, settings
):
    folder = make_latents(LENGTHS)
    whole = fit(folder, tmp_path / "whole", **settings)
    steps_per_epoch = BLOCKS // 4
    assert steps_per_epoch == 5 and len(whole.seen) == (13 if "max_steps" in settings else 15)
    stopped = fit(folder, tmp_path / "cut", stop=stop, **settings)
    assert stopped.seen == whole.seen[:stop]
    resumed = fit(folder, tmp_path / "cut", resume=tmp_path / "cut" / f"step={from_step}.ckpt", **settings)
    assert resumed.seen == whole.seen[from_step:]
    assert torch.equal(resumed.weight, whole.weight)


def test_lightning_validates_every_case_and_accumulates_whole_global_batches(make_latents, tmp_path):
    folder = make_latents(LENGTHS)
    settings = {
        "max_epochs": 1,
        "limit_val_batches": 1.0,
        "num_sanity_val_steps": 0,
        "accumulate_grad_batches": 2,
    }
    module = fit(folder, tmp_path, **settings)
    assert len(module.seen) == 4, "5 batches hold two optimizer steps of two"
    assert len({sample[:2] for batch in module.validated for sample in batch}) == BLOCKS


def test_validation_may_use_the_first_cases_alone(make_latents):
    folder = str(make_latents(LENGTHS))
    every = CaseChoice(every_scan=True, reconstruction="all")
    data = LatentDataModule(DataConfig(train=folder, valid=folder, max_valid_cases=2, valid_choice=every))
    everything = data.view("train").shards.cases
    assert len(everything) == len(LENGTHS) and data.view("valid").shards.cases == everything[:2]


TWO_RANKS = """
import json, sys
import torch.distributed as dist
from lightning.pytorch import Trainer
from ctflow.config.data import CaseChoice, DataConfig
from ctflow.data import LatentDataModule
sys.path.insert(0, sys.argv[3])
from test_streams import Recorder
module = Recorder()
trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_progress_bar=False,
                  enable_checkpointing=False, max_epochs=2, num_sanity_val_steps=0)
config = DataConfig(train=sys.argv[1], valid=sys.argv[1], batch_size=2, seed=5, p_start=0.2,
                    valid_choice=CaseChoice(every_scan=True))
trainer.fit(module, LatentDataModule(config))
with open(f"{sys.argv[2]}/{trainer.global_rank}.json", "w") as stream:
    json.dump([module.seen, module.validated, module.weight.item()], stream)
"""


@pytest.mark.slow
def test_two_real_processes_see_the_samples_of_one(make_latents, tmp_path):
    folder = make_latents(LENGTHS)
    whole = fit(folder, tmp_path / "whole", max_epochs=2, limit_val_batches=1.0, num_sanity_val_steps=0)
    script = tmp_path / "two_ranks.py"
    script.write_text(TWO_RANKS, encoding="utf-8")
    command = [sys.executable, str(script), str(folder), str(tmp_path), str(Path(__file__).parent)]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        assert process.wait(560) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]

    def plain(batches):
        return [sorted((case, first) for case, first, _ in batch) for batch in batches]

    both = [a + b for (_, a), (_, b) in zip(ranks[0][0], ranks[1][0], strict=True)]
    assert plain(both) == plain(batch for _, batch in whole.seen)
    validated = [sample[:2] for rank in ranks for batch in rank[1] for sample in batch]
    once = [list(sample[:2]) for batch in whole.validated for sample in batch]
    assert sorted(validated) == sorted(once)
    assert abs(ranks[0][2] - whole.weight.item()) < 1e-6
