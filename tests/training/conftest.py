"""Tiny data sets and networks for the training tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from ctflow.checkpoint import folder_fingerprint, save_avae, save_ctclip
from ctflow.config.encoders import AVAEConfig, BertConfig, CTCLIPConfig, CTViTConfig, VolumeGrid
from ctflow.data import LatentHeader, LatentRecord, LatentShardWriter, SliceRecord, SliceShardWriter
from ctflow.models import AVAE, CTCLIP
from ctflow.models.tokenizer import train_wordpiece
from ctflow.training.curves import CURVES, read_curves

SIDE = 16
WIDTH = 8
SPLITS = (("train", 6), ("valid", 2))


@dataclass(frozen=True)
class TinyData:
    """Folders of a tiny data set.

    Attributes:
        slices: Slice shards, ``train`` and ``valid``.
        latents: Latent shards, ``train`` and ``valid``.
        avae: Sharing folder of the A-VAE the latents claim.
        clip: Sharing folder of the text encoder the latents claim.
    """

    slices: Path
    latents: Path
    avae: Path
    clip: Path

    def arguments(self, task: str, runs: Path, *more: str) -> list[str]:
        """A command line of ``ctflow.train`` for one tiny run of the task."""
        kind = self.latents if task == "flow" else self.slices
        common = [
            f"task={task}",
            f"runs_dir={runs}",
            f"data.train={kind}/train",
            f"data.valid={kind}/valid",
            "data.batch_size=4",
            "default_data.make=false",
            "loop.accelerator=cpu",
            "loop.precision=32-true",
            "loop.progress=false",
            "loop.log_every=1",
            "loop.val_every=4",
            "loop.checkpoint_every=2",
        ]
        return [
            *common,
            *_NETWORKS[task],
            *([f"flow.avae={self.avae}", f"flow.clip={self.clip}"] if task == "flow" else []),
            *more,
        ]


_NETWORKS = {
    "autoencoder": [
        "autoencoder.network.latent_channels=4",
        "autoencoder.network.block_out_channels=[8,8]",
        "autoencoder.network.layers_per_block=1",
        "autoencoder.network.norm_num_groups=4",
        "autoencoder.adversary.start_step=3",
        "autoencoder.adversary.channels=4",
        "autoencoder.adversary.layers=1",
        "autoencoder.optimizer.warmup_steps=2",
        "autoencoder.adversary.optimizer.warmup_steps=2",
        "autoencoder.whitening_batches=2",
    ],
    "clip": [
        "data.batch_size=2",
        "clip.vocabulary_size=80",
        "clip.column_least=1",
        "clip.optimizer.warmup_steps=2",
        "clip.network.dim_latent=8",
        "clip.network.max_tokens=32",
        f"clip.network.bert.hidden_size={WIDTH}",
        "clip.network.bert.num_hidden_layers=1",
        "clip.network.bert.num_attention_heads=2",
        "clip.network.bert.intermediate_size=8",
        "clip.network.bert.max_position_embeddings=32",
        "clip.network.ctvit.dim=8",
        "clip.network.ctvit.codebook_size=8",
        "clip.network.ctvit.image_size=16",
        "clip.network.ctvit.patch_size=8",
        "clip.network.ctvit.temporal_patch_size=4",
        "clip.network.ctvit.spatial_depth=1",
        "clip.network.ctvit.temporal_depth=1",
        "clip.network.ctvit.dim_head=4",
        "clip.network.ctvit.heads=2",
        "clip.network.grid.shape=[8,16,16]",
        "clip.network.grid.spacing_mm=[10.0,3.0,3.0]",
    ],
    "flow": [
        "flow.network.input_size=[16,8,8]",
        "flow.network.latent_channels=4",
        "flow.network.patch_size=[4,4,4]",
        "flow.network.hidden_size=16",
        "flow.network.depth=2",
        "flow.network.num_heads=2",
        f"flow.network.text_dim={WIDTH}",
        "flow.optimizer.warmup_steps=2",
    ],
}


def _slices(folder: Path) -> None:
    for split, cases in SPLITS:
        with SliceShardWriter(folder / split, volumes_per_shard=3) as writer:
            for case in range(cases):
                random = np.random.default_rng((case, split == "valid"))
                hu = random.integers(-1000, -500, (17 + 2 * case, SIDE, SIDE)).astype(np.int16)
                hu[:, 4:12, 4:12] += 600
                finding = case % 2
                side = "right" if case < 3 else "left"
                report = f"There is {'a' if finding else 'no'} nodule in the {side} lung of case {case}."
                labels = {"Lung nodule": finding, "Cardiomegaly": 1 - finding}
                name = f"{split}_{case}"
                writer.append(SliceRecord(name, name, hu, (4.0, 3.0, 3.0), report, labels, split=split))


def _latents(folder: Path, avae: Path, clip: Path, fingerprint: str) -> None:
    random = np.random.default_rng(0)
    header = LatentHeader(
        avae_fingerprint=fingerprint,
        text_fingerprint=folder_fingerprint(clip),
        whitening=AVAEConfig(latent_channels=4).whitening,
        air=random.normal(size=(4, SIDE // 2, SIDE // 2)).astype(np.float32),
        white=random.normal(size=(4, SIDE // 2, SIDE // 2)).astype(np.float32),
        hu_window=(-1000.0, 1000.0),
    )
    for split, cases in SPLITS:
        writer = LatentShardWriter(folder / split, header)
        writer.begin("shard-00000.h5")
        for case in range(cases):
            mean = random.normal(size=(17 + 6 * case, 4, SIDE // 2, SIDE // 2)).astype(np.float16)
            tokens = 3 + case % 2
            writer.append(
                LatentRecord(
                    case_id=f"{split}_{case}",
                    patient_id=f"{split}_{case}",
                    mean=mean,
                    logvar=np.full_like(mean, -6.0),
                    spacing=(4.0, 3.0, 3.0),
                    text=random.normal(size=(tokens, WIDTH)).astype(np.float16),
                    text_mask=np.ones(tokens, bool),
                    pooled=random.normal(size=WIDTH).astype(np.float32),
                    split=split,
                )
            )
        writer.finish()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyData:
    """Slice and latent shards of eight cases, and the encoders that the latents claim."""
    root = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    avae = AVAE(
        AVAEConfig(latent_channels=4, block_out_channels=[8, 8], layers_per_block=1, norm_num_groups=4)
    )
    with torch.no_grad():
        avae.net.encoder.conv_out.bias[
            4:
        ] = -10.0  # certain posteriors, so that not every slice passes for white
    save_avae(root / "avae", avae)
    tokenizer = train_wordpiece(["a nodule in the lung", "no nodule"], 60, 32)
    bert = BertConfig(
        vocab_size=60, hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=32,
    )  # fmt: skip
    vit = CTViTConfig(
        dim=8, codebook_size=8, image_size=16, patch_size=8, temporal_patch_size=4, spatial_depth=1,
        temporal_depth=1, dim_head=4, heads=2,
    )  # fmt: skip
    grid = VolumeGrid(shape=[8, 16, 16], spacing_mm=[10.0, 3.0, 3.0])
    clip = CTCLIP(CTCLIPConfig(bert=bert, ctvit=vit, grid=grid, dim_latent=8, max_tokens=32))
    save_ctclip(root / "clip", clip, tokenizer)
    _slices(root / "slices")
    _latents(root / "latents", root / "avae", root / "clip", avae.fingerprint())
    return TinyData(root / "slices", root / "latents", root / "avae", root / "clip")


@pytest.fixture(scope="session")
def curves_of() -> Callable[[Path], dict[str, list[tuple[int, float]]]]:
    """Reads a run folder's curves."""
    return lambda folder: read_curves(folder / CURVES)
