"""The demonstration's checks, on phantoms whose truth is known."""

import numpy as np
import pytest

from ctflow.config.demo import ContrastPair, DemoConfig
from ctflow.data.nifti import write_nifti
from ctflow.demo import Stages
from ctflow.demo.page import check_pair
from ctflow.errors import CTFlowError
from ctflow.types import HUVolume
from data_prep.phantom import contrast_pair, healthy_specs, make_phantom


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    spec = next(iter(healthy_specs(seed=8))).resized(128, 4.0)
    paths = []
    for name, one in zip(("with", "without"), contrast_pair(spec, "Pleural effusion", "right"), strict=True):
        phantom = make_phantom(one)
        paths.append(folder / f"{name}.nii.gz")
        write_nifti(paths[-1], phantom.volume)
    return paths


def test_a_true_pair_passes_every_check(pair):
    checks = check_pair(*pair, ContrastPair())
    assert len(checks) == 12
    assert all(c.holds for c in checks), [c for c in checks if not c.holds]


def test_an_exchanged_pair_fails_both_finding_checks(pair):
    checks = check_pair(pair[1], pair[0], ContrastPair())
    assert [c.holds for c in checks[-2:]] == [False, False]
    assert all(c.holds for c in checks[:-2])


def test_a_body_without_anatomy_fails(tmp_path):
    z, y, x = np.meshgrid(np.arange(60), np.linspace(-1, 1, 96), np.linspace(-1, 1, 96), indexing="ij")
    hu = np.where((x / 0.9) ** 2 + (y / 0.7) ** 2 < 1, 40.0, -1000.0).astype(np.float32) + 0 * z
    path = tmp_path / "blob.nii.gz"
    write_nifti(path, HUVolume(hu.astype(np.float32), (4.0, 3.5, 3.5)))
    held = {c.name: c.holds for c in check_pair(path, path, ContrastPair())}
    for part in ("left lung", "right lung", "trachea", "spine"):
        assert not held[f"with the finding: {part}"]


def test_a_failed_stage_is_an_error_that_names_it():
    with pytest.raises(CTFlowError, match="phantoms ended with status 2"):
        Stages().run("phantoms", "data_prep.phantom", ["nonsense=1"])


def test_demo_config_refuses_too_few_volumes():
    with pytest.raises(ValueError, match="volumes must be at least 20"):
        DemoConfig(volumes=5)
