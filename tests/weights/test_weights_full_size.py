"""The full-size networks: parameter counts, exact key listings, one forward each."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from ctflow.config.encoders import flux_avae_config, published_ctclip_config
from ctflow.models import AVAE, CTCLIP, Conditions, FMvT
from ctflow.models.avae_published import to_single_file
from ctflow.models.ctclip_published import ctclip_state_to_published
from ctflow.models.fmvt_published import published_preset


@pytest.fixture(scope="module")
def layouts(parity_dir) -> Path:
    return parity_dir / "layouts"


def listing(path: Path) -> dict[str, str]:
    lines = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    return {line[0]: line[1] for line in lines}


def shapes(state) -> dict[str, str]:
    return {key: str(list(value.shape)) for key, value in state.items()}


def test_autoencoder_keys_in_both_layouts(layouts):
    with torch.device("meta"):
        model = AVAE(flux_avae_config())
    assert sum(p.numel() for p in model.parameters()) == 83_819_683
    state = model.net.state_dict()
    single = to_single_file(state, levels=4)
    with (layouts / "flux_vae_keys.tsv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert len(rows) == 244
    assert shapes(state) == {row["diffusers_key"]: row["diffusers_shape"] for row in rows}
    assert shapes(single) == {row["bfl_key"]: row["bfl_shape"] for row in rows}
    # equal sets are not enough: each key must go to its own partner
    partners = dict(zip(state, single, strict=True))
    assert partners == {row["diffusers_key"]: row["bfl_key"] for row in rows}


@pytest.mark.parametrize("position_ids", [True, False])
def test_ctclip_keys(layouts, position_ids):
    config = published_ctclip_config()
    config.published_position_ids = position_ids
    with torch.device("meta"):
        found = shapes(ctclip_state_to_published(CTCLIP(config).state_dict()))
    expected = listing(layouts / "ctclip_state_dict.txt")
    if not position_ids:
        del expected["text_transformer.embeddings.position_ids"]
    assert found == expected


@torch.no_grad()
def test_ctclip_carries_a_whole_volume_to_its_latent():
    """Shapes alone, on the meta device: no values are computed."""
    with torch.device("meta"):
        model = CTCLIP(published_ctclip_config()).eval()
        encoding = model.encode_volume(torch.empty(2, 1, 240, 480, 480))
    assert encoding.embedding.shape == (2, 294_912)
    assert encoding.latent.shape == (2, 512)


@pytest.mark.slow
@pytest.mark.timeout(3000)  # half a minute on a quiet machine
@pytest.mark.parametrize("size", ["S", "B", "L"])
@torch.no_grad()
def test_transformer_runs(size):
    torch.manual_seed(0)
    model = FMvT(published_preset(size)).eval()
    torch.nn.init.normal_(model.final_layer.linear.weight, std=0.02)  # it starts at zero
    x, previous = torch.randn(2, 1, 16, 16, 32, 32).unbind(0)
    out = model(x, torch.tensor([0.5]), Conditions(torch.randn(1, 1, 768), previous))
    assert out.shape == x.shape
    assert torch.isfinite(out).all()
    assert out.std() > 0


@pytest.mark.slow
@torch.no_grad()
def test_autoencoder_runs():
    torch.manual_seed(0)
    model = AVAE(flux_avae_config()).eval()
    hu = torch.randint(-1000, 1400, (1, 256, 256)).float()
    posterior = model.encode_hu(hu)
    assert posterior.mean.shape == (1, 16, 32, 32)
    out = model.decode_to_hu(model.whiten(posterior.mean))
    assert out.shape == hu.shape
    assert torch.isfinite(out).all()


@pytest.mark.slow
@pytest.mark.timeout(3000)
@torch.no_grad()
def test_ctclip_runs():
    torch.manual_seed(0)
    model = CTCLIP(published_ctclip_config()).eval()
    text = model.encode_text(torch.randint(1000, 2000, (1, 512)), torch.ones(1, 512, dtype=torch.long))
    volume = model.encode_image(torch.rand(1, 1, 240, 480, 480) * 2 - 1)
    assert text.tokens.shape == (1, 512, 768)
    assert volume.shape == text.latent.shape == (1, 512)
    assert torch.isfinite(model.similarity(text.latent, volume)).all()
