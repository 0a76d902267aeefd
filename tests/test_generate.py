"""``python -m ctflow.generate`` and the Python API on a tiny random system."""

import json
import logging
import os
import shutil

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from ctflow.data.nifti import read_nifti
from ctflow.errors import CTFlowError, WeightsError
from ctflow.generate import _report_text, main, read_requests
from ctflow.pipeline import EMBEDDED, CTFlow, GenerationRequest, resolve_checkpoint
from data_prep.convert import read_placed

REPORT = "Small right pleural effusion."


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return CTFlow.from_pretrained(tiny_checkpoint, device="cpu")


def test_one_report_becomes_a_volume_its_record_and_a_picture(tiny_checkpoint, tmp_path):
    out = tmp_path / "a" / "ct.nii.gz"
    arguments = [
        "--checkpoint",
        str(tiny_checkpoint),
        "--report",
        REPORT,
        "--output",
        str(out),
        "--seed",
        "3",
    ]
    assert main([*arguments, "--slices", "20", "device=cpu"]) == 0
    image = nib.load(out)
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    assert image.shape == (32, 32, 20)
    assert image.get_data_dtype() == np.int16
    np.testing.assert_allclose(image.header.get_zooms(), (9.0, 9.0, 4.0))
    volume = read_nifti(out)
    assert volume.hu.min() >= -1000 and volume.hu.max() <= 1000
    record = json.loads((tmp_path / "a" / "ct.json").read_text(encoding="utf-8"))
    assert record["request"]["report"] == REPORT and record["request"]["seed"] == 3
    assert record["slices"] == 20 and record["stop"] == "requested length reached"
    assert record["checkpoint_sha256"] and record["sampling"]["steps"] == 1
    assert Image.open(tmp_path / "a" / "ct.png").size[0] > 100


@pytest.mark.parametrize("name", ["ct.mha", "ct.nrrd", "ct.dcm/", "ct.nii"])
def test_the_ending_names_the_format(tiny_checkpoint, tmp_path, name):
    common = ["--checkpoint", str(tiny_checkpoint), "--report", REPORT, "--slices", "16", "device=cpu"]
    choices = [] if name == "ct.dcm/" else ["--dtype", "float32", "--orientation", "LPS"]
    assert main([*common, *choices, "--output", f"{tmp_path}/{name}"]) == 0
    found = read_placed(tmp_path / name)
    assert found.volume.hu.shape == (16, 32, 32) and found.synthetic
    np.testing.assert_allclose(found.volume.spacing, (4.0, 9.0, 9.0), rtol=1e-6)
    np.testing.assert_allclose(found.placement @ [7.5, 15.5, 15.5, 1], [0, 0, 0, 1], atol=1e-4)
    record = json.loads((tmp_path / "ct.json").read_text(encoding="utf-8"))
    dtype, orientation = (choices[1], choices[3]) if choices else (None, None)
    assert record["written"] == {"dtype": dtype, "orientation": orientation}


def test_a_pixel_spacing_that_the_model_was_not_trained_on_is_refused(tiny_checkpoint, tmp_path):
    common = ["--checkpoint", str(tiny_checkpoint), "--report", REPORT, "--slices", "16", "device=cpu"]
    with pytest.raises(CTFlowError, match="pixel_spacing of 3 mm"):
        main([*common, "pixel_spacing=3", "--output", str(tmp_path / "ct.nii.gz")])
    assert not list(tmp_path.glob("*.nii.gz"))


def test_a_table_in_another_format_and_type(tiny_checkpoint, tmp_path):
    table = tmp_path / "reports.csv"
    table.write_text(f"case_id,report,slices\na,{REPORT},16\n", encoding="utf-8")
    line = ["--checkpoint", str(tiny_checkpoint), "--reports", str(table), "--output", str(tmp_path / "o")]
    line += ["device=cpu", "format=.nrrd"]
    assert main(line) == 0
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == ["a.json", "a.nrrd", "a.png"]
    before = (tmp_path / "o" / "a.nrrd").stat().st_mtime_ns
    assert main(line) == 0
    assert (tmp_path / "o" / "a.nrrd").stat().st_mtime_ns == before
    assert main([*line, "--dtype", "float32"]) == 0, "another type is another file"
    assert (tmp_path / "o" / "a.nrrd").stat().st_mtime_ns != before


