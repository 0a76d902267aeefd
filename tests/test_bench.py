"""``python -m ctflow.bench`` at sizes that take seconds: every row, its reference, and equal outputs."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from ctflow.bench import main
from ctflow.bench.measure import Row, compare, quartiles
from ctflow.checkpoint import load_system, save_system
from ctflow.config.generation import RolloutConfig
from ctflow.errors import ConfigError
from ctflow.processes import matrix_peak

SMALL = [
    "sizes=[tiny]", "repeats=2", "peak_side=64", "image_size=32", "few_steps=2", "many_steps=3",
    "latent_side=4", "volume_slices=40", "frechet_dimensions=16", "lengths=[20,36]",
    "batches=[2]", "steps=[2]", "generation_steps=1",
]  # fmt: skip


def test_every_row_has_a_reference_and_outputs_that_agree(tmp_path, tiny_checkpoint):
    rows = "rows=[fmvt,avae,steps,stream,frechet,beside,generation,memory]"
    output = tmp_path / "bench.json"
    assert main([*SMALL, rows, f"checkpoint={tiny_checkpoint}", f"output={output}"]) == 0
    result = json.loads(output.read_text(encoding="utf-8"))
    found = {(row["stage"], row["precision"]): row for row in result["rows"]}
    assert len(found) == 4 + 4 + 1 + 1 + 1 + 1 + 4 + 2
    assert "batch 64: " in found.pop(("FMvT-tiny training memory", "fp32"))["note"]
    assert found.pop(("FMvT-tiny training memory, blocks recomputed", "fp32"))["peak_mib"] > 0
    for (stage, precision), row in found.items():
        assert row["seconds"] > 0 and row["spread"][0] <= row["seconds"] <= row["spread"][1]
        if stage.startswith("generation"):
            assert row["peak_mib"] is not None
            continue
        assert row["ratio"] > 0 and row["reference"]
        if "sampling" not in stage:
            assert row["difference"] < (0.1 if precision == "bf16" else 2e-4), stage
        if stage.startswith(("FMvT", "A-VAE")):
            assert row["gflop"] > 0 and row["share_of_peak"] > 0
    assert "MiB read a block" in found["32 blocks of 16 × 16 × 4² from shards", "-"]["note"]
    table = output.with_suffix(".md").read_text(encoding="utf-8").splitlines()
    assert len(table) == 4 + 18 and "matrix products fp32" in table[0]


def test_a_student_is_timed_as_it_samples(tmp_path, tiny_checkpoint):
    system = load_system(tiny_checkpoint)
    grid = RolloutConfig(steps=3, time_shift=2.0, churn=0.5)
    student = save_system(tmp_path / "student", replace(system, config=replace(system.config, rollout=grid)))
    output = tmp_path / "bench.json"
    asked = [f"checkpoint={tiny_checkpoint}", f"student={student}", f"output={output}"]
    assert main([*SMALL, "rows=[steps]", *asked]) == 0
    (row,) = json.loads(output.read_text(encoding="utf-8"))["rows"]
    assert row["stage"] == "sampling a block, 3 evaluations" and "student" in row["note"]
    assert row["difference"] > 0.01


@pytest.mark.slow
def test_the_ingest_is_measured(tmp_path):
    output = tmp_path / "bench.json"
    assert main([*SMALL, "rows=[ingest]", "ingest_volumes=2", "precisions=[fp32]", f"output={output}"]) == 0
    (row,) = json.loads(output.read_text(encoding="utf-8"))["rows"]
    assert row["stage"] == "ingest of 2 phantoms to 128², one worker" and row["seconds"] > 0


def test_pairs_are_interleaved_and_the_order_changes():
    calls = []
    row = compare(
        Row("x", reference="y"),
        lambda: calls.append("own") or torch.ones(2),
        lambda: calls.append("other") or torch.full((2,), 2.0),
        3,
        torch.device("cpu"),
    )
    assert calls == ["own", "other", "other", "own", "own", "other", "other", "own"]
    assert row.difference == pytest.approx(0.5) and row.ratio is not None
    assert quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 4.0) and quartiles([3.0, 1.0]) == (1.0, 3.0)


@pytest.mark.parametrize("keep", [False, True])
def test_the_peak_of_memory_is_that_of_its_own_time(keep):
    program = f"""
import torch
from ctflow.bench.measure import PeakMemory
from ctflow.processes import keep_freed_buffers
{keep} and keep_freed_buffers()
torch.ones(2**25)  # 128 MiB, gone before
memory = PeakMemory(torch.device("cpu"))
before = memory.mib()
torch.ones(2**25)
print(before, memory.mib())
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, encoding="utf-8")
    before, peak = map(float, done.stdout.split())
    assert before < 64
    assert 100 < peak < 200


def test_the_peak_of_a_matrix_product_is_measured():
    assert matrix_peak("fp32", torch.device("cpu"), 64) > 0


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ConfigError, match="rows are of"):
        main(["rows=[nothing]"])
    with pytest.raises(ConfigError, match="at least 1"):
        main(["repeats=0"])
