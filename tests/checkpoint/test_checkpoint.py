"""Sharing folders: round trips, half precision, and what is said when something is wrong."""

from __future__ import annotations

import re
import shutil

import pytest
import torch

from ctflow.checkpoint import (
    System,
    folder_fingerprint,
    load_avae,
    load_ctclip,
    load_fmvt,
    load_system,
    load_text_encoder,
    save_avae,
    save_ctclip,
    save_fmvt,
    save_system,
    write_system_config,
)
from ctflow.checkpoint.files import read_safetensors, write_safetensors
from ctflow.checkpoint.loading import read_weights
from ctflow.config.encoders import AVAEConfig, BertConfig, CTCLIPConfig, CTViTConfig, VolumeGrid
from ctflow.config.models import FMvTConfig
from ctflow.config.system import SystemConfig
from ctflow.errors import ConfigError, WeightsError
from ctflow.models import AVAE, CTCLIP, FMvT, TextEncoder, train_wordpiece
from ctflow.whitening import Whitening

REPORTS = ["A nodule in the left lung.", "No effusion."] * 4


def make_system(text_dim: int = 16, image_size: int = 32, text_mode: str = "tokens") -> System:
    torch.manual_seed(0)
    whitening = Whitening([0.1] * 4, [2.0] * 4)
    avae = AVAE(
        AVAEConfig(
            latent_channels=4, block_out_channels=[8, 8, 8], layers_per_block=1, norm_num_groups=4,
            whitening=whitening,
        )
    )  # fmt: skip
    fmvt = FMvT(
        FMvTConfig(
            input_size=[16, 8, 8], latent_channels=4, hidden_size=16, depth=1, num_heads=2,
            text_dim=text_dim, text_tokens=8,
        )
    )  # fmt: skip
    tokenizer = train_wordpiece(REPORTS, 80, max_tokens=8)
    bert = BertConfig(
        vocab_size=80, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=8,
    )  # fmt: skip
    vit = CTViTConfig(
        dim=8, codebook_size=8, image_size=8, patch_size=8, temporal_patch_size=4, spatial_depth=1,
        temporal_depth=1, dim_head=8, heads=1,
    )  # fmt: skip
    clip = CTCLIP(
        CTCLIPConfig(bert=bert, ctvit=vit, grid=VolumeGrid(shape=[4, 8, 8]), dim_latent=4, max_tokens=8)
    )
    config = SystemConfig(
        image_size=image_size, z_spacing_mm=4.0, pixel_spacing_mm=2.5, text_mode=text_mode, max_slices=96,
        provenance={"data": "phantoms: 8 volumes, seed 0"},
    )  # fmt: skip
    return System(config, avae.eval(), fmvt.eval(), TextEncoder(clip, tokenizer, text_mode))


@pytest.fixture(scope="module")
def system():
    return make_system()


def equal_states(a, b) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_each_part_comes_back_exactly(system, tmp_path):
    clip, tokenizer = system.text_encoder.clip, system.text_encoder.tokenizer
    avae = load_avae(save_avae(tmp_path / "a", system.avae, card="# Card"))
    fmvt = load_fmvt(save_fmvt(tmp_path / "f", system.fmvt))
    again = load_ctclip(save_ctclip(tmp_path / "c", clip, tokenizer))
    for loaded, saved in ((avae, system.avae), (fmvt, system.fmvt), (again, clip)):
        assert loaded.config == saved.config
        assert equal_states(loaded, saved)
        assert not loaded.training
    assert avae.fingerprint() == system.avae.fingerprint()
    assert (tmp_path / "a/README.md").read_text(encoding="utf-8") == "# Card\n"
    assert not (tmp_path / "f/README.md").exists()
    encoder = load_text_encoder(tmp_path / "c")
    assert torch.equal(encoder.encode(REPORTS).tokens, system.text_encoder.encode(REPORTS).tokens)
    assert load_text_encoder(tmp_path / "c", mode="pooled").encode(REPORTS[:1]).tokens.shape == (1, 1, 16)


def test_half_precision_is_half_the_size_and_float32_in_memory(system, tmp_path):
    whole = save_avae(tmp_path / "whole", system.avae) / "model.safetensors"
    half = save_avae(tmp_path / "half", system.avae, half=True) / "model.safetensors"
    assert half.stat().st_size < 0.6 * whole.stat().st_size
    loaded = load_avae(tmp_path / "half")
    for name, value in loaded.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, system.avae.state_dict()[name].half().float())


@pytest.mark.parametrize("text_mode", ["tokens", "pooled"])
def test_a_system_comes_back(tmp_path, text_mode):
    system = make_system(text_mode=text_mode)
    save_system(tmp_path / "s", system, card="# Embedded")
    loaded = load_system(tmp_path / "s")
    assert loaded.config == system.config
    assert equal_states(loaded.fmvt, system.fmvt)
    assert loaded.text_encoder.mode == text_mode
    # a part is found in the whole folder too
    assert equal_states(load_avae(tmp_path / "s"), system.avae)


