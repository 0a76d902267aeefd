"""Runs that are stopped and go on: signals, changed settings, damaged checkpoints, locks, clusters."""

from __future__ import annotations

import csv
import os
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from ctflow.errors import ConfigError, CTFlowError
from ctflow.locks import LongLock
from ctflow.train import main
from ctflow.training import cluster, runner
from ctflow.training.callbacks import LAST, PeriodicCheckpoint, SeedEachBatch
from ctflow.training.curves import CURVES
from ctflow.training.runs import LOCK
from ctflow.training.signals import StopOnSignal
from ctflow.training.task_clip import columns_of_run

if TYPE_CHECKING:
    from tests.training.conftest import TinyData

ReadCurves = Callable[[Path], dict[str, list[tuple[int, float]]]]


@pytest.fixture(scope="module")
def stopped(tiny: TinyData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs folder with the flow run ``run``, ended after 5 steps."""
    runs = tmp_path_factory.mktemp("stopped")
    assert main(tiny.arguments("flow", runs, "name=run", "loop.max_steps=5")) == 0
    return runs


@pytest.fixture
def runs(stopped: Path, tmp_path: Path) -> Path:
    """A copy of it, to go on with."""
    shutil.copytree(stopped / "flow", tmp_path / "flow")
    return tmp_path


def send_at(number: int, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the training send itself a signal at the beginning of a batch."""
    seed = SeedEachBatch.on_train_batch_start

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if module.batches == step:
            os.kill(os.getpid(), number)
            time.sleep(0.05)
        seed(self, trainer, module, batch, batch_idx)

    monkeypatch.setattr(SeedEachBatch, "on_train_batch_start", on_train_batch_start)


@pytest.mark.parametrize(
    ("task", "number", "status"),
    [("flow", signal.SIGTERM, 143), ("autoencoder", signal.SIGINT, 130), ("flow", signal.SIGUSR1, 75)],
)
def test_a_signal_saves_and_ends_with_its_status(
    tiny: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    task: str, number: int, status: int,
) -> None:  # fmt: skip
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        send_at(number, 2, patch)
        more = ["name=stopped", "loop.max_steps=8", "loop.checkpoint_every=100"]
        assert main(tiny.arguments(task, tmp_path, *more)) == status
    folder = tmp_path / task / "stopped"
    checkpoint = torch.load(folder / LAST, weights_only=True)
    assert checkpoint["ctflow_counters"]["updates"] == 3
    assert re.search(rf"{signal.Signals(number).name}: saved .*{LAST} at step 3", caplog.text)
    assert not (folder / "export").exists() and not (folder / LOCK).exists()
    assert signal.getsignal(number) == before
    assert main(tiny.arguments(task, tmp_path, "name=stopped", "loop.max_steps=4")) == 0


@pytest.mark.parametrize(("seconds", "ends"), [(0.0, False), (2.0, True)])
def test_a_repeated_signal_is_one_and_a_later_one_ends_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seconds: float, ends: bool
) -> None:
    """``timeout`` sends SIGTERM to the process and to its group: nothing was saved then."""
    ended: list[int] = []
    monkeypatch.setattr(signal, "raise_signal", ended.append)
    stop = StopOnSignal(PeriodicCheckpoint(tmp_path, 1, 0))
    stop._training = True
    with stop.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == signal.SIGTERM
        stop._received_at -= seconds
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended == [signal.SIGTERM] * ends


def untimed(curves: dict[str, list[tuple[int, float]]]) -> dict[str, list[tuple[int, float]]]:
    """Curves without those of speed, which no two runs share."""
    timed = ("data_wait", "samples_per_s", "tokens_per_s", "share_of_peak")
    return {name: points for name, points in curves.items() if not name.endswith(timed)}


