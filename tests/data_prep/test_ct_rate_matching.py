"""Which line of a CSV names which volume, and lines that fit several or contradict each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ct_rate_scans import chest, save_dicom, save_nifti
from test_ct_rate_run import contents, run, table

from ctflow.config.prep import IngestConfig
from data_prep.ct_rate.matching import Line, Matcher, Names
from data_prep.ct_rate.tables import Tables

SAME = [f"s000{k}/ct.nii.gz" for k in range(3)]


def named(names, keys, root="/data/scans") -> dict[str, str]:
    """Key to what names it: its lines, or ``?`` where they are in doubt."""
    matcher = Matcher(
        [Line(f"row {n}", name, {}) for n, name in enumerate(names, 2)], Names(keys, Path(root))
    )
    found = {key: matcher.match(key) for key in keys}
    return {k: "?" if m.doubt else ",".join(line.name for line in m.lines) for k, m in found.items()}


@pytest.mark.parametrize(
    "pattern",
    [
        "s000{}/ct.nii.gz",
        "s000{}/ct",
        "S000{}/CT.NII.GZ",
        "scans/s000{}/ct.nii.gz",
        "/data/scans/s000{}/ct.nii.gz",
        "/elsewhere/s000{}/ct.nii.gz",
        "C:\\hospital\\s000{}\\ct.nii.gz",
        "s000{}\\ct",
        "./s000{}//ct.nii.gz",
        "s000{}",
        "scans/s000{}/",
    ],
)
def test_equal_file_names_are_told_apart_by_their_folders(pattern):
    names = [pattern.format(k) for k in range(3)]
    if not pattern.startswith("scans/s000{}/") or pattern.endswith("gz"):
        assert named(names, SAME) == dict(zip(SAME, names, strict=True))
    keys = [f"scans/{key}" for key in SAME]
    assert named(names, keys, "/data") == dict(zip(keys, names, strict=True))


def test_a_line_that_fits_several_volumes_is_in_doubt():
    assert set(named(["ct.nii.gz"], SAME).values()) == {"?"}
    assert named(["ct.nii.gz", "s0001/ct.nii.gz"], SAME)[SAME[1]] == "s0001/ct.nii.gz"
    assert named(["ct.nii.gz"], ["ct.nii.gz", *SAME])["ct.nii.gz"] == "ct.nii.gz"
    assert named(["p1"], ["p1/a.nii.gz", "p1/b.nii.gz"]) == {"p1/a.nii.gz": "?", "p1/b.nii.gz": "?"}
    assert named(["x.mha", "x.nrrd"], ["x.mha", "x.nrrd"]) == {"x.mha": "x.mha", "x.nrrd": "x.nrrd"}
    assert set(named(["x"], ["x.mha", "x.nrrd"]).values()) == {"?"}


def test_lines_of_volumes_that_are_not_there_name_no_other():
    keys = SAME[:2]
    assert named(["s0000/ct.nii.gz", "s0007/ct.nii.gz"], keys) == {keys[0]: "s0000/ct.nii.gz", keys[1]: ""}
    assert named(["s0007/ct.nii.gz"], keys[:1]) == {keys[0]: ""}
    assert named(["a.nii.gz"], ["a/b.nii.gz"]) == {"a/b.nii.gz": ""}


def test_names_that_tell_all_volumes_apart_need_no_folders():
    keys = ["ct/LIDC-1.nii.gz", "ct/LIDC-2.nii.gz"]
    names = ["images/LIDC-1.nii.gz", "images/LIDC-2.nii.gz"]
    assert named(names, keys) == dict(zip(keys, names, strict=True))
    # one case under one name in two trees is no doubt: one of them is refused as a duplicate
    twice = ["a/train_1_a_1.nii.gz", "b/train_1_a_1.nii.gz"]
    assert set(named(["train_1_a_1.nii.gz"], twice).values()) == {"train_1_a_1.nii.gz"}


def test_letters_of_another_size_tell_names_apart_where_nothing_else_does():
    keys = ["A/ct.nii.gz", "a/ct.nii.gz"]
    for names in (keys, [f"data/{key}" for key in keys], ["A\\ct", "a\\ct"]):
        assert named(names, keys) == dict(zip(keys, names, strict=True))
    doubt = Matcher([Line("row 2", "ct.nii.gz", {})], Names(keys, Path("/data"))).match(keys[0]).doubt
    assert "which also fits a/ct.nii.gz" in doubt
    assert set(named(["ct.nii.gz"], ["s0/CT.nii.gz", "s1/ct.nii.gz"]).values()) == {"?"}


def test_folders_of_dicom_files():
    keys = ["p1/study/series/", "p2/study/series/"]
    for names in (["p1", "p2"], ["p1/study/series", "p2/study/series"], ["p1/study", "p2\\study\\"]):
        assert named(names, keys) == dict(zip(keys, names, strict=True))
    matcher = Matcher([Line("row 2", "p1/study/series", {})], Names(keys, Path("/data")))
    assert matcher.match("p1/study/series/#2-s4").lines and not matcher.match("p2/study/series/#1-s1").lines


def test_series_of_several_patients_in_one_folder_have_lines_of_their_own():
    keys, names = ["in/"], ["in", "IN/#2-s4"]
    lines = [Line(f"row {n}", name, {}) for n, name in enumerate(names, 2)]
    matcher = Matcher(lines, Names(keys, Path("/in")))
    assert [line.name for line in matcher.match("in/#1-s1").lines] == ["in"]
    assert [line.name for line in matcher.match("in/#2-s4", shared=True).lines] == ["IN/#2-s4"]
    doubt = matcher.match("in/#1-s1", shared=True).doubt
    assert "series of other patients" in doubt and "write in/#1-s1" in doubt


def test_a_number_sign_in_a_file_name_is_a_letter():
    keys = ["a/scan#1.nii.gz", "a/scan#2.nii.gz"]
    assert named(["scan#1.nii.gz", "scan#2"], keys) == {keys[0]: "scan#1.nii.gz", keys[1]: "scan#2"}


def test_one_line_never_goes_to_the_patients_of_a_whole_folder(tmp_path):
    for number in (1, 2):
        hu = np.roll(chest(seed=number), 4 * number, axis=1)
        save_dicom(tmp_path / "in" / "dicom", hu, series=number, PatientID=f"P{number}")
    reports = write(tmp_path / "r.csv", "VolumeName,Findings_EN\ndicom,Whose?\n")
    assert run(tmp_path / "in", tmp_path / "out", "--reports", reports) == 2
    refused = {r["source"]: r for r in table(tmp_path / "out" / "quarantine.csv")}
    assert {r["reason"] for r in refused.values()} == {"ambiguous_row"} and len(refused) == 2
    rows = "".join(f"{key},Of {key}.\n" for key in refused)
    reports = write(tmp_path / "r.csv", f"VolumeName,Findings_EN\n{rows}")
    assert run(tmp_path / "in", tmp_path / "out", "--reports", reports) == 0
    texts = {entry[2] for entry in contents(tmp_path / "out").values()}
    assert len(texts) == 2 and all(text.startswith("Of dicom/") for text in texts)


def write(path, text) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


def row_of(tmp_path, keys=("a.nii.gz",), **texts):
    paths = {kind: [write(tmp_path / f"{kind}.csv", text)] for kind, text in texts.items()}
    return Tables(IngestConfig(source=str(tmp_path), **paths), [], keys).row(keys[0], False)


def test_a_volume_named_twice(tmp_path, caplog):
    head = "VolumeName,Findings_EN\n"
    row = row_of(tmp_path, reports=head + "a.nii.gz,Same.\nA,Same.\n")
    assert row.report == "Same." and not row.doubts and "named more than once" in caplog.text
    row = row_of(tmp_path, reports=head + "a.nii.gz,One.\na.nii.gz,Other.\n")
    assert row.report is None and "row 2 of reports.csv and row 3 of reports.csv" in row.doubts[0]
    head = "VolumeName,RescaleIntercept,Note\n"
    assert row_of(tmp_path, metadata=head + "a,-1024,x\na,-1024,y\n").rescale == (1.0, -1024.0)
    assert row_of(tmp_path, metadata=head + "a,-1024,x\na,0,x\n").doubts
    assert row_of(tmp_path, labels="VolumeName,Nodule\na,0\na,1\n").doubts


def test_labels_that_are_none_are_named(tmp_path, caplog):
    text = "VolumeName,Nodule,Effusion,Emphysema,Sex\na,maybe,7e99,0.7,F\nb,1,0,0,M\nc,0,1,,F\n"
    row = row_of(tmp_path, labels=text)
    assert row.labels == {"Emphysema": 1}
    assert [cell.split(" (")[0] for cell in row.unclear] == ["Nodule: 'maybe'", "Effusion: '7e99'"]
    assert "Sex ('F')" in caplog.text


def test_two_metadata_files_of_one_name_both_count(tmp_path):
    head = "VolumeName,RescaleIntercept\n"
    paths = [write(tmp_path / n / "meta.csv", f"{head}{n},{v}\n") for n, v in (("a", -1024), ("b", -8192))]
    tables = Tables(IngestConfig(source=str(tmp_path), metadata=paths), [], ["a.nii", "b.nii"])
    assert [tables.row(key, False).rescale for key in ("a.nii", "b.nii")] == [(1.0, -1024.0), (1.0, -8192.0)]


def test_numbers_of_metadata(tmp_path):
    row = row_of(
        tmp_path,
        metadata="VolumeName;RescaleSlope;RescaleIntercept;XYSpacing;ZSpacing\na;1;-1024,0;[0.7, 0.7];1,5\n",
    )
    assert row.rescale == (1.0, -1024.0) and row.spacing == (1.5, 0.7, 0.7) and not row.unclear
    row = row_of(tmp_path, metadata="VolumeName,RescaleIntercept,ZSpacing\na,none given,1e999\n")
    assert row.rescale is None and len(row.unclear) == 2 and "'none given'" in row.unclear[0]


def test_reports_of_a_whole_run(tmp_path, caplog):
    """Three patients whose scans are called alike, a fourth that is named twice, a fifth without a line."""
    for k in range(5):
        save_nifti(tmp_path / "in" / f"s000{k}" / "ct.nii.gz", np.roll(chest(seed=k), 3 * k, axis=1))
    save_dicom(tmp_path / "in" / "s0005" / "dicom", chest(seed=9))
    rows = [f"s000{k}/ct.nii.gz,Report {k}." for k in (0, 1, 2)]
    rows += ["s0003/ct.nii.gz,One.", "s0003/ct.nii.gz,Other.", "s0005,Report 5.", "s0009/ct.nii.gz,Lost."]
    reports = write(tmp_path / "r.csv", "\n".join(["VolumeName,Findings_EN", *rows]))
    assert run(tmp_path / "in", tmp_path / "out", "--reports", reports) == 1
    found = {case: entry[2] for case, entry in contents(tmp_path / "out").items()}
    assert found == {
        **{f"s000{k}-ct": f"Report {k}." for k in range(3)},
        "s0004-ct": "",
        "s0005-dicom": "Report 5.",
    }
    refused = [r for r in table(tmp_path / "out" / "quarantine.csv") if r["status"] == "refused"]
    assert [(r["source"], r["reason"]) for r in refused] == [("s0003/ct.nii.gz", "ambiguous_row")]
    assert "1 volumes of the report CSVs are not under" in caplog.text and "s0009" in caplog.text
