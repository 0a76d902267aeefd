"""Shards: what is written comes back, nothing half is ever seen, damage is found."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from dataclasses import replace

import h5py
import numpy as np
import pytest

from ctflow.data import LatentShards, LatentShardWriter, SliceShards, SliceShardWriter, read_manifest
from ctflow.data import writer as writer_module
from ctflow.data.verify import verify_folder
from ctflow.errors import ShardError


def datasets(path):
    found = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: found.update({name: item}) if isinstance(item, h5py.Dataset) else None
        )
        return {name: (item.chunks, item.fletcher32, item.dtype) for name, item in found.items()}


def flip_byte(path, dataset, chunk=0, position=5):
    with h5py.File(path) as file:
        offset = file[dataset].id.get_chunk_info(chunk).byte_offset + position
    with path.open("r+b") as stream:
        stream.seek(offset)
        value = stream.read(1)[0]
        stream.seek(offset)
        stream.write(bytes([value ^ 0x10]))


def test_slice_records_come_back(make_slices, records):
    shards = SliceShards(make_slices([3, 5, 20]))
    for number, slices in enumerate([3, 5, 20]):
        wanted, found = records["slice"](number, slices), shards.record(number)
        np.testing.assert_array_equal(found.hu, wanted.hu)
        assert found.hu.dtype == np.int16
        assert replace(found, hu=wanted.hu) == wanted
    np.testing.assert_array_equal(shards.hu(2, 7, 9), records["slice"](2, 20).hu[7:9])
    assert shards.cases[2].slices == 20 and shards.shard_sizes == [2, 1]
    assert shards.index("case_1") == 1
    with pytest.raises(ShardError, match="no case 'other'"):
        shards.index("other")


def test_latent_records_come_back(make_latents, records):
    shards = LatentShards(make_latents([3, 17, 40]))
    for number, slices in enumerate([3, 17, 40]):
        wanted, found = records["latent"](number, slices, tokens=3 + number % 3), shards.record(number)
        for name in ("mean", "logvar", "text", "text_mask", "pooled"):
            np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
            assert getattr(found, name).dtype == getattr(wanted, name).dtype
        assert (found.report, found.spacing, found.patient_id) == (
            wanted.report,
            wanted.spacing,
            wanted.patient_id,
        )
    header, wanted = shards.header, records["header"]()
    np.testing.assert_array_equal(header.white, wanted.white)
    assert replace(header, air=0, white=0) == replace(wanted, air=0, white=0)
    assert shards.tokens == 5


def test_a_report_longer_than_an_hdf5_attribute_comes_back(tmp_path, records):
    record = replace(records["slice"](0, 2), report="Lunge frei. " * 9000)
    with SliceShardWriter(tmp_path) as writer:
        writer.append(record)
    assert SliceShards(tmp_path).record(0).report == record.report


def test_every_dataset_has_a_checksum_and_bounded_chunks(make_slices, make_latents):
    slices, latents = make_slices([40, 5]), make_latents([40, 5])
    for path in [*slices.glob("*.h5"), *latents.glob("*.h5")]:
        found = datasets(path)
        assert all(fletcher for _, fletcher, _ in found.values()), found
    chunks, _, dtype = datasets(latents / "shard-00000.h5")["cases/00000/mean"]
    assert chunks == (8, 4, 2, 2) and dtype == np.float16


def test_chunks_of_large_slices_hold_one_slice(tmp_path, records):
    with SliceShardWriter(tmp_path) as writer:
        writer.append(records["slice"](0, 3, side=512))
    assert datasets(tmp_path / "shard-00000.h5")["cases/00000/hu"][0] == (1, 512, 512)


@pytest.mark.parametrize(
    "dataset", ["cases/00001/mean", "cases/00001/text", "cases/00001/metadata", "white", "header"]
)
def test_a_flipped_bit_is_found(make_latents, dataset):
    folder = make_latents([30, 30, 30])
    assert verify_folder(folder) == []
    flip_byte(folder / "shard-00000.h5", dataset)
    problems = verify_folder(folder)
    assert len(problems) == 1 and dataset.split("/")[-1] in problems[0], problems


def test_reading_a_damaged_chunk_is_an_error_not_a_number(make_slices):
    folder = make_slices([4, 4])
    flip_byte(folder / "shard-00000.h5", "cases/00001/hu")
    shards = SliceShards(folder)
    shards.hu(0)
    with pytest.raises(ShardError, match="cases/00001/hu cannot be read"):
        shards.hu(1)


def test_damage_outside_the_chunks_is_found_by_the_file_hash(make_slices):
    folder = make_slices([4, 4])
    with (folder / "shard-00000.h5").open("ab") as stream:
        stream.write(b"\0")
    assert "SHA-256" in verify_folder(folder)[0]


def test_truncated_missing_and_unlisted_files_are_found(make_slices, tmp_path):
    folder = make_slices([4, 4, 4, 4, 4, 4])
    with (folder / "shard-00000.h5").open("r+b") as stream:
        stream.truncate(2000)
    (folder / "shard-00001.h5").unlink()
    (folder / "shard-00009.h5").write_bytes((folder / "shard-00002.h5").read_bytes())
    problems = "\n".join(verify_folder(folder))
    assert len(problems.splitlines()) == 3
    assert "shard-00000.h5 cannot be opened" in problems
    assert "shard-00001.h5 is in the manifest, not in the folder" in problems
    assert "shard-00009.h5 is not in the manifest" in problems


def test_wrong_kind_version_and_empty_folders_are_refused(make_slices, tmp_path):
    folder = make_slices([4])
    with pytest.raises(ShardError, match="is a shard of slices"):
        LatentShards(folder)
    with pytest.raises(ShardError, match="no complete slices shard"):
        SliceShards(tmp_path / "nothing")
    with pytest.raises(ShardError, match="no manifest"):
        verify_folder(tmp_path / "nothing")
    with h5py.File(folder / "shard-00000.h5", "r+") as file:
        file.attrs["version"] = 99
    with pytest.raises(ShardError, match="99"):
        SliceShards(folder).hu(0)


def test_a_damaged_manifest_names_the_line(make_slices):
    folder = make_slices([4, 4, 4])
    manifest = folder / "manifest.jsonl"
    lines = manifest.read_text(encoding="utf-8").splitlines()
    manifest.write_text(lines[0] + "\n" + lines[1][:50] + "\n", encoding="utf-8")
    with pytest.raises(ShardError, match="line 2"):
        SliceShards(folder)
    manifest.write_text(lines[0] + "\n" + lines[0] + "\n", encoding="utf-8")
    with pytest.raises(ShardError, match="lists case 'case_0'"):
        SliceShards(folder)


def test_shards_of_two_encoders_in_one_folder_are_refused(make_latents, records):
    folder = make_latents([20, 20])
    other = LatentShardWriter(folder, records["header"]("another"))
    other.begin("shard-00001.h5")
    other.append(records["latent"](7, 20))
    other.finish()
    with pytest.raises(ShardError, match="avae_fingerprint is another"):
        LatentShards(folder).record(2)
    assert "avae_fingerprint" in verify_folder(folder)[0]


def test_what_an_exception_interrupts_is_dropped_and_the_rest_stays(tmp_path, records):
    with pytest.raises(RuntimeError, match="stop"), SliceShardWriter(tmp_path, volumes_per_shard=2) as writer:
        for number in range(3):
            writer.append(records["slice"](number, 4))
        raise RuntimeError("stop")
    assert [case.case_id for case in SliceShards(tmp_path).cases] == ["case_0", "case_1"]
    assert not list(tmp_path.glob("*.partial")) and not list(tmp_path.glob(".*.partial"))


def test_a_case_is_written_once_and_a_folder_has_one_writer(tmp_path, records):
    with SliceShardWriter(tmp_path, volumes_per_shard=2) as writer:
        writer.append(records["slice"](0, 4))
        with pytest.raises(ShardError, match="already in"):
            writer.append(records["slice"](0, 4))
        with pytest.raises(ShardError, match="another process is writing"):
            SliceShardWriter(tmp_path)
    with SliceShardWriter(tmp_path) as writer, pytest.raises(ShardError, match="already in"):
        writer.append(records["slice"](0, 4))


def append_all(folder, make, kill_after=None):
    with SliceShardWriter(folder, volumes_per_shard=2) as writer:
        for number in range(5):
            if f"case_{number}" in writer.completed_case_ids():
                continue
            writer.append(make(number, 4 + number))
            if number == kill_after:
                os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_writer_leaves_no_half_shard_and_a_new_one_goes_on(tmp_path, records):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    append_all(whole, records["slice"])
    process = multiprocessing.get_context("fork").Process(
        target=append_all, args=(killed, records["slice"], 2)
    )
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert list(killed.glob(".*.partial")), "the kill came in mid-shard"
    assert verify_folder(killed) == []
    assert [case.case_id for case in SliceShards(killed).cases] == ["case_0", "case_1"]
    append_all(killed, records["slice"])
    assert {p.name for p in killed.iterdir()} == {p.name for p in whole.iterdir()}
    for path in [*whole.glob("*.h5"), whole / "manifest.jsonl"]:
        assert (killed / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_kill_between_rename_and_manifest_costs_only_that_shard(tmp_path, records, monkeypatch):
    append_all(tmp_path / "whole", records["slice"])

    def no_manifest(folder, entry):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(writer_module, "add_to_manifest", no_manifest)
        with pytest.raises(KeyboardInterrupt):
            append_all(tmp_path / "cut", records["slice"])
    assert (tmp_path / "cut" / "shard-00000.h5").is_file()
    assert read_manifest(tmp_path / "cut") == []
    append_all(tmp_path / "cut", records["slice"])
    assert verify_folder(tmp_path / "cut") == []
    manifests = [(tmp_path / name / "manifest.jsonl").read_bytes() for name in ("whole", "cut")]
    assert manifests[0] == manifests[1]


def write_one(folder, number, make, header):
    for k in range(4):
        writer = LatentShardWriter(folder, header())
        writer.begin(f"shard-{number * 4 + k:05d}.h5")
        writer.append(make(number * 4 + k, 5))
        writer.finish()


def test_ranks_write_one_manifest_together(tmp_path, records):
    context = multiprocessing.get_context("fork")
    args = (records["latent"], records["header"])
    processes = [context.Process(target=write_one, args=(tmp_path, rank, *args)) for rank in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    files = [
        json.loads(line)["file"]
        for line in (tmp_path / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert files == [f"shard-{i:05d}.h5" for i in range(12)]
    assert verify_folder(tmp_path) == []


def test_a_full_disk_is_an_error_of_the_system_and_leaves_nothing(tmp_path):
    """In a process of its own: HDF5 ends it with a segmentation fault where a write fails under it."""
    code = """
