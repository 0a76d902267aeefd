"""``python -m data_prep.phantom``: CT-RATE's tree, resumed and complete runs, refusals."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from ctflow.config.phantom import PhantomConfig
from ctflow.errors import CTFlowError
from data_prep.phantom import LABELS, make_phantom, report_for, sample_spec
from data_prep.phantom.__main__ import main
from data_prep.phantom.contrast import sample_pair
from data_prep.phantom.writing import volume_names

COMMON = ["--seed", "4", "--size", "48", "slice_spacing=5", "valid_fraction=0.25", "workers=1"]


def run(folder: Path, volumes: int, *extra: str) -> None:
    assert main(["--output", str(folder), "--volumes", str(volumes), *COMMON, *extra]) == 0


def volumes_in(folder: Path) -> dict[str, Path]:
    return {p.name: p for p in sorted(folder.rglob("*.nii.gz")) if ".partial." not in p.name}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms")
    run(folder, 4, "masks=true")
    return folder


def test_tree_is_ct_rates(made):
    paths = [str(p.relative_to(made)) for p in volumes_in(made).values()]
    assert paths == [
        "dataset/train/train_1/train_1_a/train_1_a_1.nii.gz",
        "dataset/train/train_2/train_2_a/train_2_a_1.nii.gz",
        "dataset/train/train_3/train_3_a/train_3_a_1.nii.gz",
        "dataset/valid/valid_1/valid_1_a/valid_1_a_1.nii.gz",
    ]
    root = made / "dataset"
    labels = rows(root / "multi_abnormality_labels/train_predicted_labels.csv")
    assert list(labels[0]) == ["VolumeName", *LABELS]
    assert [r["VolumeName"] for r in labels] == [f"train_{i}_a_1.nii.gz" for i in (1, 2, 3)]
    reports = rows(root / "radiology_text_reports/validation_reports.csv")
    index = volume_names(PhantomConfig(volumes=4, valid_fraction=0.25)).index(("valid", "valid_1_a_1"))
    report = report_for(sample_spec(4, index))
    assert reports[0]["Findings_EN"] == report.findings
    assert reports[0]["Impressions_EN"] == report.impressions
    metadata = rows(root / "metadata/train_metadata.csv")
    assert metadata[0]["PatientSex"] in "MF"


def test_volume_truth_and_masks_agree(made):
    for path in volumes_in(made).values():
        image = nib.load(path)
        assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
        data = np.asarray(image.dataobj)
        assert data.dtype == np.int16
        truth = json.loads(Path(str(path).replace(".nii.gz", ".truth.json")).read_text(encoding="utf-8"))
        assert truth["case_id"] == path.name.removesuffix(".nii.gz")
        assert truth["shape"] == list(data.shape[::-1])
        np.testing.assert_allclose(image.header.get_zooms()[::-1], truth["spacing"], rtol=1e-4)
        masks = np.load(str(path).replace(".nii.gz", ".masks.npz"))
        assert list(masks["lung_left"].shape) == truth["shape"]


def test_file_holds_the_phantom_turned_to_lps(made):
    names = volume_names(PhantomConfig(volumes=4, valid_fraction=0.25))
    path = volumes_in(made)["train_1_a_1.nii.gz"]
    spec = sample_spec(4, names.index(("train", "train_1_a_1")), 48, 5.0)
    stored = nib.as_closest_canonical(nib.load(path))  # R, A, S
    turned = np.asarray(stored.dataobj)[:, ::-1].transpose(2, 1, 0)
    # Canonical x runs to the patient's right hand from low to high as our columns do.
    np.testing.assert_array_equal(turned, make_phantom(spec).volume.hu)


def test_interrupted_run_is_completed_and_complete_one_left_alone(made, tmp_path):
    run(tmp_path, 2)
    victim = volumes_in(tmp_path)["train_1_a_1.nii.gz"]
    whole = victim.read_bytes()
    stamp = volumes_in(tmp_path)["valid_1_a_1.nii.gz"].stat().st_mtime_ns
    victim.unlink()
    half = victim.with_name(".999999999.partial.train_1_a_1.nii.gz")  # what a killed process leaves
    half.write_bytes(whole[:100])
    run(tmp_path, 2)
    assert victim.read_bytes() == whole
    assert not half.exists()
    assert volumes_in(tmp_path)["valid_1_a_1.nii.gz"].stat().st_mtime_ns == stamp
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    run(tmp_path, 2)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == before


def test_killed_process_is_completed_by_the_next(made, tmp_path):
    command = [
        sys.executable,
        "-m",
        "data_prep.phantom",
        "--output",
        str(tmp_path),
        "--volumes",
        "4",
        *COMMON,
    ]
    process = subprocess.Popen([*command, "masks=true"], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not volumes_in(tmp_path) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    early = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*_1.nii.gz")}
    assert early, "nothing was made before the kill"
    run(tmp_path, 4, "masks=true")
    for name, path in volumes_in(made).items():
        assert volumes_in(tmp_path)[name].read_bytes() == path.read_bytes()
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in early.items())
    assert not [p for p in tmp_path.rglob("*") if ".partial." in p.name]


def test_set_grows_and_is_the_same_with_two_workers(made, tmp_path):
    run(tmp_path, 1, "masks=true")
    run(tmp_path, 4, "masks=true", "workers=2")
    for name, path in volumes_in(made).items():
        assert volumes_in(tmp_path)[name].read_bytes() == path.read_bytes()
    for table in made.rglob("*.csv"):
        assert (tmp_path / table.relative_to(made)).read_text(encoding="utf-8") == table.read_text(
            encoding="utf-8"
        )


def test_other_keys_in_the_same_folder_are_refused(made):
    with pytest.raises(CTFlowError, match="seed=4"):
        main(["--output", str(made), "--volumes", "4", "--seed", "5", "--size", "48", "slice_spacing=5"])


@pytest.mark.parametrize(
    "argument",
    ["volums=3", "volumes=0", "size=9", "slice_spacing=99", "valid_fraction=2", "workers=-1", "seed=-1"],
)
def test_bad_keys_are_refused(tmp_path, argument):
    with pytest.raises(CTFlowError, match=argument.split("=")[0][:6]):
        main(["--output", str(tmp_path), argument])
    assert not list(tmp_path.iterdir())


def test_splits():
    def counts(volumes: int, fraction: float) -> tuple[int, int]:
        names = volume_names(PhantomConfig(volumes=volumes, valid_fraction=fraction))
        assert len(set(names)) == volumes
        return sum(s == "train" for s, _ in names), sum(s == "valid" for s, _ in names)

    assert counts(10, 0.1) == (9, 1)
    assert counts(10, 0.0) == (10, 0)
    assert counts(10, 1.0) == (0, 10)
    assert counts(200, 0.25) == (150, 50)
    short = volume_names(PhantomConfig(volumes=20, valid_fraction=0.2))
    assert volume_names(PhantomConfig(volumes=50, valid_fraction=0.2))[:20] == short


def test_pairs_are_two_scans_of_a_patient_that_differ_in_one_finding(tmp_path):
    run(tmp_path, 8, "pairs=true", "fixed_share=0.5")
    config = PhantomConfig(volumes=8, seed=4, size=48, slice_spacing=5, valid_fraction=0.25, pairs=True)
    assert [name for _, name in volume_names(config)][:4] == [
        "train_1_a_1", "train_1_b_1", "valid_1_a_1", "valid_1_b_1",
    ]  # fmt: skip
    assert len(volumes_in(tmp_path)) == 8
    told = {r["VolumeName"]: r for r in rows(tmp_path / "dataset/radiology_text_reports/train_reports.csv")}
    for patient in (1, 2, 3):
        truths = [
            json.loads(next(tmp_path.rglob(f"train_{patient}_{scan}_1.truth.json")).read_text())
            for scan in "ab"
        ]
        volumes = [nib.load(next(tmp_path.rglob(f"train_{patient}_{scan}_1.nii.gz"))) for scan in "ab"]
        assert volumes[0].shape == volumes[1].shape and np.allclose(volumes[0].affine, volumes[1].affine)
        assert (np.asanyarray(volumes[0].dataobj) != np.asanyarray(volumes[1].dataobj)).any()
        assert truths[0]["findings"] != truths[1]["findings"]
        texts = [told[f"train_{patient}_{scan}_1.nii.gz"]["Findings_EN"] for scan in "ab"]
        assert texts[0] != texts[1]


def test_pair_labels_choose_what_pairs_differ_in(tmp_path):
    labels = ["Pericardial effusion", "Consolidation"]
    drawn = [sample_pair(4, i, 48, 5, labels) for i in range(200)]
    told = [{f.label for f in set(a.findings) ^ set(b.findings)} for a, b in drawn]
    assert all(len(differing) == 1 for differing in told)
    share = sum(differing == {"Consolidation"} for differing in told) / 200
    assert 0.38 < share < 0.62 and set().union(*told) == set(labels)

    run(tmp_path, 4, "pairs=true", "pair_labels=[Consolidation]")
    with pytest.raises(CTFlowError, match=r"pair_labels=\['Consolidation'\]"):
        run(tmp_path, 4, "pairs=true")
    with pytest.raises(CTFlowError, match="never differ in Lung opacity"):
        run(tmp_path / "other", 4, "pairs=true", "pair_labels=[Lung opacity]")
    assert not (tmp_path / "other").exists()


def test_an_odd_number_of_volumes_makes_no_pairs():
    with pytest.raises(ValueError, match="even number"):
        PhantomConfig(volumes=5, pairs=True)


@pytest.mark.parametrize(
    ("number", "to_worker", "status", "words"),
    [
        (signal.SIGKILL, True, 2, "a process that makes phantoms was killed"),
        (signal.SIGTERM, False, 143, "SIGTERM: stopped"),
    ],
)
@pytest.mark.slow
def test_a_signal_to_one_process_ends_all_in_words(tmp_path, number, to_worker, status, words) -> None:
    command = [sys.executable, "-m", "data_prep.phantom", "--output", str(tmp_path), "--volumes", "400"]
    process = subprocess.Popen(
        [*command, "size=48", "workers=2"],
        stderr=subprocess.PIPE,
        encoding="utf-8",  # the bar is drawn in blocks, whatever the locale
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not any(tmp_path.rglob("*.nii.gz")) and time.monotonic() < deadline:
            time.sleep(0.05)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8")
        workers = [
            int(pid) for pid in children.split() if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        os.kill(workers[0] if to_worker else process.pid, number)
        _, errors = process.communicate(timeout=120)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == status and words in errors and "Traceback" not in errors
