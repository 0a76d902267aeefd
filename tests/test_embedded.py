"""The checkpoint in the repository: loads, generates without an argument, and its volumes hold a chest."""

import numpy as np
import pytest

from ctflow.anatomy import measure
from ctflow.pipeline import EMBEDDED, CTFlow

REPORT = "The size of the heart is within normal limits. No pleural effusion is seen. Normal chest CT."


@pytest.fixture(scope="module")
def volume():
    return CTFlow.from_pretrained(EMBEDDED, device="cpu").generate(REPORT, seed=1)


def test_volume_has_the_size_it_was_trained_for_and_ends_by_itself(volume):
    assert volume.hu.shape[1:] == (128, 128)
    assert 48 <= volume.hu.shape[0] <= 110
    assert volume.spacing[0] == pytest.approx(4.0)
    assert np.isfinite(volume.hu).all()


def test_volume_holds_two_lungs_spine_heart_and_trachea(volume):
    found = measure(volume)
    assert all(found.lungs.present.values())
    assert min(found.lungs.volume_ml.values()) > 700
    assert found.spine.present and found.heart.present and found.trachea.present


def test_the_files_stay_within_forty_megabytes():
    files = [path for path in EMBEDDED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 40e6
    assert {path.suffix for path in files} <= {".yaml", ".safetensors", ".json", ".md"}
