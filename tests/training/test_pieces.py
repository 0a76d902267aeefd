"""Randomness, precision, losses, curves, images, run folders."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ctflow.config import load_config
from ctflow.config.encoders import AVAEConfig
from ctflow.config.evaluation import FeatureFiles
from ctflow.config.flow_network import FlowNetworkConfig
from ctflow.config.generation import RolloutConfig
from ctflow.config.tasks import AdversaryConfig, AutoencoderTask, FlowMonitor, FlowTask
from ctflow.config.training import TrainConfig
from ctflow.data import SliceBatch
from ctflow.errors import ConfigError, CTFlowError, WeightsError
from ctflow.models import AVAE, Posterior
from ctflow.pictures import GAP, WHOLE, axial
from ctflow.training import precision
from ctflow.training.autoencoder import AutoencoderModule
from ctflow.training.base import unique_keys
from ctflow.training.callbacks import check_finite
from ctflow.training.curves import CurveFile, read_curves
from ctflow.training.flow import DecileLoss, FlowModule
from ctflow.training.images import axial_and_coronal, reconstruction_grid
from ctflow.training.losses import Adversary, PerceptualTerm, adaptive_weight
from ctflow.training.monitor import RolloutMonitor, due
from ctflow.training.pair import label_loss, mean_auroc, retrieval_accuracy
from ctflow.training.plain import from_plain, to_plain
from ctflow.training.randomness import SampleRandom
from ctflow.training.rollout_metrics import images_of, rollout_metrics
from ctflow.training.runs import LAST, locate_run
from ctflow.training.task_autoencoder import copy_weights
from ctflow.types import HUVolume
from ctflow.whitening import Whitening

CPU = torch.device("cpu")


def test_draws_depend_on_seed_step_and_sample_alone() -> None:
    together = SampleRandom(3, 7, ["a", "b"], CPU)
    alone = SampleRandom(3, 7, ["b"], CPU)
    assert torch.equal(together.normal(4)[1], alone.normal(4)[0])
    assert torch.equal(together.uniform()[1], alone.uniform()[0])
    for other in (
        SampleRandom(4, 7, ["b"], CPU),
        SampleRandom(3, 8, ["b"], CPU),
        SampleRandom(3, 7, ["c"], CPU),
    ):
        assert not torch.equal(other.normal(4), SampleRandom(3, 7, ["b"], CPU).normal(4))


def test_repeated_samples_have_draws_of_their_own() -> None:
    keys = unique_keys(["a/0", "b/0", "a/0"])
    assert len(set(keys)) == 3
    draws = SampleRandom(0, 0, keys, CPU).normal(2)
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize(("supported", "auto"), [(True, "bf16-mixed"), (False, "32-true")])
def test_precision(monkeypatch: pytest.MonkeyPatch, supported: bool, auto: str) -> None:
    monkeypatch.setattr(precision, "bf16_supported", lambda device_type: supported)
    assert precision.resolve_precision("auto", "cpu") == auto
    assert precision.resolve_precision("32-true", "cpu") == "32-true"
    if not supported:
        with pytest.raises(ConfigError, match="bfloat16"):
            precision.resolve_precision("bf16-mixed", "cpu")


def test_adaptive_weight_is_the_capped_ratio_of_norms() -> None:
    big, small = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 0.5])
    assert float(adaptive_weight(big, small)) == pytest.approx(10.0, rel=1e-3)
    assert float(adaptive_weight(big, torch.zeros(2), 7.0)) == 7.0


def test_discriminator_learns_to_tell_real_from_fake() -> None:
    torch.manual_seed(0)
    adversary = Adversary(AdversaryConfig(channels=4, layers=1), in_channels=1)
    optimizer = torch.optim.Adam(adversary.parameters(), lr=1e-2)
    real, fake = torch.rand(4, 1, 16, 16).round() * 2 - 1, torch.zeros(4, 1, 16, 16)
    first = adversary.discriminator_loss(real, fake)
    for _ in range(30):
        optimizer.zero_grad()
        adversary.discriminator_loss(real, fake).backward()
        optimizer.step()
    assert adversary.discriminator_loss(real, fake) < 0.5 * first
    assert adversary.generator_loss(real) < adversary.generator_loss(fake)


def test_perceptual_term_reads_a_local_vgg16(tmp_path: Path) -> None:
    from torchvision.models import vgg16

    with torch.device("meta"):
        names = {f"features.{k}": v.shape for k, v in vgg16(weights=None).features.state_dict().items()}
    torch.manual_seed(0)
    path = tmp_path / "vgg16.pth"
    torch.save(
        {name: 0.05 * torch.randn(shape) for name, shape in names.items() if int(name.split(".")[1]) < 22},
        path,
    )
    keys = ["autoencoder.perceptual_weight=0.1", f"autoencoder.perceptual_weights_path={path}"]
    term = PerceptualTerm(load_config(TrainConfig, None, keys).autoencoder.perceptual_weights_path)
    image = torch.rand(1, 1, 32, 32)
    assert float(term(image, image)) == 0.0
    assert float(term(image, image.flip(-1))) > 0.0
    torch.save({"features.0.weight": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match="vgg16"):
        PerceptualTerm(path)
    with pytest.raises(WeightsError, match="no perceptual weights"):
        PerceptualTerm(tmp_path / "nothing.pth")


def test_label_loss_ignores_unknown_labels() -> None:
    logits, labels = torch.tensor([[2.0, -50.0]]), torch.tensor([[1.0, torch.nan]])
    assert float(label_loss(logits, labels)) == pytest.approx(
        float(nn.functional.softplus(torch.tensor(-2.0)))
    )


def test_auroc_skips_labels_of_one_class() -> None:
    scores = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.1, 0.3]])
    labels = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, torch.nan]])
    assert float(mean_auroc(scores, labels)) == 1.0
    assert mean_auroc(scores[:, 1:], labels[:, 1:]).isnan()


def test_retrieval_accuracy() -> None:
    text = torch.eye(3)
    assert float(retrieval_accuracy(text, text[[0, 2, 1]])) == pytest.approx(1 / 3)


def test_decile_loss() -> None:
    metric = DecileLoss()
    metric.update(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0.05, 0.01, 1.0]))
    total, deciles = metric.compute()
    assert float(total) == 3.0
    assert deciles[0] == 2.0 and deciles[9] == 5.0 and deciles[1:9].isnan().all()


def test_frechet_distances_are_left_out_where_asked(tmp_path: Path) -> None:
    for frechet, names in ((True, ["fid_rand2d", "fvd_rand3d_f16"]), (False, [])):
        settings = FlowMonitor(rollout_every=1, frechet=frechet)
        monitor = RolloutMonitor(settings, RolloutConfig(), "tokens", tmp_path, seed=0)
        monitor.prepare(CPU)
        assert [metric.name for metric in monitor.metrics] == names


def test_rollouts_come_more_than_once_in_a_short_training() -> None:
    assert [n for n in range(1, 26) if due(n, 10)] == [1, 2, 4, 8, 10, 20]
    assert [n for n in range(1, 6) if due(n, 1)] == [1, 2, 3, 4, 5]


def test_trained_networks_measure_under_their_own_names(tmp_path: Path) -> None:
    class Video(nn.Module):
        def forward(
            self, x: torch.Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False
        ) -> torch.Tensor:
            return x.float().mean((1, 3, 4)).repeat(1, 25)  # 400 numbers of 16 slices

    path = tmp_path / "i3d.pt"
    torch.jit.script(Video()).save(str(path))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    metrics = rollout_metrics(FeatureFiles(i3d=str(path), i3d_sha256=digest), torch.device("cpu"))
    assert [metric.name for metric in metrics] == ["fid_rand2d", "fvd_rand3d_f16", "fvd_f16"]
    with pytest.raises(WeightsError, match="no file"):
        rollout_metrics(FeatureFiles(ct3d=str(tmp_path / "none"), ct3d_sha256="0" * 64), torch.device("cpu"))
    with pytest.raises(WeightsError, match="no file"):
        rollout_metrics(FeatureFiles(inception=str(tmp_path / "none")), torch.device("cpu"))
    volume = torch.zeros(40, 8, 8)
    assert [[len(x) for x in images_of(metric, volume)] for metric in metrics] == [[40], [2], [2]]
    assert images_of(metrics[0], volume[:0]) == [] and images_of(metrics[1], volume[:15]) == []


def test_curves_keep_the_later_value_of_a_step(tmp_path: Path) -> None:
    log = CurveFile(tmp_path)
    log.log_metrics({"loss": 1.0, "epoch": 0}, 0)
    log.log_metrics({"loss": 0.5}, 1)
    log.log_metrics({"loss": 0.25}, 1)
    assert read_curves(log.path) == {"loss": [(0, 1.0), (1, 0.25)]}


def test_images_are_grey_and_upright() -> None:
    hu = torch.full((2, 4, 6), -1000.0)
    grid = reconstruction_grid(hu, hu + 400)
    assert grid.shape == (1, 3 * 4 + 2 * GAP, 2 * 6 + GAP)
    assert grid[0, 0, 0] == 0.0 and grid[0, -1, 0] == 1.0
    volume = torch.full((8, 4, 6), -1000.0)
    volume[-1] = 1000.0  # the head end
    image = axial_and_coronal(volume, (2.0, 1.0, 1.0))
    assert image.shape == (1, 16, 2 * 6 + GAP)
    assert image[0, 0, -1] == 1.0 and image[0, -1, -1] == 0.0


def test_rollouts_stand_as_the_montage_shows_them() -> None:
    """The patient's right lies at high columns and is shown on the left, in every picture."""
    volume = torch.full((8, 6, 6), -1000.0)
    volume[:, :, -1] = 1000.0
    rollout = axial_and_coronal(volume, (1.0, 1.0, 1.0))
    assert rollout[0, 0, 0] == rollout[0, 0, 6 + GAP] == 1.0 and rollout[0, 0, 5] == rollout[0, 0, -1] == 0.0
    grid = reconstruction_grid(volume, volume)
    assert grid[0, 0, 0] == 1.0 and grid[0, 0, 5] == 0.0
    assert axial(HUVolume(volume.numpy(), (1.0, 1.0, 1.0)), 0, WHOLE, 6)[0, 0] == 255


