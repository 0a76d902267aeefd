"""Reports to tokens to what conditions the FMvT."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
import torch

from ctflow.config.commands import MAX_UNKNOWN
from ctflow.config.encoders import BertConfig, CTCLIPConfig, CTViTConfig, VolumeGrid
from ctflow.errors import CTFlowError, WeightsError
from ctflow.models import CTCLIP, ReportTokenizer, TextEncoder, clean_text, train_wordpiece
from ctflow.models.text import has_words
from ctflow.shipped import EMBEDDED

REPORTS = [
    "There is a nodule of 12 mm in the right upper lobe.",
    "No pleural effusion. The heart size is normal.",
    "Consolidation in the left lower lobe, no nodule.",
] * 10


def make_clip(vocab_size: int, max_tokens: int = 16) -> CTCLIP:
    torch.manual_seed(0)
    bert = BertConfig(
        vocab_size=vocab_size, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=max_tokens,
    )  # fmt: skip
    vit = CTViTConfig(
        dim=8, codebook_size=8, image_size=8, patch_size=8, temporal_patch_size=4, spatial_depth=1,
        temporal_depth=1, dim_head=8, heads=1,
    )  # fmt: skip
    grid = VolumeGrid(shape=[4, 8, 8])
    return CTCLIP(CTCLIPConfig(bert=bert, ctvit=vit, grid=grid, dim_latent=8, max_tokens=max_tokens))


@pytest.fixture(scope="module")
def tokenizer():
    return train_wordpiece(map(clean_text, REPORTS), 120, max_tokens=16)


@pytest.fixture(scope="module")
def clip(tokenizer):
    return make_clip(tokenizer.vocab_size)


def test_cleaning_is_the_published_one():
    report = 'Heart: "normal" (no effusion). Patient\'s aorta is wide.\n Not given.'
    assert clean_text(report) == "Heart: normal no effusion. Patients aorta is wide."
    assert clean_text("Not given. Not given.") == ""


def test_vocabulary_covers_its_reports(tokenizer):
    unknown = tokenizer.backend.token_to_id("[UNK]")
    batch = tokenizer(REPORTS[:3])
    assert not (batch.ids == unknown).any()
    assert batch.mask.sum(1).tolist() == [15, 12, 12]
    assert tokenizer.backend.encode(REPORTS[1]).tokens[:3] == ["[CLS]", "no", "pleural"]
    assert (tokenizer(["☃ nodule"]).ids == unknown).sum() == 1


@pytest.mark.slow
def test_the_vocabulary_is_the_same_in_every_process():
    """The library's trainer numbers pieces in the order of hash maps that are seeded anew in each process."""
    program = (
        "import hashlib; from ctflow.models import train_wordpiece; "
        "words = ['pleural effusion', 'nodule of 12 mm', 'no emphysema', 'cardiomegaly', 'left, right'] * 3; "
        "print(hashlib.sha256(train_wordpiece(words, 90).to_json().encode()).hexdigest())"
    )
    runs = [
        subprocess.run([sys.executable, "-c", program], capture_output=True, encoding="utf-8")
        for _ in range(3)
    ]
    assert all(run.returncode == 0 for run in runs), runs[0].stderr
    assert len({run.stdout for run in runs}) == 1


def test_json_round_trip_and_published_vocabulary(tokenizer):
    again = ReportTokenizer.from_json(tokenizer.to_json(), 16)
    assert torch.equal(again(REPORTS).ids, tokenizer(REPORTS).ids)
    published = ReportTokenizer.from_vocabulary(
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "no", "##dule", "nodule", ",", "No"], 16
    )
    assert published(["No, nodule"]).ids.tolist() == [[2, 5, 8, 7, 3]]
    assert published(["nodule"]).ids.tolist() == [[2, 7, 3]]
    cased = ReportTokenizer.from_vocabulary(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "No"], 16, lowercase=False)
    assert cased(["No no"]).ids.tolist() == [[2, 4, 1, 3]]


def test_a_vocabulary_without_special_tokens_is_refused():
    with pytest.raises(WeightsError, match=r"without \[CLS\], \[PAD\], \[SEP\]"):
        ReportTokenizer.from_vocabulary(["[UNK]", "a"], 16)
    with pytest.raises(WeightsError, match=r"tokenizer\.json is not readable"):
        ReportTokenizer.from_json("{}", 16)


def test_truncation_keeps_the_end_mark_and_is_counted(clip, tokenizer, caplog):
    encoder = TextEncoder(clip, tokenizer)
    long = " ".join(REPORTS[:3])
    with caplog.at_level(logging.WARNING):
        embedding = encoder.encode([long, REPORTS[0], long])
    assert "2 of 3 reports exceed 16 tokens" in caplog.text
    assert encoder.truncated == 2
    assert embedding.tokens.shape == (3, 16, 16)
    assert int(tokenizer([long]).ids[0, -1]) == tokenizer.end_id
    caplog.clear()
    encoder.encode([REPORTS[0]])
    assert caplog.text == ""
    assert encoder.truncated == 2


@pytest.mark.parametrize("heading", ["Impression: ", "CONCLUSION ", ""])
def test_a_long_report_keeps_its_impression_and_says_what_it_lost(clip, tokenizer, caplog, heading):
    encoder = TextEncoder(clip, tokenizer)
    findings = " ".join(REPORTS)
    report = f"{findings} {heading}no nodule ."
    (ids,) = tokenizer([report]).ids.tolist()
    whole = tokenizer.backend.encode(report).ids
    assert len(ids) == tokenizer.max_tokens < len(whole)
    end = tokenizer.backend.encode("no nodule .").ids[1:]
    assert ids[-len(end) :] == end and ids[:6] == whole[:6]
    with caplog.at_level(logging.WARNING):
        encoder.encode([report])
    (lost,) = tokenizer([report]).lost
    assert lost in report and lost in caplog.text and len(lost) > len(findings) / 2
    caplog.clear()
    for _ in range(20):
        encoder.encode([report])
    assert len(caplog.records) < 6 and encoder.truncated == 21


