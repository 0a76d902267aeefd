"""LightningModule of the embedded pair: what reports say, what words they use, which volume is theirs."""

from __future__ import annotations

import random
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import CatMetric, MeanMetric

from ctflow.config.tasks import ClipTask
from ctflow.data import VolumeBatch
from ctflow.errors import ConfigError
from ctflow.models import CTCLIP, TextEncoding, VolumeEncoding
from ctflow.models.text import clean_text
from ctflow.models.tokenizer import SPECIAL_TOKENS, ReportTokenizer
from ctflow.reports import mirrored
from ctflow.seeding import derived_generator
from ctflow.training import pair, wording
from ctflow.training.base import CountingModule, unique_keys
from ctflow.training.columns import Columns
from ctflow.training.ema import averaged_copy
from ctflow.training.optim import build_optimizer
from ctflow.training.pair import LabelledPair
from ctflow.training.plain import from_plain, to_plain

SIDES = ("text", "tokens", "image")
"""Pooled text state, mean token state, volume: the order of ``LabelledPair``'s answers."""

HEAD_RATE = 8.0
"""Learning rate of the heads over that of the towers."""

WHOLE_EVERY, SIDED, SHORT = 4, 1, 3
"""Of so many batches the first reads whole reports, the second a few sentences with sides, from several
reports, the third long texts compiled of several, the fourth a few sentences of each."""

COMPILED_FROM = 5
"""How many other reports' sentences a compiled text may hold."""


