"""The look at the anatomy: upright chests raise no doubt, every other placement of them does."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from ctflow.data.nifti import write_nifti
from ctflow.evaluation.external import VolumeFolder
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


def test_empty_margins_change_nothing(chest):
    padded = np.pad(chest.hu, ((6, 6), (20, 9), (9, 20)), constant_values=-1000)
    assert orientation_doubt(padded, chest.spacing) is None
    for flips, words in WRONG.items():
        turned = padded[:: flips[0], :: flips[1], :: flips[2]]
        assert words in (orientation_doubt(turned, chest.spacing) or ""), flips


def test_lungs_cut_at_the_top_still_have_sides(chest):
    cut = chest.hu[: 2 * len(chest.hu) // 3]
    assert orientation_doubt(cut, chest.spacing) is None
    assert WRONG[1, 1, -1] in (orientation_doubt(cut[:, :, ::-1], chest.spacing) or "")


@pytest.mark.parametrize("order", [(1, 0, 2), (2, 1, 0)])
def test_spacing_of_other_axes_gives_proportions_that_no_chest_has(order):
    chest = make_phantom(sample_spec(11, 0, 64, 1.5), masks=False).volume
    spacing = [chest.spacing[axis] for axis in order]
    assert orientation_doubt(chest.hu, chest.spacing) is None
    assert "the spacing may be that of other axes" in (orientation_doubt(chest.hu, spacing) or "")


@pytest.mark.parametrize("order", [(2, 1, 0), (1, 0, 2), (2, 0, 1)])
def test_sizes_in_another_order_give_slices_that_do_not_go_on_from_each_other(chest, order):
    hu = chest.hu.reshape([chest.hu.shape[axis] for axis in order])
    for spacing in (chest.spacing, [chest.spacing[axis] for axis in order]):
        assert orientation_doubt(hu, spacing) is not None


def test_noise_and_crops_of_upright_chests_raise_no_doubt(chest):
    noise = np.random.default_rng(0).normal(0, 150, chest.hu.shape)
    count, rows, columns = chest.hu.shape
    for hu in (
        chest.hu + noise,
        chest.hu[count // 5 : -count // 5],
        chest.hu[:, : rows // 2],
        chest.hu[:, :, : columns // 2],
        chest.hu[:, 9:-9, 8:-8],
    ):
        assert orientation_doubt(hu, chest.spacing) is None


@pytest.mark.slow
def test_few_of_many_chests_are_judged_wrongly():
    seed = 60613
    drawn = np.random.default_rng(seed)
    told = dict.fromkeys(WRONG, 0)
    for number in range(20):
        z = float(drawn.choice([1.5, 2.3, 3.1, 5.0]))
        volume = make_phantom(sample_spec(seed, number, 64, z), masks=False).volume
        assert orientation_doubt(volume.hu, volume.spacing) is None, (number, z)
        for flips in told:
            turned = volume.hu[:: flips[0], :: flips[1], :: flips[2]]
            told[flips] += orientation_doubt(turned, volume.spacing) is not None
    assert min(told.values()) >= 15 and sum(told.values()) >= 0.9 * 20 * len(told), told


def test_volumes_of_other_systems_are_looked_at(chest, tmp_path):
    write_nifti(tmp_path / "upright.nii.gz", chest)
    write_nifti(tmp_path / "turned.nii.gz", HUVolume(chest.hu[:, ::-1, ::-1].copy(), chest.spacing))
    folder = VolumeFolder(tmp_path)
    doubts = {c.case_id: next(folder.batch(c).make(lambda note: None)).doubts for c in folder.cases}
    assert doubts["upright"] == ()
    assert doubts["turned"][0].startswith("orientation_doubt: the spine lies in front")
