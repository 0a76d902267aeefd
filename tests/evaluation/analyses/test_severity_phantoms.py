"""The severity sweep on phantoms: every damage is above the floor where it should be, and only there."""

import numpy as np
import pytest

from ctflow.config.evaluation import AnalysisConfig, EvalConfig
from ctflow.data import SliceRecord, SliceShardWriter
from ctflow.evaluation.analyses import ANALYSES, Context
from ctflow.metrics.damage import DAMAGES
from ctflow.processes import Ranks
from data_prep.phantom import make_phantom, sample_spec

SIDE, CASES = 32, 8  # the side of the tiny system, at which the monitors look


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    with SliceShardWriter(folder) as writer:
        for i in range(2 * CASES):
            phantom = make_phantom(sample_spec(11, i, SIDE, 4.0))
            writer.append(
                SliceRecord(
                    case_id=f"p{i}",
                    patient_id=f"p{i}",
                    hu=np.clip(phantom.volume.hu, -1000, 1000).astype(np.int16),
                    spacing=phantom.volume.spacing,
                    report="A chest.",
                    source_sha256=f"{i:064x}",
                    split="valid",
                )
            )
    return folder


@pytest.mark.slow
def test_every_damage_stands_above_the_floor_on_phantoms(tiny_system, phantoms, tmp_path, monkeypatch):
    third = {name: (damage, levels[2:3]) for name, (damage, levels) in DAMAGES.items()}
    monkeypatch.setattr("ctflow.evaluation.analyses.yardsticks.DAMAGES", third)
    config = EvalConfig(
        slices=str(phantoms),
        cache=str(tmp_path / "cache"),
        cases=CASES,
        clip_lengths=[16],
        resolution=[SIDE],
        analysis=AnalysisConfig(name="severity"),
    )
    floor, *damaged = ANALYSES["severity"](Context(config, tiny_system, Ranks(), tmp_path)).records
    found = {record["damage"]: record for record in damaged}
    assert found.keys() == DAMAGES.keys()

    def raised(metric):
        return {name for name, record in found.items() if record[metric] > 1.05 * floor[metric]}

    everything = set(DAMAGES)
    assert raised("fid_rand2d") == everything - {"shuffle"}  # slices have no order
    assert raised("kid_rand2d") == everything - {"shuffle"}
    clips = {name for name in everything if found[name]["fvd_rand3d_f16"] is not None}
    assert clips >= everything - {"truncation"}  # half a volume may hold too few clips
    assert all(found[n]["fvd_rand3d_f16"] > floor["fvd_rand3d_f16"] for n in clips - {"truncation"})
    assert raised("checkerboard_2") == {"checkerboard"}
    assert {"seam", "duplication"} <= raised("seam_ratio") <= {"seam", "duplication", "shuffle"}
    assert {"blur", "shift", "seam"} <= raised("drift_z")
