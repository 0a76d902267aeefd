"""Published weights: reproduced, imported, exported, inspected, and refused where they should be."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from parity import STDIT_B
from safetensors.torch import load_file, save_file

from ctflow import generate
from ctflow.checkpoint import folder_fingerprint, load_system
from ctflow.checkpoint.sources import locate, read_state
from ctflow.data.nifti import read_nifti
from ctflow.errors import ConfigError, WeightsError
from ctflow.models import Conditions, FMvT, train_wordpiece
from ctflow.models.ctclip import volume_input
from ctflow.models.fmvt_published import published_preset
from ctflow.types import HUVolume
from ctflow.weights import load_avae, load_ctclip, load_fmvt, load_scorer, load_text_encoder, main

TOLERANCE = 1e-6


def relative(found, expected):
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.fixture(scope="module")
def fixtures(parity_dir) -> Path:
    return parity_dir


@pytest.fixture(scope="module")
def denoiser(fixtures):
    return load_fmvt(fixtures / "stdit/A"), load_file(fixtures / "stdit/A/io.safetensors")


@torch.no_grad()
@pytest.mark.parametrize("name", ["A", STDIT_B])
def test_published_transformer(fixtures, name):
    model, io = load_fmvt(fixtures / "stdit" / name), load_file(fixtures / "stdit" / name / "io.safetensors")
    x, t, text, previous = (io[key] for key in ("x", "t", "encoder_hidden_states", "cond_image"))
    assert relative(model(x, t, Conditions(text, previous)), io["out"]) < TOLERANCE
    assert (
        relative(model(x, io["t_scalar"], Conditions(text, previous))[:1], io["out_t_scalar"][:1]) < TOLERANCE
    )
    assert (
        relative(model(x, torch.zeros(len(x)), Conditions(text, previous))[:1], io["out_t0"][:1]) < TOLERANCE
    )
    assert (
        relative(model(x, torch.ones(len(x)), Conditions(text, previous))[:1], io["out_t1"][:1]) < TOLERANCE
    )
    assert relative(model(x, t, Conditions(None, previous))[:1], io["out_no_text"][:1]) < TOLERANCE
    if "mask" in io:
        assert (
            relative(model(x, t, Conditions(text, previous, text_mask=io["mask"])), io["out_mask"])
            < TOLERANCE
        )


@torch.no_grad()
@pytest.mark.parametrize("wrong", ["heads", "gelu", "time", "previous whitening"])
def test_a_wrong_transformer_is_caught(denoiser, wrong):
    model, io = denoiser
    x, t, text, previous = (io[key] for key in ("x", "t", "encoder_hidden_states", "cond_image"))
    if wrong == "heads":
        changed = FMvT(replace(model.config, scrambled_heads=False)).eval()
        changed.load_state_dict(model.state_dict())
        model = changed
    elif wrong == "gelu":
        changed = FMvT(model.config).eval()
        changed.load_state_dict(model.state_dict())
        gelus = [m for m in changed.modules() if isinstance(m, torch.nn.GELU)]
        assert gelus
        for module in gelus:
            module.approximate = "none"
        model = changed
    elif wrong == "time":
        t = 1 - t
    else:
        previous = previous / 0.3611 + 0.1159
    assert relative(model(x, t, Conditions(text, previous)), io["out"]) > 20 * TOLERANCE


CASES = [
    ("ctflow", "stdit/A", "out"),
    pytest.param("ctflow", "stdit/B", "out", marks=STDIT_B.marks),
    ("flux", "vae/tiny", "out"),
    ("flux", "vae/tiny/ae_bfl.safetensors", "out.safetensors"),
    ("ctclip", "ctclip/tiny", "out"),
]


@pytest.mark.parametrize(("kind", "source", "exported"), CASES)
def test_import_export_import_is_bit_identical(fixtures, tmp_path, kind, source, exported):
    first, second, out = tmp_path / "first", tmp_path / "second", tmp_path / exported
    assert main(["import", kind, str(fixtures / source), str(first)]) == 0
    assert main(["export", kind, str(first), str(out)]) == 0
    assert main(["import", kind, str(out), str(second)]) == 0
    (part,) = (p.name for p in first.iterdir())
    for name in ("model.safetensors", "config.yaml"):
        assert (first / part / name).read_bytes() == (second / part / name).read_bytes()
    before, after = (read_state(locate(path).weights) for path in (fixtures / source, out))
    assert before.keys() == after.keys()
    assert all(
        torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype for key in before
    )
    assert "sha256" in (first / part / "README.md").read_text(encoding="utf-8")
    if out.is_dir():  # what a config.json says beyond our own configuration comes out again
        told, written = (json.loads((f / "config.json").read_text("utf-8")) for f in (fixtures / source, out))
        assert written == told


def test_flux_changes_layout_on_the_way(fixtures, tmp_path):
    main(["export", "flux", str(fixtures / "vae/tiny"), str(tmp_path / "ae.safetensors")])
    single = load_file(fixtures / "vae/tiny/ae_bfl.safetensors")
    written = load_file(tmp_path / "ae.safetensors")
    assert written.keys() == single.keys()
    assert all(torch.equal(written[key], single[key]) for key in single)
    main(["export", "flux", str(fixtures / "vae/tiny/ae_bfl.safetensors"), str(tmp_path / "folder")])
    folder = load_file(fixtures / "vae/tiny/diffusion_pytorch_model.safetensors")
    written = load_file(tmp_path / "folder/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(written[key], folder[key]) for key in folder)


def test_position_ids_may_be_there_or_not(fixtures, tmp_path):
    state = torch.load(fixtures / "ctclip/tiny/ctclip.pt", weights_only=True)
    key = "text_transformer.embeddings.position_ids"
    assert key in state
    del state[key]
    shutil.copy(fixtures / "ctclip/tiny/config.json", tmp_path)
    torch.save(state, tmp_path / "CT-CLIP_v2.pt")
    without, given = load_ctclip(tmp_path), load_ctclip(fixtures / "ctclip/tiny/ctclip.pt")
    assert relative(without.to_text_latent.weight, given.to_text_latent.weight) == 0
    main(["export", "ctclip", str(tmp_path), str(tmp_path / "out.pt")])
    assert torch.load(tmp_path / "out.pt", weights_only=True).keys() == state.keys()


def test_ctclip_without_a_config_must_have_the_published_size(fixtures, tmp_path):
    shutil.copy(fixtures / "ctclip/tiny/ctclip.pt", tmp_path)
    with pytest.raises(WeightsError) as caught:
        load_ctclip(tmp_path)
    assert "word_embeddings.weight: [500, 48], expected [30522, 768]" in str(caught.value)
    assert "to_visual_latent.weight: [24, 512], expected [512, 294912]" in str(caught.value)


@pytest.mark.parametrize("kind", ["stdit/A", "vae/tiny", "vae/tiny/ae_bfl.safetensors", "ctclip/tiny"])
def test_missing_extra_and_misshapen_keys_are_listed(fixtures, tmp_path, kind):
    source = locate(fixtures / kind)
    state = read_state(source.weights)
    names = list(state)
    del state[names[0]]
    state["stranger.weight"] = torch.zeros(3)
    state[names[2]] = torch.zeros(7, 7)
    shutil.copy(source.config, tmp_path)
    path = tmp_path / source.weights.name
    if path.suffix == ".pt":
        torch.save(state, path)
    else:
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    load = {"fmvt": load_fmvt, "avae": load_avae, "ctclip": load_ctclip}[source.kind]
    with pytest.raises(WeightsError) as caught:
        load(path)
    message = str(caught.value)
    assert f"missing key {names[0]}" in message
    assert "extra key stranger.weight [3]" in message
    assert f"misshapen key {names[2]}: [7, 7]" in message
    assert message.count(" key ") == 3


class Harmful:
    """Runs a command when unpickled without care."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_a_pickle_with_code_is_refused_and_never_run(tmp_path):
    torch.save({"visual_transformer.x": Harmful(tmp_path / "ran")}, tmp_path / "evil.pt")
    with pytest.raises(WeightsError, match=r"evil\.pt is not readable"):
        load_ctclip(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"epoch": 3, "state_dict": {"a": torch.zeros(1)}}, "other than tensors: epoch, state_dict"),
        ([1, 2], "holds a list"),
        ({"a": torch.zeros(1)}, "unknown layout"),
    ],
)
def test_other_pt_files_are_named(tmp_path, content, said):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match=said):
        load_ctclip(tmp_path / "x.pt")


