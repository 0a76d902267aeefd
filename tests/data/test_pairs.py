"""Contrast pairs as batches: partners side by side, blocks where they differ."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ctflow.config.data import DataConfig
from ctflow.data import LatentDataModule
from ctflow.data.records import CaseEntry
from ctflow.data.views import PairView, contrast_partners
from ctflow.errors import ShardError
from ctflow.training.flow import block_keys

C, SIDE = 2, 4


def entry(name: str, patient: str, slices: int = 40, z: float = 4.0) -> CaseEntry:
    return CaseEntry(name, patient, slices, (z, 3.0, 3.0), "train", 3, (SIDE, SIDE))


class Shards(SimpleNamespace):
    """Latents of constant slices; the second scan of a patient differs in slices 20 to 23."""

    def __init__(self, cases: list[CaseEntry]) -> None:
        shape = SimpleNamespace(folder="memory", cases=cases, shard_sizes=[len(cases)], tokens=3)
        super().__init__(**vars(shape))
        self.air = torch.full((C, 16, SIDE, SIDE), -1.0)

    def __len__(self) -> int:
        return len(self.cases)

    def one_size(self) -> tuple[int, int]:
        return SIDE, SIDE

    def whitened(self, i: int) -> torch.Tensor:
        volume = (
            torch.arange(self.cases[i].slices).float()[None, :, None, None].expand(C, -1, SIDE, SIDE).clone()
        )
        if self.cases[i].case_id.endswith("b"):
            volume[:, 20:24] += 100
        return volume

    def sample(self, i: int, start: int, stop: int, generator: torch.Generator) -> torch.Tensor:
        volume = self.whitened(i)
        padded = torch.cat([volume, torch.full((C, 64, SIDE, SIDE), -2.0)], dim=1)
        return padded[:, start:stop]

    def start_block(self) -> torch.Tensor:
        return self.air

    def text(self, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return np.full((3, 5), i, np.float16), np.ones(3, bool), np.full(5, i, np.float32)


CASES = [
    entry("p1a", "p1"),
    entry("p2a", "p2"),
    entry("p1b", "p1"),
    entry("p3a", "p3"),
    entry("p3b", "p3", 41),
]


def view(share: float = 0.5, p_start: float = 0.2) -> PairView:
    return PairView(Shards(CASES), seed=1, p_start=p_start, differing_share=share)


def test_partners_are_two_cases_of_a_patient_on_one_grid():
    assert contrast_partners(CASES) == {0: 2}
    assert contrast_partners([entry("a", "p"), entry("b", "p", z=3.0)]) == {}
    assert contrast_partners([entry(n, "p") for n in "abc"]) == {}


def test_rows_are_partners_on_equal_slices():
    pairs = view()
    assert len(pairs) == 3 and list(pairs.scan_items(0)) == [0, 1, 2]
    assert sum(pairs.shard_items()) == 3
    batch = pairs.batch([0, 1], epoch=0)
    assert batch.case_id == ["p1a", "p1b", "p1a", "p1b"] and batch.partner.tolist() == [1, 0, 3, 2]
    assert batch.position.tolist()[::2] == batch.position.tolist()[1::2]
    assert [int(text[0, 0]) for text in batch.text] == [0, 2, 0, 2]
    keys = block_keys(batch)
    assert keys[0] == keys[1] and keys[2] == keys[3] and keys[0] != keys[2]
    moved = batch.to("cpu")
    assert torch.equal(moved.partner, batch.partner)


def test_evaluation_reads_every_block_of_a_pair_in_order():
    batch = view().batch([0, 1, 2], epoch=None)
    assert batch.position.tolist() == [0, 0, 16, 16, 32, 32]


def test_training_draws_blocks_where_the_two_differ():
    firsts = {share: [] for share in (0.0, 1.0)}
    for share, found in firsts.items():
        pairs = view(share, p_start=0.0)
        for epoch in range(60):
            found += pairs.batch([0, 1, 2], epoch).position.tolist()[::2]
    assert all(first == 0 or first >= 16 for first in firsts[1.0])
    holds = {s: np.mean([first < 24 and first + 16 > 20 for first in found]) for s, found in firsts.items()}
    assert holds[1.0] > 0.95 > 0.8 > holds[0.0]
    assert len(set(firsts[1.0])) > 3


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_data_module_draws_as_it_is_configured(share, monkeypatch):
    monkeypatch.setattr("ctflow.data.datamodule.LatentShards", lambda *_, **__: Shards(CASES))
    config = DataConfig("a", "b", pairs=True, differing_share=share, batch_size=2, p_start=0.5)
    pairs = LatentDataModule(config).view("train")
    assert isinstance(pairs, PairView) and (pairs.differing_share, pairs.p_start) == (share, 0.5)


def test_a_set_without_pairs_is_an_error():
    with pytest.raises(ShardError, match="no contrast pair"):
        PairView(Shards(CASES[1:2]), 0, 0.1, 0.5)
    with pytest.raises(ValueError, match="even batch sizes"):
        replace(DataConfig(pairs=True), batch_size=5)
