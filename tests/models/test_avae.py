"""The A-VAE against the published numbers, and what belongs to its weights."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from ctflow.config.encoders import AVAEConfig
from ctflow.errors import CTFlowError
from ctflow.intensity import IntensityWindow
from ctflow.models import AVAE, Posterior
from ctflow.weights import load_avae
from ctflow.whitening import Whitening

TOLERANCE = 1e-5


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.fixture(scope="module")
def recorded(parity_dir):
    return load_file(parity_dir / "vae/tiny/io.safetensors")


@pytest.fixture(scope="module", params=["", "ae_bfl.safetensors"])
def published(request, parity_dir):
    return load_avae(parity_dir / "vae/tiny" / request.param)


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    config = AVAEConfig(
        latent_channels=4,
        block_out_channels=[8, 8, 8, 16, 16],
        layers_per_block=1,
        norm_num_groups=8,
        whitening=Whitening([0.5, -0.5, 0.0, 1.0], [2.0, 0.5, 1.0, 4.0]),
    )
    return AVAE(config).eval()


@torch.no_grad()
def test_published_encoder(published, recorded):
    mean, logvar = published.encode(recorded["image"])
    assert relative(mean, recorded["mean"]) < TOLERANCE
    assert relative(logvar, recorded["logvar"]) < TOLERANCE
    assert relative(torch.cat([mean, logvar], 1), recorded["moments"]) < TOLERANCE
    assert relative(mean + torch.exp(0.5 * logvar) * recorded["eps"], recorded["sample"]) < TOLERANCE


@torch.no_grad()
def test_published_decoder(published, recorded):
    assert relative(published.decode(recorded["latent"]), recorded["decoded"]) < TOLERANCE
    assert (
        relative(published.decode(published.unwhiten(recorded["latent"])), recorded["decoded_of_scaled"])
        < TOLERANCE
    )
    assert relative(published.whiten(recorded["mean"]), recorded["scaled_latent"]) < TOLERANCE


@torch.no_grad()
def test_whitening_the_wrong_way_is_caught(published, recorded):
    wrong = published.whiten(recorded["latent"])
    assert relative(published.decode(wrong), recorded["decoded_of_scaled"]) > 100 * TOLERANCE
    assert relative(published.unwhiten(recorded["mean"]), recorded["scaled_latent"]) > 100 * TOLERANCE


@torch.no_grad()
def test_published_rectangle_and_flat_slices(published, recorded):
    assert relative(published.encode(recorded["image_rect"]).mean, recorded["mean_rect"]) < TOLERANCE
    assert relative(published.decode(recorded["mean_rect"]), recorded["decoded_rect"]) < TOLERANCE
    window = published.config.intensity
    air, white = (torch.full((1, 64, 64), hu) for hu in (window.hu_min, window.hu_max))
    assert relative(published.encode_hu(air).mean, recorded["mean_zeros"]) < TOLERANCE
    assert relative(published.encode_hu(white).mean, recorded["mean_ones"]) < TOLERANCE
    assert relative(published.air_latent(64), published.whiten(recorded["mean_zeros"])[0]) < TOLERANCE
    assert relative(published.white_latent((64, 64)), published.whiten(recorded["mean_ones"])[0]) < TOLERANCE


@torch.no_grad()
def test_one_channel_weights_do_the_same_to_grey_images(parity_dir, recorded):
    folder = parity_dir / "vae/tiny"
    three, one = load_avae(folder), load_avae(folder, channels=1)
    grey = recorded["image"][:, :1]
    assert one.config.in_channels == 1
    assert relative(one.encode(grey).mean, three.encode(grey).mean) < TOLERANCE
    assert (
        relative(one.decode(recorded["latent"])[:, 0], three.decode(recorded["latent"]).mean(1)) < TOLERANCE
    )
    assert torch.allclose(
        one.decode_to_hu(recorded["latent"]), three.decode_to_hu(recorded["latent"]), atol=0.1
    )


def test_only_the_diffusers_layout_clamps(parity_dir):
    folder = parity_dir / "vae/tiny"
    for path, clamped in ((folder, True), (folder / "ae_bfl.safetensors", False)):
        model = load_avae(path)
        with torch.no_grad():
            model.net.encoder.conv_out.bias[model.config.latent_channels :] = 1000.0
            logvar = model.encode(torch.zeros(1, 1, 16, 16)).logvar
        assert (float(logvar.max()) == 20.0) is clamped


@torch.no_grad()
def test_decoding_twice_gives_the_same(tiny):
    latents = torch.randn(2, 4, 4, 4)
    before = latents.clone()
    first = tiny.decode_to_hu(latents)
    assert torch.equal(first, tiny.decode_to_hu(latents))
    assert torch.equal(latents, before)


@torch.no_grad()
def test_hu_in_and_out(tiny):
    hu = torch.randint(-1200, 1600, (3, 32, 48)).float()
    posterior = tiny.encode_hu(hu)
    assert posterior.mean.shape == (3, 4, 2, 3)
    assert torch.equal(posterior.mean, tiny.encode_hu(hu[:, None]).mean)
    out = tiny.decode_to_hu(tiny.whiten(posterior.mean), batch_size=2)
    assert out.shape == hu.shape
    assert out.min() >= -1000.0
    assert out.max() <= 1000.0
    assert torch.allclose(tiny.unwhiten(tiny.whiten(posterior.mean)), posterior.mean, atol=1e-6)


@torch.no_grad()
def test_white_spread_is_that_of_samples(tiny):
    white = torch.full((1, 32, 32), tiny.config.intensity.hu_max)
    posterior = tiny.encode_hu(white)
    generator = torch.Generator().manual_seed(0)
    samples = torch.cat([tiny.whiten(posterior.sample(generator)) for _ in range(400)])
    measured = float((samples - tiny.white_latent(32)).square().mean().sqrt())
    assert measured == pytest.approx(tiny.white_spread(32), rel=0.05)


def test_kl_matches_the_closed_form():
    posterior = Posterior(torch.full((2, 1, 3, 3), 0.7), torch.full((2, 1, 3, 3), -0.4))
    normal = torch.distributions.Normal(0.7, torch.exp(torch.tensor(-0.2)))
    expected = 9 * torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0))
    assert torch.allclose(posterior.kl(), expected.expand(2))


def test_training_reaches_every_parameter(tiny):
    # 2×2 latents: attention over a single place has no gradient but rounding
    reconstruction, posterior = tiny(torch.rand(2, 1, 32, 32))
    (reconstruction.square().mean() + posterior.kl().mean()).backward()
    silent = [name for name, p in tiny.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    tiny.zero_grad(set_to_none=True)
    # attention's key bias shifts all logits of a query alike, so softmax hides it
    assert [name for name in silent if not name.endswith("to_k.bias")] == []


def test_fingerprint_sees_encoder_and_window_but_neither_whitening_nor_decoder(tiny):
    config = tiny.config
    copies = [
        AVAE(AVAEConfig(**{**vars(config), **changed}))
        for changed in ({}, {"whitening": Whitening()}, {"intensity": IntensityWindow(hu_max=1400.0)})
    ]
    for copy in copies:
        copy.load_state_dict(tiny.state_dict())
    same, whitened, windowed = (copy.fingerprint() for copy in copies)
    assert same == whitened == tiny.fingerprint() != windowed
    with torch.no_grad():
        copies[0].last_layer[0, 0, 0, 0] += 1e-3
        assert copies[0].fingerprint() == same
        copies[0].net.encoder.conv_in.weight[0, 0, 0, 0] += 1e-3
    assert copies[0].fingerprint() != same


def test_wrong_shapes_are_named(tiny):
    with pytest.raises(CTFlowError, match="divisible by 16"):
        tiny.encode(torch.zeros(1, 1, 40, 32))
    with pytest.raises(CTFlowError, match=r"\[1, 3, 32, 32\]"):
        tiny.encode(torch.zeros(1, 3, 32, 32))
    with pytest.raises(CTFlowError, match="latents of shape"):
        tiny.decode(torch.zeros(1, 16, 2, 2))


@pytest.mark.parametrize(
    "values",
    [{"in_channels": 2}, {"block_out_channels": [30]}, {"whitening": Whitening([0.0] * 3, [1.0] * 3)}],
)
def test_impossible_configurations(values):
    with pytest.raises(ValueError, match=r"found|divisible|channels"):
        AVAEConfig(**values)