def test_report_from_a_file_and_steps_flag(tiny_checkpoint, tmp_path):
    text = tmp_path / "report.txt"
    text.write_text(REPORT, encoding="utf-8")
    out = tmp_path / "ct.nii.gz"
    arguments = ["--checkpoint", str(tiny_checkpoint), "--report", f"@{text}", "--output", str(out)]
    assert main([*arguments, "--steps", "2", "--slices", "16", "device=cpu"]) == 0
    assert json.loads((tmp_path / "ct.json").read_text(encoding="utf-8"))["sampling"]["steps"] == 2


def test_table_goes_on_past_bad_rows_and_a_second_run_does_nothing(tiny_checkpoint, tmp_path, caplog):
    table = tmp_path / "reports.csv"
    table.write_text(
        "case_id,report,seed,slices\n"
        f"a,{REPORT},1,16\n"
        "b,,1,16\n"
        "a,twice,1,16\n"
        "c,Nodule.,1,-4\n"
        "../d,Nodule.,1,16\n"
        "e,Nodule.,5,18\n",
        encoding="utf-8",
    )
    out = tmp_path / "volumes"
    arguments = [
        "--checkpoint",
        str(tiny_checkpoint),
        "--reports",
        str(table),
        "--output",
        str(out),
        "device=cpu",
    ]
    assert main(arguments) == 1
    assert sorted(p.name for p in out.glob("*.nii.gz")) == ["a.nii.gz", "e.nii.gz"]
    refused = [r.message for r in caplog.records if r.message.startswith("refused")]
    assert len(refused) == 4 and "line 3" in refused[0]
    before = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    assert main(arguments) == 1
    assert {p.name: p.stat().st_mtime_ns for p in out.iterdir()} == before


def test_a_volume_without_its_record_is_made_again(tiny_checkpoint, tmp_path):
    table = tmp_path / "reports.csv"
    table.write_text(
        f"VolumeName,Findings_EN,Impressions_EN,slices\nx.nii.gz,{REPORT},None.,16\n", encoding="utf-8"
    )
    arguments = ["--checkpoint", str(tiny_checkpoint), "--reports", str(table), "--output", str(tmp_path)]
    assert main([*arguments, "device=cpu"]) == 0
    (tmp_path / "x.json").unlink()
    (tmp_path / "x.nii.gz").write_bytes(b"half")
    assert main([*arguments, "device=cpu"]) == 0
    assert read_nifti(tmp_path / "x.nii.gz").hu.shape == (16, 32, 32)


def test_a_case_does_not_depend_on_its_batch(model):
    requests = [GenerationRequest(REPORT, f"case_{i}", seed=i, slices=20 + 9 * i) for i in range(3)]
    together = model.generate_many(requests)
    for request, result in zip(requests, together, strict=True):
        alone = model.generate_many([request])[0].volume.hu
        difference = np.linalg.norm(alone - result.volume.hu) / np.linalg.norm(alone)
        assert difference < 1e-4


def test_a_volume_that_is_only_an_end_is_listed_and_the_batch_goes_on(tiny_checkpoint, tmp_path, caplog):
    checkpoint = tmp_path / "all_white"
    shutil.copytree(tiny_checkpoint, checkpoint)
    config = checkpoint / "config.yaml"
    config.write_text(
        config.read_text(encoding="utf-8").replace("threshold: 0.001", "threshold: 1000.0"), encoding="utf-8"
    )
    table = tmp_path / "reports.csv"
    table.write_text(f"case_id,report\na,{REPORT}\nb,{REPORT}\n", encoding="utf-8")
    arguments = ["--checkpoint", str(checkpoint), "--reports", str(table), "--output", str(tmp_path / "out")]
    assert main([*arguments, "device=cpu"]) == 2
    assert sum("first slice generated was already an end slice" in r.message for r in caplog.records) == 2
    with pytest.raises(CTFlowError, match="already an end slice"):
        CTFlow.from_pretrained(checkpoint, device="cpu").generate(REPORT)


