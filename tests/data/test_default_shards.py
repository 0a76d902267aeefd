"""The default slice shards: which commands make them, and what happens when one fails."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ctflow.config import load_config
from ctflow.config.prep import IngestConfig
from ctflow.data.default_shards import complete, make_phantom_slices, run_preparation
from ctflow.errors import ConfigError


def _record(monkeypatch: pytest.MonkeyPatch, statuses: dict[str, int]) -> list[list[str]]:
    commands: list[list[str]] = []

    def run(command: list[str], check: bool) -> subprocess.CompletedProcess[bytes]:
        commands.append(command[2:])
        return subprocess.CompletedProcess(command, statuses.get(command[2], 0))

    monkeypatch.setattr(subprocess, "run", run)
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
