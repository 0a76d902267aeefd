"""Distances between whole volumes: which form at which N, what is n/a and why, what the cache keeps."""

import io
import json
import math
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.networks.nets.resnet import ResNet

from ctflow import eval as command
from ctflow.errors import WeightsError
from ctflow.evaluation.features import packed, unpacked
from ctflow.evaluation.results import MODEL
from ctflow.evaluation.rows import volume_rows
from ctflow.evaluation.settings import REAL, SETTINGS
from ctflow.metrics import ct_backbone
from ctflow.metrics.backbones import CT3D, PLANES_2P5D, WHOLE, Backbones, VolumeBackbone
from ctflow.metrics.frechet import frechet_from_features
from ctflow.metrics.statistics import DiagonalFrechetStatistic, KernelStatistic

from .test_rows import case, compared

WIDTH = 6


def network(name: str = CT3D) -> VolumeBackbone:
    return VolumeBackbone(name, "0" * 64, "stand-in", torch.nn.Identity(), lambda volume: {})


BACKBONES = Backbones((), (), None, (network(),))


def volumes(number: int, seed: int, mean: float = 0.0, slices: int = 1):
    rng = np.random.default_rng(seed)
    outputs = ((CT3D, WHOLE),) if slices == 1 else tuple((PLANES_2P5D, p) for p in ("xy", "yz", "xz"))
    return [
        replace(
            case(str(i), 17, i),
            volumes={key: rng.normal(mean, 1, (slices, WIDTH)).astype(np.float32) for key in outputs},
        )
        for i in range(number)
    ]


def stacked(cases, key=(CT3D, WHOLE)) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([c.volumes[key] for c in cases]))


def test_diagonal_distance_by_hand():
    fake, real = torch.tensor([[0.0, 1.0], [2.0, 1.0]]), torch.tensor([[1.0, 4.0], [1.0, 6.0]])
    # means 1, 1 against 1, 5; standard deviations √2, 0 against 0, √2
    statistic = DiagonalFrechetStatistic(list(fake.split(1)), list(real.split(1)))
    assert statistic([0, 1], [0, 1]) == pytest.approx(16 + 2 + 2)
    assert statistic.samples([0, 1], [0]) == 1


def test_few_volumes_take_the_regularised_form_and_many_the_full_one():
    few = compared(volumes(6, 0), volumes(6, 1, 0.5))
    frechet, kernel = volume_rows(few, BACKBONES)
    x, y = stacked(few.fake), stacked(few.real)
    by_hand = float((x.mean(0) - y.mean(0)).square().sum() + (x.std(0) - y.std(0)).square().sum())
    assert (frechet.metric, kernel.metric) == ("fd_ct3d", "kd_ct3d")
    assert frechet.value == pytest.approx(by_hand, rel=1e-5)
    assert "N ≤ 6 dimensions: covariances are their diagonals" in frechet.reason
    assert kernel.value == pytest.approx(KernelStatistic([x], [y])([0], [0]), rel=1e-6)
    many = compared(volumes(40, 0), volumes(40, 1, 0.5))
    frechet, _ = volume_rows(many, BACKBONES)
    full = frechet_from_features(stacked(many.fake), stacked(many.real))
    assert frechet.value == pytest.approx(float(full), rel=1e-9) and not frechet.reason
    assert frechet.low < frechet.value < frechet.high and frechet.extrapolated < frechet.value
    assert frechet.samples == frechet.reference == frechet.cases == 40


def test_regularised_distance_of_equal_sets_is_zero_at_infinite_n():
    row = volume_rows(compared(volumes(20, 3), volumes(20, 4)), BACKBONES)[0]
    wide = [
        replace(c, volumes={(CT3D, WHOLE): np.repeat(c.volumes[CT3D, WHOLE], 9, 1)}) for c in volumes(20, 5)
    ]
    other = [
        replace(c, volumes={(CT3D, WHOLE): np.repeat(c.volumes[CT3D, WHOLE], 9, 1)}) for c in volumes(20, 6)
    ]
    regularised = volume_rows(compared(wide, other), BACKBONES)[0]
    assert "diagonals" in regularised.reason and "diagonals" not in row.reason
    assert regularised.extrapolated_low < 0 < regularised.extrapolated_high


