"""CT-CLIP against the published numbers; its preprocessing; training at tiny size."""

from __future__ import annotations

import json
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from ctflow.config.encoders import BertConfig, CTCLIPConfig, CTViTConfig, VolumeGrid, published_ctclip_config
from ctflow.data.nifti import read_nifti
from ctflow.errors import CTFlowError
from ctflow.models import CTCLIP
from ctflow.models.ctclip import preprocess_volume, sentence_mask, volume_input
from ctflow.models.ctvit import CosineQuantizer
from ctflow.types import HUVolume
from ctflow.weights import load_ctclip

TOLERANCE = 1e-5


def relative(found, expected):
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.fixture(scope="module")
def recorded(parity_dir):
    return load_file(parity_dir / "ctclip/tiny/io.safetensors")


@pytest.fixture(scope="module")
def published(parity_dir):
    return load_ctclip(parity_dir / "ctclip/tiny")


def fresh(quantize: bool = False) -> CTCLIP:
    torch.manual_seed(0)
    bert = BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=24,
    )  # fmt: skip
    vit = CTViTConfig(
        dim=16, codebook_size=8, image_size=16, patch_size=8, temporal_patch_size=4, spatial_depth=1,
        temporal_depth=1, dim_head=8, heads=2, quantize=quantize,
    )  # fmt: skip
    grid = VolumeGrid(shape=[8, 16, 16], spacing_mm=[4.0, 20.0, 20.0])
    return CTCLIP(CTCLIPConfig(bert=bert, ctvit=vit, grid=grid, dim_latent=8, max_tokens=24))


@torch.no_grad()
def test_published_text_tower(published, recorded):
    tokens, pooled, latent = published.encode_text(recorded["input_ids"], recorded["attention_mask"])
    assert relative(tokens, recorded["last_hidden_state"]) < TOLERANCE
    assert relative(pooled, recorded["text_embedding"]) < TOLERANCE
    assert relative(latent, recorded["text_latent"]) < TOLERANCE


@torch.no_grad()
def test_published_volume_tower(published, recorded):
    output = published.volume(recorded["image"])
    assert relative(output.continuous, recorded["image_tokens_prequant"]) < TOLERANCE
    assert relative(output.tokens, recorded["image_tokens"]) < TOLERANCE
    assert torch.equal(output.indices, recorded["codebook_indices"])
    encoding = published.encode_volume(recorded["image"])
    assert relative(encoding.embedding, recorded["image_embedding"]) < TOLERANCE
    assert relative(published.encode_image(recorded["image"]), recorded["image_latent"]) < TOLERANCE


@torch.no_grad()
def test_published_similarity(published, recorded):
    text, image = recorded["text_latent"], recorded["image_latent"]
    assert relative(published.similarity(text, image), recorded["similarity"]) < TOLERANCE
    assert relative(published.similarity_matrix(text, image), recorded["logits_matrix"]) < TOLERANCE
    assert (
        relative(published.similarity(text, image) / published.temperature.exp(), recorded["cosine"])
        < TOLERANCE
    )


@torch.no_grad()
@pytest.mark.parametrize("quirk", ["raw_temporal_reshape", "quantize"])
def test_leaving_a_published_property_out_is_caught(parity_dir, recorded, quirk):
    model = load_ctclip(parity_dir / "ctclip/tiny")
    if quirk == "quantize":
        model.volume.quantizer = None
    else:
        model.volume.temporal.raw_reshape = False
    assert relative(model.encode_image(recorded["image"]), recorded["image_latent"]) > 100 * TOLERANCE


