"""What the pair's training asks of texts: columns, texts made from texts, losses and scores."""

from __future__ import annotations

import math
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from ctflow.checkpoint import load_ctclip, load_text_encoder
from ctflow.errors import ConfigError, WeightsError
from ctflow.models.ctclip import TokenAdapter
from ctflow.models.tokenizer import train_wordpiece
from ctflow.reports import mirrored, parse_report, sentences
from ctflow.train import main
from ctflow.training import pair, wording
from ctflow.training.columns import answers, mine
from ctflow.weights.transfer import export_weights

if TYPE_CHECKING:
    from tests.training.conftest import TinyData

Curves = dict[str, list[tuple[int, float]]]
RIGHT = "There is a large pleural effusion on the right of about 900 ml. Heart size is normal."
LEFT = "There is a small pleural effusion on the left of about 150 ml. No nodule is seen."
NODULES = "Two nodules are seen: 12 mm in the right upper lobe and 8 mm in the left lower lobe."


def test_answers_name_label_side_lobe_and_size() -> None:
    names, sizes = answers(parse_report(f"{RIGHT} {NODULES}"))
    assert names == {
        "Pleural effusion", "Pleural effusion|right", "Pleural effusion|large",
        "Pleural effusion|right|large",
        "no Cardiomegaly", "Lung nodule", "Lung nodule|right", "Lung nodule|left",
        "Lung nodule|right upper lobe", "Lung nodule|left lower lobe",
    }  # fmt: skip
    assert sizes == {
        "Pleural effusion|ml": 900.0, "Pleural effusion|right|ml": 900.0, "Lung nodule|mm": 12.0,
        "Lung nodule|right|mm": 12.0, "Lung nodule|left|mm": 8.0,
    }  # fmt: skip


def test_columns_are_what_enough_reports_tell() -> None:
    columns = mine([RIGHT, LEFT, NODULES], least=2)
    assert columns.stated == ["Pleural effusion"] and columns.sizes == ["Pleural effusion|ml"]
    columns = mine([RIGHT, LEFT, NODULES], least=1)
    stated, sizes = columns.targets([RIGHT, mirrored(RIGHT), "Nothing."])
    told = {name for name, value in zip(columns.stated, stated[1].tolist(), strict=True) if value}
    assert {"Pleural effusion", "Pleural effusion|left", "no Cardiomegaly"} <= told
    assert "Pleural effusion|right" not in told
    place = columns.sizes.index("Pleural effusion|ml")
    scale = (math.log(900) - math.log(150)) / 2
    assert sizes[0, place] == pytest.approx((math.log(900) - math.log(150)) / 2 / scale)
    assert not stated[2].any() and sizes[2].isnan().all()
    names = [(columns.stated[right], columns.stated[left]) for right, left in columns.side_pairs()]
    assert names == [
        ("Lung nodule|right", "Lung nodule|left"),
        ("Pleural effusion|right", "Pleural effusion|left"),
    ]


def test_texts_made_from_texts_hang_on_the_stream_alone() -> None:
    for make in (wording.shortened, wording.reworded, wording.contrast):
        assert make(f"{RIGHT} {NODULES}", random.Random(3)) == make(f"{RIGHT} {NODULES}", random.Random(3))
    text = f"{RIGHT} {LEFT} {NODULES}"
    short = wording.shortened(text, random.Random(0))
    assert 1 <= len(sentences(short)) <= 3 and set(sentences(short)) < set(sentences(text))
    long = wording.compiled([RIGHT, LEFT, NODULES], random.Random(0))
    assert sorted(sentences(long)) == sorted(sentences(text))


def test_compiled_sided_texts_hold_sides_alone_in_any_mixture() -> None:
    made = {wording.compiled([RIGHT, LEFT, NODULES], random.Random(seed), sided=True) for seed in range(40)}
    told = [{(f.label, f.side) for f in parse_report(text)} for text in made]
    assert all(side is not None for text in told for _, side in text)
    effusions = [{side for label, side in text if label == "Pleural effusion"} for text in told]
    assert {"right"} in effusions and {"left"} in effusions and {"right", "left"} in effusions