def test_configs_survive_the_checkpoint_as_plain_values() -> None:
    task = FlowTask(text="pooled")
    task.network.hidden_size = 96
    assert from_plain(FlowTask, to_plain(task)) == task
    assert from_plain(FlowTask, task) is task


@pytest.mark.parametrize(("have", "want"), [(3, 1), (1, 3)])
def test_weights_move_between_one_and_three_channels(have: int, want: int) -> None:
    torch.manual_seed(0)
    shape = {"latent_channels": 4, "block_out_channels": [8, 8], "layers_per_block": 1, "norm_num_groups": 4}
    source, target = (AVAE(AVAEConfig(in_channels=n, **shape)).eval() for n in (have, want))
    copy_weights(source, target)
    hu = torch.rand(2, 8, 8) * 2000 - 1000
    with torch.no_grad():
        ours, theirs = target.encode_hu(hu), source.encode_hu(hu)
        torch.testing.assert_close(ours.mean, theirs.mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            target.decode_to_hu(ours.mean), source.decode_to_hu(theirs.mean), rtol=1e-3, atol=1e-2
        )


def _config(tmp_path: Path, *overrides: str) -> TrainConfig:
    return load_config(TrainConfig, None, [f"runs_dir={tmp_path}", *overrides])


def test_a_named_run_resumes_from_its_own_checkpoint(tmp_path: Path) -> None:
    assert locate_run(_config(tmp_path, "name=a")).checkpoint is None
    last = tmp_path / "autoencoder" / "a" / LAST
    last.parent.mkdir(parents=True)
    last.touch()
    assert locate_run(_config(tmp_path, "name=a")).checkpoint == last
    assert locate_run(_config(tmp_path, "name=a", "resume=none")).checkpoint is None
    assert locate_run(_config(tmp_path)).checkpoint is None
    path = locate_run(_config(tmp_path, f"resume={last}"))
    assert path.checkpoint == last and path.folder == last.parent
    assert locate_run(_config(tmp_path, "export_only=true")).folder == last.parent


