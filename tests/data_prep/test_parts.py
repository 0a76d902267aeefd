"""Parts of one preparation: which part a process is, and that any number writes a single run's bytes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ct_rate_scans import chest, save_nifti

from ctflow.data import SliceShards, read_manifest
from ctflow.errors import ConfigError, ShardError
from ctflow.parts import Part, claimed, this_part
from data_prep import check
from data_prep.ct_rate.command import main

ARRAY = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "5"}
TASKS = {"SLURM_PROCID": "1", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "9", "SLURM_STEP_ID": "0"}


@pytest.mark.parametrize(
    ("part", "parts", "environment", "expected"),
    [
        (None, None, {}, Part(0, 1)),
        (2, 3, ARRAY, Part(2, 3)),
        (None, None, ARRAY, Part(3, 5)),
        (None, None, ARRAY | {"SLURM_ARRAY_TASK_MIN": "1"}, Part(2, 5)),
        (None, None, ARRAY | {"SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_STEP": "2"}, Part(1, 5)),
        (None, 40, ARRAY | {"SLURM_ARRAY_TASK_COUNT": "1", "SLURM_ARRAY_TASK_MIN": "3"}, Part(3, 40)),
        (None, None, TASKS, Part(1, 4)),
        (None, None, {"SLURM_PROCID": "1", "SLURM_NTASKS": "4"}, Part(1, 4)),
        (None, None, {k: v for k, v in TASKS.items() if k != "SLURM_STEP_ID"}, Part(0, 1)),  # a batch script
        (None, None, {"RANK": "2", "WORLD_SIZE": "8"}, Part(2, 8)),
        (None, None, ARRAY | {"RANK": "1", "WORLD_SIZE": "2"}, Part(7, 10)),
        (None, None, ARRAY | TASKS, Part(13, 20)),
    ],
)
def test_a_part_is_what_arguments_or_the_scheduler_say(part, parts, environment, expected):
    assert this_part(part, parts, environment) == expected


@pytest.mark.parametrize(
    ("part", "parts", "environment", "match"),
    [
        (1, None, {}, "without parts"),
        (None, 3, {}, "no scheduler"),
        (3, 3, {}, "part 3 of 3"),
        (-1, 3, {}, "part -1 of 3"),
        (None, None, ARRAY | {"SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_MIN": "3"}, "without gaps"),
        (None, None, ARRAY | {"SLURM_ARRAY_TASK_COUNT": "1", "SLURM_ARRAY_TASK_MIN": "1"}, "parts=COUNT"),
        (None, None, ARRAY | {"SLURM_ARRAY_TASK_COUNT": "2"}, "without gaps"),
        (None, None, {"RANK": "7", "WORLD_SIZE": "4"}, "process 7 of 4"),
        (None, None, {"RANK": "0", "WORLD_SIZE": ""}, "WORLD_SIZE='' of the environment"),
        (None, None, TASKS | {"SLURM_NTASKS": "4(x2)"}, r"SLURM_NTASKS='4\(x2\)'"),
        (None, None, ARRAY | {"SLURM_ARRAY_TASK_ID": "-1"}, "SLURM_ARRAY_TASK_ID='-1'"),
    ],
)
def test_a_part_that_cannot_be_told_is_refused(part, parts, environment, match):
    with pytest.raises(ConfigError, match=match):
        this_part(part, parts, environment)


def test_a_part_is_run_once_and_one_number_of_parts_at_a_time(tmp_path):
    with claimed(tmp_path, Part(0, 2), tmp_path), claimed(tmp_path, Part(1, 2), tmp_path):
        for other, told in ((Part(1, 2), "part 1 of 2"), (Part(2, 3), "part"), (Part(), "part")):
            with pytest.raises(ShardError, match=told), claimed(tmp_path, other, tmp_path):
                pass
    with claimed(tmp_path, Part(), tmp_path):
        pass


def source(root: Path) -> Path:
    """Chests of which some are one: copies, a reconstruction, two names that meet, a bad file."""
    for seed, name in enumerate(("b/1", "c/1", "d/1", "e/1", "f/1")):
        save_nifti(root / f"{name}.nii.gz", chest((40 + 6 * seed, 64, 64), seed))
    save_nifti(root / "h.nii.gz", chest((52, 64, 64), 20))  # looks like d/1
    shutil.copy(root / "b" / "1.nii.gz", root / "b-1.nii.gz")  # the case of b/1, and its copy
    (root / "g").mkdir()
    shutil.copy(root / "d" / "1.nii.gz", root / "g" / "1.nii.gz")
    save_nifti(root / "train_1_a_1.nii.gz", chest((70, 64, 64), 8))
    save_nifti(root / "valid_1_a_1.nii.gz", chest((76, 64, 64), 9))
    (root / "z.nii.gz").write_bytes(b"not gzip at all")
    return root


def arguments(root: Path, output: Path, *keys: str) -> list[str]:
    fixed = ["resolution=64", "z_spacing=null", "workers=1", "progress=false", "volumes_per_shard=2"]
    return ["--source", str(root), "--output", str(output), *fixed, "valid_fraction=0.4", *keys]


def files(output: Path) -> dict[str, bytes]:
    """Everything that tells of the set: shards, manifests, tables."""
    names = ("*/*.h5", "*/manifest.jsonl", "volumes.csv", "quarantine.csv", "summary.json")
    return {str(p.relative_to(output)): p.read_bytes() for name in names for p in sorted(output.glob(name))}


@pytest.mark.slow
def test_parts_in_any_order_give_the_shards_of_a_single_run(tmp_path, caplog):
    root, one, parts = source(tmp_path / "in"), tmp_path / "one", tmp_path / "parts"
    assert main(arguments(root, one)) == 1
    statuses = [main(arguments(root, parts, f"part={part}", "parts=3")) for part in (2, 0)]
    assert sorted(statuses) in ([0, 0], [0, 1])  # the bad file is one part's
    assert not (parts / "summary.json").exists()
    assert check.main([str(parts)]) == 1
    assert "part 1 of 3 never ran: " in caplog.text and "run it again with part=1 parts=3" in caplog.text
    caplog.set_level("INFO")
    assert main(arguments(root, parts, "part=1", "parts=3")) == 1
    assert "units were written anew" in caplog.text and " 0 of " not in caplog.text
    assert files(parts) == files(one)
    assert any(len(entry.cases) for entry in read_manifest(one / "valid"))
    patients = {
        case.case_id: case.patient_id for s in ("train", "valid") for case in SliceShards(one / s).cases
    }
    assert patients["d-1"] == patients["g-1"] == patients["h"] and len(patients) == 10
    assert check.main([str(parts)]) == 0
    before = {p: p.stat().st_mtime_ns for p in parts.rglob("*.h5")}
    assert main(arguments(root, parts)) == 1  # a run without parts goes on from there
    assert {p: p.stat().st_mtime_ns for p in parts.rglob("*.h5")} == before and files(parts) == files(one)


@pytest.mark.slow
def test_two_parts_at_once_of_which_one_is_killed_give_the_shards_of_a_single_run(tmp_path):
    root, one, parts = source(tmp_path / "in"), tmp_path / "one", tmp_path / "parts"
    assert main(arguments(root, one)) == 1
    command = [sys.executable, "-m", "data_prep.ct_rate", *arguments(root, parts)]
    array = os.environ | {"SLURM_ARRAY_TASK_COUNT": "2"}

    def start(index: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, env=array | {"SLURM_ARRAY_TASK_ID": str(index)})

    lost, other = start(0), start(1)
    limit = time.monotonic() + 300
    journal = parts / ".ingest" / "journal-0-of-2.jsonl"
    while not (journal.is_file() and journal.stat().st_size) and time.monotonic() < limit:
        time.sleep(0.01)
    os.kill(lost.pid, signal.SIGKILL)
    lost.wait()
    assert other.wait() in (0, 1)
    assert check.main([str(parts)]) == 1 and not (parts / "summary.json").exists()
    assert start(0).wait() == 1
    assert files(parts) == files(one) and not list(parts.rglob("*.partial*"))