def test_fingerprint_sees_any_weight_and_no_card(system, tmp_path):
    save_system(tmp_path / "s", system)
    before = folder_fingerprint(tmp_path / "s")
    (tmp_path / "s/README.md").write_text("words", encoding="utf-8")
    (tmp_path / "s/other").mkdir()
    (tmp_path / "s/other/model.safetensors").write_text("of another system", encoding="utf-8")
    assert folder_fingerprint(tmp_path / "s") == before
    path = tmp_path / "s/fmvt/model.safetensors"
    state = read_safetensors(path)
    state["x_embedder.proj.bias"][0] += 1
    write_safetensors(path, state)
    assert folder_fingerprint(tmp_path / "s") != before


def test_missing_extra_and_misshapen_keys_are_all_listed(system, tmp_path):
    path = save_avae(tmp_path, system.avae) / "model.safetensors"
    state = read_safetensors(path)
    state["stranger"] = torch.zeros(2)
    state["encoder.conv_in.bias"] = torch.zeros(3)
    del state["decoder.conv_out.bias"]
    write_safetensors(path, state)
    with pytest.raises(WeightsError) as caught:
        load_avae(tmp_path)
    message = str(caught.value)
    assert "(3 keys)" in message
    assert "missing key decoder.conv_out.bias [1]" in message
    assert "extra key stranger [2]" in message
    assert "misshapen key encoder.conv_in.bias: [3], expected [8]" in message


def test_damaged_and_absent_files_are_named(system, tmp_path):
    with pytest.raises(WeightsError, match="nothing at"):
        load_fmvt(tmp_path / "nowhere")
    folder = save_fmvt(tmp_path / "f", system.fmvt)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match=r"model\.safetensors is not readable"):
        load_fmvt(folder)
    (folder / "model.safetensors").write_bytes(whole)
    with (folder / "config.yaml").open("a", encoding="utf-8") as file:
        file.write("deptth: 3\n")
    with pytest.raises(ConfigError, match="did you mean 'depth'"):
        load_fmvt(folder)


def test_another_network_is_named(system, tmp_path):
    save_avae(tmp_path, system.avae)
    with pytest.raises(WeightsError, match=r"holds a FLUX autoencoder[\s\S]*Expected: a CTFlow transformer"):
        load_fmvt(tmp_path)


def test_a_text_encoder_without_tokenizer_says_so(system, tmp_path):
    save_ctclip(tmp_path, system.text_encoder.clip)
    with pytest.raises(WeightsError, match=r"no tokenizer in[\s\S]*vocab\.txt"):
        load_text_encoder(tmp_path)


def test_an_incomplete_system_lists_what_is_missing(system, tmp_path):
    save_avae(tmp_path / "avae", system.avae)
    with pytest.raises(WeightsError, match=r"lacks fmvt/model\.safetensors, clip/model\.safetensors"):
        load_system(tmp_path)
    with pytest.raises(WeightsError, match="lacks fmvt"):
        write_system_config(tmp_path, system.config)


def test_parts_that_do_not_fit_are_told_together(tmp_path):
    with pytest.raises(WeightsError) as caught:
        save_system(tmp_path, make_system(text_dim=24, image_size=64))
    assert "image_size=64" in str(caught.value)
    assert "text encoder's width is 16, the FMvT's 24" in str(caught.value)


def test_an_interrupted_write_leaves_the_old_file(system, tmp_path, monkeypatch):
    save_avae(tmp_path, system.avae)
    before = (tmp_path / "model.safetensors").read_bytes()

    def killed(tensors, path, metadata):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("ctflow.checkpoint.files.save_file", killed)
    with pytest.raises(KeyboardInterrupt):
        save_avae(tmp_path, system.avae)
    assert (tmp_path / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("values", [{"image_size": 0}, {"text_mode": "mean"}, {"z_spacing_mm": -1.0}])
def test_impossible_system_configurations(values):
    with pytest.raises(ValueError, match="found"):
        SystemConfig(**values)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda value: value.to(torch.int32), "torch.int32, rounded or quantised"),
        (lambda value: value * float("nan"), "not finite"),
    ],
)
def test_values_that_no_network_works_with_are_named_when_weights_are_read(
    tiny_checkpoint, tmp_path, change, words
):
    folder = tmp_path / "fmvt"
    shutil.copytree(tiny_checkpoint / "fmvt", folder)
    state = read_safetensors(folder / "model.safetensors")
    name = next(iter(state))
    write_safetensors(folder / "model.safetensors", state | {name: change(state[name])})
    with pytest.raises(WeightsError, match=f"{re.escape(name)}: {words}"):
        read_weights(folder)
