"""One real chest through the project's own commands, from the scan to the table, at tiny steps."""

import csv
import json

import numpy as np
import pytest

import ctflow.eval
import ctflow.generate
import ctflow.train
import data_prep.ct_rate.__main__
import data_prep.encode
from ctflow.data import SliceShards
from ctflow.data.nifti import read_nifti

SCAN = "ct_chest_lidc0314_hu.nii.gz"
REPORT = "A 7-millimeter nodule with central calcification is visible in segment 6 of the left lower lobe."


@pytest.mark.slow
def test_a_real_scan_goes_from_nifti_to_a_generated_volume_and_a_table(shared_dir, tiny_checkpoint, tmp_path):
    source = tmp_path / "scan"
    source.mkdir()
    (source / SCAN).symlink_to(shared_dir / "real_ct" / SCAN)
    reports = tmp_path / "reports.csv"
    with reports.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["VolumeName", "Findings_EN", "Impressions_EN"])
        writer.writerow([SCAN, REPORT, "No metastases."])
    slices, latents = tmp_path / "slices", tmp_path / "latents"
    keys = ["resolution=64", "z_spacing=6", "valid_fraction=0", "workers=1", "progress=false"]
    arguments = ["--source", str(source), "--reports", str(reports), "--output", str(slices), *keys]
    assert data_prep.ct_rate.__main__.main(arguments) == 0
    record = SliceShards(slices / "train").record(0)
    assert record.report.startswith("A 7-millimeter nodule")
    assert np.asarray(record.hu).shape == (46, 64, 64)

    common = [
        f"runs_dir={tmp_path}",
        "name=real",
        "loop.progress=false",
        "data.batch_size=2",
        "loop.val_batches=1",
    ]
    common += ["loop.max_steps=3", "loop.val_every=2", "loop.accelerator=cpu"]
    shards = [f"data.train={slices}/train", f"data.valid={slices}/train"]
    small = ["autoencoder.network.block_out_channels=[8,8,8,8]", "autoencoder.whitening_batches=2"]
    assert ctflow.train.main(["--config", "configs/train/vae.yaml", *common, *shards, *small]) == 0
    avae, clip = tmp_path / "autoencoder" / "real" / "export", tiny_checkpoint / "clip"
    weights = [f"avae={avae}", f"clip={clip}", "accelerator=cpu"]
    assert data_prep.encode.main([f"source={slices}/train", f"output={latents}", *weights]) == 0
    shards = [f"data.train={latents}", f"data.valid={latents}", f"flow.avae={avae}", f"flow.clip={clip}"]
    small = ["flow.network.hidden_size=32", "flow.network.depth=1", "flow.network.num_heads=2"]
    small += ["flow.network.text_dim=16", "flow.monitor.rollout_every=0"]
    assert ctflow.train.main(["--config", "configs/train/flow.yaml", *common, *shards, *small]) == 0

    checkpoint = tmp_path / "flow" / "real" / "export"
    # After three steps the A-VAE's white latents spread over everything: only an exact one may end a volume.
    config = checkpoint / "config.yaml"
    config.write_text(
        config.read_text(encoding="utf-8").replace("threshold: null", "threshold: 0.001"), encoding="utf-8"
    )
    out = tmp_path / "generated.nii.gz"
    arguments = ["--checkpoint", str(checkpoint), "--report", REPORT, "--output", str(out), "--slices", "32"]
    assert ctflow.generate.main([*arguments, "--steps", "2", "device=cpu"]) == 0
    volume = read_nifti(out)
    assert volume.hu.shape[1:] == (64, 64) and volume.spacing[0] == pytest.approx(6.0)

    arguments = ["--checkpoint", str(checkpoint), "--setting", "next-block", f"slices={slices}/train"]
    places = [f"output={tmp_path}/eval", f"cache={tmp_path}/cache", "floors=false", "sampling.steps=2"]
    assert ctflow.eval.main([*arguments, *places, "cases=1", "device=cpu"]) == 0
    (result,) = (tmp_path / "eval").glob("*/results.json")
    rows = json.loads(result.read_text(encoding="utf-8"))["rows"]
    assert rows and all(row["value"] is None or np.isfinite(row["value"]) for row in rows)
