"""Evaluation and fine-tuning with imported weights, through the commands."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ctflow import eval as evaluate
from ctflow import train
from ctflow.checkpoint import load_avae, load_fmvt, load_system, save_fmvt
from ctflow.data import SliceRecord, SliceShardWriter
from ctflow.models import FMvT, train_wordpiece
from ctflow.models.fmvt_published import published_preset
from ctflow.weights import main
from data_prep import encode

pytestmark = pytest.mark.slow

REPORTS = ["A nodule in the left lung.", "No pleural effusion.", "The heart is enlarged."]


@pytest.fixture(scope="module")
def imported(tmp_path_factory, parity_dir) -> Path:
    """The tiny published A-VAE and CT-CLIP with a transformer of the published kind that fits them."""
    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(0)
    config = replace(
        published_preset("S"), input_size=[16, 8, 8], hidden_size=32, depth=1, num_heads=2, text_dim=48
    )
    save_fmvt(folder / "own", FMvT(config))
    main(["export", "ctflow", str(folder / "own"), str(folder / "ctflow")])
    (folder / "tokenizer").mkdir()
    tokenizer = train_wordpiece(REPORTS, 100).to_json()
    (folder / "tokenizer/tokenizer.json").write_text(tokenizer, encoding="utf-8")
    dest, fixtures = folder / "checkpoint", parity_dir
    main(["import", "ctflow", str(folder / "ctflow"), str(dest)])
    main(["import", "flux", str(fixtures / "vae/tiny"), str(dest)])
    main(["import", "ctclip", str(fixtures / "ctclip/tiny"), str(dest), f"tokenizer={folder / 'tokenizer'}"])
    return dest


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """Eight volumes of 40 slices at 64×64, blurred noise inside a box."""
    folder = tmp_path_factory.mktemp("slices")
    with SliceShardWriter(folder) as writer:
        for i in range(8):
            coarse = np.random.default_rng(i).normal(0, 60, (10, 16, 16))
            hu = np.full((40, 64, 64), -1000.0)
            hu[:, 8:56, 8:56] = np.kron(coarse, np.ones((4, 4, 4)))[:, 8:56, 8:56]
            writer.append(
                SliceRecord(
                    case_id=f"case_{i}",
                    patient_id=f"patient_{i}",
                    hu=hu.astype(np.int16),
                    spacing=(1.5, 4.0, 4.0),
                    report=REPORTS[i % 3],
                    source_sha256=f"{i:064x}",
                    split="valid",
                )
            )
    return folder


def test_evaluation_runs_in_all_three_settings(imported, shards, tmp_path):
    arguments = ["--checkpoint", str(imported), "--setting", "all", f"slices={shards}", f"output={tmp_path}"]
    arguments += [f"cache={tmp_path}/cache", "cases=4", "batch_size=4", "sampling.steps=1"]
    assert evaluate.main([*arguments, "sampling.max_slices=40", "clip_lengths=[16]"]) == 0
    (result,) = tmp_path.glob("*/results.json")
    rows = json.loads(result.read_text(encoding="utf-8"))["rows"]
    values = {r["setting"] for r in rows if r["source"] == "model" and r["value"] is not None}
    assert values == {"full-body", "gt-head", "next-block"}


def tuning(runs: Path, data: Path) -> list[str]:
    """Two short steps of the shipped preset."""
    common = ["loop.max_steps=2", "loop.val_every=2", "loop.val_batches=1", "loop.progress=false"]
    common += ["loop.accelerator=cpu", "loop.precision=32-true", "default_data.make=false"]
    return [
        *common,
        f"runs_dir={runs}",
        "name=x",
        f"data.train={data}",
        f"data.valid={data}",
        "data.batch_size=2",
    ]


def test_the_transformer_is_fine_tuned(imported, shards, tmp_path, repo_root):
    latents = tmp_path / "latents"
    encode.main(
        [f"avae={imported / 'avae'}", f"clip={imported / 'clip'}", f"source={shards}", f"output={latents}"]
    )
    preset = ["--config", str(repo_root / "configs/published/flow_S_32.yaml")]
    options = [f"flow.init_from={imported}", "flow.network.activation_checkpointing=true"]
    train.main([*preset, *tuning(tmp_path, latents), *options])  # its A-VAE and CT-CLIP are found beside it
    before, after = load_fmvt(imported), load_fmvt(tmp_path / "flow/x/export")
    assert after.config == replace(before.config, activation_checkpointing=True)
    assert not torch.equal(after.final_layer.linear.weight, before.final_layer.linear.weight)
    # what was fine-tuned goes out in the published layout again
    main(["export", "ctflow", str(tmp_path / "flow/x/export"), str(tmp_path / "out")])
    assert load_fmvt(tmp_path / "out").config == before.config
    assert load_system(tmp_path / "flow/x/export").avae.config.whitening.scale == [0.3611]


@pytest.mark.parametrize("channels", [1, 3])
def test_the_autoencoder_is_fine_tuned(imported, shards, tmp_path, repo_root, channels):
    source = imported
    preset = ["--config", str(repo_root / "configs/published/vae_flux.yaml")]
    options = [f"autoencoder.network.in_channels={channels}", f"autoencoder.init_from={source}"]
    train.main([*preset, *tuning(tmp_path, shards), *options])
    before = load_avae(source, channels)  # three channels become one on the way
    after = load_avae(tmp_path / "autoencoder/x/export")
    assert after.config == before.config
    assert after.config.in_channels == channels
    assert after.fingerprint() != before.fingerprint()