def test_missing_checkpoints_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no checkpoint at"):
        locate_run(_config(tmp_path, "resume=nowhere.ckpt"))
    with pytest.raises(ConfigError, match="nothing to export"):
        locate_run(_config(tmp_path, "export_only=true"))


@pytest.mark.parametrize(
    "override",
    [
        "task=gan",
        "loop.strategy=horovod",
        "loop.max_steps=0",
        "flow.text=both",
        "autoencoder.perceptual_weight=1.0",
        "autoencoder.flat_fraction=1.0",
        "autoencoder.train_encoder=false",
        "autoencoder.latent_noise=0.3",
        "autoencoder.redrawn_share=0.5",
        "loop.accumulate=2",
        "loop.nodes=0",
        "flow.optimizer.momentum=1.0",
        "flow.flow.length_dropout=1.0",
        "autoencoder.optimizer.betas=[0.9]",
    ],
)
def test_impossible_values_are_refused(override: str) -> None:
    with pytest.raises(ConfigError):
        load_config(TrainConfig, None, [override])


def test_diverged_weights_never_reach_a_checkpoint(tmp_path: Path) -> None:
    module = FlowModule(FlowTask(network=FlowNetworkConfig([16, 4, 4], 4, [4, 4, 4], 16, 1, 2, text_dim=8)))
    check_finite(module, 1, tmp_path)
    with torch.no_grad():
        next(module.network.parameters()).view(-1)[0] = torch.nan
    with pytest.raises(CTFlowError, match="not finite after step 7"):
        check_finite(module, 7, tmp_path)


