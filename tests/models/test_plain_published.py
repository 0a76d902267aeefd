"""The package against independent plain implementations, at shapes that no recorded fixture has."""

from __future__ import annotations

import json

import pytest
import torch
from parity import STDIT_B
from plain_published import SingleFile, bert_states, unit, volume_latent
from safetensors.torch import load_file, save_file

from ctflow.bench.plain import transformer
from ctflow.models import AVAE, CTCLIP, Conditions, FMvT
from ctflow.models.avae_published import avae_config_from_diffusers, to_single_file
from ctflow.models.ctclip_published import ctclip_config_from_published, ctclip_state_to_published
from ctflow.models.fmvt_published import fmvt_config_from_published, fmvt_state_to_published
from ctflow.weights import load_avae, load_ctclip, load_fmvt


def relative(found, expected):
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@torch.no_grad()
def randomised(module, seed):
    """Every parameter random, so that nothing is hidden behind a zero; buffers as they are."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        value = noise * parameter[0].numel() ** -0.5 if parameter.ndim > 1 else parameter + 0.1 * noise
        parameter.copy_(value)
    return {key: value.clone() for key, value in module.state_dict().items()}


@torch.no_grad()
@pytest.mark.parametrize("name", ["A", STDIT_B])
def test_the_plain_transformer_reproduces_the_fixtures(parity_dir, name):
    folder = parity_dir / "stdit" / name
    io, config = load_file(folder / "io.safetensors"), json.loads((folder / "config.json").read_text("utf-8"))
    state = load_file(folder / "diffusion_pytorch_model.safetensors")
    out = transformer(config, state, io["x"], io["t"], io["encoder_hidden_states"], io["cond_image"])
    assert relative(out, io["out"]) < 1e-6


@torch.no_grad()
def test_the_plain_encoders_reproduce_the_fixtures(parity_dir):
    folder = parity_dir / "vae/tiny"
    plain, io = SingleFile(load_file(folder / "ae_bfl.safetensors"), 8), load_file(folder / "io.safetensors")
    assert relative(plain.encode(io["image"])[0], io["mean"]) < 1e-5
    assert relative(plain.decode(io["latent"]), io["decoded"]) < 1e-5
    folder = parity_dir / "ctclip/tiny"
    config, io = json.loads((folder / "config.json").read_text("utf-8")), load_file(folder / "io.safetensors")
    state = torch.load(folder / "ctclip.pt", weights_only=True)
    states = bert_states(config["bert"], state, io["input_ids"], io["attention_mask"])
    assert relative(states, io["last_hidden_state"]) < 1e-5
    assert relative(volume_latent(config["ctvit"], state, io["image"]), io["image_latent"]) < 1e-5


SHAPES = [
    {"input_size": [16, 4, 8], "patch_size": [2, 1, 2], "hidden_size": 72, "depth": 3, "num_heads": 6},
    {"input_size": [12, 6, 4], "patch_size": [4, 3, 1], "hidden_size": 40, "depth": 1, "num_heads": 2,
     "mlp_ratio": 2.5, "model_max_length": 7, "space_scale": 0.5, "time_scale": 2.0, "out_channels": 4,
     "in_channels": 8, "caption_channels": 96},
    {"input_size": [16, 8, 8], "patch_size": [1, 4, 4], "hidden_size": 48, "depth": 2, "num_heads": 1,
     "mlp_ratio": 1.3, "model_max_length": 20, "space_scale": 2, "no_temporal_pos_emb": True},
]  # fmt: skip
PUBLISHED = {
    "in_channels": 32, "out_channels": 16, "mlp_ratio": 4.0, "caption_channels": 768, "model_max_length": 1,
    "space_scale": 1.0, "time_scale": 1.0, "no_temporal_pos_emb": False, "class_dropout_prob": 0.1,
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES)
def test_transformer_at_other_shapes(tmp_path, shape):
    config = {"_class_name": "DiffuserSTDiT", **PUBLISHED, **shape}
    network = FMvT(fmvt_config_from_published(config))
    state = fmvt_state_to_published(randomised(network, 1))
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(state, tmp_path / "diffusion_pytorch_model.safetensors")
    model = load_fmvt(tmp_path)
    length, channels = config["model_max_length"], config["out_channels"]
    x, previous = torch.randn(2, 3, channels, *config["input_size"])
    t, text = torch.rand(3), torch.randn(3, length, config["caption_channels"])
    for moment in (t, 0.0, 1, torch.tensor(0.3)):
        found = model(x, moment, Conditions(text, previous))
        assert relative(found, transformer(config, state, x, moment, text, previous)) < 1e-6
    assert (
        relative(model(x, t, Conditions(None, previous)), transformer(config, state, x, t, None, previous))
        < 1e-6
    )
    more = torch.randn(3, length + 2, config["caption_channels"])
    mask = (torch.rand(3, length + 2) > 0.5).long()
    mask[:, 1] = 1
    expected = transformer(config, state, x, t, more, previous, mask)
    assert relative(model(x, t, Conditions(more, previous, text_mask=mask)), expected) < 1e-6
    larger = config | {"input_size": [2 * config["input_size"][0], 12, 16]}
    places = FMvT(fmvt_config_from_published(larger)).state_dict()
    moved = state | {f"model.{key}": places[key] for key in ("pos_embed", "pos_embed_temporal")}
    x, previous = torch.randn(2, 3, channels, *larger["input_size"])
    expected = transformer(larger, moved, x, t, text, previous)
    assert relative(model(x, t, Conditions(text, previous)), expected) < 1e-6


@torch.no_grad()
@pytest.mark.parametrize(
    ("widths", "layers", "channels", "latent", "groups"),
    [([16, 32], 2, 1, 4, 16), ([32, 64, 96], 1, 3, 16, 32), ([8, 16, 24, 40, 48], 3, 3, 8, 4)],
)
def test_autoencoder_at_other_shapes(tmp_path, widths, layers, channels, latent, groups):
    config = {
        "_class_name": "AutoencoderKL", "in_channels": channels, "out_channels": channels,
        "latent_channels": latent, "block_out_channels": widths, "layers_per_block": layers,
        "norm_num_groups": groups, "scaling_factor": 0.7, "shift_factor": 0.2, "use_quant_conv": False,
        "use_post_quant_conv": False,
    }  # fmt: skip
    network = AVAE(avae_config_from_diffusers(config))
    state = randomised(network.net, 2)
    single = {key: value.contiguous() for key, value in to_single_file(state, len(widths)).items()}
    save_file(single, tmp_path / "ae.safetensors")
    save_file(state, tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    plain, side = SingleFile(single, groups), network.downscale
    images, latents = torch.rand(2, channels, 3 * side, 4 * side), torch.randn(2, latent, 3, 5)
    mean, logvar = plain.encode(images)
    for path in (tmp_path, tmp_path / "ae.safetensors"):
        model = load_avae(path)
        found = model.encode(images)
        assert relative(found.mean, mean) < 1e-5
        wanted = logvar.clamp(-30, 20) if path == tmp_path else logvar
        assert relative(found.logvar, wanted) < 1e-5
        for _ in range(2):  # decoding changes nothing in place
            assert relative(model.decode(latents), plain.decode(latents)) < 1e-5
        assert model.config.whitening.scale == [0.7]


@torch.no_grad()
@pytest.mark.parametrize("position_ids", [True, False])
def test_ctclip_at_other_shapes(tmp_path, position_ids):
    config = {
        "bert": {"vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3,
                 "intermediate_size": 50, "max_position_embeddings": 40, "type_vocab_size": 1,
                 "layer_norm_eps": 1e-6},
        "ctvit": {"dim": 24, "codebook_size": 37, "image_size": 24, "patch_size": 4, "temporal_patch_size": 3,
                  "spatial_depth": 1, "temporal_depth": 3, "dim_head": 6, "heads": 3},
        "dim_latent": 16,
    }  # fmt: skip
    keys = ["text_transformer.embeddings.position_ids"] if position_ids else []
    state = ctclip_state_to_published(randomised(CTCLIP(ctclip_config_from_published(config, keys)), 3))
    torch.save(state, tmp_path / "any_name.pt")
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    model = load_ctclip(tmp_path)
    ids, mask = torch.randint(5, 60, (3, 33)), torch.ones(3, 33, dtype=torch.long)
    mask[1, 20:], mask[2, 4:] = 0, 0
    tokens, pooled, latent = model.encode_text(ids, mask)
    states = bert_states(config["bert"], state, ids, mask)
    assert relative(tokens, states) < 1e-5
    assert relative(pooled, states[:, 0]) < 1e-5
    expected = unit(states[:, 0] @ state["to_text_latent.weight"].T)
    assert relative(latent, expected) < 1e-5
    volume = torch.rand(3, 1, 12, 24, 24) * 2 - 1
    image = volume_latent(config["ctvit"], state, volume)
    assert relative(model.encode_image(volume), image) < 1e-5
    similarity = state["temperature"].exp() * (expected * image).sum(-1)
    assert relative(model.similarity(latent, model.encode_image(volume)), similarity) < 1e-5
