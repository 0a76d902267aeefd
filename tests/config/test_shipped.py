"""The shipped configurations: valid, and the published ones are what was published."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ctflow.config import load_config
from ctflow.config.commands import GenerateConfig
from ctflow.config.encoders import flux_avae_config
from ctflow.config.evaluation import EvalConfig
from ctflow.config.flow_network import FlowNetworkConfig
from ctflow.config.generation import RolloutConfig
from ctflow.config.prep import IngestConfig
from ctflow.config.training import TrainConfig
from ctflow.models.fmvt_published import published_preset
from ctflow.shipped import SHIPPED_CONFIGS
from ctflow.training.schedule import learning_rate

SHIPPED = [
    path.relative_to(SHIPPED_CONFIGS).as_posix()
    for folder in ("train", "demo", "embedded", "gpu")
    for path in sorted((SHIPPED_CONFIGS / folder).glob("*.yaml"))
    if path.stem.split("_")[-1] in ("vae", "clip", "flow", "student")
]


@pytest.mark.parametrize("file", SHIPPED)
def test_shipped_configurations_are_valid(file: str) -> None:
    config = load_config(TrainConfig, SHIPPED_CONFIGS / file)
    if config.task == "flow":
        assert config.flow.network.text_tokens >= 1
    assert config.data.train.endswith("latents/train" if config.task == "flow" else "slices/train")


@pytest.mark.parametrize("size", ["S", "B", "L"])
@pytest.mark.parametrize("side", [32, 64])
def test_presets_are_the_published_sizes(size, side):
    config = load_config(TrainConfig, SHIPPED_CONFIGS / f"published/flow_{size}_{side}.yaml")
    network = replace(config.flow.network, activation_checkpointing=False)
    assert network == FlowNetworkConfig.of(published_preset(size, side))
    assert config.flow.text == "pooled"
    assert config.flow.flow.path_offset == 1e-5


def test_the_schedule_of_the_presets_is_that_of_the_large_model():
    schedule = load_config(TrainConfig, SHIPPED_CONFIGS / "published/flow_L_32.yaml").flow.optimizer
    assert learning_rate(1000, schedule) == pytest.approx(1e-4)
    assert learning_rate(2000, schedule) == pytest.approx(2e-4)
    assert learning_rate(1_002_000, schedule) == pytest.approx(2e-4 / 3**0.5)
    assert learning_rate(10**11, schedule) == 1e-6


def test_presets_of_preparation_generation_and_fine_tuning():
    folder = SHIPPED_CONFIGS / "published"
    for name, side in (("prep_256", 256), ("prep_512", 512)):
        prep = load_config(IngestConfig, folder / f"{name}.yaml")
        assert (prep.resolution, prep.z_spacing, prep.max_slices, prep.field_of_view) == (
            side,
            1.5,
            256,
            None,
        )
    for schema in (GenerateConfig, EvalConfig):  # one file serves both commands
        for name, solver in (("sampling", "euler"), ("next_block", "dopri5")):
            sampling = load_config(schema, folder / f"{name}.yaml").sampling
            assert sampling.applied_to(RolloutConfig()) == RolloutConfig(
                steps=200, solver=solver, max_slices=256
            )
    vae = load_config(TrainConfig, folder / "vae_flux.yaml")
    assert vae.autoencoder.network == flux_avae_config()
    listed = {path.stem for path in folder.glob("*.yaml")}
    sizes = {f"flow_{size}_{side}" for size in "SBL" for side in (32, 64)}
    assert listed == sizes | {"flow", "prep_256", "prep_512", "sampling", "next_block", "vae_flux"}
