"""Choice at inference: what is drawn, what is kept, and that the kept volume can be drawn again."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from ctflow.candidates import compared, generate_best, noise_of
from ctflow.errors import CTFlowError
from ctflow.generate import main
from ctflow.pipeline import CTFlow, GeneratedVolume, GenerationRequest
from ctflow.types import HUVolume

REPORT = "Small right pleural effusion."


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return CTFlow.from_pretrained(tiny_checkpoint, device="cpu")


def test_the_kept_volume_is_one_of_those_drawn(model):
    request = GenerationRequest(REPORT, "a", seed=3, slices=16)
    (best,) = generate_best(model, [request], 3)
    assert isinstance(best, GeneratedVolume)
    told = best.provenance["candidates"]
    assert [one["noise_id"] for one in told] == ["a", "a/candidate2", "a/candidate3"]
    (kept,) = [one for one in told if one["kept"]]
    assert kept["rank"] == min(one["rank"] for one in told)
    (again,) = model.generate_many([replace(request, noise_id=kept["noise_id"])])
    # A batch of one sums in another order than a batch of three.
    np.testing.assert_allclose(best.volume.hu, again.volume.hu, atol=0.02)
    assert best.request == request


def test_one_candidate_is_what_the_request_alone_gives(model):
    request = GenerationRequest(REPORT, "a", seed=3, slices=16)
    (best,), (alone,) = generate_best(model, [request], 1), model.generate_many([request])
    np.testing.assert_array_equal(best.volume.hu, alone.volume.hu)
    assert noise_of(replace(request, noise_id="shared"), 0) == "shared"


class Scores:
    """Stands for a scorer: the agreement is the volume's first voxel."""

    def score(self, report, volume):
        return float(volume.hu[0, 0, 0])


def volume_of(hu: np.ndarray, score: float) -> GeneratedVolume:
    hu = hu.copy()
    hu[0, 0, 0] = score
    request = GenerationRequest(REPORT, noise_id=str(score))
    return GeneratedVolume(request, HUVolume(hu, (4.0, 3.0, 3.0)), "", {"sampling": {"overlap": 0}})


def test_seams_drift_and_score_decide():
    rng = np.random.default_rng(0)
    smooth = rng.normal(40, 20, (48, 24, 24)).astype(np.float32)
    seamed = smooth.copy()
    seamed[16:32] += 200
    told = compared([volume_of(smooth, 50), volume_of(smooth, 50), volume_of(seamed, 50)], Scores())
    assert told[2].seam_ratio > 2 * told[0].seam_ratio
    assert told[2].drift > told[0].drift
    assert [one.kept for one in told] == [True, False, False]
    told = compared([volume_of(smooth, 20), volume_of(smooth, 60), volume_of(smooth, 40)], Scores())
    assert [one.kept for one in told] == [False, True, False]


def test_the_command_keeps_one_and_tells_of_all(tiny_checkpoint, tmp_path):
    out = tmp_path / "ct.nii.gz"
    arguments = ["--checkpoint", str(tiny_checkpoint), "--report", REPORT, "--output", str(out)]
    arguments += ["--slices", "16", "device=cpu"]
    assert main([*arguments, "--candidates", "2"]) == 0
    record = tmp_path / "ct.json"
    assert len(json.loads(record.read_text(encoding="utf-8"))["candidates"]) == 2
    made = record.stat().st_mtime_ns
    assert main([*arguments, "--candidates", "2"]) == 0
    assert record.stat().st_mtime_ns == made
    assert main(arguments) == 0
    assert "candidates" not in json.loads(record.read_text(encoding="utf-8"))
    with pytest.raises(CTFlowError, match="at least 1"):
        main([*arguments, "--candidates", "0"])
