"""The command under torchrun: two real processes write the numbers of one."""

import json
import os
import subprocess
import sys

import pytest


def results(folder) -> list[dict]:
    rows = json.loads(next(folder.glob("*/results.json")).read_text(encoding="utf-8"))["rows"]
    return [{k: v for k, v in row.items() if k != "reason"} for row in rows]


@pytest.mark.slow
def test_two_processes_write_the_table_of_one(tiny_checkpoint, tiny_shards, tmp_path):
    arguments = [
        "-m",
        "ctflow.eval",
        "--checkpoint",
        str(tiny_checkpoint),
        "--setting",
        "full-body",
        f"slices={tiny_shards}",
        "cases=6",
        "batch_size=2",
        "clip_lengths=[16]",
        "device=cpu",
    ]
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