@pytest.mark.parametrize("name", ["model.safetensors", "ema.safetensors", "diffusion_pytorch_model.bin"])
def test_other_file_names_are_found(fixtures, tmp_path, denoiser, name):
    state = load_file(fixtures / "stdit/A/diffusion_pytorch_model.safetensors")
    if name.endswith(".bin"):
        torch.save(state, tmp_path / name)
    else:
        save_file(state, tmp_path / name)
    config = json.loads((fixtures / "stdit/A/config.json").read_text(encoding="utf-8"))
    del config["_class_name"]  # a config.json that names no class is known by its keys
    config["no_temporal_pos_emb"] = True  # stored, and never read by the published class
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    model, io = load_fmvt(tmp_path), load_file(fixtures / "stdit/A/io.safetensors")
    assert model.config == denoiser[0].config
    with torch.no_grad():
        out = model(io["x"], io["t"], Conditions(io["encoder_hidden_states"], io["cond_image"]))
    assert relative(out, io["out"]) < TOLERANCE


def test_bfloat16_weights_are_widened(fixtures, tmp_path):
    """FLUX's diffusers folder is stored so."""
    state = load_file(fixtures / "vae/tiny/diffusion_pytorch_model.safetensors")
    narrow = {key: value.bfloat16() for key, value in state.items()}
    save_file(narrow, tmp_path / "diffusion_pytorch_model.safetensors")
    shutil.copy(fixtures / "vae/tiny/config.json", tmp_path)
    main(["import", "flux", str(tmp_path), str(tmp_path / "own")])
    loaded = load_avae(tmp_path / "own").net.state_dict()
    assert all(torch.equal(loaded[key], value.float()) for key, value in narrow.items())


