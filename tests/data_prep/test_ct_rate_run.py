"""The command: a whole run, its papers, its status; a second run; a kill; workers that hang or die."""

from __future__ import annotations

import csv
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from ct_rate_scans import SPACING, chest, crash, hang, save_nifti

from ctflow.config.prep import IngestConfig
from ctflow.data import SliceShards, read_manifest
from ctflow.data.nifti import write_nifti
from ctflow.errors import CTFlowError
from ctflow.types import HUVolume
from data_prep.ct_rate.command import main
from data_prep.ct_rate.discovery import Item
from data_prep.ct_rate.pool import GuardedPool
from data_prep.ct_rate.prepare import Job
from data_prep.ct_rate.tables import CsvRow

KEYS = ["resolution=64", "z_spacing=null", "workers=1", "progress=false"]
NAMES = ["train_1_a_1", "train_1_a_2", "train_2_a_1", "valid_1_a_1"]


def tree(root, names=NAMES):
    """CT-RATE's tree of small chests, with reports and labels."""
    for seed, name in enumerate(names):
        split, number, scan, _ = name.split("_")
        folder = root / "dataset" / split / f"{split}_{number}" / f"{split}_{number}_{scan}"
        save_nifti(folder / f"{name}.nii.gz", chest(seed=seed))
    (folder / f"{name}.truth.json").write_text("{}", encoding="utf-8")
    for split in ("train", "valid"):
        rows = "".join(f"{n}.nii.gz,Findings of {n}.,Not given.\n" for n in names if n.startswith(split))
        (root / f"{split}_reports.csv").write_text(
            "VolumeName,Findings_EN,Impressions_EN\n" + rows, encoding="utf-8"
        )
        rows = "".join(f"{n}.nii.gz,1,0\n" for n in names if n.startswith(split))
        (root / f"{split}_predicted_labels.csv").write_text(
            "VolumeName,Lung nodule,Emphysema\n" + rows, encoding="utf-8"
        )


def run(source, output, *keys) -> int:
    return main(["--source", str(source), "--output", str(output), *KEYS, *keys])


