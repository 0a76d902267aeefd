"""The published transformer, number for number."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from einops import rearrange
from parity import STDIT_B
from safetensors.torch import load_file
from torch import nn

from ctflow.config.models import FMvTConfig
from ctflow.errors import WeightsError
from ctflow.models import Conditions, FMvT
from ctflow.models.fmvt_published import (
    fmvt_config_from_published,
    fmvt_config_to_published,
    fmvt_state_from_published,
    fmvt_state_to_published,
    published_preset,
)

TOLERANCE = 1e-6


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


def load(folder: Path, **changes) -> FMvT:
    config = fmvt_config_from_published(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    model = FMvT(replace(config, **changes))
    model.load_state_dict(
        fmvt_state_from_published(load_file(folder / "diffusion_pytorch_model.safetensors"))
    )
    return model.eval()


@pytest.fixture(scope="module", params=["A", STDIT_B])
def folder(request, parity_dir: Path) -> Path:
    return parity_dir / "stdit" / request.param


@pytest.fixture(scope="module")
def io(folder: Path):
    return load_file(folder / "io.safetensors")


@pytest.fixture(scope="module")
def model(folder: Path) -> FMvT:
    return load(folder)


@torch.no_grad()
def test_outputs(model, io):
    x, t, text, previous = io["x"], io["t"], io["encoder_hidden_states"], io["cond_image"]
    assert relative(model(x, t, Conditions(text, previous)), io["out"]) < TOLERANCE
    assert (
        relative(model(x, io["t_scalar"], Conditions(text, previous))[:1], io["out_t_scalar"][:1]) < TOLERANCE
    )
    assert relative(model(x, 0.0, Conditions(text, previous))[:1], io["out_t0"][:1]) < TOLERANCE
    assert relative(model(x, torch.ones(2), Conditions(text, previous))[:1], io["out_t1"][:1]) < TOLERANCE
    assert relative(model(x, t, Conditions(None, previous))[:1], io["out_no_text"][:1]) < TOLERANCE
    dropped = model(x, t, Conditions(text, previous).dropped(text=torch.tensor([True, False])))
    assert relative(dropped[0], io["out_no_text"][0]) < TOLERANCE
    assert relative(dropped[1], io["out"][1]) < TOLERANCE
    if "mask" in io:
        assert (
            relative(model(x, t, Conditions(text, previous, text_mask=io["mask"])), io["out_mask"])
            < TOLERANCE
        )


@torch.no_grad()
def test_intermediate_activations(model, io):
    seen: dict[str, torch.Tensor] = {}
    watched = {"t_emb": model.t_embedder, "t_block": model.t_block, "x_embedder": model.x_embedder}
    watched |= {f"block{i}": block for i, block in enumerate(model.blocks)}
    first = model.blocks[0]
    watched |= {
        "block0_attn": first.attn,
        "block0_attn_temp": first.attn_temp,
        "block0_cross_attn": first.cross_attn,
    }
    for name, module in watched.items():
        module.register_forward_hook(lambda _, __, out, name=name: seen.__setitem__(name, out))
    tokens = model.y_embedder(io["encoder_hidden_states"][:1]).tokens
    model(io["x"][:1], io["t"][:1], Conditions(io["encoder_hidden_states"][:1], io["cond_image"][:1]))
    for module in watched.values():
        module._forward_hooks.clear()
    assert relative(tokens[:, None], io["act.y_emb"]) < TOLERANCE
    layouts = {"block0_attn": "b t s c -> (b t) s c", "block0_attn_temp": "b t s c -> (b s) t c"}
    for name, found in seen.items():
        if name == "t_block":
            found = found[:, 0]  # one time for all slices
        if found.ndim == 4:
            found = rearrange(found, layouts.get(name, "b t s c -> b (t s) c"))
        expected = io[f"act.{name}"]
        assert relative(found.expand_as(expected), expected) < TOLERANCE, name


@torch.no_grad()
def test_position_embeddings_are_computed_as_published(folder):
    config = fmvt_config_from_published(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    state = load_file(folder / "diffusion_pytorch_model.safetensors")
    fresh = FMvT(config)
    torch.testing.assert_close(fresh.pos_embed, state["model.pos_embed"], rtol=0, atol=1e-7)
    torch.testing.assert_close(fresh.pos_embed_temporal, state["model.pos_embed_temporal"], rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    "change",
    [
        {"scrambled_heads": False},
        {"raw_temporal_branch": True, "late_temporal_embedding": False},
        {"time_multiplier": 1000.0},
        {"normalise_text": True},
        {"space_scale": 3.0},
    ],
)
@torch.no_grad()
def test_a_wrong_property_is_caught(folder, io, change):
    """Each is one of the mistakes that give plausible outputs; all move the output well beyond tolerance."""
    wrong = load(folder, **change)
    if "space_scale" in change:
        wrong.pos_embed.copy_(FMvT(wrong.config).pos_embed)
    out = wrong(io["x"], io["t"], Conditions(io["encoder_hidden_states"], io["cond_image"]))
    assert relative(out, io["out"]) > 100 * TOLERANCE


@torch.no_grad()
def test_a_wrong_direction_of_time_is_caught(model, io):
    out = model(io["x"], 1 - io["t"], Conditions(io["encoder_hidden_states"], io["cond_image"]))
    assert relative(out, io["out"]) > 100 * TOLERANCE


@torch.no_grad()
def test_a_wrong_gelu_is_caught(folder, io):
    wrong = load(folder)
    for block in wrong.blocks:
        block.mlp.act = nn.GELU()
    out = wrong(io["x"], io["t"], Conditions(io["encoder_hidden_states"], io["cond_image"]))
    assert relative(out, io["out"]) > 10 * TOLERANCE


def test_state_and_config_survive_the_round_trip(folder):
    state = load_file(folder / "diffusion_pytorch_model.safetensors")
    back = fmvt_state_to_published(FMvT.state_dict(load(folder)))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)
    config = fmvt_config_from_published(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    written = fmvt_config_to_published(config)
    assert fmvt_config_from_published(written) == config
    published = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert {key: published[key] for key in written if key != "class_dropout_prob"} == {
        key: value for key, value in written.items() if key != "class_dropout_prob"
    }


def test_ema_keys_of_a_released_config_are_ignored(folder):
    published = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    released = published | {"decay": 0.9999, "min_decay": 0.0, "optimization_step": 7, "update_after_step": 0}
    assert fmvt_config_from_published(released) == fmvt_config_from_published(published)


def test_impossible_configs_are_refused(folder):
    published = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    with pytest.raises(WeightsError, match="num_heads"):
        fmvt_config_from_published({key: value for key, value in published.items() if key != "num_heads"})
    with pytest.raises(WeightsError, match="in_channels=31"):
        fmvt_config_from_published(published | {"in_channels": 31})
    with pytest.raises(WeightsError, match="not divisible"):
        fmvt_config_from_published(published | {"patch_size": [3, 2, 2]})
    with pytest.raises(WeightsError, match="scrambled_heads=False"):
        fmvt_config_to_published(FMvTConfig())
    with pytest.raises(WeightsError, match=r"2 keys .*pos_embed"):
        fmvt_state_from_published({"pos_embed": torch.zeros(1), "x": torch.zeros(1)})


SIZES = {"S": 37_220_864, "B": 147_579_776, "L": 513_725_568}


@pytest.mark.parametrize("size", SIZES)
def test_parameter_counts(size):
    with torch.device("meta"):
        model = FMvT(published_preset(size))
    assert sum(p.numel() for p in model.parameters()) == SIZES[size]


@pytest.mark.parametrize(("size", "side"), [("S", 32), ("B", 32), ("L", 32), ("L", 64)])
def test_key_listings(parity_dir: Path, size, side):
    with torch.device("meta"):
        model = FMvT(published_preset(size, side))
    parameters = dict(model.named_parameters())
    found = {
        "\t".join(
            [
                f"model.{key}",
                str(list(value.shape)),
                str(value.dtype),
                "param" if key in parameters else "buffer",
            ]
        )
        for key, value in model.state_dict().items()
    }
    listing = (parity_dir / f"layouts/state_dict_{size}_{side}.txt").read_text(encoding="utf-8").splitlines()
    assert found == set(listing)
