"""The recorded numbers of published networks with random weights, in ``tests/fixtures``; see its README."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

HERE = Path(__file__).resolve().parent / "fixtures"
OUTSIDE = Path(__file__).resolve().parents[2] / "shared" / "fixtures"
STDIT_B = pytest.param(
    "B",
    marks=pytest.mark.skipif(
        not (OUTSIDE / "stdit" / "B").is_dir(),
        reason=f"needs the second recorded transformer (4 MB) at {OUTSIDE / 'stdit' / 'B'}, "
        "which is not part of the repository",
    ),
)
"""The second transformer: text mask, other patch sizes, scales and MLP ratio; too large to come along."""


def unpack(folder: Path) -> Path:
    """All fixtures in one folder: those of the repository, FLUX's single-file layout, and those outside."""
    shutil.copytree(HERE, folder)
    vae = folder / "vae/tiny"
    tensors = load_file(vae / "diffusion_pytorch_model.safetensors")
    with (folder / "layouts/flux_vae_keys.tsv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    single = {}
    for row in rows:  # equal values under other names; 1×1 convolutions where diffusers has linear layers
        value = tensors[row["diffusers_key"]]
        spatial = row["bfl_shape"].count(",") - row["diffusers_shape"].count(",")
        single[row["bfl_key"]] = value.reshape(*value.shape, *[1] * spatial)
    save_file(single, vae / "ae_bfl.safetensors")
    if (OUTSIDE / "stdit/B").is_dir():
        (folder / "stdit/B").symlink_to(OUTSIDE / "stdit/B")
    return folder
