"""A run of the challenge's protocol on eight files with stand-in weights, end to end; its folders and
refusals."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from torch import nn

from ctflow import eval as command
from ctflow.errors import CTFlowError, EvaluationError, WeightsError
from ctflow.evaluation import challenge
from ctflow.evaluation.challenge import oriented_volume, stored_volume, volumes_in
from ctflow.metrics import ctnet, planes
from ctflow.metrics.frechet import frechet_from_features
from ctflow.metrics.planes import PlaneBackbone

from .conftest import soft_volume

NUMBER, SIDE, GRID = 8, 32, (9, 8, 8)


class Thirds(nn.Module):
    """CT-Net's calling convention on fewer voxels: volumes to features; here the means of three thirds."""

    sha256 = "a stand-in"

    def __init__(self, weights: Path, expected: str = "") -> None:
        super().__init__()
        assert weights.is_file() and expected == "f" * 64

    def forward(self, volumes: torch.Tensor) -> torch.Tensor:
        assert volumes.shape[1:] == GRID
        return torch.stack([third.mean((1, 2, 3)) for third in volumes.chunk(3, 1)], 1)


def write(path: Path, hu: np.ndarray, spacing: tuple[float, float, float] = (9.0, 9.0, 4.0)) -> None:
    image = sitk.GetImageFromArray(hu.astype(np.int16))
    image.SetSpacing(spacing)
    sitk.WriteImage(image, str(path))


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("challenge")
    for name, seed, ending in (("generated", 0, ".nii.gz"), ("real", 100, ".mha")):
        (root / name).mkdir()
        for i in range(NUMBER):
            write(root / name / f"case_{i}{ending}", soft_volume(18, seed + i, SIDE))
    with (root / "reports.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([("case_id", "report"), *((f"case_{i}", f"Nodule {i}.") for i in range(NUMBER))])
    (root / "squeezenet.pth").write_bytes(b"stand-in")
    (root / "ctnet").write_bytes(b"stand-in")
    return root


def run(folders: Path, output: Path, *keys: str, protocol: str = "vlm3d-2026") -> dict:
    arguments = ["--volumes", str(folders / "generated"), "--reference", str(folders / "real")]
    arguments += [f"protocol={protocol}", f"output={output}", f"cache={output}/cache", *keys]
    assert command.main(arguments) == 0
    folder = max(p for p in output.iterdir() if (p / "results.json").is_file())
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


class Means(nn.Module):
    """The convention of the planes' network: slices to features."""

    sha256, kind = "another stand-in", planes.SQUEEZENET
    planes = PlaneBackbone.planes

    def __init__(self, weights: Path, expected: str = "") -> None:
        super().__init__()
        assert weights.is_file() and expected == ""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cat([images.mean((2, 3))[:, :1], images.std((2, 3))[:, :1]], 1)


@pytest.fixture
def small_networks(monkeypatch):
    monkeypatch.setattr(challenge, "CTNet", Thirds)
    monkeypatch.setattr(challenge, "PlaneBackbone", Means)
    monkeypatch.setattr(planes.plane_volume, "__defaults__", (40,))
    monkeypatch.setattr(ctnet.ctnet_input, "__defaults__", (GRID,))


def test_eight_volumes_end_to_end(folders, tmp_path, tiny_checkpoint, small_networks):
    keys = [f"backbones.ctnet={folders / 'ctnet'}", f"backbones.ctnet_sha256={'f' * 64}"]
    keys += [f"backbones.fid_2p5d={folders / 'squeezenet.pth'}", f"backbones.clip={tiny_checkpoint / 'clip'}"]
    results = run(folders, tmp_path, *keys, "--reports", str(folders / "reports.csv"))
    rows = {row["metric"]: row for row in results["rows"]}
    assert set(rows) == {
        *("FVD_CTNet", "CLIPScore", "CLIPScore_I2I", "CLIPScore_mean"),
        *("FID_2p5D_Avg", "FID_2p5D_XY", "FID_2p5D_YZ", "FID_2p5D_XZ"),
    }
    assert all(row["value"] is not None and row["cases"] == NUMBER for row in rows.values())
    assert rows["CLIPScore_mean"]["value"] == pytest.approx(
        (rows["CLIPScore"]["value"] + rows["CLIPScore_I2I"]["value"]) / 2
    )
    found = [rows[f"FID_2p5D_{plane}"]["value"] for plane in ("XY", "YZ", "XZ")]
    assert rows["FID_2p5D_Avg"]["value"] == pytest.approx(sum(found) / 3)
    assert rows["FID_2p5D_XY"]["samples"] == 40 * NUMBER
    assert "2 strata" in rows["FVD_CTNet"]["reason"]
    features = [
        torch.cat(
            [
                Thirds(folders / "ctnet", "f" * 64)(challenge.ctnet_input(stored_volume(path)[0])[None])
                for path in volumes_in(folders / name).values()
            ]
        )
        for name in ("generated", "real")
    ]
    expected = [float(frechet_from_features(*(f[i : i + 4] for f in features))) for i in (0, 4)]
    assert rows["FVD_CTNet"]["value"] == pytest.approx(sum(expected) / 2, rel=1e-3)
    assert set(results["provenance"]["backbones_sha256"]) == {"ctnet", "clip", "planes"}


def test_without_weights_everything_is_na(folders, tmp_path):
    results = run(folders, tmp_path, protocol="vlm3d-2025")
    assert len(results["rows"]) == 8 and all(
        row["empty"] == "n/a" and row["reason"] for row in results["rows"]
    )


def test_each_year_has_its_network(folders, tmp_path, small_networks):
    with pytest.raises(WeightsError, match="radimagenet_resnet50 for vlm3d-2025"):
        run(folders, tmp_path, f"backbones.fid_2p5d={folders / 'squeezenet.pth'}", protocol="vlm3d-2025")


def test_what_cannot_be_scored_is_refused(folders, tmp_path):
    with pytest.raises(CTFlowError, match="--volumes and --reference"):
        command.main(["protocol=vlm3d-2026"])
    (tmp_path / "generated").mkdir()
    with pytest.raises(EvaluationError, match="no volumes"):
        volumes_in(tmp_path / "generated")
    write(tmp_path / "generated" / "other.nii.gz", np.zeros((3, 4, 4)))
    (tmp_path / "real").symlink_to(folders / "real")
    with pytest.raises(EvaluationError, match=r"no real one, e\.g\. other"):
        run(tmp_path, tmp_path / "out")
    write(tmp_path / "generated" / "other.mha", np.zeros((3, 4, 4)))
    with pytest.raises(EvaluationError, match="twice"):
        volumes_in(tmp_path / "generated")
    (tmp_path / "torn.mha").write_bytes(b"nothing")
    with pytest.raises(EvaluationError, match="cannot be read"):
        stored_volume(tmp_path / "torn.mha")


def test_files_are_read_in_their_own_order_and_oriented_for_the_planes(tmp_path):
    hu = np.arange(24, dtype=np.float32).reshape(2, 3, 4)  # the file's z, y, x
    path = tmp_path / "volume.nii.gz"
    write(path, hu, (1.0, 2.0, 3.0))
    stored, spacing = stored_volume(path)
    np.testing.assert_array_equal(stored.numpy(), hu.transpose(0, 2, 1))
    assert spacing == (3.0, 2.0, 1.0)
    oriented = oriented_volume(path)  # of an image whose x runs to the left, y to the back
    np.testing.assert_array_equal(oriented.hu, hu[:, :, ::-1])
    assert oriented.spacing == (3.0, 2.0, 1.0)
