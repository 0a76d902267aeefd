"""Sources as they lie on disk: closed folders, archives, pipes, odd names, one scan in two formats."""

from __future__ import annotations

import gzip
import os
import socket
import tempfile
import zipfile
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from ct_rate_scans import chest, save_dicom, save_nifti
from test_ct_rate_run import contents, run, table

from ctflow.config.prep import IngestConfig
from ctflow.data.nifti import read_nifti
from ctflow.errors import CTFlowError
from ctflow.text_files import read_table
from data_prep.ct_rate import dicom_series
from data_prep.ct_rate.discovery import Item, Source, find_items
from data_prep.ct_rate.likeness import GRID, Looks, alike
from data_prep.ct_rate.naming import case_id_of
from data_prep.ct_rate.patients import PatientLinks
from data_prep.ct_rate.prepare import Job, Outcome, prepare
from data_prep.ct_rate.report import write_reports
from data_prep.ct_rate.run import IngestRun
from data_prep.ct_rate.tables import CsvRow, Tables


def told(path):
    return {key: (status, code) for key, status, code, _ in find_items(path).told}


def test_folders_and_files_that_may_not_be_read_are_told(tmp_path, monkeypatch):
    save_nifti(tmp_path / "in" / "open" / "one.nii.gz", chest())
    save_nifti(tmp_path / "in" / "closed" / "two.nii.gz", chest())
    (tmp_path / "in" / "half").mkdir()
    (tmp_path / "in" / "half" / "three.nii.gz").write_bytes(b"")
    (tmp_path / "in" / "half").chmod(0o744)  # may be listed, not entered
    scandir, status = os.scandir, os.lstat

    def closed(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    def half(path, **keys):
        if "half" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return status(path, **keys)

    monkeypatch.setattr(os, "scandir", closed)
    monkeypatch.setattr(os, "lstat", half)
    assert told(tmp_path / "in") == {
        "closed/": ("refused", "not_read"),
        "half/": ("refused", "not_read"),
    }
    assert run(tmp_path / "in", tmp_path / "out") == 1
    rows = {r["source"]: r["detail"] for r in table(tmp_path / "out" / "quarantine.csv")}
    assert "Permission denied" in rows["closed/"]
    with pytest.raises(CTFlowError, match="cannot be read"):
        find_items(tmp_path / "in" / "closed")


def test_archives_and_packed_scans_are_named(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for k in range(3):
        (folder / f"i{k}.dcm.gz").write_bytes(gzip.compress(b"x"))
    with zipfile.ZipFile(folder / "train_1.zip", "w") as archive:
        archive.writestr("train_1_a_1.nii", b"x")
    for name in ("scan.nii.bz2", "scan.nii.zst", "all.tar.gz", "reports.csv.gz", "notes.txt.xz"):
        (folder / name).write_bytes(b"x")
    found = find_items(folder)
    assert {(key, code, detail.split()[0]) for key, _, code, detail in found.told} == {
        ("*.dcm.gz", "packed", "3"),
        ("*.zip", "packed", "1"),
        ("*.nii.bz2", "packed", "1"),
        ("*.nii.zst", "packed", "1"),
        ("*.tar.gz", "packed", "1"),
    }
    assert found.stray == ["notes.txt.xz", "reports.csv.gz"] and not found.items
    with pytest.raises(CTFlowError, match="unpack"):
        run(folder, tmp_path / "out")
    save_nifti(folder / "good.nii.gz", chest())
    assert run(folder, tmp_path / "out") == 1


def test_packed_files_without_ending_are_named():
    item_of = tempfile.TemporaryDirectory()
    with item_of as folder:
        path = Path(folder) / "IM1"
        path.write_bytes(gzip.compress(b"a slice"))
        item = find_items(Path(folder)).items[0]
        assert [entry[1:3] for entry in dicom_series.sort_folder(item)[1]] == [("refused", "packed")]


def test_pipes_sockets_and_devices_are_told_and_not_opened(tmp_path):
    os.mkfifo(tmp_path / "scan.nii.gz")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero.dcm").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listening:
        here = os.getcwd()
        os.chdir(tmp_path)  # a socket's path must be short
        try:
            listening.bind("s")
        finally:
            os.chdir(here)
        assert told(tmp_path) == {
            "scan.nii.gz": ("refused", "not_an_image"),
            "zero.dcm": ("refused", "not_an_image"),
            "pipe": ("ignored", "special_file"),
            "s": ("ignored", "special_file"),
        }


def test_line_breaks_and_formulas_in_names_stay_text(tmp_path):
    names = ["a\nb.nii.gz", "=1+1.nii.gz", "@x\x1b[2J.nii.gz", "-y.nii.gz", "+z.nii.gz"]
    (tmp_path / "in").mkdir()
    for name in names:
        (tmp_path / "in" / name).write_bytes(b"?")
    assert run(tmp_path / "in", tmp_path / "out") == 2
    rows = table(tmp_path / "out" / "quarantine.csv")
    assert sorted(row["source"] for row in rows) == [
        *("'+z.nii.gz", "'-y.nii.gz", "'=1+1.nii.gz", "'@x\\x1b[2J.nii.gz", "a\\nb.nii.gz"),
    ]


def test_numbers_of_the_reports_are_no_formulas(tmp_path):
    outcome = Outcome("a", "", reasons=[["coarse_intensities", "-1 values"]], status="refused", case_id="a")
    write_reports(tmp_path, [outcome], Source(), {"keep_flagged": True}, 0)
    (row,) = table(tmp_path / "quarantine.csv")
    assert row["detail"] == "'-1 values"


# Names


def test_files_whose_names_differ_in_separators_or_endings_are_all_kept(tmp_path):
    for k, name in enumerate(("a-b.nii.gz", "a/b.nii.gz", "a b.nii.gz", "a_b.nii.gz", "a-b.nii")):
        save_nifti(tmp_path / "in" / name, np.roll(chest(seed=k), 4 * k, axis=2))
    assert run(tmp_path / "in", tmp_path / "out") == 0
    found = set(contents(tmp_path / "out"))
    assert len(found) == 5 and {"a-b", "a_b"} < found
    assert all(name.startswith(("a-b", "a_b")) for name in found)
    assert run(tmp_path / "in", tmp_path / "out") == 0
    assert set(contents(tmp_path / "out")) == found


def test_long_paths_make_short_case_ids():
    keys = ["/".join(["folder" * 5] * 9) + f"/{k}.nii.gz" for k in range(2)]
    cases = [case_id_of(key) for key in keys]
    assert len(set(cases)) == 2 and all(len(case) <= 150 for case in cases)


# Patients


def outcome_of(key, patient, split, picture, voxels="") -> Outcome:
    case = case_id_of(key)
    return Outcome(
        key, "", case_id=case, patient_id=patient, split=split, coarse=list(picture), voxels_sha256=voxels
    )


def settled(links, outcome, copy_of=None):
    why = links.join(outcome, copy_of)
    links.remember(outcome)
    return why, outcome.patient_id, outcome.split


ONE, OTHER, THIRD = (np.random.default_rng(k).normal(-400, 300, 6 * GRID**2).astype(int) for k in range(3))


def test_one_scan_in_two_formats_is_one_patient_whatever_is_known():
    links = PatientLinks(0.0)
    assert settled(links, outcome_of("a/", "P1", "valid", ONE))[1:] == ("P1", "valid")
    assert settled(links, outcome_of("b.nrrd", "b", "train", ONE + 3))[1:] == ("P1", "valid")
    assert settled(links, outcome_of("c.nii.gz", "c", "train", OTHER))[1:] == ("c", "train")
    # the same the other way round: the header's patient follows, with all scans that come later
    assert settled(links, outcome_of("d/", "P2", "valid", OTHER - 2))[1:] == ("c", "train")
    assert settled(links, outcome_of("e/", "P2", "valid", THIRD))[1:] == ("c", "train")


def test_a_scan_that_ties_both_sides_is_refused():
    links = PatientLinks(0.0)
    settled(links, outcome_of("a/", "P1", "train", ONE))
    settled(links, outcome_of("b.nii.gz", "b", "valid", OTHER))
    why, *_ = settled(links, outcome_of("c/", "P1", "train", OTHER + 1))
    assert "b in valid" in why and "P1 is in train" in why


def test_ct_rates_names_are_believed_against_a_likeness():
    links = PatientLinks(0.5)
    assert settled(links, outcome_of("train_1_a_1.nii.gz", "train_1", "train", ONE))[2] == "train"
    assert settled(links, outcome_of("valid_1_a_1.nii.gz", "valid_1", "valid", ONE))[2] == "valid"


def test_the_second_patient_goes_where_the_first_is_not():
    links = PatientLinks(0.1)
    assert settled(links, outcome_of("a", "a", "train", ONE))[2] == "train"
    assert settled(links, outcome_of("b", "a", "train", OTHER))[2] == "train"
    assert settled(links, outcome_of("c", "c", "train", THIRD))[2] == "valid"


def test_looks_find_what_comparing_each_with_each_finds():
    generator = np.random.default_rng(1)
    pictures = [generator.normal(-400, 300, n * GRID**2) for n in generator.integers(2, 9, 80)]
    looks: Looks[int] = Looks()
    for k, picture in enumerate(pictures):
        looks.add(picture, k)
    for k, picture in enumerate(pictures):
        near = picture + generator.normal(0, 15, picture.size)
        assert looks.find(near) == [j for j, other in enumerate(pictures) if alike(other, near)]
        assert looks.find(near) == ([k] if len(picture) >= 3 * GRID**2 else [])


def test_one_patient_for_all_scans_is_a_warning(tmp_path, caplog):
    for k in range(3):
        save_dicom(tmp_path / "in" / f"case{k}", np.roll(chest(seed=k), 4 * k, axis=2), PatientID="ANONYMOUS")
    assert run(tmp_path / "in", tmp_path / "out", "valid_fraction=0.25") == 0
    assert "3 of 3 scans count as one patient (ANONYMOUS)" in caplog.text and "patient_pattern" in caplog.text
    caplog.clear()
    assert run(tmp_path / "in", tmp_path / "o2", "patient_pattern=(case[0-9])") == 0
    assert "count as one patient" not in caplog.text


def test_copies_of_one_scan_are_no_warning(tmp_path, caplog):
    for name in ("a/one.nii.gz", "b/two.nii.gz"):
        save_nifti(tmp_path / "in" / name, chest())
    assert run(tmp_path / "in", tmp_path / "out") == 0
    assert [r["reason"] for r in table(tmp_path / "out" / "quarantine.csv")] == ["duplicate_content"]
    assert "count as one patient" not in caplog.text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>Sign in</html>", "web page"),
        (b"", "is empty"),
    ],
)
def test_what_lies_there_instead_of_a_file_is_named(tmp_path, content, words):
    for name in ("a.nii.gz", "b.mha", "c.nrrd", "d/e.dcm", "f/no_ending"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(content)
    assert run(tmp_path / "in", tmp_path / "out") == 2
    rows = table(tmp_path / "out" / "quarantine.csv")
    assert len(rows) == 5 and all(words in row["detail"] for row in rows)
    with pytest.raises(CTFlowError, match=words):
        read_nifti(tmp_path / "in" / "a.nii.gz")
    if words != "is empty":
        with pytest.raises(CTFlowError, match=words):
            read_table(tmp_path / "in" / "a.nii.gz")


# Causes that pass


def test_what_the_system_did_not_let_be_read_is_tried_again(tmp_path, monkeypatch):
    path = save_nifti(tmp_path / "in" / "a.nii.gz", chest())
    config = IngestConfig(source=str(path), output=str(tmp_path / "out"))
    item = Item("a.nii.gz", "nifti", (str(path),), "f")
    opened = Path.open

    def denied(self, *args, **keys):
        if self.name == "a.nii.gz":
            raise OSError(5, "Input/output error", str(self))
        return opened(self, *args, **keys)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", denied)
        outcome = prepare(Job(item, CsvRow(), config, str(tmp_path / "x.npy")))
    assert outcome.reasons[0][0] == "not_read" and "Input/output error" in outcome.reasons[0][1]


@pytest.mark.parametrize(
    ("code", "again"),
    [("timeout", 1), ("crashed", 1), ("too_large", 1), ("not_read", 1), ("not_hu", 0), ("damaged", 0)],
)
def test_refusals_that_may_pass_are_planned_again(tmp_path, code, again):
    save_nifti(tmp_path / "a.nii.gz", chest())
    config = IngestConfig(source=str(tmp_path), output=str(tmp_path / "out"))
    source = find_items(tmp_path)
    (item,) = source.items

    class Before:
        undecided: ClassVar[set[str]] = set()
        closed: ClassVar[set[int]] = set()
        outcomes = {item.key: Outcome(item.key, item.fingerprint, "refused", [[code, "x"]])}

    assert IngestRun(config, source, Tables(config, []), Before()).pending == again
    Before.outcomes = {
        item.key: Outcome(item.key, item.fingerprint, "expanded", told=[["b", "refused", code, "x"]])
    }
    assert IngestRun(config, source, Tables(config, []), Before()).pending == again