@pytest.mark.parametrize("case", ["pad", "crop_x", "crop_z"])
@pytest.mark.parametrize(("clip", "name"), [("before", "region"), ("after", "region_train_order")])
def test_published_preprocessing(parity_dir, case, clip, name):
    path = parity_dir / "ctclip/preprocess.safetensors"
    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["cases"])[case]
        raw, expected = file.get_tensor(f"{case}.raw"), file.get_tensor(f"{case}.{name}")
    hu = raw.float() * facts["slope"] + facts["intercept"]
    spacing = (facts["z"], facts["xy"], facts["xy"])
    result = preprocess_volume(hu.permute(2, 0, 1), spacing, VolumeGrid(), clip)[0, 0]
    assert result.shape == (240, 480, 480)
    region = tuple(slice(lo, hi) for lo, hi in zip(facts["region_lo"], facts["region_hi"], strict=True))
    step = facts["stride"]
    assert relative(result[region][::step, ::step, ::step], expected) < TOLERANCE
    if clip == "before":
        assert float(result.mean(dtype=torch.float64)) == pytest.approx(facts["mean"], abs=1e-9)


def test_a_nifti_file_gets_the_published_preprocessing(parity_dir, tmp_path):
    """From the file on: to this project's orientation and back to the published order of axes."""
    with safe_open(parity_dir / "ctclip/preprocess.safetensors", "pt") as file:
        facts, raw = json.loads(file.metadata()["cases"])["pad"], file.get_tensor("pad.raw").numpy()
        expected = file.get_tensor("pad.region")
    hu = (raw * facts["slope"] + facts["intercept"]).astype(np.int16)
    affine = np.diag([-facts["xy"], -facts["xy"], facts["z"], 1.0])  # axes: left, posterior, superior
    nibabel.save(nibabel.Nifti1Image(hu, affine), tmp_path / "scan.nii.gz")
    grid = published_ctclip_config().grid
    result = volume_input(read_nifti(tmp_path / "scan.nii.gz"), grid)[0, 0]
    assert list(result.shape) == grid.shape
    region = tuple(slice(lo, hi) for lo, hi in zip(facts["region_lo"], facts["region_hi"], strict=True))
    step = facts["stride"]
    assert relative(result[region][::step, ::step, ::step], expected) < TOLERANCE


def test_axes_of_the_published_grid_are_moved():
    hu = np.full((6, 5, 4), -1000.0, np.float32)
    hu[1, 2, 0] = 500.0  # second slice, third row from the front, leftmost column: the patient's left
    volume = HUVolume(hu, (2.0, 3.0, 4.0))
    own = volume_input(volume, VolumeGrid("SPR", [6, 5, 4], [2.0, 3.0, 4.0]))[0, 0]
    moved = volume_input(volume, VolumeGrid("SLP", [6, 4, 5], [2.0, 4.0, 3.0]))[0, 0]
    assert float(own[1, 2, 0]) == 0.5
    assert float(moved[1, 3, 2]) == 0.5  # columns run left to right here, right to left there
    assert int((moved > -1).sum()) == 1


def test_every_parameter_trains_and_codes_follow():
    model = fresh(quantize=True).train()
    codes = model.volume.quantizer.codes.clone()
    text = model.encode_text(torch.randint(5, 60, (3, 7)), torch.ones(3, 7, dtype=torch.long))
    volume = model.encode_volume(torch.rand(3, 1, 8, 16, 16) * 2 - 1)
    (model.contrastive_loss(text.latent, volume.latent) + volume.commitment).backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []
    assert not torch.equal(model.volume.quantizer.codes, codes)
    assert torch.allclose(model.volume.quantizer.codes.norm(dim=-1), torch.ones(8), atol=1e-6)


def test_quantizer_passes_gradients_straight_through_and_rests_in_evaluation():
    quantizer = CosineQuantizer(4, 6).eval()
    codes = quantizer.codes.clone()
    x = torch.randn(5, 4, requires_grad=True)
    result = quantizer(x)
    assert torch.allclose(result.tokens, codes[result.indices], atol=1e-6)
    unit = torch.nn.functional.normalize(x.detach(), dim=-1)
    assert torch.equal(result.indices, torch.cdist(unit, codes).argmin(-1))  # on the sphere, near = aligned
    weight = torch.randn(5, 4)
    (result.tokens * weight).sum().backward()
    straight = torch.autograd.grad((torch.nn.functional.normalize(x, dim=-1) * weight).sum(), x)[0]
    assert torch.allclose(x.grad, straight, atol=1e-6)
    assert torch.equal(quantizer.codes, codes)