def test_one_finding_is_mirrored_and_the_others_stay() -> None:
    text = f"{RIGHT} {NODULES}"
    made = {wording.mirrored_finding(text, random.Random(seed)) for seed in range(20)}
    assert made == {f"{mirrored(RIGHT)} {NODULES}", f"{RIGHT} {mirrored(NODULES)}"}


def test_rewording_keeps_labels_and_makes_other_places() -> None:
    labels = {(f.label, f.present) for f in parse_report(f"{RIGHT} {NODULES}")}
    texts = {wording.reworded(f"{RIGHT} {NODULES}", random.Random(seed)) for seed in range(40)}
    assert len(texts) > 20
    assert all({(f.label, f.present) for f in parse_report(text)} == labels for text in texts)


def test_contrast_changes_one_thing() -> None:
    made = {wording.contrast(RIGHT, random.Random(seed)) for seed in range(40)}
    assert made == {mirrored(RIGHT), RIGHT.replace("large", "small")}
    assert wording.contrast("The heart is enlarged.", random.Random(0)) == "The heart is enlarged."
    assert wording.resized("Severe plaques, a small hernia.") == "Mild plaques, a large hernia."


def test_pairs_are_asked_for_what_parts_them() -> None:
    targets = torch.tensor([[1.0, 0.0, torch.nan], [1.0, 1.0, 0.0]])
    apart = pair.apart(targets)
    assert apart[:, [0, 2]].isnan().all() and apart[:, 1].tolist() == [0.0, 1.0]


def test_sizes_not_told_cost_nothing() -> None:
    values = torch.tensor([[3.0, 1.0], [5.0, 5.0]])
    targets = torch.tensor([[1.0, torch.nan], [torch.nan, torch.nan]])
    assert float(pair.size_loss(values, targets)) == pytest.approx(1.5 / 2)


def test_mirrored_reports_are_wrong_answers_of_the_volumes() -> None:
    logits, differs = torch.eye(3) * 4, torch.tensor([True, True, False])
    weak, _ = pair.contrast_with_mirrored(logits, torch.full((3, 3), -9.0), differs)
    strong, right = pair.contrast_with_mirrored(logits, torch.eye(3) * 5, differs)
    assert float(strong) > float(weak) + 0.3 and float(right) == 0.0
    none, right = pair.contrast_with_mirrored(logits, torch.eye(3) * 5, torch.zeros(3, dtype=torch.bool))
    assert float(right.isnan()) and float(none) < float(weak)


def test_side_auroc_and_mirror_distance() -> None:
    stated = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    assert float(pair.side_auroc(stated, stated, [(0, 1)])) == 1.0
    assert float(pair.side_auroc(1 - stated, stated, [(0, 1)])) == 0.0
    assert pair.side_auroc(stated, torch.ones(3, 2), [(0, 1)]).isnan()
    means = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])  # both 1 from their mean
    assert float(pair.mirror_distance(means, means + torch.tensor([0.0, 0.5]))) == pytest.approx(0.5)
    assert pair.mirror_distance(means, means).isnan()


def test_hidden_words_spare_the_ends() -> None:
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, 2:] = 0
    hidden = pair.hidden_words(mask, [random.Random(0), random.Random(1)])
    assert hidden[0].sum() == 2 and not hidden[0, [0, 11]].any()
    assert not hidden[1].any()  # [CLS] [SEP]


def test_sentences_are_read_at_any_place() -> None:
    mask = torch.tensor([[1, 1, 1, 0]] * 40)
    positions = pair.places(mask, 32, [random.Random(seed) for seed in range(40)])
    assert (positions[:, 0] == 0).all() and positions.max() < 32
    steps = (positions[:, 2] - positions[:, 1]).tolist()
    assert set(steps) == {1} and (positions[:, 1] == 1).any() and len(set(positions[:, 1].tolist())) > 10