@pytest.mark.parametrize("task", ["flow", "autoencoder"])
def test_curves_of_a_run_that_a_signal_stopped_are_those_of_a_whole_one(
    tiny: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, curves_of: ReadCurves, task: str
) -> None:
    """The batch in hand is logged before the end; validations are due after steps 4 and 8."""
    for step in (0, 3, 5):
        with monkeypatch.context() as patch:
            send_at(signal.SIGTERM, step, patch)
            assert main(tiny.arguments(task, tmp_path, "name=stopped", "loop.max_steps=8")) == 143
    for name in ("stopped", "whole"):
        assert main(tiny.arguments(task, tmp_path, f"name={name}", "loop.max_steps=8")) == 0
    stopped, whole = (untimed(curves_of(tmp_path / task / name)) for name in ("stopped", "whole"))
    assert stopped == whole


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_during_the_export_ends_with_its_status_and_the_export_is_made_again(
    tiny: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    number: int,
) -> None:  # fmt: skip
    arguments = tiny.arguments("flow", tmp_path, "name=run", "loop.max_steps=2")
    with monkeypatch.context() as patch:
        patch.setattr(runner, "_export", lambda *_: os.kill(os.getpid(), number))
        assert main(arguments) == {signal.SIGTERM: 143, signal.SIGUSR1: 75}[signal.Signals(number)]
    assert "stopped before or after the training" in caplog.text
    assert not (tmp_path / "flow" / "run" / "export").exists()
    assert main(arguments) == 0 and (tmp_path / "flow" / "run" / "export").is_dir()


@pytest.mark.parametrize("place", ["validation_step", "rollout"])
def test_a_signal_stops_a_validation_which_is_done_after_the_resume(
    tiny: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, curves_of: ReadCurves, place: str
) -> None:
    from ctflow.generation import VolumeGenerator
    from ctflow.training.flow import FlowModule

    done = {"validation_step": 0, "rollout": 0}

    def counted(name: str, call: Callable[..., object]) -> Callable[..., object]:
        def run(self: object, *args: object, **keys: object) -> object:
            done[name] += 1
            # The first rollout comes before the first step.
            if name == place and done[name] == (2 if place == "rollout" else 1):
                os.kill(os.getpid(), signal.SIGTERM)
            return call(self, *args, **keys)

        return run

    more = ["loop.max_steps=7", "loop.checkpoint_every=100", "data.valid_batch_size=1"]
    more += ["flow.monitor.rollout_every=1", "flow.monitor.cases=2", "flow.monitor.max_blocks=3"]
    with monkeypatch.context() as patch:
        patch.setattr(FlowModule, "validation_step", counted("validation_step", FlowModule.validation_step))
        patch.setattr(VolumeGenerator, "latents", counted("rollout", VolumeGenerator.latents))
        assert main(tiny.arguments("flow", tmp_path, "name=stopped", *more)) == 143
    assert done == ({"validation_step": 1, "rollout": 1} if place == "validation_step" else done)
    folder = tmp_path / "flow" / "stopped"
    assert torch.load(folder / LAST, weights_only=True)["ctflow_counters"]["updates"] == 4
    assert "val/loss" not in curves_of(folder)
    assert main(tiny.arguments("flow", tmp_path, "name=stopped", *more)) == 0
    assert main(tiny.arguments("flow", tmp_path, "name=whole", *more)) == 0
    stopped, whole = (untimed(curves_of(tmp_path / "flow" / name)) for name in ("stopped", "whole"))
    assert stopped == whole


def test_what_decides_the_order_of_the_data_is_refused_by_name(tiny: TinyData, tmp_path: Path) -> None:
    assert main(tiny.arguments("flow", tmp_path, "name=run", "loop.max_steps=2", "data.repeat=4")) == 0
    before = (tmp_path / "flow" / "run" / "config.yaml").read_bytes()
    for key in ("data.shuffle_shards=3", "data.repeat=5"):
        with pytest.raises(ConfigError, match=key):
            main(tiny.arguments("flow", tmp_path, "name=run", "loop.max_steps=4", "data.repeat=4", key))
    assert (tmp_path / "flow" / "run" / "config.yaml").read_bytes() == before