def test_contrastive_loss_of_perfect_and_shuffled_pairs():
    model = fresh()
    latents = torch.eye(8)
    with torch.no_grad():
        matched = float(model.contrastive_loss(latents, latents))
        shuffled = float(model.contrastive_loss(latents, latents.roll(1, 0)))
        scale = float(model.temperature.exp())
    assert matched == pytest.approx(float(np.log(np.exp(scale) + 7) - scale), abs=1e-5)
    assert shuffled > matched + 10


def test_padding_does_not_change_a_report():
    model = fresh().eval()
    ids = torch.randint(5, 60, (1, 6))
    padded = torch.cat([ids, torch.zeros(1, 5, dtype=torch.long)], 1)
    with torch.no_grad():
        short = model.encode_text(ids, torch.ones_like(ids))
        long = model.encode_text(padded, (padded > 0).long())
    assert torch.allclose(short.latent, long.latent, atol=1e-6)


def test_wrong_shapes_are_named():
    model = fresh()
    with pytest.raises(CTFlowError, match="preprocess_volume"):
        model.encode_image(torch.zeros(1, 1, 8, 16, 24))
    with pytest.raises(CTFlowError, match="25 tokens"):
        model.encode_text(torch.zeros(1, 25, dtype=torch.long), torch.ones(1, 25, dtype=torch.long))
    with pytest.raises(ValueError, match="does not fit the volume tower"):
        CTCLIPConfig(grid=VolumeGrid(shape=[240, 256, 256]))


def test_sentences_attend_to_themselves_and_the_first_token() -> None:
    """[CLS] a b . c d . 5 . [SEP], stops have id 9: the short part belongs to the sentence before it."""
    ids = torch.tensor([[1, 4, 5, 9, 6, 7, 9, 8, 9, 2, 0]])
    mask = (ids != 0).long()
    seen = sentence_mask(ids, mask, [9])[0]
    assert seen[0].tolist() == mask[0].bool().tolist()  # the first token sees every real one
    first, second = [1, 2, 3], [4, 5, 6, 7, 8]
    for sentence in (first, second):
        for token in sentence:
            assert seen[token].nonzero().flatten().tolist()[: 1 + len(sentence)] == [0, *sentence], token
    assert not seen[first][:, second].any() and not seen[:, 10].any()


def test_a_sentence_reads_alike_in_any_company() -> None:
    """With sentence ends the first layer's tokens do not depend on other sentences; without they do."""
    bert = BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    vit = CTViTConfig(
        dim=8, codebook_size=8, image_size=16, patch_size=8, temporal_patch_size=4, spatial_depth=1,
        temporal_depth=1, dim_head=4, heads=2,
    )  # fmt: skip
    grid = VolumeGrid(shape=[8, 16, 16], spacing_mm=[10.0, 3.0, 3.0])
    config = CTCLIPConfig(bert=bert, ctvit=vit, grid=grid, dim_latent=8, max_tokens=16, sentence_ends=[9])
    ids = torch.tensor([[1, 4, 5, 9, 6, 7, 9, 2], [1, 4, 5, 9, 3, 3, 9, 2]])
    changes = []
    for ends in ([9], []):
        torch.manual_seed(0)
        clip = CTCLIP(replace(config, sentence_ends=ends)).eval()
        with torch.no_grad():
            tokens = clip.encode_text(ids, torch.ones_like(ids)).tokens
        changes.append((tokens[0] - tokens[1]).abs().amax(dim=-1))
    assert (changes[0][1:4] == 0).all() and changes[0][0] > 0
    assert (changes[1][1:4] > 0).all()
