"""Trained backbones by local path: hashes, calling conventions; report and reconstruction scores."""

import hashlib
import math

import pytest
import torch
from torch import nn
from torchmetrics.functional.image import structural_similarity_index_measure

from ctflow.errors import WeightsError
from ctflow.metrics import MetricError
from ctflow.metrics.clip_score import clip_scores, shuffled_scores
from ctflow.metrics.reconstruction import ReconstructionMetric, lpips_input, multiscale_name
from ctflow.metrics.trained_backbones import I3DBackbone, InceptionBackbone, inception_score


class StandInI3D(nn.Module):
    """The calling convention of the I3D torchscript, on a few numbers that can be worked out by hand."""

    def forward(
        self, x: torch.Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False
    ) -> torch.Tensor:
        assert x.dtype == torch.uint8
        assert rescale and resize and return_features
        x = x.float()
        return torch.stack([x.mean((1, 2, 3, 4)), x[:, 0].mean((1, 2, 3)) - x[:, 2].mean((1, 2, 3))], 1)


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("i3d") / "i3d.pt"
    torch.jit.script(StandInI3D()).save(str(path))
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def test_i3d_gets_three_equal_8_bit_channels(script):
    clips = torch.randint(
        0, 256, (2, 1, 4, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    features = I3DBackbone(*script)(clips)
    torch.testing.assert_close(features[:, 0], clips.float().mean((1, 2, 3, 4)))
    torch.testing.assert_close(features[:, 1], torch.zeros(2))


def test_i3d_without_or_with_another_hash_is_not_opened(script):
    path, digest = script
    with pytest.raises(WeightsError, match="no sha256 was given"):
        I3DBackbone(path, "")
    with pytest.raises(WeightsError, match=digest):
        I3DBackbone(path, "0" * 64)
    with pytest.raises(WeightsError, match="no file"):
        I3DBackbone(path.with_name("other.pt"), digest)


def test_wrong_inception_files_are_refused(tmp_path):
    path = tmp_path / "inception.pth"
    with pytest.raises(WeightsError, match="no file"):
        InceptionBackbone(path)
    torch.save({"nothing": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match="sha256"):
        InceptionBackbone(path, "0" * 64)
    path.write_bytes(b"no state dict")
    with pytest.raises(WeightsError, match="state dict"):
        InceptionBackbone(path)


@pytest.mark.slow
def test_inception_features_are_those_of_torchmetrics_fid(tmp_path):
    """Random weights in torch-fidelity's layout: the same extractor, the same numbers."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torchmetrics.image.fid import FrechetInceptionDistance

    torch.manual_seed(0)
    path = tmp_path / "inception.pth"
    blank = FeatureExtractorInceptionV3.__new__(FeatureExtractorInceptionV3)
    state = _random_inception_state(blank)
    torch.save(state, path)
    backbone = InceptionBackbone(path)
    images = torch.randint(0, 256, (3, 1, 40, 40), dtype=torch.uint8)
    features, logits = backbone(images)
    theirs = FrechetInceptionDistance(2048, feature_extractor_weights_path=str(path))
    expected = theirs.inception(images.expand(-1, 3, -1, -1).contiguous())
    torch.testing.assert_close(features, expected)
    assert logits.shape == (3, 1008)


def _random_inception_state(blank):
    """A state dict of random weights; the constructor would download real ones, so loading is patched out."""
    from unittest.mock import patch

    with (
        patch("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", return_value={}),
        patch.object(nn.Module, "load_state_dict", return_value=None),
    ):
        blank.__init__("random", ["2048"])
    return blank.state_dict()


def test_inception_score_by_hand():
    sure = torch.eye(4).repeat(10, 1) * 200.0  # every image a sure class, classes equally frequent
    assert inception_score(sure, splits=1)[0] == pytest.approx(4.0, rel=1e-6)
    assert inception_score(torch.zeros(40, 4), splits=2)[0] == pytest.approx(1.0)
    with pytest.raises(MetricError, match="splits"):
        inception_score(sure[:10])


def test_report_scores_and_their_zero_point():
    reports = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    volumes = torch.tensor([[2.0, 0.0], [0.0, 5.0], [-1.0, 0.0]])
    scores = clip_scores(reports, volumes)
    assert scores.diagonal().tolist() == [100.0, 100.0, 0.0]
    # Texts 0 and 2 are the same words: neither is "another report" for the other's volume.
    shuffled = shuffled_scores(scores, ["a", "b", "a"])
    assert shuffled.tolist() == [0.0, 0.0, 0.0]
    assert torch.isnan(shuffled_scores(scores, ["a", "a", "a"])).all()
    with pytest.raises(MetricError, match="zero"):
        clip_scores(torch.zeros(1, 2), volumes)


def test_reconstruction_by_hand():
    generator = torch.Generator().manual_seed(1)
    original = 100 * torch.randn(3, 1, 48, 48, generator=generator)
    metric = ReconstructionMetric()
    metric.update(original[:1] + 20.0, original[:1])
    metric.update(original[1:] - 20.0, original[1:])
    found = metric.compute()
    assert found["psnr"] == pytest.approx(10 * math.log10(2000**2 / 400), abs=1e-4)
    assert set(found) == {"psnr", "ssim", "ms_ssim_s3"}
    expected = [
        structural_similarity_index_measure(original[i : i + 1] + d, original[i : i + 1], data_range=2000.0)
        for i, d in ((0, 20.0), (1, -20.0), (2, -20.0))
    ]
    assert found["ssim"] == pytest.approx(float(sum(expected)) / 3, abs=1e-5)


def test_reconstruction_of_equals_is_perfect_and_bad_input_refused():
    original = torch.zeros(2, 1, 16, 16)
    metric = ReconstructionMetric()
    metric.update(original, original)
    assert metric.compute()["psnr"] == math.inf
    with pytest.raises(MetricError, match="side"):
        metric.update(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8))
    with pytest.raises(MetricError, match="NaN"):
        metric.update(original + float("nan"), original)
    assert multiscale_name(160) == "ms_ssim_s3" and multiscale_name(176) == "ms_ssim"


def test_lpips_window():
    hu = torch.tensor([-1350.0, -600.0, 150.0, 900.0]).view(1, 1, 2, 2)
    image = lpips_input(hu, (-600.0, 1500.0))
    assert image.shape == (1, 3, 2, 2)
    assert image[0, 0].flatten().tolist() == [-1.0, 0.0, 1.0, 1.0]
