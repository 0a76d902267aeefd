"""One published training step: path, prediction, loss and gradients."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from ctflow.config.models import FlowConfig
from ctflow.flow import flow_matching_loss, training_path
from ctflow.models import Conditions, FMvT
from ctflow.models.fmvt_published import fmvt_config_from_published, fmvt_state_from_published
from ctflow.whitening import Whitening

TOLERANCE = 1e-5
KEPT = 2
"""Frames of a block that the outputs are recorded for; loss and gradients are those of whole blocks."""


def relative(found, expected):
    return float(((found - expected).norm() / expected.norm()).detach())


@pytest.fixture(scope="module")
def file(parity_dir: Path):
    path = parity_dir / "train/one_step.safetensors"
    with safe_open(path, "pt") as header:
        notes = {key: json.loads(value) for key, value in header.metadata().items()}
    return load_file(path), notes


def test_one_step(file, parity_dir: Path):
    recorded, notes = file
    constants = notes["constants"]
    config = FlowConfig(
        path_offset=constants["path_offset"],
        noise_offset=constants["noise_offset"],
        condition_noise=constants["noise_cond"],
    )
    whitening = Whitening([0.1159], [0.3611])
    data = whitening.whiten(recorded["video_latent"])
    assert relative(data[:, :, :KEPT], recorded["z_0"]) < TOLERANCE
    noise = recorded["eps"] + config.noise_offset * recorded["eps_offset"]
    assert relative(noise[:, :, :KEPT], recorded["z_1"]) < TOLERANCE
    previous = whitening.whiten(recorded["image_latent"]) + config.condition_noise * recorded["eps_cond"]
    assert relative(previous[:, :, :KEPT], recorded["cond_image"]) < TOLERANCE

    point = training_path(config).sample(data, noise, recorded["t"])
    assert relative(point.z_t[:, :, :KEPT], recorded["z_t"]) < TOLERANCE
    assert relative(point.velocity[:, :, :KEPT], recorded["u"]) < TOLERANCE

    folder = parity_dir / "stdit/A"
    model = FMvT(fmvt_config_from_published(json.loads((folder / "config.json").read_text(encoding="utf-8"))))
    model.load_state_dict(
        fmvt_state_from_published(load_file(folder / "diffusion_pytorch_model.safetensors"))
    )
    prediction = model(point.z_t, recorded["t"], Conditions(recorded["encoder_hidden_states"], previous))
    assert relative(prediction[:, :, :KEPT], recorded["v"]) < TOLERANCE
    loss = flow_matching_loss(prediction, point.velocity).mean()
    assert relative(loss, recorded["loss"]) < TOLERANCE
    loss.backward()

    gradients = {f"model.{name}": p.grad for name, p in model.named_parameters()}
    norms = [
        0.0 if gradients[name] is None else float(gradients[name].norm()) for name in notes["grad_norm_names"]
    ]
    assert gradients.keys() == set(notes["grad_norm_names"])
    assert relative(torch.tensor(norms), recorded["grad_norms"]) < TOLERANCE
    for name, found, expected in zip(
        notes["grad_norm_names"], norms, recorded["grad_norms"].tolist(), strict=True
    ):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-7), name
    assert relative(torch.tensor(norms).norm(), recorded["total_grad_norm"]) < TOLERANCE
    untouched = {name for name, norm in zip(notes["grad_norm_names"], norms, strict=True) if norm == 0}
    assert untouched == set(notes["zero_grad_parameters"])


def test_time_the_other_way_is_caught(file):
    recorded, notes = file
    path = training_path(FlowConfig(path_offset=notes["constants"]["path_offset"]))
    assert (
        relative(path.sample(recorded["z_0"], recorded["z_1"], 1 - recorded["t"]).z_t, recorded["z_t"]) > 1e-2
    )