def test_a_run_starts_from_a_sharing_folder(tiny: TinyData, tmp_path: Path) -> None:
    main(tiny.arguments("clip", tmp_path, "name=more", f"clip.init_from={tiny.clip}", "loop.max_steps=1",
                        "clip.optimizer.warmup_steps=10"))  # fmt: skip
    made, source = tmp_path / "clip" / "more" / "export", load_ctclip(tiny.clip)
    first = load_ctclip(made)
    assert first.config == source.config
    for name, value in first.text.state_dict().items():  # the warm-up's first rate is 0
        assert torch.equal(value, source.text.state_dict()[name]), name
    assert load_text_encoder(made).tokenizer.to_json() == load_text_encoder(tiny.clip).tokenizer.to_json()


def test_a_frozen_text_tower_stays_while_the_volumes_learn(tiny: TinyData, tmp_path: Path) -> None:
    options = [f"clip.init_from={tiny.clip}", "clip.train_text=false", "loop.max_steps=4"]
    main(tiny.arguments("clip", tmp_path, "name=scored", *options))
    before, after = load_text_encoder(tiny.clip), load_text_encoder(tmp_path / "clip" / "scored" / "export")
    assert torch.equal(before.encode([RIGHT]).tokens, after.encode([RIGHT]).tokens)
    assert not torch.equal(before.encode_latents([RIGHT]), after.encode_latents([RIGHT]))
    assert not torch.equal(before.clip.to_visual_latent.weight, after.clip.to_visual_latent.weight)


def test_an_adapter_learns_over_published_weights_that_stay(
    tiny: TinyData,
    tmp_path: Path,
    shared_dir: Path,
    curves_of: Callable[[Path], Curves],
) -> None:
    """Published layout in, a sharing folder with the adapter out: towers and latents equal, tokens not."""
    source = tmp_path / "published"
    shutil.copytree(shared_dir / "fixtures/ctclip/tiny", source)
    tokenizer = train_wordpiece([RIGHT, LEFT, NODULES, "There is a nodule in the lung of case 1."], 300, 64)
    (source / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    options = [f"clip.init_from={source}", "clip.network.adapter_width=8", "loop.max_steps=6"]
    main(tiny.arguments("clip", tmp_path, "name=adapted", "loop.val_every=3", *options))
    made = tmp_path / "clip" / "adapted" / "export"
    published, adapted = load_ctclip(source), load_ctclip(made)
    assert adapted.config == replace(published.config, adapter_width=8)
    for name, value in published.state_dict().items():
        assert torch.equal(value, adapted.state_dict()[name]), name
    before, after = load_text_encoder(source), load_text_encoder(made)
    assert torch.equal(before.encode_latents([RIGHT]), after.encode_latents([RIGHT]))
    assert not torch.equal(before.encode([RIGHT]).tokens, after.encode([RIGHT]).tokens)
    curves = curves_of(tmp_path / "clip" / "adapted")
    assert "val/side_auroc" in curves and "val/contrast" not in curves
    with pytest.raises(WeightsError, match="adapter of width 8"):
        export_weights("ctclip", made, tmp_path / "out")
    with pytest.raises(ConfigError, match="without weights to adapt"):
        main(tiny.arguments("clip", tmp_path, "clip.network.adapter_width=8"))


def test_an_untrained_adapter_changes_nothing_and_reads_all_tokens() -> None:
    adapter = TokenAdapter(12, 8).eval()
    tokens, mask = torch.randn(2, 5, 12), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    assert torch.equal(adapter(tokens, mask), tokens)
    torch.nn.init.normal_(adapter.up.weight)
    other = tokens.clone()
    other[:, 4] *= -1.0
    change = (adapter(other, mask) - adapter(tokens, mask)).abs()[:, :3].amax(dim=(1, 2))
    assert change[0] > 1e-4 and change[1] == 0.0  # the second text ends before
