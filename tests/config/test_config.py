"""Configuration: texts stay as they are, wrong values are said in words, nothing is looked up."""

from __future__ import annotations

import contextlib
import io
import re

import pytest
from torch.utils.data import DataLoader, IterableDataset

from ctflow.config import config_to_yaml, load_config, run_command
from ctflow.config.accuracy import AccuracyConfig
from ctflow.config.bench import BenchConfig
from ctflow.config.challenge import ChallengeConfig
from ctflow.config.commands import ConvertConfig, GenerateConfig, SamplingChoice
from ctflow.config.data import CheckConfig, EncodeConfig
from ctflow.config.demo import DemoConfig
from ctflow.config.evaluation import EvalConfig
from ctflow.config.generation import RolloutConfig
from ctflow.config.helptext import explain_keys
from ctflow.config.pack import PackConfig
from ctflow.config.phantom import PhantomConfig
from ctflow.config.prep import IngestConfig
from ctflow.config.tasks import FlowTask
from ctflow.config.training import TrainConfig
from ctflow.errors import ConfigError, ShardError, Stopped
from ctflow.training.plain import from_plain, to_plain

SCHEMAS = [BenchConfig, CheckConfig, ConvertConfig, DemoConfig, EncodeConfig, EvalConfig, GenerateConfig,
           IngestConfig, AccuracyConfig, ChallengeConfig, PackConfig, PhantomConfig, TrainConfig]  # fmt: skip


@pytest.mark.parametrize(
    "name", ["007", "on", "1e400", "12e34567", "null", "", "2026-11-28", "a: b", "[x", "~"]
)
def test_a_text_is_taken_as_it_stands(name, tmp_path):
    config = load_config(TrainConfig, None, [f"name={name}"])
    assert config.name == name
    saved = tmp_path / "config.yaml"
    saved.write_text(config_to_yaml(config), encoding="utf-8")
    assert load_config(TrainConfig, saved) == config


def test_a_text_in_a_file_is_taken_as_it_stands(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("source: 007\noutput: on\nreports: [010.csv, yes]\nresolution: 128\n", encoding="utf-8")
    config = load_config(IngestConfig, file)
    assert (config.source, config.output, config.reports) == ("007", "on", ["010.csv", "yes"])
    assert config.resolution == 128


@pytest.mark.parametrize("pattern", [r"[A-Z]+-(\d+)", r"^(\d{4}):", "(${oc.env:HOME})", "#(.)"])
def test_an_expression_needs_no_quotes(pattern):
    assert load_config(IngestConfig, None, [f"patient_pattern={pattern}"]).patient_pattern == pattern
    assert load_config(IngestConfig, None, [("patient_pattern", pattern)]).patient_pattern == pattern


@pytest.mark.parametrize(
    ("schema", "argument", "words"),
    [
        (EvalConfig, "resolution=128,256", r"resolution is '128,256'\nExpected: a list.*\n.*\[128,256\]"),
        (TrainConfig, "seed=x", "seed is 'x'\nExpected: a whole number"),
        (TrainConfig, "loop.compile=perhaps", "true or false"),
        (TrainConfig, "loop=3", "loop is 3\nExpected: keys below it"),
        (TrainConfig, "flow.optimizer.lr=1e400", "finite"),
        (TrainConfig, "loop.max_steps=[", r"'\[' is not readable"),
        (GenerateConfig, "sampling.steps=0", "steps and max_slices are at least 1, found 0"),
        (GenerateConfig, "sampling.overlap=16", "overlap lies between"),
        (GenerateConfig, "sampling.fade=-1", "fade is less than overlap"),
        (GenerateConfig, "sampling.solver=rk9", "solver"),
        (GenerateConfig, "sampling.start_steps=-1", "start_steps is 0 or more"),
        (GenerateConfig, "sampling.start_temperature=0", "start_temperature is positive, found 0"),
    ],
)
def test_a_wrong_value_is_said_in_words(schema, argument, words):
    with pytest.raises(ConfigError) as error:
        load_config(schema, None, [argument])
    assert re.search(words, str(error.value)), error.value
    assert not re.search("AnyNode|Integer|ListConfig|subclass", str(error.value))


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("lr", "'clip.optimizer.lr' or 'flow.optimizer.lr' or 'autoencoder.optimizer.lr'"),
        ("max_steps", "'loop.max_steps'"),
        ("flow.optimizer.learning_rate", "flow.optimizer has name, lr, betas"),
        ("flow.network.dept", "'flow.network.depth'"),
        ("batch_size", "'data.batch_size'"),
        ("quux", "see --help"),
    ],
)
def test_an_unknown_key_is_answered_with_what_it_may_mean(key, hint):
    with pytest.raises(ConfigError) as error:
        load_config(TrainConfig, None, [f"{key}=1"])
    assert hint in error.value.action, error.value.action