class ClipModule(CountingModule):
    """Columns, masked words and CLIP's contrast.

    The text tower answers, from its pooled and from its mean token state, the columns that rules mine from
    the very text it reads. Half of the texts are the other half with one thing exchanged (side, or word
    of size), or the report of another scan of the patient. The contrast's volumes meet the mirrored reports
    too. A network with an adapter keeps both towers as they are and learns texts alone.

    Args:
        config: ``ClipTask`` or its plain dictionary (as checkpoints store it).
        tokenizer: Text of the tokenizer's JSON.
        label_names: The label tables' names, in the order of the batches' columns.
        columns: The mined columns, or their plain dictionary.
        seed: The run's seed.

    Attributes:
        reports: The training set's reports.
        others: By case the reports of the same patient's other scans in the training set.
    """

    def __init__(
        self,
        config: ClipTask | dict[str, Any],
        tokenizer: str,
        label_names: list[str],
        columns: Columns | dict[str, Any],
        seed: int = 0,
    ) -> None:
        typed = from_plain(ClipTask, config)
        super().__init__(seed, typed.ema_cap)
        self.config = typed
        self.columns = columns if isinstance(columns, Columns) else Columns(**columns)
        self.save_hyperparameters(
            {
                "config": to_plain(typed),
                "tokenizer": tokenizer,
                "label_names": label_names,
                "columns": asdict(self.columns),
                "seed": seed,
            }
        )
        self.tokenizer = ReportTokenizer.from_json(tokenizer, typed.network.max_tokens)
        mask_id = self.tokenizer.backend.token_to_id(SPECIAL_TOKENS[4])
        if mask_id is None:
            raise ConfigError(f"a vocabulary without {SPECIAL_TOKENS[4]}", "one that can hide words")
        self.mask_id = mask_id
        self.labels = len(label_names)
        self.stated = self.labels + len(self.columns.stated)
        self.network: LabelledPair = LabelledPair(
            CTCLIP(typed.network), self.stated, len(self.columns.sizes), typed.train_text
        )
        self.averaged = averaged_copy(self.network)
        self.reports: list[str] = []
        self.others: dict[str, list[str]] = {}
        self.val_labels = CatMetric()
        self.val_right = MeanMetric()
        self.val_scores = nn.ModuleList(CatMetric() for _ in SIDES)
        self.val_texts = nn.ModuleDict({n: CatMetric() for n in ("scores", "stated", "means", "mirrored")})

    @property
    def trained(self) -> CTCLIP:
        """The pair to export: the moving average."""
        assert isinstance(self.averaged, LabelledPair)
        return self.averaged.clip

    def compile_networks(self) -> None:
        """Both towers, which the step calls one by one."""
        self.network.clip.text.compile()
        self.network.clip.volume.compile()

    def training_step(self, batch: VolumeBatch, batch_idx: int) -> Tensor:
        """Texts alone at first; then also the contrast over the global batch."""
        if not self.config.train_text:
            loss, terms = self.volume_terms(batch)
        else:
            loss, terms = self.text_terms(batch)
            if self.batches >= self.config.text_warmup and not self.network.frozen:
                more, volume_terms = self.volume_terms(batch)
                loss, terms = loss + more, terms | volume_terms
        self.batches += 1
        self.log_terms(terms | {"loss": loss}, len(batch.reports))
        return loss

    def text_terms(self, batch: VolumeBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Columns of texts and of what differs from them in one thing, and masked words of the former."""
        config = self.config
        keys = unique_keys(batch.case_id)
        streams = [self.stream("wording", key) for key in keys]
        texts = self.texts(batch, streams)
        partners = [self.partner(*row) for row in zip(texts, batch.case_id, streams, strict=True)]
        ids, mask = self.tokens([*texts, *partners])
        positions = pair.places(mask.cpu(), self.config.network.max_tokens, streams * 2).to(self.device)
        _, answers = self.network.read(ids, mask, positions)
        stated, sizes = self.columns.targets([*texts, *partners])
        stated, sizes = stated.to(self.device), sizes.to(self.device)
        labels = torch.full((len(stated), self.labels), torch.nan, device=self.device)
        if self.batches % WHOLE_EVERY == 0:
            labels[: len(texts)] = batch.labels
        targets = torch.cat([labels, stated], dim=1)
        apart = pair.apart(targets)
        columns = torch.stack([pair.label_loss(a[:, : self.stated], targets) for a in answers]).mean()
        pairs = torch.stack([pair.label_loss(a[:, : self.stated], apart) for a in answers]).mean()
        size = torch.stack([pair.size_loss(a[:, self.stated :], sizes) for a in answers]).mean()
        half = mask[: len(texts)]
        hidden = pair.hidden_words(half.cpu(), streams).to(self.device)
        words = self.network.word_loss(ids[: len(texts)], half, hidden, self.mask_id, positions[: len(texts)])
        answered = columns + pairs + config.size_weight * size
        loss = config.label_weight * answered + config.word_weight * words
        return loss, {"columns": columns, "pairs": pairs, "sizes": size, "words": words}

    def texts(self, batch: VolumeBatch, streams: list[random.Random]) -> list[str]:
        """Reports as they are, long texts compiled of several, or a few sentences; both latter reworded."""
        if self.batches % WHOLE_EVERY == 0:
            return list(batch.reports)
        kind, texts = self.batches % WHOLE_EVERY, []
        for report, rng in zip(batch.reports, streams, strict=True):
            if kind == SHORT:
                text = wording.shortened(report, rng)
            else:
                others = rng.sample(self.reports, min(COMPILED_FROM, len(self.reports)))
                text = wording.compiled([report, *others], rng, sided=kind == SIDED)
            texts.append(wording.reworded(text, rng) if rng.random() < 0.5 else text)
        return texts

    def partner(self, text: str, case: str, rng: random.Random) -> str:
        """The partner of a text; of a whole report, half of the time, another report of the patient."""
        others = self.others.get(case)
        if others and self.batches % WHOLE_EVERY == 0 and rng.random() < 0.5:
            return rng.choice(others)
        return wording.contrast(text, rng)

    def volume_terms(self, batch: VolumeBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The contrast, mirrored reports among the wrong answers, and the columns read from the volume."""
        turned = [mirrored(report) for report in batch.reports]
        ids, mask = self.tokens([*batch.reports, *turned])
        texts = self.network.clip.encode_text(ids, mask).latent
        image = self.network.clip.encode_volume(self.volumes(batch))
        differs = torch.tensor([a != b for a, b in zip(turned, batch.reports, strict=True)])
        text, other = texts.chunk(2)
        contrast, right_side = self.contrast(text, other, image.latent, differs.to(self.device))
        stated, _ = self.columns.targets(batch.reports)
        targets = torch.cat([batch.labels, stated.to(self.device)], dim=1)
        labels = pair.label_loss(self.network.image_head(image.embedding), targets)
        loss = contrast + self.config.label_weight * labels + image.commitment
        terms = {"contrast": contrast, "labels": labels, "right_side": right_side.nan_to_num(0.5)}
        return loss, terms | {"retrieval": pair.retrieval_accuracy(text, image.latent)}

    def contrast(self, text: Tensor, other: Tensor, image: Tensor, differs: Tensor) -> tuple[Tensor, Tensor]:
        """``contrast_with_mirrored`` over the global batch."""
        text, other, image = (self.gather(latent) for latent in (text, other, image))
        matrix = self.network.clip.similarity_matrix
        differs = self.gather(differs.float()) > 0.5
        return pair.contrast_with_mirrored(matrix(text, image), matrix(other, image), differs)

    def stream(self, topic: str, key: str) -> random.Random:
        """Random numbers of one sample of this batch: the same after a kill and on any number of ranks."""
        return random.Random(derived_generator(self.seed, topic, self.batches, key).initial_seed())

    def volumes(self, batch: VolumeBatch) -> Tensor:
        """The batch's volumes in [-1, 1]."""
        limit = self.config.network.grid.hu_limit
        return batch.hu.clamp(-limit, limit) / limit

    def tokens(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Token ids and mask ``[B, L]`` of texts."""
        tokens = self.tokenizer([clean_text(text) for text in texts])
        return tokens.ids.to(self.device), tokens.mask.to(self.device)

    def gather(self, latent: Tensor) -> Tensor:
        """Tensors of all processes ``[W·B, …]``, gradients flowing back to each."""
        if self.trainer.world_size == 1:
            return latent
        gathered = self.all_gather(latent, sync_grads=True)
        assert isinstance(gathered, Tensor)
        return gathered.flatten(0, 1)

    def encode(
        self, network: nn.Module, batch: VolumeBatch
    ) -> tuple[TextEncoding, VolumeEncoding, list[Tensor]]:
        """Both encodings of a batch and the answers."""
        return network(*self.tokens(batch.reports), self.volumes(batch))

    def validation_step(self, batch: VolumeBatch, batch_idx: int) -> None:
        """Retrieval and sides within the batch; answers of both towers are kept for the AUROCs."""
        self.val_labels.update(batch.labels.nan_to_num(-1.0))
        if self.network.frozen:
            assert isinstance(self.averaged, LabelledPair)
            _, texts = self.averaged.read(*self.tokens(batch.reports))
            self.keep(texts, batch.reports)
            return
        text, image, answers = self.encode(self.averaged, batch)
        size = len(batch.reports)
        accuracy = pair.retrieval_accuracy(text.latent, image.latent)
        self.log("val/retrieval", accuracy, prog_bar=True, sync_dist=True, batch_size=size)
        contrast = self.trained.contrastive_loss(text.latent, image.latent)
        self.log("val/contrast", contrast, sync_dist=True, batch_size=size)
        self.keep(answers, batch.reports)
        self.keep_right_side(batch.reports, image.latent)

    def keep(self, answers: list[Tensor], reports: list[str]) -> None:
        """Keep answers for the AUROCs; of reports and mirrored ones also columns and mean tokens."""
        for metric, answer in zip(self.val_scores, answers, strict=False):
            metric.update(answer[:, : self.labels].float())  # type: ignore[operator]
        assert isinstance(self.averaged, LabelledPair)
        kept: dict[str, list[Tensor]] = {"means": [], "mirrored": [], "scores": [], "stated": []}
        turned = [mirrored(report) for report in reports]
        for name, texts in (("means", reports), ("mirrored", turned)):
            ids, mask = self.tokens(texts)
            text, answers = self.averaged.read(ids, mask)
            kept[name].append(pair.mean_token(text.tokens, mask).float())
            kept["scores"].append(answers[1][:, self.labels : self.stated].float())
            kept["stated"].append(self.columns.targets(texts)[0].to(self.device))
        for name, values in kept.items():
            self.val_texts[name].update(torch.cat(values))  # type: ignore[operator]

    def keep_right_side(self, reports: list[str], volumes: Tensor) -> None:
        """Count the volumes that lie nearer to their report than to its mirrored copy.

        Reports without a side weigh nothing. They are counted all the same: a process whose share has none
        must still take part when the processes add up.
        """
        turned = [mirrored(report) for report in reports]
        own = self.trained.similarity(self.trained.encode_text(*self.tokens(reports)).latent, volumes)
        other = self.trained.similarity(self.trained.encode_text(*self.tokens(turned)).latent, volumes)
        differs = torch.tensor([a != b for a, b in zip(turned, reports, strict=True)], device=self.device)
        self.val_right.update((own > other).float(), differs.float())

    def on_validation_epoch_end(self) -> None:
        """Log the label AUROC of either tower, how surely sides are separated, and how far apart they lie."""
        labels = self.val_labels.compute()
        if isinstance(labels, Tensor):  # an empty list where the reports have no label columns
            labels = labels.masked_fill(labels < 0, torch.nan)
        values = {}
        for name, metric in zip(SIDES, self.val_scores, strict=True):
            assert isinstance(metric, CatMetric)
            # The image's stays empty beside an adapter, both without label columns.
            if isinstance(scores := metric.compute() if metric.update_count else None, Tensor):
                values[f"{name}_auroc"] = pair.mean_auroc(scores, labels)
            metric.reset()
        kept = {name: metric.compute() for name, metric in self.val_texts.items()}  # type: ignore[operator]
        if isinstance(kept["scores"], Tensor):  # an empty list where the reports state no columns
            values["side_auroc"] = pair.side_auroc(kept["scores"], kept["stated"], self.columns.side_pairs())
        if self.val_right.update_count:
            values["right_side"] = self.val_right.compute()
            self.val_right.reset()
        values["mirror_distance"] = pair.mirror_distance(kept["means"], kept["mirrored"])
        for name, value in values.items():
            if value.isfinite():
                self.log(f"val/{name}", value, prog_bar=name in ("text_auroc", "side_auroc"))
        self.val_labels.reset()
        for metric in self.val_texts.values():
            metric.reset()  # type: ignore[operator]

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW and the schedule, stepped with every update; heads start from nothing and learn faster."""
        optimizer, scheduler = build_optimizer(
            self.network, self.config.optimizer, lambda name: 1.0 if name.startswith("clip.") else HEAD_RATE
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
