"""The published rollouts, reproduced from recorded noise: three settings, stop test and trimming."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ctflow.checkpoint import load_avae
from ctflow.config.generation import RolloutConfig, StopConfig
from ctflow.generation import RolloutCase, StopReason, StopRule, rollout, trailing_run, white_slices
from ctflow.generation.volumes import is_end
from ctflow.models import AVAE, FMvT
from ctflow.models.fmvt_published import fmvt_config_from_published, fmvt_state_from_published
from ctflow.models.text import unit_pooled
from ctflow.whitening import Whitening

FLUX = Whitening([0.1159], [0.3611])
PUBLISHED_STOP = StopConfig(rule="first_slice", threshold=0.1)


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.fixture(scope="module")
def denoiser(parity_dir: Path) -> FMvT:
    folder = parity_dir / "stdit/A"
    model = FMvT(fmvt_config_from_published(json.loads((folder / "config.json").read_text(encoding="utf-8"))))
    state = load_file(folder / "diffusion_pytorch_model.safetensors")
    model.load_state_dict(fmvt_state_from_published(state))
    return model.eval()


@pytest.fixture
def recorded(parity_dir: Path):
    return lambda name: load_file(parity_dir / "ar" / f"{name}.safetensors")


def published(solver: str = "euler", max_slices: int = 48) -> RolloutConfig:
    return RolloutConfig(steps=5, solver=solver, max_slices=max_slices, stop=PUBLISHED_STOP)


def replay(file, first: int = 0):
    """Recorded noise as a noise source; ``first`` is the index of the first generated block."""
    return lambda case_id, block, shape: file["noise"][block - first].view(shape)


def rule(file) -> StopRule:
    return StopRule(PUBLISHED_STOP, file["one_latent_scaled"][0], white_spread=0.0)


def test_full_body(denoiser, recorded):
    file = recorded("full_body")
    start = FLUX.whiten(file["zero_latent_unscaled"])[0]
    case = RolloutCase("x", file["prompt_embeds"][0])
    (result,) = rollout(denoiser, [case], start, rule(file), published(), noise=replay(file))
    assert relative(result.blocks, file["blocks"]) < 1e-5
    assert relative(result.latents, torch.cat(tuple(file["blocks"]), dim=1)) < 1e-5
    assert result.stop is StopReason.LIMIT_REACHED
    assert result.positions == [0, 16, 32]


def test_gt_head(denoiser, recorded):
    file = recorded("gt_head")
    start = FLUX.whiten(file["zero_latent_unscaled"])[0]
    case = RolloutCase("x", file["prompt_embeds"][0], given=FLUX.whiten(file["gt_latent"])[0])
    (result,) = rollout(denoiser, [case], start, rule(file), published(), noise=replay(file, first=1))
    assert relative(result.blocks, file["blocks"]) < 1e-5
    assert relative(result.latents, torch.cat([file["gt_first_block"][0], *file["blocks"]], dim=1)) < 1e-5
    assert result.given_slices == 16
    assert result.positions == [16, 32]


@pytest.mark.parametrize(
    ("solver", "key", "tolerance"), [("euler", "blocks_euler", 1e-5), ("dopri5", "blocks_dopri5", 1e-3)]
)
def test_next_block(denoiser, recorded, solver, key, tolerance):
    file = recorded("block_wise")
    stored = FLUX.whiten(file["gt_latent"])[0]  # begins with the stored all-air block
    case = RolloutCase("x", file["prompt_embeds"][0], real=stored[:, 16:])
    (result,) = rollout(denoiser, [case], stored[:, :16], rule(file), published(solver), noise=replay(file))
    assert relative(result.blocks, file[key]) < tolerance
    assert result.slices == 16 * len(file[key])
    assert result.stop is StopReason.REAL_LENGTH


@pytest.fixture(scope="module")
def avae(parity_dir: Path) -> AVAE:
    return load_avae(parity_dir / "vae/tiny")


def test_the_start_block_and_the_white_latent_are_the_autoencoders(avae, recorded, parity_dir):
    """Posterior means here; the published code draws a sample once, of the same posterior."""
    io = load_file(parity_dir / "vae/tiny/io.safetensors")
    assert relative(avae.air_latent(64), FLUX.whiten(io["mean_zeros"])[0]) < 1e-5
    assert relative(avae.white_latent(64), FLUX.whiten(io["mean_ones"])[0]) < 1e-5
    file = recorded("full_body")
    drawn = {0.0: file["zero_latent_unscaled"], 1.0: FLUX.unwhiten(file["one_latent_scaled"])}
    for value, latent in drawn.items():
        with torch.no_grad():
            posterior = avae.encode(torch.full((1, 3, 64, 64), value))
        normal = (latent - posterior.mean) * torch.exp(-0.5 * posterior.logvar)  # 1,024 values
        assert abs(float(normal.mean())) < 0.1 and float(normal.std()) == pytest.approx(1.0, abs=0.07)


def test_the_condition_is_the_reports_vector_over_its_norm(recorded):
    file = recorded("full_body")
    assert relative(unit_pooled(file["embedding_file"]), file["prompt_embeds"][0]) < 1e-6


@torch.no_grad()
def test_a_rollout_is_decoded_as_published(avae, recorded):
    """Every 32nd frame: images, the published 8-bit pictures, and what those are in HU."""
    file = recorded("full_body")
    whitened = torch.cat(tuple(file["blocks"]), dim=1).transpose(0, 1)[::32]  # [2, C, h, w]
    images = avae.decode(avae.unwhiten(whitened))
    assert relative(images, file["decoded_float"]) < 1e-5
    pictures = (images * 306).clamp(0, 255).to(torch.uint8).transpose(0, 1)  # [3, 2, H, W]
    assert (pictures.int() - file["frames_uint8"][0].int()).abs().max() <= 1  # a rounding at a whole number
    hu = avae.decode_to_hu(whitened)
    assert float(hu.min()) >= -1000.0 and float(hu.max()) <= 1400.0
    window = avae.config.intensity
    assert relative(hu, window.to_hu(file["decoded_float"].mean(1))) < 1e-5
    assert float(window.to_hu(torch.tensor(255 / 306))) == pytest.approx(1000.0)


def test_whitening_the_wrong_way_is_caught(denoiser, recorded):
    file = recorded("full_body")
    start = FLUX.unwhiten(file["zero_latent_unscaled"])[0]
    case = RolloutCase("x", file["prompt_embeds"][0])
    (result,) = rollout(denoiser, [case], start, rule(file), published(max_slices=16), noise=replay(file))
    assert relative(result.blocks[0], file["blocks"][0]) > 1e-3


def test_stop_and_trim(parity_dir: Path):
    file = load_file(parity_dir / "ar/stop_trim.safetensors")
    names = ["none", "all_white", "tail5", "head_only", "all_95pct", "all_85pct", "tail_but_last", "amp_0.2"]
    white = file["one_latent_scaled"][0]
    flags = [white_slices(file[f"case.{name}"][0], white, 0.1, 0.9) for name in names]
    assert [is_end(f, "first_slice") for f in flags] == file["is_stop"].tolist()
    assert [16 - trailing_run(f) for f in flags] == file["keep"].tolist()
    # The fresh rule reads every slice: a white tail ends a volume, a white first slice alone does not.
    every = dict(zip(names, (is_end(f, "every_slice") for f in flags), strict=True))
    assert every == {
        "none": False, "all_white": True, "tail5": True, "head_only": False, "all_95pct": True, "all_85pct":
        False, "tail_but_last": False, "amp_0.2": False,
    }  # fmt: skip
