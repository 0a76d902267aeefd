"""A tiny random system, and slice shards of soft blobs with reports: whole evaluations in seconds."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_system import REPORTS, SIDE

from ctflow.checkpoint import load_system
from ctflow.data import SliceRecord, SliceShardWriter
from ctflow.evaluation.features import CaseFeatures, packed
from ctflow.evaluation.system import EvalSystem


def soft_volume(slices: int, seed: int, side: int = SIDE) -> np.ndarray:
    """A body-like blob with lungs that change slowly from slice to slice, int16 HU."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(
        np.linspace(0, 1, slices), np.linspace(-1, 1, side), np.linspace(-1, 1, side), indexing="ij"
    )
    body = (x / 0.9) ** 2 + (y / 0.7) ** 2 < 1
    width = 0.25 + 0.05 * np.sin(3 * z + rng.uniform(0, 6))
    lungs = ((np.abs(x) - 0.42) / width) ** 2 + (y / (0.4 + 0.1 * rng.uniform())) ** 2 < 1
    texture = rng.normal(size=(slices // 4 + 2, side // 4, side // 4)) * 40
    texture = np.kron(texture, np.ones((4, 4, 4)))[:slices, :side, :side]
    hu = np.where(body, 40 + texture, -1000)
    hu = np.where(body & lungs, -820 + texture, hu)
    return np.clip(hu, -1000, 1000).astype(np.int16)


def write_shards(folder: Path, slices: list[int], first_seed: int = 0) -> Path:
    """One case per entry of ``slices``."""
    with SliceShardWriter(folder) as writer:
        for i, number in enumerate(slices):
            seed = first_seed + i
            writer.append(
                SliceRecord(
                    case_id=f"case_{seed:03d}",
                    patient_id=f"patient_{seed:03d}",
                    hu=soft_volume(number, seed),
                    spacing=(4.0, 9.0, 9.0),
                    report=f"{REPORTS[i % len(REPORTS)]} Case {seed}.",
                    source_sha256=f"{seed:064x}",
                    split="valid",
                )
            )
    return folder


def rises(records: list[dict[str, Any]], metric: str, damage: str) -> bool:
    """Whether a metric rises with every step of a damage's severity, from the floor on."""
    values = [r[metric] for r in records if r["damage"] in ("none", damage)]
    return all(v is not None for v in values) and bool(np.all(np.diff(values) > 0))


def assert_same_features(one: CaseFeatures, two: CaseFeatures) -> None:
    """Everything but the time that making the volume took."""
    (first, arrays), (second, others) = packed(one), packed(two)
    assert first | {"seconds": 0} == second | {"seconds": 0}
    assert arrays.keys() == others.keys()
    for key, value in arrays.items():
        np.testing.assert_array_equal(value, others[key], err_msg=key)


@pytest.fixture(scope="session")
def tiny_system(tiny_checkpoint) -> EvalSystem:
    return EvalSystem.of(load_system(tiny_checkpoint), "tiny", "0" * 64, torch.device("cpu"))


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory) -> Path:
    """Twenty cases of 18 to 37 slices, and one that is no longer than a block."""
    lengths = [18 + (7 * i) % 20 for i in range(19)] + [12]
    return write_shards(tmp_path_factory.mktemp("shards") / "valid", lengths)
