"""Reconstructions and scans: training draws one, an evaluation takes one, and never by its index."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from ctflow.config.data import CaseChoice, DataConfig
from ctflow.config.encoders import VolumeGrid
from ctflow.data import (
    Acquisition,
    LatentDataModule,
    LatentShards,
    LatentShardWriter,
    SliceShards,
    SliceShardWriter,
    read_manifest,
)
from ctflow.data.choice import chosen_cases, scans_of
from ctflow.data.stream import TrainLoader
from ctflow.data.verify import verify_folder
from ctflow.data.views import BlockView, SliceView, VolumeView

# Scan, reconstruction, kernel kind, noise, patient, slices. Reconstruction 1 is sharp here and soft there.
VOLUMES = [
    ("train_1_a", "1", "sharp", 60.0, "train_1", 20),
    ("train_1_a", "2", "soft", 12.0, "train_1", 21),
    ("train_1_b", "1", "soft", 11.0, "train_1", 20),
    ("train_2_a", "1", "soft", 10.0, "train_2", 18),
    ("train_2_a", "2", "sharp", 50.0, "train_2", 18),
    ("train_2_a", "3", "sharp", 40.0, "train_2", 18),
    ("train_3_a", "1", "", 70.0, "train_3", 17),
    ("train_3_a", "2", "", 15.0, "train_3", 17),
    ("train_4_a", "1", "sharp", 33.0, "train_4", 19),
]


def volume(record, number, scan, name, kind, noise, patient, slices):
    made = record(number, slices)
    acquisition = Acquisition(scan, name, "B70f" if kind == "sharp" else "B30f", kind, "SIEMENS", noise)
    return replace(made, case_id=f"{scan}_{name}", patient_id=patient, acquisition=acquisition)


@pytest.fixture
def slices(tmp_path, records):
    with SliceShardWriter(tmp_path / "slices", volumes_per_shard=2) as writer:
        for number, values in enumerate(VOLUMES):
            writer.append(volume(records["slice"], number, *values))
    return tmp_path / "slices"


@pytest.fixture
def latents(tmp_path, records):
    writer = LatentShardWriter(tmp_path / "latents", records["header"]())
    for first in range(0, len(VOLUMES), 2):
        writer.begin(f"shard-{first // 2:05d}.h5")
        for number in range(first, min(first + 2, len(VOLUMES))):
            writer.append(volume(records["latent"], number, *VOLUMES[number]))
        writer.finish()
    return tmp_path / "latents"


def ids(cases, choice):
    return [cases[i].case_id for i in chosen_cases(cases, choice)]


def test_the_manifest_names_scan_reconstruction_kernel_and_manufacturer(slices, latents):
    for folder, shards in ((slices, SliceShards(slices)), (latents, LatentShards(latents))):
        listed = [case for entry in read_manifest(folder) for case in entry.cases]
        assert [case.acquisition.scan for case in listed] == [v[0] for v in VOLUMES]
        assert listed[0].acquisition == Acquisition("train_1_a", "1", "B70f", "sharp", "SIEMENS", 60.0)
        assert shards.record(0).acquisition == shards.metadata(0)["acquisition"] == listed[0].acquisition
        assert not verify_folder(folder)


def test_an_evaluation_takes_one_scan_of_a_patient_by_kernel(slices):
    cases = SliceShards(slices).cases
    soft = ["train_1_a_2", "train_2_a_1", "train_3_a_2", "train_4_a_1"]
    assert ids(cases, CaseChoice()) == soft, "unknown kernels go by noise; the only one there is stands in"
    sharp = ["train_1_a_1", "train_2_a_2", "train_3_a_1", "train_4_a_1"]
    assert ids(cases, CaseChoice("sharp")) == sharp
    assert ids(cases, CaseChoice(every_scan=True)) == [soft[0], "train_1_b_1", *soft[1:]]
    everything = [case.case_id for case in cases]
    assert ids(cases, CaseChoice("all", every_scan=True)) == everything
    assert ids(cases, CaseChoice("all")) == [name for name in everything if name != "train_1_b_1"]


def test_renumbered_reconstructions_are_chosen_alike(slices):
    """Names swapped, kernels kept: the choice follows the kernel."""
    cases = SliceShards(slices).cases
    swapped = [replace(case, case_id=f"{case.scan}_{9 - int(case.case_id[-1])}") for case in cases]
    assert chosen_cases(cases, CaseChoice()) == chosen_cases(swapped, CaseChoice())


def test_volumes_that_nothing_ties_are_scans_of_their_own(make_slices):
    cases = SliceShards(make_slices([3, 4, 5])).cases
    assert scans_of(cases) == [[0], [1], [2]]
    assert ids(cases, CaseChoice()) == ["case_0", "case_2"], "case_0 and case_1 are one patient's"


def test_validation_counts_after_the_choice(slices):
    config = DataConfig(train=str(slices), valid=str(slices), view="slices", max_valid_cases=2)
    view = LatentDataModule(config).view("valid")
    assert [case.case_id for case in view.shards.cases] == ["train_1_a_2", "train_2_a_1"]
    assert len(view) == 21 + 18


def test_training_draws_a_scan_then_a_reconstruction(latents):
    module = LatentDataModule(DataConfig(train=str(latents), valid=str(latents), batch_size=3, seed=1))
    view = module.view("train")
    assert isinstance(view, BlockView) and len(view.scans) == 5
    assert len(view) == 5 * 2 == sum(view.shard_items())
    seen: Counter[str] = Counter()
    for epoch in range(120):
        for item in range(len(view)):
            seen[view.shards.cases[view.locate(item, epoch).case].case_id] += 1
    for scan in ("train_1_a", "train_2_a", "train_3_a"):
        shares = [count / 240 for name, count in seen.items() if name.startswith(scan)]
        assert sum(shares) == pytest.approx(1.0) and max(shares) - min(shares) < 0.2
    assert seen["train_1_b_1"] == seen["train_4_a_1"] == 240, "a scan is no rarer for having one volume"


def test_draws_depend_on_seed_and_epoch_alone(latents):
    shards = LatentShards(latents)
    scans = scans_of(shards.cases)

    def order(seed, epoch):
        stream = TrainLoader(BlockView(shards, seed, 0.2, scans), batch_size=5, seed=seed)
        stream.set_epoch(epoch)
        return [batch.case_id for batch in stream]

    assert order(3, 0) == order(3, 0)
    assert len({str(order(3, epoch)) for epoch in range(4)}) == 4
    assert order(3, 0) != order(4, 0)


def test_slices_of_unequal_reconstructions_are_all_there(slices):
    """The longer reconstruction has 21 slices, the shorter 20: no sample lies beyond the volume."""
    shards = SliceShards(slices)
    view = SliceView(shards, 0, scans_of(shards.cases))
    assert [len(view.scan_items(i)) for i in range(5)] == [21, 20, 18, 17, 19]
    batch = view.batch(list(view.scan_items(0)), epoch=2)
    for image, case, index in zip(batch.images, batch.case_id, batch.slice_index, strict=True):
        np.testing.assert_array_equal(image[0].numpy(), shards.hu(shards.index(case), index, index + 1)[0])
    assert {*batch.case_id} == {"train_1_a_1", "train_1_a_2"}


def test_whole_volumes_come_once_a_scan(slices):
    shards = SliceShards(slices)
    grid = VolumeGrid(shape=[4, 4, 4], spacing_mm=[4.5, 3.0, 2.2])
    view = VolumeView(shards, grid, False, 0, scans_of(shards.cases))
    drawn = [view.batch(range(5), epoch).case_id for epoch in range(8)]
    assert all(len({name.rpartition("_")[0] for name in names}) == 5 for names in drawn)
    assert len({tuple(names) for names in drawn}) > 1


def test_an_unknown_reconstruction_is_an_error():
    with pytest.raises(ValueError, match="soft, sharp or all, found 'B70f'"):
        CaseChoice("B70f")
