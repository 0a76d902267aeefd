"""What CSVs say, whose scan it is, and on which side of the split."""

from __future__ import annotations

import pytest
from ct_rate_scans import chest, codes, ingest_one, save_nifti

from ctflow.config.prep import IngestConfig
from ctflow.errors import ScanError
from data_prep.ct_rate.discovery import find_items
from data_prep.ct_rate.naming import case_id_of, patient_and_split
from data_prep.ct_rate.reasons import EXCLUSIONS, FLAGS, REFUSALS
from data_prep.ct_rate.tables import CsvRow, Tables, report_text


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_report_is_findings_and_impression_as_published():
    row = {"findings_en": 'Trachea "open" (normal).', "impressions_en": "Patient's lungs\n clear.", "": ""}
    assert report_text(row) == "Trachea open normal. Patients lungs clear."
    assert report_text({"findings_en": "Not given.", "impressions_en": "Clear."}) == "Clear."
    assert report_text({"report": "One text."}) == "One text."


def test_the_three_csvs_of_ct_rate_are_found_and_read(tmp_path):
    name = "train_1_a_1.nii.gz"
    csvs = [
        write(tmp_path / "train_reports.csv", f"VolumeName,Findings_EN,Impressions_EN\n{name},A.,B.\n"),
        write(
            tmp_path / "train_metadata.csv",
            "VolumeName,RescaleIntercept,RescaleSlope,XYSpacing,ZSpacing\n"
            f'{name},-1024,1.0,"[0.7, 0.7]",1.5\n',
        ),
        write(tmp_path / "train_predicted_labels.csv", f"VolumeName,Lung nodule,Emphysema\n{name},1,0\n"),
        write(tmp_path / "unrelated.csv", "a,b\n1,2\n"),
    ]
    tables = Tables(IngestConfig(), csvs)
    row = tables.row("TRAIN_1_a_1.nii.gz", alone=False)
    assert row == CsvRow("A. B.", {"Lung nodule": 1, "Emphysema": 0}, (1.0, -1024.0), (1.5, 0.7, 0.7))
    assert tables.row("train_2_a_1.nii.gz", alone=False) == CsvRow()
    assert tables.has_reports


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", '"\n'])
def test_csvs_that_are_none_are_the_users_mistake(tmp_path, text):
    path = write(tmp_path / "m.csv", text)
    with pytest.raises(ScanError):
        Tables(IngestConfig(metadata=[str(path)]), [])
    with pytest.raises(ScanError):
        Tables(IngestConfig(metadata=[str(tmp_path / "missing.csv")]), [])


def test_one_line_of_metadata_counts_for_the_file_of_its_name_or_the_only_file(tmp_path):
    path = write(tmp_path / "scan_b.csv", "VolumeName,RescaleIntercept\nother.nii.gz,-1000\n")
    tables = Tables(IngestConfig(metadata=[str(path)]), [])
    assert tables.row("scan_b.nii.gz", alone=False).rescale == (1.0, -1000.0)
    assert tables.row("scan_c.nii.gz", alone=False).rescale is None
    assert tables.row("scan_c.nii.gz", alone=True).rescale == (1.0, -1000.0)


def test_spacing_from_the_csv_where_the_header_lies(tmp_path):
    true = (5.0, 5.5, 5.5)
    path = save_nifti(tmp_path / "in" / "a.nii.gz", chest(), spacing=(1.0, 1.0, 1.0))
    ((outcome, _),) = ingest_one(path, tmp_path, CsvRow(spacing=true))
    assert outcome.spacing == pytest.approx(true) and outcome.facts["spacing_from"].startswith("csv")
    path = save_nifti(tmp_path / "in" / "b.nii.gz", chest(), spacing=true)
    ((outcome, _),) = ingest_one(path, tmp_path, CsvRow(spacing=(5.0, 0.001, 0.001)))
    assert codes(outcome) == ["spacing_conflict"] and outcome.spacing == pytest.approx(true)
    ((outcome, _),) = ingest_one(path, tmp_path, CsvRow(spacing=(5.0, 5.501, 5.501)))
    assert outcome.facts["spacing_from"] == "header" and not outcome.reasons