def test_batches_split_otherwise_go_on_with_whole_steps(
    tiny: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The same global batch as twice as many micro-steps, from the first of three steps of an epoch."""
    from ctflow.training.flow import FlowModule

    assert main(tiny.arguments("flow", tmp_path, "name=run", "loop.max_steps=4")) == 0
    batches: list[int] = []
    count = FlowModule.count_update

    def counted(self: FlowModule) -> None:
        batches.append(self.batches)
        count(self)

    monkeypatch.setattr(FlowModule, "count_update", counted)
    caplog.set_level("INFO")
    more = ["name=run", "loop.max_steps=9", "data.batch_size=2", "loop.accumulate=2"]
    assert main(tiny.arguments("flow", tmp_path, *more)) == 0
    assert len(batches) == 5 and {second - first for first, second in pairwise(batches)} == {2}
    state = torch.load(tmp_path / "flow" / "run" / LAST, weights_only=True)
    assert state["ctflow_counters"] == {"batches": 4 + 2 * 5, "updates": 9}
    assert "goes on with data.batch_size=2 (before: 4)" in caplog.text
    assert "goes on with loop.accumulate=2 (before: 1)" in caplog.text


def test_other_cases_at_the_end_of_an_epoch_are_taken_and_said(
    tiny: TinyData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert main(tiny.arguments("flow", tmp_path, "name=run", "loop.max_steps=3")) == 0
    caplog.set_level("INFO")
    other = f"data.train={tiny.latents}/valid"
    assert main(tiny.arguments("flow", tmp_path, "name=run", "loop.max_steps=4", other)) == 0
    assert f"goes on with {other} (before: {tiny.latents}/train)" in caplog.text
    assert "data.train holds other cases than before" in caplog.text


def test_fewer_validation_cases_than_processes_are_refused(tiny: TinyData, tmp_path: Path) -> None:
    more = ["name=run", "loop.devices=2", "data.batch_size=2", "data.max_valid_cases=1"]
    with pytest.raises(ConfigError, match="1 validation cases for 2 processes"):
        main(tiny.arguments("flow", tmp_path, *more))


def test_nothing_is_left_of_a_run_stopped_before_its_first_batch(
    tiny: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ctflow.training.flow import FlowModule

    monkeypatch.setattr(FlowModule, "on_fit_start", lambda self: os.kill(os.getpid(), signal.SIGTERM))
    assert main(tiny.arguments("flow", tmp_path, "name=early", "loop.max_steps=8")) == 143
    assert not list(tmp_path.iterdir())


def test_a_new_learning_rate_is_applied_and_said(
    tiny: TinyData, runs: Path, curves_of: ReadCurves, caplog: pytest.LogCaptureFixture
) -> None:
    more = ["name=run", "loop.max_steps=7", "flow.optimizer.lr=3e-5", "flow.optimizer.betas=[0.8,0.9]"]
    caplog.set_level("INFO")
    main(tiny.arguments("flow", runs, *more, "flow.optimizer.weight_decay=0.5"))
    rates = dict(curves_of(runs / "flow" / "run")["train/lr"])
    assert rates[4] == pytest.approx(1e-4, rel=1e-3) and rates[5] == pytest.approx(3e-5, rel=1e-3)
    assert "goes on with flow.optimizer.lr=3e-05 (before: 0.0001)" in caplog.text
    group = torch.load(runs / "flow" / "run" / LAST, weights_only=True)["optimizer_states"][0][
        "param_groups"
    ][0]
    assert (tuple(group["betas"]), group["weight_decay"]) == ((0.8, 0.9), 0.5)


def test_every_group_of_parameters_keeps_its_own_learning_rate(tiny: TinyData, tmp_path: Path) -> None:
    more = ["name=muon", "flow.optimizer.name=muon", "flow.optimizer.matrix_lr=0.02"]
    main(tiny.arguments("flow", tmp_path, *more, "loop.max_steps=3"))
    groups = torch.load(tmp_path / "flow" / "muon" / LAST, weights_only=True)["optimizer_states"][0][
        "param_groups"
    ]
    assert [g["initial_lr"] for g in groups] == [0.02, 1e-4] and groups[0]["lr"] > 100 * groups[1]["lr"] > 0
    main(tiny.arguments("flow", tmp_path, *more, "flow.optimizer.matrix_lr=0.01", "loop.max_steps=4"))
    groups = torch.load(tmp_path / "flow" / "muon" / LAST, weights_only=True)["optimizer_states"][0][
        "param_groups"
    ]
    assert [g["initial_lr"] for g in groups] == [0.01, 1e-4]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("flow.optimizer.name", "muon"),
        ("flow.network.depth", "3"),
        ("flow.network.hidden_size", "32"),
        ("flow.network.learned_nulls", "false"),
        ("flow.text", "pooled"),
        ("seed", "5"),
    ],
)
def test_a_setting_that_a_run_cannot_change_is_refused_by_name(
    tiny: TinyData, runs: Path, key: str, value: str
) -> None:
    before = (runs / "flow" / "run" / "config.yaml").read_bytes()
    with pytest.raises(ConfigError, match=rf"was trained with {key}=") as error:
        main(tiny.arguments("flow", runs, "name=run", "loop.max_steps=7", f"{key}={value}"))
    assert f"{key}={value.capitalize() if value in ('true', 'false') else value}" in error.value.expected
    assert (runs / "flow" / "run" / "config.yaml").read_bytes() == before


@pytest.fixture(scope="module")
def pair(tiny: TinyData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs folder with the clip run ``run``, ended after an epoch."""
    runs = tmp_path_factory.mktemp("pair")
    assert (
        main(tiny.arguments("clip", runs, "name=run", "loop.max_steps=3", f"clip.init_from={tiny.clip}")) == 0
    )
    return runs


@pytest.mark.parametrize(
    ("key", "value"), [("column_least", "2"), ("train_text", "false"), ("init_from", "elsewhere")]
)
def test_what_the_pairs_heads_and_weights_depend_on_is_refused_by_name(
    tiny: TinyData, pair: Path, key: str, value: str
) -> None:
    if value == "elsewhere":
        value = str(pair / "clip" / "run" / "export")
    more = ["name=run", "loop.max_steps=6", f"clip.init_from={tiny.clip}", f"clip.{key}={value}"]
    with pytest.raises(ConfigError, match=rf"was trained with clip\.{key}="):
        main(tiny.arguments("clip", pair, *more))


def test_the_pair_goes_on_with_its_columns_on_other_reports(
    tiny: TinyData, pair: Path, tmp_path: Path
) -> None:
    """Of two reports other columns are mined than of six: heads of another size, or of another meaning."""
    shutil.copytree(pair / "clip", tmp_path / "clip")
    was = torch.load(tmp_path / "clip" / "run" / LAST, weights_only=True)["hyper_parameters"]["columns"]
    more = ["name=run", "loop.max_steps=4", f"clip.init_from={tiny.clip}", f"data.train={tiny.slices}/valid"]
    assert main(tiny.arguments("clip", tmp_path, *more)) == 0
    now = torch.load(tmp_path / "clip" / "run" / LAST, weights_only=True)["hyper_parameters"]["columns"]
    assert now == was


def test_the_pair_refuses_other_label_columns(pair: Path) -> None:
    with pytest.raises(ConfigError, match="the data have the label columns") as error:
        columns_of_run(pair / "clip" / "run" / LAST, ["Cardiomegaly"])
    assert "'Cardiomegaly', 'Lung nodule'" in error.value.expected


def test_another_tasks_checkpoint_is_refused(tiny: TinyData, runs: Path) -> None:
    last = runs / "flow" / "run" / LAST
    with pytest.raises(ConfigError, match="not of task=autoencoder"):
        main(tiny.arguments("autoencoder", runs, f"resume={last}", "name=other", "loop.max_steps=7"))
    assert not (runs / "autoencoder").exists()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 10\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (None, "is cut"),
        (LFS, "Git LFS pointer"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"some words", "is cut or damaged, or no file of plain values"),
        (b"PK\x03\x04 and no more", "is cut"),
        ({"state_dict": {}}, "it lacks state_dict, hyper_parameters"),
    ],
)
def test_a_damaged_checkpoint_is_named(tiny: TinyData, runs: Path, content: object, words: str) -> None:
    last = runs / "flow" / "run" / LAST
    if isinstance(content, dict):
        torch.save(content, last)
    else:
        last.write_bytes(last.read_bytes()[:-2000] if content is None else content)
    with pytest.raises(ConfigError, match=words) as error:
        main(tiny.arguments("flow", runs, "name=run", "loop.max_steps=7"))
    assert str(last) in str(error.value) and "weights_only" not in str(error.value)