def test_words_that_the_vocabulary_lacks_are_counted(clip, tokenizer, caplog):
    assert tokenizer.unknown_words(REPORTS[0]).share == 0
    assert tokenizer.unknown_words("8 mm 12.5 , 3").share <= 1 / 2
    share, examples = tokenizer.unknown_words("Плевральный выпот nodule")
    assert share == pytest.approx(2 / 3) and examples == ["Плевральный", "выпот"]
    encoder = TextEncoder(clip, tokenizer)
    with caplog.at_level(logging.WARNING):
        encoder.check_known("выпот nodule", "case a", 0.7)
    assert "case a: 50% of its words are unknown" in caplog.text
    with pytest.raises(CTFlowError, match=r"case b: 100% .*\n.*\n.*max_unknown=1"):
        encoder.check_known("Плевральный выпот", "case b", 0.7)
    encoder.check_known("Плевральный выпот", "case b", 1.0)


FOREIGN = {
    "German": "Großer linksseitiger Pleuraerguss mit Kompressionsatelektase. Herz normal groß.",
    "Turkish": "Sol akciğerde plevral efüzyon izlenmektedir. Kalp kontur ve boyutları doğaldır.",
    "Spanish": "Derrame pleural izquierdo de gran tamaño. Corazón de tamaño normal.",
    "Italian": "Abbondante versamento pleurico sinistro. Cuore di dimensioni normali.",
    "Dutch": "Grote hoeveelheid pleuravocht links. Hart is normaal van grootte.",
    "French": "Épanchement pleural gauche abondant. Cœur de taille normale.",
    "Korean": "왼쪽에 많은 흉수가 있습니다",
}


@pytest.fixture(scope="module")
def embedded_tokenizer():
    text = (EMBEDDED / "clip" / "tokenizer.json").read_text(encoding="utf-8")
    return ReportTokenizer.from_json(text, 512)


@pytest.mark.parametrize("language", FOREIGN)
def test_reports_in_other_languages_are_refused_by_the_embedded_vocabulary(embedded_tokenizer, language):
    assert embedded_tokenizer.unknown_words(FOREIGN[language]).share > MAX_UNKNOWN


def test_hospital_english_passes_the_embedded_vocabulary(embedded_tokenizer):
    report = (
        "Trachea and main bronchi are open. Pericardial effusion-thickening was not observed. Emphysematous "
        "changes in both lungs. Peripheral ground glass opacities consistent with pneumonia. No "
        "lytic-destructive lesion was detected in bone structures."
    )
    assert embedded_tokenizer.unknown_words(report).share < 0.8 * MAX_UNKNOWN


@pytest.mark.parametrize("report", ["", "Not given.", "\"()' 12.5 --", "🫁 💧"])
def test_a_report_without_a_word(report):
    assert not has_words(report) and has_words(report + " mm")


def test_modes(clip, tokenizer):
    tokens = TextEncoder(clip, tokenizer, "tokens").encode(REPORTS[:3])
    pooled = TextEncoder(clip, tokenizer, "pooled").encode(REPORTS[:3])
    batch = tokenizer(REPORTS[:3])
    with torch.no_grad():
        states, first, _ = clip.encode_text(batch.ids, batch.mask)
    assert torch.allclose(tokens.tokens[batch.mask.bool()], states[batch.mask.bool()], atol=1e-6)
    assert not tokens.tokens[~tokens.mask].any()
    expected = first / (first.norm(dim=-1, keepdim=True) + 1e-6)
    assert torch.allclose(pooled.pooled, expected, atol=1e-6)
    assert torch.equal(pooled.tokens, pooled.pooled[:, None])
    assert torch.equal(tokens.pooled, pooled.pooled)
    assert pooled.mask.shape == (3, 1)
    assert pooled.mask.all()


def test_batches_and_quotes_make_no_difference(clip, tokenizer):
    encoder = TextEncoder(clip, tokenizer)
    whole = encoder.encode(REPORTS[:6])
    parts = encoder.encode([report.replace("nodule", "'nodule'") for report in REPORTS[:6]], batch_size=1)
    assert torch.equal(whole.mask, parts.mask)
    assert torch.allclose(whole.tokens, parts.tokens, atol=1e-5)
    assert torch.allclose(encoder.encode_latents(REPORTS[:2]).norm(dim=-1), torch.ones(2), atol=1e-6)


def test_an_empty_report_is_a_report(clip, tokenizer):
    embedding = TextEncoder(clip, tokenizer).encode(["Not given.", REPORTS[0]])
    assert embedding.mask.sum(1).tolist() == [2, 15]
    assert torch.isfinite(embedding.tokens).all()


def test_encoder_is_frozen_and_leaves_normal_tensors(clip, tokenizer):
    embedding = TextEncoder(clip, tokenizer).encode(REPORTS[:1])
    assert not clip.training
    assert not any(p.requires_grad for p in clip.parameters())
    layer = torch.nn.Linear(16, 1)
    layer(embedding.tokens).sum().backward()  # an inference tensor would refuse
    assert layer.weight.grad is not None


def test_misuse_is_named(clip, tokenizer):
    with pytest.raises(CTFlowError, match="no report"):
        TextEncoder(clip, tokenizer).encode([])
    with pytest.raises(ValueError, match="'pooled' or 'tokens'"):
        TextEncoder(clip, tokenizer, "mean")
    with pytest.raises(CTFlowError, match="for a text tower of 8"):
        TextEncoder(make_clip(8), tokenizer)
