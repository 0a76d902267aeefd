"""The command as real processes: two under torchrun, and one that is killed and gone on with."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest


def results(folder) -> list[dict]:
    rows = json.loads(next(folder.glob("*/results.json")).read_text(encoding="utf-8"))["rows"]
    return [{k: v for k, v in row.items() if k != "reason"} for row in rows]


def command(checkpoint, shards) -> list[str]:
    """Arguments of an evaluation of six cases in batches of two."""
    keys = [f"slices={shards}", "cases=6", "batch_size=2", "clip_lengths=[16]", "device=cpu"]
    return ["-m", "ctflow.eval", "--checkpoint", str(checkpoint), "--setting", "full-body", *keys]


@pytest.mark.slow
def test_two_processes_write_the_table_of_one(tiny_checkpoint, tiny_shards, tmp_path):
    arguments = command(tiny_checkpoint, tiny_shards)
    launchers = {
        "one": [sys.executable],
        "two": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
    }
    for name, launcher in launchers.items():
        places = [f"output={tmp_path / name}", f"cache={tmp_path / name / 'cache'}"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run([*launcher, *arguments, *places], check=True, env=environment, timeout=500)
    one, two = results(tmp_path / "one"), results(tmp_path / "two")
    assert len(one) == len(two) > 5
    for a, b in zip(one, two, strict=True):
        for key, value in a.items():
            if isinstance(value, float):
                assert b[key] == pytest.approx(value, rel=1e-9, abs=1e-12), (a["metric"], key)
            else:
                assert b[key] == value, (a["metric"], key)


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_where_it_was(tiny_checkpoint, tiny_shards, tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, *command(tiny_checkpoint, tiny_shards)]

    def places(name):
        return [f"output={tmp_path / name}", f"cache={tmp_path / name / 'cache'}"]

    process = subprocess.Popen([*arguments, *places("killed")], env=environment)
    cache = tmp_path / "killed" / "cache"
    deadline = time.monotonic() + 300
    while len(list(cache.glob("*.npz"))) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    kept = {path: path.stat().st_mtime_ns for path in cache.glob("*.npz")}
    assert not list((tmp_path / "killed").glob("*/results.json"))
    for name in ("killed", "whole"):
        subprocess.run([*arguments, *places(name)], check=True, env=environment, timeout=500)
    assert all(path.stat().st_mtime_ns == at for path, at in kept.items())  # nothing was made twice
    assert results(tmp_path / "killed") == results(tmp_path / "whole")