def test_a_share_of_the_slices_is_flat_air_or_white() -> None:
    network = AVAEConfig(latent_channels=4, block_out_channels=[8, 8], layers_per_block=1, norm_num_groups=4)
    module = AutoencoderModule(AutoencoderTask(network=network, flat_fraction=0.5))
    hu = torch.linspace(-900.0, 900.0, 64).expand(400, 1, 1, 64).repeat(1, 1, 64, 1)
    batch = SliceBatch(hu, ["a"] * 400, torch.arange(400), torch.ones(400, 3))
    images, made = module._images(batch, SampleRandom(0, 0, [f"a/{i}" for i in range(400)], CPU))
    flat = images.flatten(1).std(dim=1) == 0
    assert torch.equal(flat, made)
    levels = images[flat][:, 0, 0, 0]
    assert 0.4 < flat.float().mean() < 0.6
    assert set(levels.tolist()) == {-1.0, 1.0} and 0.3 < (levels > 0).float().mean() < 0.7
    assert torch.equal(images[~flat], network.intensity.to_model(hu[~flat]))


def decoder_task(whitening: Whitening, **options: float) -> AutoencoderTask:
    """A training of a tiny decoder alone."""
    network = AVAEConfig(
        latent_channels=4,
        block_out_channels=[8, 8],
        layers_per_block=1,
        norm_num_groups=4,
        whitening=whitening,
    )
    settings: dict[str, Any] = {"train_encoder": False, "whitening_batches": 0, **options}
    return AutoencoderTask(network, init_from="start", **settings)


def test_noise_on_latents_has_one_level_for_all_whitened_channels_of_a_slice() -> None:
    whitening = Whitening([0.5, 0.0, -2.0, 0.0], [1.0, 4.0, 0.25, 0.5])
    task = decoder_task(whitening, latent_noise=0.3)
    module = AutoencoderModule(task)
    mean = torch.zeros(300, 4, 32, 32)
    posterior = Posterior(mean, torch.full_like(mean, -60.0))
    drawn = [module._sample(posterior, SampleRandom(0, 0, [f"a/{i}" for i in range(300)], CPU)) for _ in "12"]
    assert torch.equal(drawn[0], drawn[1])
    levels = (drawn[0] * torch.tensor(whitening.scale).view(4, 1, 1)).std(dim=(2, 3))  # [slices, channels]
    assert torch.allclose(levels, levels.mean(1, keepdim=True).expand(-1, 4), rtol=0.15)
    assert 0.28 < levels.max() < 0.33 and levels.min() < 0.02 and 0.13 < levels.mean() < 0.17


def test_a_share_of_the_scans_is_decoded_from_redrawn_latents() -> None:
    whitening = Whitening([1.0, 0.0, -1.0, 0.5], [2.0, 1.0, 0.5, 1.0])
    task = decoder_task(whitening, redrawn_share=0.6)
    module, keys = AutoencoderModule(task), [f"a/{i}" for i in range(600)]
    redrawn = torch.randn(600, 4, 2, 2)
    redrawn[400:, :, 1] = torch.nan  # not redrawn
    flat = torch.arange(600) < 100
    batch = SliceBatch(torch.zeros(600, 1, 4, 4), ["a"] * 600, torch.arange(600), torch.ones(600, 3), redrawn)
    own = torch.full((600, 4, 2, 2), 7.0)
    latents = module._with_redrawn(own, batch, flat, SampleRandom(0, 0, keys, CPU))
    replaced = (latents != own).flatten(1).all(dim=1)
    assert not replaced[:100].any() and not replaced[400:].any()
    assert 0.5 < replaced[100:400].float().mean() < 0.7
    torch.testing.assert_close(module.network.whiten(latents)[replaced], redrawn[replaced])
    assert torch.equal(latents[~replaced], own[~replaced])
