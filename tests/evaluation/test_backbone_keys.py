"""Trained backbones as keys of an evaluation: which metrics they bring, and which files are refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from torch import nn

from ctflow.config import parse_command
from ctflow.config.evaluation import EvalConfig
from ctflow.errors import CTFlowError, WeightsError
from ctflow.metrics.backbones import build_backbones
from ctflow.metrics.reconstruction import load_lpips

CPU = torch.device("cpu")


def config_of(*keys: str) -> EvalConfig:
    return parse_command(EvalConfig, "ctflow eval", "", [], list(keys)).config


class MeanOfClip(nn.Module):
    """The I3D torchscript's calling convention."""

    def forward(
        self, x: torch.Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False
    ) -> torch.Tensor:
        return x.float().mean((2, 3, 4))


def test_i3d_brings_fvd(tmp_path: Path) -> None:
    path = tmp_path / "i3d.pt"
    torch.jit.script(MeanOfClip()).save(str(path))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    files = config_of(f"backbones.i3d={path}", f"backbones.i3d_sha256={digest}").backbones
    backbones = build_backbones(files, None, CPU)
    assert [b.metric for b in backbones.clips] == ["fvd_rand3d", "fvd"]
    assert backbones.hashes["i3d"] == digest
    with pytest.raises(CTFlowError, match="give i3d_sha256"):
        config_of(f"backbones.i3d={path}")


@pytest.mark.parametrize(
    ("file", "sha256"),
    [
        ("backbones.inception=", "backbones.inception_sha256="),
        ("backbones.i3d=", "backbones.i3d_sha256="),
        ("backbones.fid_2p5d=", "backbones.fid_2p5d_sha256="),
    ],
)
def test_a_missing_file_and_another_hash_are_refused(file: str, sha256: str, tmp_path: Path) -> None:
    wrong = sha256 + "0" * 64
    with pytest.raises(WeightsError, match="no file"):
        build_backbones(config_of(f"{file}{tmp_path / 'none'}", wrong).backbones, None, CPU)
    path = tmp_path / "weights"
    path.write_bytes(b"something")
    with pytest.raises(WeightsError, match=hashlib.sha256(b"something").hexdigest()):
        build_backbones(config_of(f"{file}{path}", wrong).backbones, None, CPU)


def test_lpips_files_are_checked_alike(tmp_path: Path) -> None:
    path = tmp_path / "alexnet.pth"
    path.write_bytes(b"something")
    for keys, words in (
        ([f"backbones.lpips={path}", f"backbones.lpips_sha256={'0' * 64}"], "0000"),
        ([f"backbones.lpips={path}"], "not a state dict"),
        ([f"backbones.lpips={tmp_path / 'none'}"], "no file"),
    ):
        with pytest.raises(WeightsError, match=words):
            files = config_of(*keys).backbones
            load_lpips(Path(files.lpips), files.lpips_sha256)


def test_protocols() -> None:
    assert config_of("protocol=stylegan-v").protocol == "stylegan-v"
    with pytest.raises(CTFlowError, match=r"matched.*stylegan-v"):
        config_of("protocol=fastest")