def test_csvs_met_by_the_way_may_be_of_another_kind(tmp_path, caplog):
    strange = write(tmp_path / "my_reports.csv", "a,b\n1,2\n")
    good = write(tmp_path / "train_reports.csv", "VolumeName,Findings_EN\nx.nii.gz,A.\ny.nii.gz,B.\n")
    tables = Tables(IngestConfig(), [strange, good], ["x.nii.gz"])
    assert "my_reports.csv" in caplog.text
    assert tables.row("x.nii.gz", alone=False).report == "A."
    assert tables.without_file() == ["y.nii.gz"]


@pytest.mark.parametrize("row", ["a.nii.gz,A.,B.,more", 'a.nii.gz,"open,B.'])
def test_a_damaged_csv_met_by_the_way_ends_the_command(tmp_path, row):
    """One bad row would cost the reports of all volumes."""
    rows = f"VolumeName,Findings_EN,Impressions_EN\nb.nii.gz,A.,B.\n{row}\n"
    with pytest.raises(ScanError, match=r"reports\.csv"):
        Tables(IngestConfig(), [write(tmp_path / "reports.csv", rows)])


def test_the_docs_name_every_reason(repo_root):
    text = (repo_root / "docs" / "ingest.md").read_text(encoding="utf-8")
    for code, meaning in (REFUSALS | FLAGS | EXCLUSIONS).items():
        assert f"| `{code}` | {meaning} |" in text


def test_case_ids():
    assert case_id_of("dataset/train/train_1/train_1_a/train_1_a_2.nii.gz") == "train_1_a_2"
    assert case_id_of("a b/scan.nii.gz") == "a_b-scan"
    assert case_id_of("study/series/") == "study-series"
    assert case_id_of("study/#2-s4") == "study-2-s4"


def test_ct_rate_splits_by_its_own_folders_and_patients():
    config = IngestConfig(valid_fraction=0.5)
    for n in range(30):
        for recon in ("a_1", "a_2", "b_1"):
            assert patient_and_split("x", f"train_{n}_{recon}", "", config) == (f"train_{n}", "train")
            assert patient_and_split("x", f"valid_{n}_{recon}", "", config) == (f"valid_{n}", "valid")


def test_other_sources_split_by_a_hash_of_the_patient():
    config = IngestConfig(valid_fraction=0.25, patient_pattern=r"(LIDC-\d+)")
    splits = {}
    for n in range(400):
        for scan in ("1", "2"):
            key = f"LIDC-{n}/{scan}.nii.gz"
            patient, split = patient_and_split(key, case_id_of(key), "", config)
            assert patient == f"LIDC-{n}" and splits.setdefault(patient, split) == split
    share = sum(s == "valid" for s in splits.values()) / 400
    assert 0.18 < share < 0.32
    assert patient_and_split("a/b.dcm", "a-b", "P1", config)[0] == "P1"
    assert patient_and_split("a/b.dcm", "a-b", "", config)[0] == "a-b"


def test_discovery_opens_nothing_and_leaves_the_output_out(tmp_path):
    for name in (
        "a.nii.gz",
        "b.mha",
        "b.raw",
        "c/x.dcm",
        "c/y",
        "notes.txt",
        "a.truth.json",
        "t_reports.csv",
        ".x",
    ):
        write(tmp_path / name, "?")
    write(tmp_path / "out" / "z.nii.gz", "?")
    source = find_items(tmp_path, tmp_path / "out")
    assert [(item.key, item.kind) for item in source.items] == [
        ("a.nii.gz", "nifti"),
        ("b.mha", "itk"),
        ("c/", "folder"),
    ]
    assert source.stray == ["notes.txt"] and [p.name for p in source.csvs] == ["t_reports.csv"]
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "gone.nii.gz").symlink_to(tmp_path / "nowhere")
    assert [item.key for item in find_items(tmp_path, tmp_path / "out").items][1:] == [
        "b.mha",
        "c/",
        "gone.nii.gz",
    ]
    with pytest.raises(ScanError, match="no folder"):
        find_items(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "keys",
    [
        {"resolution": 100},
        {"z_spacing": 0.0},
        {"field_of_view": 10.0},
        {"valid_fraction": 2.0},
        {"patient_pattern": "("},
        {"patient_pattern": "no group"},
        {"timeout": 0.0},
    ],
)
def test_impossible_settings(keys):
    with pytest.raises(ValueError, match=next(iter(keys))):
        IngestConfig(**keys)
