"""A tiny random system, for tests of commands that need a whole checkpoint folder."""

from pathlib import Path

import torch

from ctflow.checkpoint import System, save_system
from ctflow.config.encoders import AVAEConfig, BertConfig, CTCLIPConfig, CTViTConfig, VolumeGrid
from ctflow.config.generation import RolloutConfig, StopConfig
from ctflow.config.models import FMvTConfig
from ctflow.config.system import SystemConfig
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


BERT = BertConfig(
    vocab_size=200,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=64,
)
CTVIT = CTViTConfig(
    dim=16,
    image_size=16,
    patch_size=8,
    temporal_patch_size=4,
    spatial_depth=1,
    temporal_depth=1,
    dim_head=8,
    heads=2,
    quantize=False,
)
"""Towers of the tiny text and image pair."""


def save_tiny_system(folder: Path) -> Path:
    """A whole system of random weights: 32 px slices, 4×4 latents."""
    torch.manual_seed(0)
    avae = AVAE(
        AVAEConfig(latent_channels=4, block_out_channels=[8, 8, 8, 8], layers_per_block=1, norm_num_groups=4)
    )
    clip = CTCLIP(
        CTCLIPConfig(
            bert=BERT,
            ctvit=CTVIT,
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
            text_dim=BERT.hidden_size,
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
    return save_system(folder, system)
