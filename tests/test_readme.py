"""The README's block "Train on your scans", typed line by line as it stands, with small sizes appended."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ctflow.checkpoint import load_avae
from ctflow.data import LatentShards
from ctflow.pipeline import resolve_checkpoint

REPORTS = {
    "ct_chest_lidc0314_hu.nii.gz": "A nodule of 7 mm in the left lower lobe. No pleural effusion.",
    "dicom_chest_siemens_8mm": "Small right pleural effusion. The heart is enlarged.",
}
SMALL = {
    "data_prep.ct_rate": [
        "resolution=64",
        "z_spacing=6",
        "valid_fraction=0.5",
        "workers=1",
        "progress=false",
    ],
    "ctflow.train": ["loop.max_steps=2", "loop.val_every=2", "loop.val_batches=1", "loop.progress=false"],
    "data_prep.encode": ["accelerator=cpu"],
    "ctflow.eval": ["cases=1", "floors=false", "sampling.steps=1", "device=cpu", "clip_lengths=[16]"],
}


MAKE_VARIABLES = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES", "ARGS", "CONFIG")


def block_of(readme: str, heading: str) -> list[str]:
    """The commands of the block below a heading, without comments."""
    text = readme.split(f"## {heading}")[1].split("```bash\n")[1].split("```")[0]
    lines = [re.sub(r"\s+#.*", "", line).strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def typed(line: str, root: Path) -> list[str]:
    """What a line runs: a make target is replaced by the command that make prints for it."""
    if line.startswith("make "):
        command = ["make", "-n", "--no-print-directory", "-f", str(root / "Makefile"), *shlex.split(line)[1:]]
        # A make that runs these tests must not pass on its own options, level and variables.
        own = {name: value for name, value in os.environ.items() if name not in MAKE_VARIABLES}
        asked = subprocess.run(command, check=True, capture_output=True, encoding="utf-8", cwd=root, env=own)
        line = asked.stdout.strip().splitlines()[-1]
    words = shlex.split(line)
    assert words[0] == ".venv/bin/python" and words[1] == "-m"
    return [sys.executable, *words[1:], *SMALL[words[2]]]


def follow(root: Path, work: Path, source: Path) -> str:
    """Type the block in ``work`` on the scans of ``source``; everything that was printed."""
    (work / "configs").symlink_to(root / "configs")
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    printed = ""
    for line in block_of((root / "README.md").read_text(encoding="utf-8"), "Train on your scans"):
        if line == "make tensorboard":  # serves until it is stopped
            continue
        command = typed(line.replace("/data/ct-rate", str(source)), root)
        done = subprocess.run(
            command, check=False, capture_output=True, encoding="utf-8", cwd=work, env=environment
        )
        printed += done.stdout + done.stderr
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return printed


def assert_trained_on_own_scans(work: Path, printed: str) -> None:
    """The FMvT lies over the A-VAE and the text encoder that the block has trained, and was scored."""
    (avae,) = (work / "runs" / "autoencoder").glob("*/export")
    (clip,) = (work / "runs" / "clip").glob("*/export")
    for what, folder in (("A-VAE", avae), ("text encoder", clip)):
        assert f"{what}: {folder.relative_to(work)} (the newest run" in printed
    for split in ("train", "valid"):
        header = LatentShards(work / "runs" / "shards" / "latents" / split).header
        assert header.avae_fingerprint == load_avae(avae).fingerprint()
    checkpoint = resolve_checkpoint("latest", work / "runs")
    assert f"checkpoint: {checkpoint.relative_to(work)}" in printed
    (results,) = (work / "runs" / "eval").glob("*/results.json")
    assert json.loads(results.read_text(encoding="utf-8"))["rows"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_block_as_typed_on_phantoms(repo_root: Path, tmp_path: Path) -> None:
    source = tmp_path / "scans"
    made = ["--output", str(source), "--volumes", "12", "--size", "64", "workers=1"]
    subprocess.run(
        [sys.executable, "-m", "data_prep.phantom", *made],
        check=True,
        capture_output=True,
        env=os.environ | {"PYTHONPATH": str(repo_root)},
    )
    assert_trained_on_own_scans(tmp_path, follow(repo_root, tmp_path, source))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_block_as_typed_on_two_real_scans(repo_root: Path, shared_dir: Path, tmp_path: Path) -> None:
    source = tmp_path / "scans"
    source.mkdir()
    with (source / "reports.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["VolumeName", "Findings_EN", "Impressions_EN"])
        for name, report in REPORTS.items():
            (source / name).symlink_to(shared_dir / "real_ct" / name)
            writer.writerow([name, report, "None."])
    printed = follow(repo_root, tmp_path, source)
    assert "one optimizer step takes 16" in printed  # two volumes are fewer than the pair's batch
    assert_trained_on_own_scans(tmp_path, printed)
