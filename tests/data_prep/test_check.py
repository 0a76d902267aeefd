"""``data_prep.check``: statistics, contact sheet, exit status."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from PIL import Image

from ctflow.data import LatentHeader, LatentRecord, LatentShardWriter, SliceRecord, SliceShardWriter
from ctflow.errors import ShardError
from ctflow.whitening import Whitening
from data_prep import check

SPACING = (4.0, 2.0, 2.0)


@pytest.fixture
def slices(tmp_path):
    with SliceShardWriter(tmp_path / "slices" / "train", volumes_per_shard=2) as writer:
        for i in range(3):
            hu = np.full((10 + i, 24, 24), -800, np.int16)
            hu[:, :, :12] = 40
            writer.append(SliceRecord(f"case_{i}", f"patient_{i % 2}", hu, SPACING))
    return tmp_path / "slices"


@pytest.fixture
def latents(tmp_path):
    air = np.zeros((2, 3, 3), np.float32)
    header = LatentHeader("avae", "text", Whitening([1.0, 1.0], [0.5, 0.25]), air, air, (-1000.0, 1000.0))
    writer = LatentShardWriter(tmp_path / "latents", header)
    writer.begin("shard-00000.h5")
    rng = np.random.default_rng(0)
    for i in range(3):
        mean = (1.0 + np.array([1.2, 2.4])[:, None, None] * rng.normal(size=(200, 2, 3, 3))).astype(
            np.float16
        )
        noise = 2 * np.log(np.array([1.6, 3.2]))[:, None, None] * np.ones_like(mean)
        text = np.zeros((4 + i, 5), np.float16)
        mask = np.ones(4 + i, bool)
        pooled = np.zeros(5, np.float32)
        case = LatentRecord(
            f"case_{i}",
            f"p{i}",
            mean.astype(np.float16),
            noise.astype(np.float16),
            SPACING,
            text,
            mask,
            pooled,
        )
        writer.append(case)
    writer.finish()
    return tmp_path / "latents"


def test_slices_are_described(slices, caplog):
    with caplog.at_level(logging.INFO):
        assert check.main([str(slices)]) == 0, "a folder of shard folders is checked as well"
    text = caplog.text
    assert "3 volumes of 2 patients in 2 shards" in text
    assert "33 in all; 10 … 12, median 11 per volume" in text
    assert "spacing z: 4 … 4" in text and "spacing y: 2 … 2" in text
    assert "HU   -950 … -700    50.0 %" in text and "HU     20 … 80      50.0 %" in text
    sheet = np.asarray(Image.open(slices / "train" / "contact_sheet.png"))
    assert sheet.shape[1] > 3 * 192 and sheet.std() > 10


def test_latents_are_described_with_the_moments_of_their_samples(latents, caplog):
    with caplog.at_level(logging.INFO):
        assert check.main([str(latents), "columns=2"]) == 0
    line = next(line for line in caplog.messages if line.startswith("whitened std"))
    low, high = (float(value) for value in line.split(": ")[1].split(",")[0].split(" … "))
    assert abs(low - 1.0) < 0.03 and abs(high - 1.0) < 0.03, "sqrt(1.2² + 1.6²) · 0.5 and twice that · 0.25"
    line = next(line for line in caplog.messages if line.startswith("posterior std, whitened"))
    assert abs(float(line.split(": ")[1]) - 0.8) < 0.002
    assert (latents / "contact_sheet.png").is_file()


def test_shards_without_a_place_for_a_contact_sheet_are_whole(slices, caplog):
    (slices / "train" / "contact_sheet.png").mkdir()
    with caplog.at_level(logging.INFO):
        assert check.main([str(slices)]) == 0
    assert "no contact sheet: Is a directory" in caplog.text and "all checksums of" in caplog.text


def test_damage_gives_status_one_and_names_the_file(slices, caplog):
    path = slices / "train" / "shard-00001.h5"
    path.write_bytes(path.read_bytes()[:-100])
    assert check.main([str(slices / "train")]) == 1
    assert "shard-00001.h5" in caplog.text and "1 problems" in caplog.text


@pytest.mark.parametrize(
    ("old", "new"),
    [('"split": "', '"split": "x'), ('"size": [', '"size": [1'), ('"slices": ', '"slices": 1')],
)
def test_a_manifest_that_says_something_else_than_the_shard(slices, caplog, old, new):
    path = slices / "train" / "manifest.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")
    assert check.main([str(slices / "train")]) == 1
    assert "the manifest lists" in caplog.text


def test_a_folder_without_shards_is_an_error(tmp_path):
    with pytest.raises(ShardError, match="no manifest"):
        check.main([str(tmp_path)])
