"""A tiny random system, and slice shards of soft blobs with reports: whole evaluations in seconds."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ctflow.checkpoint import System, load_system, save_system
from ctflow.config.encoders import AVAEConfig, BertConfig, CTCLIPConfig, CTViTConfig, VolumeGrid
from ctflow.config.generation import RolloutConfig, StopConfig
from ctflow.config.models import FMvTConfig
from ctflow.config.system import SystemConfig
from ctflow.data import SliceRecord, SliceShardWriter
from ctflow.evaluation.system import EvalSystem
from ctflow.models import AVAE, CTCLIP, FMvT, TextEncoder, train_wordpiece
from ctflow.models.tokenizer import ReportTokenizer

SIDE = 32
REPORTS = [
    "Small right pleural effusion.",
    "No pleural effusion. The lungs are clear.",
    "A nodule of 8 mm in the left upper lobe.",
    "Consolidation in the right lower lobe.",
    "The heart is enlarged.",
    "Coronary artery calcification.",
]


def soft_volume(slices: int, seed: int, side: int = SIDE) -> np.ndarray:
    """A body-like blob with lungs that change slowly from slice to slice, int16 HU."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(
        np.linspace(0, 1, slices), np.linspace(-1, 1, side), np.linspace(-1, 1, side), indexing="ij"
    )
    body = (x / 0.9) ** 2 + (y / 0.7) ** 2 < 1
    width = 0.25 + 0.05 * np.sin(3 * z + rng.uniform(0, 6))
    lungs = ((np.abs(x) - 0.42) / width) ** 2 + (y / (0.4 + 0.1 * rng.uniform())) ** 2 < 1
    texture = rng.normal(size=(slices // 4 + 2, side // 4, side // 4)) * 40
    texture = np.kron(texture, np.ones((4, 4, 4)))[:slices, :side, :side]
    hu = np.where(body, 40 + texture, -1000)
    hu = np.where(body & lungs, -820 + texture, hu)
    return np.clip(hu, -1000, 1000).astype(np.int16)


def write_shards(folder: Path, slices: list[int], first_seed: int = 0) -> Path:
    """One case per entry of ``slices``."""
    with SliceShardWriter(folder) as writer:
        for i, number in enumerate(slices):
            seed = first_seed + i
            writer.append(
                SliceRecord(
                    case_id=f"case_{seed:03d}",
                    patient_id=f"patient_{seed:03d}",
                    hu=soft_volume(number, seed),
                    spacing=(4.0, 9.0, 9.0),
                    report=f"{REPORTS[i % len(REPORTS)]} Case {seed}.",
                    source_sha256=f"{seed:064x}",
                    split="valid",
                )
            )
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    """A whole system of random weights: 32 px slices, 4×4 latents."""
    torch.manual_seed(0)
    avae = AVAE(
        AVAEConfig(latent_channels=4, block_out_channels=[8, 8, 8, 8], layers_per_block=1, norm_num_groups=4)
    )
    text_width = 16
    clip = CTCLIP(
        CTCLIPConfig(
            bert=BertConfig(
                vocab_size=200,
                hidden_size=text_width,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=32,
                max_position_embeddings=64,
            ),
            ctvit=CTViTConfig(
                dim=16,
                image_size=16,
                patch_size=8,
                temporal_patch_size=4,
                spatial_depth=1,
                temporal_depth=1,
                dim_head=8,
                heads=2,
                quantize=False,
            ),
            grid=VolumeGrid(shape=[8, 16, 16], spacing_mm=[20.0, 18.0, 18.0]),
            dim_latent=8,
            max_tokens=64,
        )
    )
    fmvt = FMvT(
        FMvTConfig(
            input_size=[16, 4, 4],
            latent_channels=4,
            hidden_size=32,
            depth=1,
            num_heads=2,
            text_dim=text_width,
        )
    )
    with torch.no_grad():  # a fresh FMvT's output layer is zero: this one must answer to its inputs
        for parameter in fmvt.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    tokenizer: ReportTokenizer = train_wordpiece(REPORTS, vocab_size=200, max_tokens=64)
    # Random latents all lie within a random A-VAE's own spread of white ones; nothing lies within 0.001.
    rollout = RolloutConfig(steps=1, max_slices=64, stop=StopConfig(threshold=0.001))
    config = SystemConfig(
        image_size=SIDE, z_spacing_mm=4.0, pixel_spacing_mm=9.0, max_slices=64, rollout=rollout
    )
    system = System(config, avae.eval(), fmvt.eval(), TextEncoder(clip, tokenizer))
    return save_system(tmp_path_factory.mktemp("tiny") / "system", system)


@pytest.fixture(scope="session")
def tiny_system(tiny_checkpoint) -> EvalSystem:
    return EvalSystem.of(load_system(tiny_checkpoint), "tiny", "0" * 64, torch.device("cpu"))


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory) -> Path:
    """Twenty cases of 18 to 37 slices, and one that is no longer than a block."""
    lengths = [18 + (7 * i) % 20 for i in range(19)] + [12]
    return write_shards(tmp_path_factory.mktemp("shards") / "valid", lengths)
