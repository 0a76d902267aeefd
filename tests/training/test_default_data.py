"""Missing default shards are made by the project's own commands, and nothing else is."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from safetensors.torch import load_file, save_file

from ctflow.config import load_config
from ctflow.config.data import EncodeConfig
from ctflow.config.phantom import PhantomConfig
from ctflow.config.prep import IngestConfig
from ctflow.config.training import TrainConfig
from ctflow.default_data import TARGETS, complete, ensure_training_data, make_phantom_slices, run_preparation
from ctflow.errors import ConfigError

if TYPE_CHECKING:
    from tests.training.conftest import TinyData


class Recorder:
    """Stands in for ``run_module``: it notes the commands and writes the manifests that they would write."""

    def __init__(self, runs: Path, status: int = 0) -> None:
        self.runs, self.status, self.commands = runs, status, []

    def __call__(self, module: str, arguments: list[str]) -> int:
        self.commands.append((module, arguments))
        if not self.status and module != "data_prep.phantom":
            kind = "slices" if module == "data_prep.ct_rate" else "latents"
            for split in ("train", "valid"):
                manifest = self.runs / "shards" / kind / split / "manifest.jsonl"
                manifest.parent.mkdir(parents=True, exist_ok=True)
                manifest.touch()
        return self.status


def _config(runs: Path, task: str, *more: str) -> TrainConfig:
    kind = "latents" if task == "flow" else "slices"
    folders = [f"data.{split}={runs}/shards/{kind}/{split}" for split in ("train", "valid")]
    return load_config(TrainConfig, None, [f"task={task}", f"runs_dir={runs}", *folders, *more])


def test_slices_are_made_once_from_phantoms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(tmp_path)
    monkeypatch.setattr("ctflow.default_data.run_module", recorder)
    config = _config(tmp_path, "autoencoder", "default_data.volumes=5")
    ensure_training_data(config)
    ensure_training_data(config)
    assert [module for module, _ in recorder.commands] == ["data_prep.phantom", "data_prep.ct_rate"]
    phantom, ingest = (arguments for _, arguments in recorder.commands)
    assert phantom[:4] == ["--output", f"{tmp_path}/phantoms", "--volumes", "5"]
    # what is passed as key=value are keys of the commands
    load_config(IngestConfig, None, [a for a in ingest if "=" in a])
    assert {"output", "volumes", "seed", "size"} <= PhantomConfig.__dataclass_fields__.keys()


def test_latents_are_encoded_with_the_newest_networks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(tmp_path)
    monkeypatch.setattr("ctflow.default_data.run_module", recorder)
    for task in ("autoencoder", "clip"):
        for name in ("old", "new"):
            export = tmp_path / task / name / "export" / "config.yaml"
            export.parent.mkdir(parents=True)
            export.touch()
    ensure_training_data(_config(tmp_path, "flow"))
    modules = [module for module, _ in recorder.commands]
    assert modules == ["data_prep.phantom", "data_prep.ct_rate", "data_prep.encode"]
    encode = load_config(EncodeConfig, None, recorder.commands[2][1])
    assert (
        encode.avae == f"{tmp_path}/autoencoder/new/export" and encode.clip == f"{tmp_path}/clip/new/export"
    )
    assert (encode.source, encode.output) == (f"{tmp_path}/shards/slices", f"{tmp_path}/shards/latents")


def test_scans_without_a_validation_split_are_not_mixed_with_phantoms(
    tiny: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(tmp_path)
    monkeypatch.setattr("ctflow.default_data.run_module", recorder)
    shutil.copytree(tiny.slices / "train", tmp_path / "shards" / "slices" / "train")
    config = _config(tmp_path, "autoencoder")
    assert ensure_training_data(config).data.valid == ""
    assert not recorder.commands
    assert "without validation" in caplog.text
    named = _config(tmp_path, "autoencoder", "data.valid=typo")
    assert ensure_training_data(named).data.valid == "typo"


def test_a_missing_split_is_encoded_with_the_networks_of_the_other(
    tiny: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(tmp_path)
    monkeypatch.setattr("ctflow.default_data.run_module", recorder)
    shutil.copytree(tiny.slices, tmp_path / "shards" / "slices")
    shutil.copytree(tiny.latents / "train", tmp_path / "shards" / "latents" / "train")
    for task, folder in (("autoencoder", tiny.avae), ("clip", tiny.clip)):
        shutil.copytree(folder, tmp_path / task / "theirs" / "export")
        later = tmp_path / task / "later" / "export"
        shutil.copytree(folder, later)
        os.utime(later / "config.yaml", (2e9, 2e9))
        weights = load_file(later / "model.safetensors")
        save_file({k: v + 1 for k, v in weights.items()}, later / "model.safetensors")
    ensure_training_data(_config(tmp_path, "flow"))
    ((module, arguments),) = recorder.commands
    assert module == "data_prep.encode"
    encode = load_config(EncodeConfig, None, arguments)
    assert (encode.avae, encode.clip) == (
        f"{tmp_path}/autoencoder/theirs/export",
        f"{tmp_path}/clip/theirs/export",
    )


def test_a_users_folder_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(tmp_path)
    monkeypatch.setattr("ctflow.default_data.run_module", recorder)
    ensure_training_data(_config(tmp_path, "autoencoder", "data.train=mine"))
    assert not recorder.commands


def test_only_the_first_process_makes_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(tmp_path)
    monkeypatch.setattr("ctflow.default_data.run_module", recorder)
    monkeypatch.setenv("LOCAL_RANK", "1")
    ensure_training_data(_config(tmp_path, "autoencoder"))
    assert not recorder.commands


def test_failures_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctflow.default_data.run_module", Recorder(tmp_path, status=2))
    with pytest.raises(ConfigError, match="status 2"):
        ensure_training_data(_config(tmp_path, "autoencoder"))
    monkeypatch.setattr("ctflow.default_data.run_module", Recorder(tmp_path))
    monkeypatch.setattr("ctflow.training.parts.EMBEDDED", tmp_path / "nothing")
    with pytest.raises(ConfigError, match="make train-vae"):
        ensure_training_data(_config(tmp_path, "flow"))
    assert TARGETS.keys() == {"autoencoder", "clip"}


def _record(monkeypatch: pytest.MonkeyPatch, statuses: dict[str, int]) -> list[list[str]]:
    commands: list[list[str]] = []

    def run(module: str, arguments: list[str]) -> int:
        commands.append([module, *arguments])
        return statuses.get(module, 0)

    monkeypatch.setattr("ctflow.default_data.run_module", run)
    return commands


def test_phantoms_become_slice_shards_also_where_scans_were_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = _record(monkeypatch, {"data_prep.ct_rate": 1})
    make_phantom_slices(tmp_path, volumes=7, size=64, z_spacing=3.0, seed=5)
    phantoms, slices = str(tmp_path / "phantoms"), str(tmp_path / "shards" / "slices")
    numbers = ["--volumes", "7", "--seed", "5", "--size", "64"]
    assert commands[0] == ["data_prep.phantom", "--output", phantoms, *numbers]
    assert commands[1][:5] == ["data_prep.ct_rate", "--source", phantoms, "--output", slices]
    ingest = load_config(IngestConfig, None, [a for a in commands[1] if "=" in a])
    assert (ingest.resolution, ingest.z_spacing) == (64, 3.0)


def test_a_failed_command_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, status in (("data_prep.phantom", 1), ("data_prep.ct_rate", 2)):
        _record(monkeypatch, {module: status})
        with pytest.raises(ConfigError, match=f"{module} .*status {status}"):
            make_phantom_slices(tmp_path, volumes=7, size=64, z_spacing=3.0)


def test_a_real_command_that_fails_is_seen() -> None:
    with pytest.raises(ConfigError, match="status"):
        run_preparation("ctflow.no_such_command", [])


def test_shards_are_complete_with_their_manifest(tmp_path: Path) -> None:
    assert not complete(tmp_path)
    (tmp_path / "manifest.jsonl").touch()
    assert complete(tmp_path)


@pytest.mark.slow
def test_the_three_trainings_from_nothing(tmp_path: Path, repo_root: Path) -> None:
    """`make train-vae`, `train-clip`, `train-flow` with nothing there: phantoms, shards, latents, exports."""
    from ctflow.checkpoint import load_system
    from ctflow.train import main

    for file, kind in (("vae", "slices"), ("clip", "slices"), ("flow", "latents")):
        folders = [f"data.{split}={tmp_path}/shards/{kind}/{split}" for split in ("train", "valid")]
        common = [f"runs_dir={tmp_path}", "default_data.volumes=24", "loop.max_steps=2", "loop.val_batches=1"]
        small = ["loop.progress=false", "name=first", "data.batch_size=4", "data.in_memory=false"]
        main(["--config", str(repo_root / "configs" / "train" / f"{file}.yaml"), *common, *small, *folders])
    system = load_system(tmp_path / "flow" / "first" / "export")
    assert system.config.image_size == 128 and system.config.z_spacing_mm == pytest.approx(4.0)