def test_noise_id_gives_equal_noise_and_seed_changes_it(model):
    same = [GenerationRequest(REPORT, name, seed=1, slices=16, noise_id="pair") for name in "ab"]
    a, b = (r.volume.hu for r in model.generate_many(same))
    np.testing.assert_allclose(a, b, atol=1e-2)
    other = model.generate(REPORT, seed=2, slices=16).hu
    assert np.abs(other - model.generate(REPORT, seed=1, slices=16).hu).mean() > 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--output", "a.nii.gz"], "one of them"),
        (["--report", "x", "--reports", "y.csv"], "one of them"),
        (["--report", "x", "--output", "folder"], "ending in .nii.gz"),
        (["--report", "x", "--output", "x.dcm", "--dtype", "float32"], "float32 for a DICOM series"),
        (["--report", "x", "format=.png"], "format is one of"),
        (["--report", "x", "dtype=uint8"], "dtype is one of"),
        (["--report", "x", "orientation=LAS"], "orientation is one of"),
        (["--report", "@nowhere.txt"], "nowhere.txt"),
        (["--report", "x", "--checkpoint", "nowhere"], "no checkpoint at nowhere"),
        (["--report", "  "], "empty"),
        (["--report", "x", "--output", "taken.nii.gz"], "taken.json is a folder"),
        (["--report", "x", "--slices", "0"], "slices must be at least 1"),
        (["--report", "x", "sampling.stepz=3"], "sampling.steps"),
        (["--reports", "nowhere.csv"], "nowhere.csv"),
    ],
)
def test_bad_input_is_an_error_that_says_what_was_found(arguments, words, tmp_path, monkeypatch):
    (tmp_path / "taken.json").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CTFlowError, match=words):
        main(arguments)


def test_table_without_a_report_column_is_refused(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(CTFlowError, match="Findings_EN"):
        main(["--reports", str(table)])


def test_default_checkpoint_is_the_embedded_one_whatever_lies_in_runs(tiny_checkpoint, tmp_path, caplog):
    with pytest.raises(WeightsError, match="no such exported run"):
        resolve_checkpoint("latest", tmp_path)
    for age, name in enumerate(("new", "old")):
        run = tmp_path / "flow" / name
        run.mkdir(parents=True)
        shutil.copytree(tiny_checkpoint, run / "export")
        os.utime(run / "export" / "config.yaml", (1e9 - age, 1e9 - age))
    with caplog.at_level(logging.INFO):
        assert resolve_checkpoint(None, tmp_path) == EMBEDDED
    assert f"checkpoint: {EMBEDDED} (embedded" in caplog.text
    assert resolve_checkpoint("latest", tmp_path) == tmp_path / "flow" / "new" / "export"
    assert resolve_checkpoint("run:old", tmp_path) == tmp_path / "flow" / "old" / "export"
    assert resolve_checkpoint(tmp_path / "flow" / "old") == tmp_path / "flow" / "old" / "export"
    with pytest.raises(WeightsError, match="one of: new, old"):
        resolve_checkpoint("run:other", tmp_path)
    with pytest.raises(WeightsError, match="no checkpoint at"):
        resolve_checkpoint(tmp_path / "flow")


def test_a_table_says_what_is_wrong_with_a_number(tiny_checkpoint, tmp_path, caplog):
    table = tmp_path / "reports.csv"
    lines = ["case_id,report,seed,slices,z_spacing"]
    lines += [f"a,{REPORT},x,16,", f"b,{REPORT},1.5,16,", f"c,{REPORT},1.0,16.0,", f"d,{REPORT},1,inf,"]
    lines += ["e,Плевральный выпот справа,1,16,", f"f,{REPORT},1,16,50", f"g,{REPORT},1,16,19"]
    lines += ["h,Not given.,1,16,"]
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    arguments = [
        "--checkpoint",
        str(tiny_checkpoint),
        "--reports",
        str(table),
        "--output",
        str(tmp_path / "o"),
    ]
    assert main([*arguments, "device=cpu"]) == 1
    for words in ("seed 'x' is not a number", "seed '1.5' is not a whole", "slices 'inf' is not a number"):
        assert words in caplog.text
    for words in ("case f: z_spacing of 50", "case g: z_spacing of 19", "case h: the report has no word"):
        assert words in caplog.text
    assert "case e: 100% of its words are unknown to the text encoder" in caplog.text
    assert {p.name for p in (tmp_path / "o").glob("*.nii.gz")} == {"c.nii.gz"}
    caplog.clear()
    assert main([*arguments, "device=cpu", "max_unknown=1"]) == 1
    assert {p.name for p in (tmp_path / "o").glob("*.nii.gz")} == {"c.nii.gz", "e.nii.gz"}


def test_a_table_of_which_every_row_is_refused_ends_as_a_refused_report_does(tiny_checkpoint, tmp_path):
    table = tmp_path / "reports.csv"
    line = ["--checkpoint", str(tiny_checkpoint), "--reports", str(table), "--output", str(tmp_path / "o")]
    for rows in ("a,", "a,\nb,Плевральный выпот справа"):  # refused as rows, and by the checkpoint
        table.write_text(f"case_id,report\n{rows}\n", encoding="utf-8")
        assert main([*line, "device=cpu"]) == 2


def test_a_length_beyond_the_checkpoints_is_said(model, caplog):
    volume = model.generate(REPORT, slices=100)  # the tiny system ends at 64
    assert len(volume.hu) == 64
    assert "100 slices requested, the longest volume of this checkpoint has 64" in caplog.text
    assert "64 slices, 100 were requested" in caplog.text


def test_an_output_that_cannot_be_written_is_said_before_anything_is_computed(tiny_checkpoint, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    arguments = ["--checkpoint", str(tmp_path / "nowhere"), "--report", REPORT]
    with pytest.raises(CTFlowError, match="cannot be written to: Not a directory"):
        main([*arguments, "--output", str(tmp_path / "file" / "a.nii.gz")])


# Tables and texts as spreadsheets and editors write them


@pytest.mark.parametrize(("separator", "encoding"), [(",", "cp1252"), (";", "utf-8-sig"), ("\t", "utf-16")])
def test_tables_in_any_usual_dialect(tmp_path, separator, encoding):
    lines = [
        ["case_id", "report", "seed"],
        ["a", "M\u00fcller: clear", "1.0"],
        ["", "", ""],
        ["b", "Clear", "7"],
    ]
    path = tmp_path / "r.csv"
    path.write_bytes("\n".join(separator.join(line) for line in lines).encode(encoding))
    rows, refused = read_requests(path)
    assert not refused
    assert rows == [
        {"case_id": "a", "report": "M\u00fcller: clear", "seed": 1},
        {"case_id": "b", "report": "Clear", "seed": 7},
    ]
    text = tmp_path / "r.txt"
    text.write_bytes("M\u00fcller".encode(encoding))
    assert _report_text(f"@{text}") == "M\u00fcller"


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ("x" * 250 + ",Clear,1", "250 bytes"),
        ("\u00e4" * 120 + ",Clear,1", "240 bytes"),
        ("a\x1b,Clear,1", "unprintable"),
        ("a,Clear,1.5", "seed '1.5' is not a whole number"),
        ("a,Clear,x", "seed 'x' is not a number"),
        ("a,Clear,1e999", "is not a number"),
    ],
)
def test_a_row_that_cannot_be_made_refuses_itself_alone(tmp_path, cells, words):
    path = tmp_path / "r.csv"
    path.write_text(f"case_id,report,seed\n{cells}\ngood,Clear,3\n", encoding="utf-8")
    rows, (refused,) = read_requests(path)
    assert [row["case_id"] for row in rows] == ["good"]
    assert words in refused and refused.startswith("line 2 of")