def test_what_is_missing_says_why():
    sets = compared(volumes(6, 0), volumes(6, 1))
    rows = volume_rows(sets, replace(BACKBONES, volumes=()))
    assert [r.metric for r in rows] == ["fd_ct3d", "kd_ct3d"]
    assert all(r.missing and "pip install 'ctflow[ct]'" in r.reason for r in rows)
    rows = volume_rows(compared(volumes(3, 0), volumes(6, 1)), BACKBONES)
    assert all(r.missing and "3 against 6 volumes" in r.reason for r in rows)
    given = replace(sets, setting=SETTINGS["gt-head"])
    assert all("not a whole volume" in r.reason for r in volume_rows(given, BACKBONES))
    spliced = replace(sets, setting=SETTINGS["next-block"])
    assert all("laid end to end" in r.reason for r in volume_rows(spliced, BACKBONES))


def test_three_planes_and_their_mean():
    backbones = replace(BACKBONES, volumes=(network(PLANES_2P5D),))
    sets = compared(volumes(8, 0, slices=9), volumes(8, 1, 0.5, slices=9))
    rows = {r.metric: r for r in volume_rows(sets, backbones)}
    planes = [rows[f"fid_2p5d_{plane}"] for plane in ("xy", "yz", "xz")]
    expected = frechet_from_features(*(stacked(s, (PLANES_2P5D, "yz")) for s in (sets.fake, sets.real)))
    assert planes[1].value == pytest.approx(float(expected), rel=1e-9)
    assert rows["fid_2p5d"].value == pytest.approx(sum(p.value for p in planes) / 3)
    assert rows["fid_2p5d"].samples == 72 and "stand-in" in rows["fid_2p5d"].reason
    assert rows["fid_2p5d"].low < rows["fid_2p5d"].value and math.isfinite(rows["fid_2p5d"].extrapolated)


def test_the_cache_keeps_them():
    first = volumes(1, 0)[0]
    header, arrays = packed(first)
    again = unpacked(json.loads(json.dumps(header)), arrays)
    np.testing.assert_array_equal(again.volumes[CT3D, WHOLE], first.volumes[CT3D, WHOLE])


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory) -> tuple[Path, str]:
    """A file of the CT backbone's layout with few random channels."""
    torch.manual_seed(0)
    tiny = ResNet(
        "bottleneck", [1, 1, 1, 1], [2, 2, 2, 2], spatial_dims=3, n_input_channels=3, conv1_t_size=[3, 7, 7],
        conv1_t_stride=[1, 2, 2], shortcut_type="B", feed_forward=False, bias_downsample=False,
    )  # fmt: skip
    stream = io.BytesIO()
    torch.save({"state_dict": tiny.state_dict(), "meta": {}}, stream)
    path = tmp_path_factory.mktemp("ct") / "backbone.pt"
    path.write_bytes(stream.getvalue())
    return path, sha256(stream.getvalue()).hexdigest()


def test_the_command_scores_whole_volumes(tiny_checkpoint, tiny_shards, tmp_path, stand_in, monkeypatch):
    monkeypatch.setattr(ct_backbone, "GRID", (16, 32, 32))
    monkeypatch.setattr(ct_backbone.ct_input, "__defaults__", ((16, 32, 32),))
    path, digest = stand_in
    arguments = ["--checkpoint", str(tiny_checkpoint), "--setting", "full-body", f"slices={tiny_shards}"]
    arguments += [f"output={tmp_path}", f"cache={tmp_path}/cache", "cases=5", "sampling.steps=1"]
    arguments += ["clip_lengths=[16]", f"backbones.ct3d={path}"]
    with pytest.raises(WeightsError, match="sha256"):
        command.main(arguments)
    assert command.main([*arguments, f"backbones.ct3d_sha256={digest}"]) == 0
    folder = next(p for p in tmp_path.iterdir() if (p / "results.json").is_file())
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert results["provenance"]["backbones_sha256"]["ct3d"].startswith(digest)
    found = {r["source"]: r for r in results["rows"] if r["metric"] == "fd_ct3d"}
    assert found[MODEL]["value"] > 0 and found[MODEL]["samples"] == 5
    assert len(found) == 3 and REAL.name not in found