def test_a_fingerprint_of_published_layouts(fixtures, tmp_path):
    shutil.copytree(fixtures / "ctclip/tiny", tmp_path / "clip")
    before = folder_fingerprint(tmp_path / "clip")
    assert before == folder_fingerprint(fixtures / "ctclip/tiny")
    assert before == folder_fingerprint(tmp_path / "clip/ctclip.pt")
    (tmp_path / "clip/vocab.txt").write_text("[PAD]", encoding="utf-8")
    with_vocabulary = folder_fingerprint(tmp_path / "clip")
    state = torch.load(tmp_path / "clip/ctclip.pt", weights_only=True)
    state["temperature"] = state["temperature"] + 1
    torch.save(state, tmp_path / "clip/ctclip.pt")
    assert len({before, with_vocabulary, folder_fingerprint(tmp_path / "clip")}) == 3
    with pytest.raises(WeightsError, match="holds 0 weight files"):
        folder_fingerprint(fixtures)


def test_wrong_kind_missing_config_and_ambiguity(fixtures, tmp_path):
    with pytest.raises(WeightsError, match=r"holds a FLUX autoencoder[\s\S]*Expected: a CT-CLIP"):
        load_ctclip(fixtures / "vae/tiny")
    shutil.copy(fixtures / "stdit/A/diffusion_pytorch_model.safetensors", tmp_path)
    with pytest.raises(WeightsError, match=r"no config\.json beside"):
        load_fmvt(tmp_path)
    shutil.copy(fixtures / "vae/tiny/config.json", tmp_path)
    with pytest.raises(WeightsError, match=r"another network's config\.json beside"):
        load_fmvt(tmp_path)
    with pytest.raises(WeightsError, match="holds 0 weight files"):
        load_avae(fixtures)
    (tmp_path / "ae.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0not a header")
    with pytest.raises(WeightsError, match="not readable"):
        load_avae(tmp_path / "ae.safetensors")


def test_a_foreign_topology_is_refused(fixtures, tmp_path):
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        shutil.copy(fixtures / "vae/tiny" / name, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | {"use_quant_conv": True}), encoding="utf-8")
    with pytest.raises(WeightsError, match="use_quant_conv=True"):
        load_avae(tmp_path)