def table(path):
    with path.open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def contents(output):
    """Every case of a run's shards."""
    found = {}
    for split in ("train", "valid"):
        if read_manifest(output / split):
            shards = SliceShards(output / split)
            for index in range(len(shards.cases)):
                record = shards.record(index)
                found[record.case_id] = (split, record.hu.tobytes(), record.report, record.spacing)
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run over a tree with one bad file and one strange one."""
    root = tmp_path_factory.mktemp("run")
    tree(root / "in")
    bad = root / "in" / "dataset" / "train" / "train_3" / "train_3_a" / "train_3_a_1.nii.gz"
    bad.parent.mkdir(parents=True)
    bad.write_bytes(b"not gzip at all")
    save_nifti(root / "in" / "half" / "half.nii.gz", chest()[:20])
    status = run(root / "in", root / "out")
    return root, status


def test_status_says_that_something_was_refused(finished):
    assert finished[1] == 1


def test_shards_hold_what_was_accepted(finished):
    root, _ = finished
    train, valid = (SliceShards(root / "out" / split) for split in ("train", "valid"))
    assert {case.case_id for case in valid.cases} >= {"valid_1_a_1"}
    assert {case.case_id for case in train.cases} >= {"train_1_a_1", "train_1_a_2", "train_2_a_1"}
    record = next(r for r in map(valid.record, range(len(valid.cases))) if r.case_id == "valid_1_a_1")
    np.testing.assert_array_equal(record.hu, np.where(chest(seed=3) <= -1024, -1000, chest(seed=3)))
    assert record.report == "Findings of valid_1_a_1." and record.labels == {"Lung nodule": 1, "Emphysema": 0}
    assert record.patient_id == "valid_1" and record.split == "valid" and len(record.source_sha256) == 64
    assert record.truth_path and record.truth_path.endswith("valid_1_a_1.truth.json")
    assert record.extra["ingest"]["rescale"]["source"] == "stored"


def test_quarantine_names_file_and_reason(finished):
    rows = {row["source"]: row for row in table(finished[0] / "out" / "quarantine.csv")}
    bad = rows["dataset/train/train_3/train_3_a/train_3_a_1.nii.gz"]
    assert (bad["status"], bad["reason"]) == ("refused", "unreadable")
    assert rows["half/half.nii.gz"]["status"] == "flagged"


def test_summary_volumes_and_contact_sheet(finished):
    out = finished[0] / "out"
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert (summary["accepted"], summary["flagged"], summary["refused"]) == (4, 1, 1)
    assert summary["refused_by_reason"] == {"unreadable": 1}
    assert "short_coverage" in summary["flagged_by_reason"] and "no_report" in summary["flagged_by_reason"]
    assert {row["case_id"] for row in table(out / "volumes.csv")} == {*NAMES, "half-half"}
    from PIL import Image

    assert np.asarray(Image.open(out / "contact_sheet.png")).std() > 20


def test_a_second_run_does_nothing(finished, caplog):
    root, _ = finished
    files = [p for p in (root / "out").rglob("*") if p.suffix in (".h5", ".png", ".jsonl")]
    before = {p: p.stat().st_mtime_ns for p in files}
    with caplog.at_level("INFO"):
        assert run(root / "in", root / "out") == 1
    assert {p: p.stat().st_mtime_ns for p in files} == before
    assert ", 0 to do" in caplog.text


def test_other_settings_need_another_output(finished):
    root, _ = finished
    with pytest.raises(CTFlowError, match=r"z_spacing=None there, 3\.0 now"):
        run(root / "in", root / "out", "z_spacing=3.0")


def test_users_mistakes(tmp_path):
    with pytest.raises(CTFlowError, match="--source"):
        main(["--output", str(tmp_path)])
    (tmp_path / "in").mkdir()
    with pytest.raises(CTFlowError, match="no scan"):
        run(tmp_path / "in", tmp_path / "out")
    with pytest.raises(CTFlowError, match="did you mean"):
        run(tmp_path / "in", tmp_path / "out", "resolutoin=64")


def test_new_files_are_added_flagged_ones_may_stay_out_and_generated_volumes_come_back(tmp_path):
    hu = np.where(chest() <= -1024, -1000, chest())
    write_nifti(tmp_path / "in" / "a.nii.gz", HUVolume(hu.astype(np.float32), SPACING), "generated")
    save_nifti(tmp_path / "in" / "short.nii.gz", chest()[:20])
    out = tmp_path / "out"
    assert run(tmp_path / "in", out, "keep_flagged=false", "valid_fraction=0") == 0
    assert set(contents(out)) == {"a"}
    split, data, _, spacing = contents(out)["a"]
    assert split == "train" and data == hu.astype(np.int16).tobytes() and spacing == pytest.approx(SPACING)
    save_nifti(tmp_path / "in" / "b.nii.gz", chest(seed=9))
    assert run(tmp_path / "in", out, "keep_flagged=false", "valid_fraction=0") == 0
    assert set(contents(out)) == {"a", "b"}
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert summary["slices"] == 2 * len(hu) and summary["flagged"] == 1
    shutil.rmtree(out / ".ingest")  # without its journal a run reads again, but writes nothing twice
    before = contents(out)
    assert run(tmp_path / "in", out, "keep_flagged=false", "valid_fraction=0") == 0
    assert (
        contents(out) == before and json.loads((out / "summary.json").read_text(encoding="utf-8")) == summary
    )


def test_a_name_that_is_no_text_is_told_in_escapes(tmp_path):
    (tmp_path / "in").mkdir()
    save_nifti(tmp_path / "good.nii.gz", chest()).rename(tmp_path / "in" / os.fsdecode(b"a\xff.nii.gz"))
    (tmp_path / "in" / os.fsdecode(b"b\xfe.nii.gz")).write_bytes(b"?")
    assert run(tmp_path / "in", tmp_path / "out", "valid_fraction=0") == 1
    (row,) = table(tmp_path / "out" / "quarantine.csv")
    assert row["source"] == r"b\udcfe.nii.gz" and len(contents(tmp_path / "out")) == 1


def test_two_files_of_one_case(tmp_path):
    for folder in ("x", "y"):
        save_nifti(tmp_path / "in" / folder / "train_1_a_1.nii.gz", chest())
    assert run(tmp_path / "in", tmp_path / "out") == 1
    (row,) = table(tmp_path / "out" / "quarantine.csv")
    assert (row["source"], row["reason"]) == ("y/train_1_a_1.nii.gz", "duplicate")
    assert run(tmp_path / "in", tmp_path / "out") == 1


def test_nothing_usable_is_status_two(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.nii.gz").write_bytes(os.urandom(5000))
    assert run(tmp_path / "in", tmp_path / "out") == 2


@pytest.mark.slow
def test_killed_in_the_middle_and_resumed_gives_the_same_shards(tmp_path):
    names = [f"train_{n}_a_1" for n in range(12)]
    tree(tmp_path / "in", names)
    out = tmp_path / "out"
    keys = [*KEYS, "volumes_per_shard=2"]
    command = [
        sys.executable,
        "-m",
        "data_prep.ct_rate",
        "--source",
        str(tmp_path / "in"),
        "--output",
        str(out),
    ]
    process = subprocess.Popen([*command, *keys], stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 300
    while not read_manifest(out / "train") and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    whole = {case.case_id for entry in read_manifest(out / "train") for case in entry.cases}
    assert whole and len(whole) < len(names)
    assert run(tmp_path / "in", out, "volumes_per_shard=2") == 0
    found = contents(out)
    assert set(found) == set(names)
    for seed, name in enumerate(names):
        expected = np.where(chest(seed=seed) <= -1024, -1000, chest(seed=seed)).astype(np.int16)
        assert found[name][1] == expected.tobytes()
    assert not list(out.rglob("*.partial*")) and not list((out / ".ingest").glob("staging/*"))
    assert json.loads((out / "summary.json").read_text(encoding="utf-8"))["accepted"] == len(names)


@pytest.mark.parametrize(("task", "code"), [(hang, "timeout"), (crash, "crashed")])
def test_a_worker_that_hangs_or_dies_costs_its_file_only(tmp_path, task, code):
    pool = GuardedPool(1, timeout=0.5, memory_gb=6.0, task=task)
    try:
        outcomes = []
        for name in ("a.nii.gz", "b.nii.gz"):
            pool.submit(
                Job(Item(name, "nifti", (name,), "f"), CsvRow(), IngestConfig(), str(tmp_path / "x.npy"))
            )
            while not pool.free():
                outcomes += [outcome for _, outcome in pool.results()]
    finally:
        pool.close()
    assert [(o.key, o.status, o.reasons[0][0]) for o in outcomes] == [
        ("a.nii.gz", "refused", code),
        ("b.nii.gz", "refused", code),
    ]


def test_volumes_without_an_ending_that_names_them(tmp_path, caplog):
    """They are found by their first bytes when their folder is sorted; half a download is one."""
    caplog.set_level("INFO")
    for place in ("in/scan", "in/sub/deep/scan"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        save_nifti(tmp_path / "a.nii", chest(seed=len(place))).rename(tmp_path / place)
    data = save_nifti(tmp_path / "b.nii.gz", chest()).read_bytes()
    (tmp_path / "in" / "b.nii.gz.part").write_bytes(data[: len(data) // 2])
    assert run(tmp_path / "in", tmp_path / "out") == 1
    assert set(contents(tmp_path / "out")) == {"in-scan", "sub-deep-scan"}
    assert [row["reason"] for row in table(tmp_path / "out" / "quarantine.csv")] == ["truncated"]
    caplog.clear()
    assert run(tmp_path / "in", tmp_path / "out") == 1 and "0 to do" in caplog.text
    (tmp_path / "in" / "b.nii.gz.part").write_bytes(data)
    assert run(tmp_path / "in", tmp_path / "out") == 0 and len(contents(tmp_path / "out")) == 3


def test_a_full_disk_ends_the_run_and_refuses_no_scan(tmp_path):
    """A limit on the size of files is what a full disk is to a worker; it inherits the limit."""
    save_nifti(tmp_path / "in" / "a.nii.gz", chest())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: '.*staging.*npy'"):
            run(tmp_path / "in", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.rglob("*.partial*")), "nothing half written"
    assert run(tmp_path / "in", tmp_path / "out") == 0
    assert set(contents(tmp_path / "out")) == {"a"}


@pytest.mark.parametrize("fraction", ["0.1", "0.9"])
def test_two_patients_fill_both_sides_of_the_split(tmp_path, fraction):
    """Few scans of one's own can be trained on and validated; a patient's scans stay together."""
    for seed, name in enumerate(("anna/1", "bert/1", "bert/2")):
        save_nifti(tmp_path / "in" / f"{name}.nii.gz", chest(seed=seed))
    keys = [f"valid_fraction={fraction}", "patient_pattern=^(\\w+)/"]
    assert run(tmp_path / "in", tmp_path / "out", *keys) == 0
    sides = {case: split for case, (split, *_) in contents(tmp_path / "out").items()}
    assert sides["anna-1"] != sides["bert-1"] == sides["bert-2"]