def test_parts_share_the_rows_out_and_a_volume_is_the_same_in_any_of_them(tmp_path, tiny_checkpoint, caplog):
    """One process, and three parts of which the last comes as a task of ``srun``."""
    table = tmp_path / "reports.csv"
    rows = [f"{REPORT},case{i},{i},{18 + 9 * (i % 3)}" for i in range(5)]
    table.write_text("report,case_id,seed,slices\n" + "\n".join(rows), encoding="utf-8")
    line = ["--checkpoint", str(tiny_checkpoint), "--reports", str(table), "batch_size=2"]
    assert main([*line, "--output", str(tmp_path / "one")]) == 0
    for part in (0, 1):
        assert main([*line, "--output", str(tmp_path / "parts"), f"part={part}", "parts=3"]) == 0
    names = {path.name for path in (tmp_path / "parts").glob("*.nii.gz")}
    assert names == {f"case{i}.nii.gz" for i in (0, 1, 3, 4)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_PROCID", "2")
        patch.setenv("SLURM_NTASKS", "3")
        assert main([*line, "--output", str(tmp_path / "parts")]) == 0
    for i in range(5):
        one, other = (read_nifti(tmp_path / d / f"case{i}.nii.gz").hu for d in ("one", "parts"))
        assert one.shape == other.shape and np.abs(one - other).max() <= 1