def test_ema_keys_in_the_config_are_ignored(fixtures, tmp_path, denoiser):
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        shutil.copy(fixtures / "stdit/A" / name, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    extra = {
        "decay": 0.9999,
        "min_decay": 0.0,
        "optimization_step": 7,
        "inv_gamma": 1.0,
        "use_ema_warmup": False,
    }
    (tmp_path / "config.json").write_text(json.dumps(config | extra), encoding="utf-8")
    assert load_fmvt(tmp_path).config == denoiser[0].config


@pytest.fixture(scope="module")
def published_parts(tmp_path_factory, fixtures):
    """A transformer of the published kind that fits the tiny A-VAE and CT-CLIP, and a tokenizer folder."""
    folder = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    config = replace(
        published_preset("S", 8), hidden_size=32, depth=1, num_heads=2, text_dim=48, input_size=[16, 8, 8]
    )
    from ctflow.checkpoint import save_fmvt

    save_fmvt(folder / "own", FMvT(config))
    main(["export", "ctflow", str(folder / "own"), str(folder / "fmvt")])
    (folder / "tokenizer").mkdir()
    tokens = list(train_wordpiece(["No nodule in the left lung."] * 3, 100).backend.get_vocab())
    tokens.sort(key=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"].__contains__, reverse=True)
    (folder / "tokenizer/vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    (folder / "tokenizer/tokenizer_config.json").write_text('{"do_lower_case": true}', encoding="utf-8")
    return folder


def test_three_imports_make_a_system(fixtures, published_parts, tmp_path):
    main(["import", "flux", str(fixtures / "vae/tiny"), str(tmp_path)])
    tokenizer = f"tokenizer={published_parts / 'tokenizer'}"
    main(["import", "ctclip", str(fixtures / "ctclip/tiny"), str(tmp_path), tokenizer])
    assert not (tmp_path / "config.yaml").exists()
    main(["import", "ctflow", str(published_parts / "fmvt"), str(tmp_path / "fmvt")])  # the part named itself
    system = load_system(tmp_path)
    assert (system.config.image_size, system.config.text_mode, system.config.max_slices) == (
        64,
        "pooled",
        256,
    )
    rollout = system.config.rollout
    assert (rollout.steps, rollout.solver, rollout.overlap, rollout.max_slices) == (200, "euler", 0, 256)
    assert (rollout.stop.rule, rollout.stop.distance(1.0), rollout.stop.fraction) == ("first_slice", 0.1, 0.9)
    assert system.avae.config.intensity.hu_max == 1400.0
    assert system.avae.config.whitening.scale == [0.3611]
    embedding = system.text_encoder.encode(["No nodule.", "Left lung."])
    assert embedding.tokens.shape == (2, 1, 48)
    assert torch.allclose(embedding.pooled.norm(dim=-1), torch.ones(2), atol=1e-5)
    for load in (load_fmvt, load_avae, load_ctclip):
        load(tmp_path)  # each part is found in the whole

    out = tmp_path / "out.nii.gz"
    arguments = [
        "--checkpoint",
        str(tmp_path),
        "--report",
        "No nodule.",
        "--output",
        str(out),
        "--steps",
        "2",
    ]
    assert generate.main([*arguments, "sampling.max_slices=24"]) == 0
    volume = read_nifti(out)
    assert volume.hu.shape == (24, 64, 64)
    assert volume.spacing == pytest.approx((1.5, 1.5, 1.5))
    recorded = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert recorded["sampling"]["stop"]["rule"] == "first_slice"


def test_parts_that_do_not_fit_are_refused(fixtures, tmp_path, published_parts):
    main(["import", "flux", str(fixtures / "vae/tiny"), str(tmp_path)])
    main(["import", "ctclip", str(fixtures / "ctclip/tiny"), str(tmp_path)])
    with pytest.raises(WeightsError, match="width is 48, the FMvT's 768"):
        main(["import", "ctflow", str(fixtures / "stdit/A"), str(tmp_path)])


def test_import_options(fixtures, tmp_path, published_parts):
    main(["import", "flux", str(fixtures / "vae/tiny"), str(tmp_path), "channels=1", "half=true"])
    model = load_avae(tmp_path)
    assert model.config.in_channels == 1
    stored = load_file(tmp_path / "avae/model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}
    with pytest.raises(ConfigError, match="did you mean 'channels'"):
        main(["import", "flux", str(fixtures / "vae/tiny"), str(tmp_path), "chanels=1"])
    with pytest.raises(WeightsError, match="of 1 channels, 3 wanted"):
        main(["import", "flux", str(tmp_path), str(tmp_path / "x"), "channels=3"])
    with pytest.raises(WeightsError, match="no tokenizer in"):
        main(["import", "ctclip", str(fixtures / "ctclip/tiny"), str(tmp_path), f"tokenizer={tmp_path}"])
    encoder = load_text_encoder(fixtures / "ctclip/tiny", published_parts / "tokenizer", mode="pooled")
    assert encoder.encode(["No nodule."]).tokens.shape == (1, 1, 48)


def test_the_score_of_a_report_and_a_volume(fixtures, published_parts):
    scorer = load_scorer(fixtures / "ctclip/tiny", published_parts / "tokenizer")
    assert scorer.name == "clip"
    hu = np.random.default_rng(0).normal(-200, 400, (30, 40, 44)).astype(np.float32)
    volume, clip = HUVolume(hu, (6.0, 0.8, 0.7)), scorer.encoder.clip
    batch = scorer.encoder.tokenizer(["no nodule"])
    with torch.no_grad():
        text = clip.encode_text(batch.ids, batch.mask).latent
        image = clip.encode_image(volume_input(volume, clip.config.grid))
    torch.testing.assert_close(scorer.encode_reports(['"No nodule" (Not given.)']), text)
    torch.testing.assert_close(scorer.encode_volume(volume), image[0])
    expected = 100 * max(0.0, float((text * image).sum()))
    assert scorer.score('"No nodule" (Not given.)', volume) == pytest.approx(expected, abs=1e-4)


def test_export_says_what_the_published_layout_cannot_hold(tmp_path):
    from ctflow.checkpoint import save_fmvt
    from ctflow.config.models import FMvTConfig

    save_fmvt(
        tmp_path / "fresh", FMvT(FMvTConfig(input_size=[16, 4, 4], hidden_size=16, depth=1, num_heads=2))
    )
    with pytest.raises(WeightsError, match="scrambled_heads=False"):
        main(["export", "ctflow", str(tmp_path / "fresh"), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_inspect(fixtures, tmp_path, capsys):
    assert main(["inspect", str(fixtures / "vae/tiny/ae_bfl.safetensors")]) == 0
    said = capsys.readouterr().out
    assert "a FLUX autoencoder (A-VAE), the single-file layout" in said
    assert "244 tensors, 344,683 values" in said
    assert "would load: yes" in said
    shutil.copy(fixtures / "ctclip/tiny/ctclip.pt", tmp_path)
    assert main(["inspect", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "would load: no" in said
    assert "misshapen key temperature" not in said
    assert "expected [30522, 768]" in said
    main(["import", "ctflow", str(fixtures / "stdit/A"), str(tmp_path / "own")])
    assert main(["inspect", str(tmp_path / "own/fmvt")]) == 0
    assert "this project's sharing folder" in capsys.readouterr().out
    with pytest.raises(WeightsError, match="nothing at"):
        main(["inspect", str(tmp_path / "nowhere")])


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.safetensors", "weights.pt", "weights.sft"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>log in</html>", "a web page"),
        (b'{"error": "gated repository"}', "a JSON text"),
        (b"", "is empty"),
        (b"\x80\x05some pickle", "cut or damaged|cut, damaged"),
    ],
)
def test_what_is_no_weight_file_is_named(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=words) as error:
        load_avae(tmp_path / name)
    assert name in str(error.value) and "weights_only" not in str(error.value)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "trained_model.", "module._orig_mod."])
def test_names_of_training_wrappers_are_left_out(fixtures, tmp_path, caplog, prefix):
    (tmp_path / "vae").mkdir()
    shutil.copy(fixtures / "vae/tiny/config.json", tmp_path / "vae")
    state = load_file(fixtures / "vae/tiny/diffusion_pytorch_model.safetensors")
    save_file({prefix + key: value for key, value in state.items()}, tmp_path / "vae" / "wrapped.sft")
    with caplog.at_level("INFO"):
        loaded = load_avae(tmp_path / "vae").net.state_dict()
    assert all(torch.equal(loaded[key], value.float()) for key, value in state.items())
    assert f"begins with {prefix.split('.')[0]}., which is left out" in caplog.text