def _changed(content: dict, change: str) -> None:
    state = content["state_dict"]
    if change == "prefixed":
        content["state_dict"] = {f"module.{name}": value for name, value in state.items()}
    elif change == "lacks one":
        del state[next(iter(state))]
    else:
        content[change] = type(content[change])()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("prefixed", "not those of this network: Missing key.*; Unexpected key"),
        ("lacks one", "not those of this network: Missing key"),
        ("optimizer_states", "lacks optimizer_states"),
        ("loops", "lacks loops"),
    ],
)
def test_a_checkpoint_that_was_changed_is_named(tiny: TinyData, runs: Path, change: str, words: str) -> None:
    last = runs / "flow" / "run" / LAST
    content = torch.load(last, weights_only=True)
    _changed(content, change)
    torch.save(content, last)
    with pytest.raises(ConfigError, match=words):
        main(tiny.arguments("flow", runs, "name=run", "loop.max_steps=7"))


def test_a_bit_that_flipped_in_a_checkpoint_is_seen(tiny: TinyData, runs: Path) -> None:
    last = runs / "flow" / "run" / LAST
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 255
    last.write_bytes(content)
    with pytest.raises(ConfigError, match="cut or damaged"):
        main(tiny.arguments("flow", runs, "name=run", "loop.max_steps=7"))