import resource, sys
import numpy as np
from ctflow.config import run_command
from ctflow.data import SliceRecord, SliceShardWriter

def main():
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))
    hu = np.random.default_rng(0).integers(-1000, 1000, (40, 64, 64)).astype(np.int16)
    with SliceShardWriter(sys.argv[1]) as writer:
        for name in "abc":
            writer.append(SliceRecord(name, name, hu, (1.0, 1.0, 1.0), "report"))

run_command(main)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: File too large: ") and done.stderr.count("\n") == 1
    assert not list(tmp_path.glob("*.h5")) and not list(tmp_path.glob(".*.partial"))


@pytest.mark.parametrize(
    ("name", "value"),
    [("mean", np.nan), ("logvar", np.inf), ("logvar", 60_000), ("text", np.nan), ("pooled", np.inf)],
)
def test_numbers_that_are_not_finite_name_shard_and_case(tmp_path, records, name, value):
    case = records["latent"](7, 20, tokens=3)
    getattr(case, name).flat[1] = value
    writer = LatentShardWriter(tmp_path, records["header"]())
    writer.begin("shard-00000.h5")
    writer.append(case)
    writer.finish()
    shards = LatentShards(tmp_path)
    with pytest.raises(ShardError, match=r"shard-00000.h5, case 'case_7': .*not finite"):
        (shards.text if name in ("text", "pooled") else shards.posterior)(0)