def test_nothing_is_looked_up_for_a_file_or_a_checkpoint(tmp_path):
    file = tmp_path / "config.yaml"
    for text in ("name: ${oc.env:HOME}", "flow: {avae: '${runs_dir}'}", "base: '${oc.env:HOME}'"):
        file.write_text(text + "\n", encoding="utf-8")
        with pytest.raises(ConfigError, match=r"interpolation|no configuration file"):
            load_config(TrainConfig, file)
    values = to_plain(FlowTask()) | {"avae": "${oc.env:HOME}"}
    with pytest.raises(ConfigError, match="interpolation"):
        from_plain(FlowTask, values)


def test_a_file_that_refers_to_itself_or_says_a_key_twice_is_refused(tmp_path):
    file = tmp_path / "config.yaml"
    for text in ("a: &x [1]\nb: *x", "seed: 1\nseed: 2", "seed: ["):
        file.write_text(text + "\n", encoding="utf-8")
        with pytest.raises(ConfigError, match="not readable as YAML"):
            load_config(TrainConfig, file)


def test_a_relative_path_from_another_folder_says_where_it_looked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config(TrainConfig, "configs/train/vae.yaml").task == "autoencoder"  # a shipped one
    with pytest.raises(ConfigError, match=f"current folder, {tmp_path}; the shipped ones are in"):
        load_config(TrainConfig, "configs/mine.yaml")


@pytest.mark.parametrize("schema", SCHEMAS)
def test_every_key_is_explained(schema):
    lines = explain_keys(schema).splitlines()
    keys = [i for i, line in enumerate(lines) if re.match(r"  \w", line)]
    bare = [lines[i] for i in keys if not lines[i + 1 : i + 2] or not lines[i + 1].startswith("    ")]
    assert not bare
    assert not any("``" in line for line in lines)


def ending(main) -> tuple[int, str]:
    """Status and what is told of a command."""
    told = io.StringIO()
    with contextlib.redirect_stderr(told), pytest.raises(SystemExit) as end:
        run_command(main)
    return end.value.code, told.getvalue()


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (
            OSError(28, "No space left on device", "a/last.ckpt"),
            2,
            "No space left on device: a/last.ckpt",
        ),
        (PermissionError(13, "Permission denied", "/out"), 2, "error: Permission denied: /out"),
        (OSError("Can't write data (file write failed)"), 2, "error: Can't write data"),
        (MemoryError("Unable to allocate 3 GiB"), 2, "out of memory"),
        (RuntimeError("DataLoader worker (pid 3) is killed by signal: Killed. "), 2, "was killed"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (Stopped("SIGTERM: saved", 143), 143, "SIGTERM: saved"),
        (ConfigError("found", "expected"), 2, "error: found"),
    ],
)
def test_what_a_user_can_mend_is_a_line_without_a_traceback(error, status, words):
    def main() -> int:
        raise error

    code, told = ending(main)
    assert code == status and words in told and "Traceback" not in told


def test_a_fault_of_the_program_keeps_its_traceback():
    def main() -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_command(main)


def test_an_error_in_a_loader_process_is_told_in_its_own_words():
    class Broken(IterableDataset):
        def __iter__(self):
            raise ShardError(
                "shard-3.h5, case 'a': latents that are not finite", "finite latents", "encode again"
            )

    def main() -> None:
        list(DataLoader(Broken(), batch_size=None, num_workers=1))

    code, told = ending(main)
    assert code == 2 and told.startswith("error: shard-3.h5, case 'a'") and "Traceback" not in told


@pytest.mark.parametrize(
    ("choice", "found"),
    [({"overlap": 0}, "overlap=0.*found 4 of 0"), ({"solver": "dopri5"}, "found 0.6 with dopri5")],
)
def test_sampling_that_does_not_go_with_the_checkpoint_is_an_error_for_people(choice, found):
    recommended = RolloutConfig(overlap=5, fade=4, churn=0.6)
    with pytest.raises(ConfigError, match=found):
        SamplingChoice(**choice).applied_to(recommended)
    other = SamplingChoice(**choice, fade=0, churn=0.0).applied_to(recommended)
    assert (other.fade, other.churn) == (0, 0.0)