def test_a_newer_checkpoint_that_lightning_wrote_is_gone_on_from(
    tiny: TinyData, runs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = runs / "flow" / "run"
    shutil.copyfile(folder / LAST, folder / "hpc_ckpt_1.ckpt")
    os.utime(folder / LAST, (1e9, 1e9))
    caplog.set_level("INFO")
    main(tiny.arguments("flow", runs, "name=run", "loop.max_steps=6"))
    assert "resuming " + str(folder / "hpc_ckpt_1.ckpt") in caplog.text
    caplog.clear()
    main(tiny.arguments("flow", runs, "name=run", "loop.max_steps=7"))
    assert "resuming " + str(folder / LAST) in caplog.text


def test_curves_hold_every_value_once(tiny: TinyData, runs: Path) -> None:
    """What was logged between the checkpoint and a kill is logged again; a torn last line goes."""
    folder = runs / "flow" / "run"
    with (folder / CURVES).open("a", encoding="utf-8") as file:
        file.write("5,train/loss,1.0\n6,train/loss,1.0\n7,val/loss,1.0\n9,tra")
    main(tiny.arguments("flow", runs, "name=run", "loop.max_steps=8"))
    with (folder / CURVES).open(encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["step", "name", "value"] and all(len(row) == 3 for row in rows)
    twice = [place for place, count in Counter((r[0], r[1]) for r in rows).items() if count > 1]
    assert not twice
    losses = {int(r[0]): r[2] for r in rows[1:] if r[1] == "train/loss"}
    assert sorted(losses) == list(range(8)) and "1.0" not in losses.values()


def test_a_second_training_of_one_name_is_refused(tiny: TinyData, runs: Path) -> None:
    lock = LongLock(runs / "flow" / "run" / LOCK)
    with pytest.raises(ConfigError, match=r"another training writes to .*flow/run"):
        main(tiny.arguments("flow", runs, "name=run", "loop.max_steps=7"))
    lock.release()


@pytest.mark.parametrize("name", ["..", "a/b", "a\\b"])
def test_a_name_is_one_folder(tiny: TinyData, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="does not name one folder"):
        main(tiny.arguments("flow", tmp_path / "runs", f"name={name}"))
    assert not (tmp_path / "runs").exists()


def test_a_refused_run_leaves_no_folder(tiny: TinyData, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        main(tiny.arguments("flow", tmp_path, "name=unfit", "flow.network.input_size=[16,4,4]"))
    with pytest.raises(CTFlowError):
        main(tiny.arguments("clip", tmp_path, "name=unfit", "data.train=nowhere"))
    assert not list(tmp_path.iterdir())


def test_checkpoints_do_not_go_through_the_temporary_folder(
    tiny: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    def refuse(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    for name in ("mkstemp", "NamedTemporaryFile", "TemporaryFile"):
        monkeypatch.setattr(tempfile, name, refuse)
    main(tiny.arguments("flow", tmp_path, "name=run", "loop.max_steps=1"))
    assert (tmp_path / "flow" / "run" / LAST).is_file()


def test_what_is_written_follows_the_umask(tiny: TinyData, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        main(tiny.arguments("flow", tmp_path, "name=run", "loop.max_steps=1"))
    finally:
        os.umask(before)
    written = [path for path in (tmp_path / "flow" / "run").rglob("*") if path.is_file()]
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in written}
    assert modes[LAST] == "0o640" and set(modes.values()) == {"0o640"}, modes


def test_tasks_of_slurm_are_held_against_the_configuration(
    tiny: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_JOB_NAME", "training")
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "")  # so that it is taken back afterwards
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    with monkeypatch.context() as patch:
        patch.setenv("SLURM_NTASKS", "")
        with pytest.raises(ConfigError, match="SLURM_NTASKS='' of the environment"):
            main(tiny.arguments("flow", tmp_path, "name=run"))
    with pytest.raises(ConfigError, match=r"SLURM runs 4 tasks .* asks for 1 processes") as error:
        main(tiny.arguments("flow", tmp_path, "name=run"))
    assert "devices=4 and nodes=1" in error.value.action
    with pytest.raises(ConfigError, match="no name"):
        cluster.check_cluster(4, 1, named=False)
    cluster.check_cluster(4, 1, named=True)
    assert os.environ["SLURM_NTASKS_PER_NODE"] == "4"
    monkeypatch.setenv("SLURM_PROCID", "3")
    assert not cluster.first_process()
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")
    assert cluster.first_process()
    cluster.check_cluster(1, 1, named=False)


@pytest.mark.parametrize("limit", [[], ["loop.max_minutes=60"]])
def test_the_progress_bar_counts_the_steps_of_the_whole_run(
    tiny: TinyData, runs: Path, capfd: pytest.CaptureFixture[str], limit: list[str]
) -> None:
    asked = tiny.arguments("flow", runs, "name=run", "loop.max_steps=15")
    shown = ["loop.progress=true" if word == "loop.progress=false" else word for word in asked]
    assert main([*shown, *limit]) == 0
    drawn = re.findall(r"steps: [^|]*\|[^|]*\| (\d+)/(\d+) \[", capfd.readouterr().out)
    counts = [tuple(map(int, pair)) for pair in drawn]
    assert counts[0] == (5, 15) and counts[-1] == (15, 15)  # the run was stopped after 5 steps
