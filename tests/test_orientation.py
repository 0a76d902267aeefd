"""The look at the anatomy: upright chests raise no doubt, every other placement of them does."""

from __future__ import annotations

import itertools
import logging

import numpy as np
import pytest

from ctflow.data.nifti import write_nifti
from ctflow.evaluation.external import list_volumes
from ctflow.orientation import orientation_doubt
from ctflow.types import HUVolume
from data_prep.phantom.render import make_phantom
from data_prep.phantom.sampling import sample_spec

WRONG = {
    (1, -1, 1): "spine lies in front",
    (-1, 1, 1): "narrow at the bottom",
    (1, 1, -1): "liver lies on the left",
    (1, -1, -1): "spine lies in front; the liver lies on the left",
    (-1, -1, 1): "spine lies in front; the lungs are narrow at the bottom",
    (-1, 1, -1): "bottom; the liver lies on the left",
    (-1, -1, -1): "front; the lungs are narrow at the bottom; the liver",
}


@pytest.fixture(scope="module")
def chest() -> HUVolume:
    return make_phantom(sample_spec(11, 0, 64, 4.0), masks=False).volume


def test_an_upright_chest_raises_no_doubt(chest):
    assert orientation_doubt(chest.hu, chest.spacing) is None
    assert orientation_doubt(np.rint(chest.hu).astype(np.int16), chest.spacing) is None


@pytest.mark.parametrize("flips", WRONG)
def test_turned_and_mirrored_chests_are_told_in_words(chest, flips):
    hu = chest.hu[:: flips[0], :: flips[1], :: flips[2]]
    assert WRONG[flips] in (orientation_doubt(hu, chest.spacing) or "")


@pytest.mark.parametrize("order", [order for order in itertools.permutations(range(3)) if order != (0, 1, 2)])
def test_exchanged_axes_are_told(chest, order):
    spacing = [chest.spacing[axis] for axis in order]
    doubt = orientation_doubt(chest.hu.transpose(order), spacing)
    assert doubt is not None and "not along the" in doubt


def test_too_little_is_no_ground_for_an_opinion(chest):
    upside_down = chest.hu[::-1]
    assert orientation_doubt(upside_down, chest.spacing) is not None
    middle = len(upside_down) // 2
    assert orientation_doubt(upside_down[middle - 12 : middle + 12], chest.spacing) is None, "10 cm"
    assert orientation_doubt(upside_down[:, 20:-20, 20:-20], chest.spacing) is None, "a crop"
    assert orientation_doubt(np.full((60, 64, 64), -1000.0), chest.spacing) is None, "air"


def test_volumes_of_other_systems_are_looked_at(chest, tmp_path, caplog):
    write_nifti(tmp_path / "upright.nii.gz", chest)
    with caplog.at_level(logging.WARNING):
        list_volumes(tmp_path)
    assert not caplog.records
    write_nifti(tmp_path / "turned.nii.gz", HUVolume(chest.hu[:, ::-1, ::-1].copy(), chest.spacing))
    with caplog.at_level(logging.WARNING):
        list_volumes(tmp_path)
    assert (
        "orientation_doubt: 1 of 2 volumes" in caplog.text
        and "turned.nii.gz: the spine lies in front" in caplog.text
    )
