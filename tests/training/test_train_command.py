"""``python -m ctflow.train`` for every task: train, export, go on, get killed, two processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import scipy.fft
import torch

from ctflow.checkpoint import load_avae, load_fmvt, load_system, load_text_encoder
from ctflow.config import load_config
from ctflow.config.training import TrainConfig
from ctflow.data import LatentDataModule
from ctflow.data.batches import BlockBatch
from ctflow.errors import ConfigError
from ctflow.models.spectrum import Spectrum
from ctflow.models.start_head import StartHead
from ctflow.processes import bf16_supported
from ctflow.train import main
from ctflow.training.tasks import TASKS

if TYPE_CHECKING:
    from tests.training.conftest import TinyData

Curves = dict[str, list[tuple[int, float]]]
ReadCurves = Callable[[Path], Curves]
DRIVER = Path(__file__).with_name("driver.py")
STEPS = 8
TOKENS = 16
"""Of a block of the tiny FMvT."""
SPLITTABLE = [
    "clip.network.bert.hidden_dropout_prob=0.0",
    "clip.network.bert.attention_probs_dropout_prob=0.0",
    "clip.network.ctvit.quantize=false",
]
"""Without what depends on how a batch is split: dropout, and codes that follow one process's tokens."""
LOSSES = {
    "autoencoder": ("train/loss", "train/discriminator", "val/psnr", "val/ssim"),
    "clip": (
        *("train/loss", "train/contrast", "train/columns", "train/pairs", "train/words"),
        *("val/contrast", "val/text_auroc", "val/side_auroc", "val/mirror_distance", "val/right_side"),
    ),
    "flow": ("train/loss", "val/loss"),
}


@pytest.fixture(scope="session")
def whole(tiny: TinyData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs folder with one uninterrupted run ``whole`` of every task."""
    runs = tmp_path_factory.mktemp("runs")
    for task in TASKS:
        main(tiny.arguments(task, runs, "name=whole", f"loop.max_steps={STEPS}"))
    return runs


def _state(checkpoint: Path) -> dict[str, torch.Tensor]:
    return torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]


def _same_vocabulary(whole: Path, runs: Path, name: str) -> None:
    """The tokenizers library breaks ties at random: runs to be compared share a vocabulary."""
    shutil.copytree(whole / "clip" / "whole" / "tokenizer", runs / "clip" / name / "tokenizer")


def _assert_equal_runs(curves_of: ReadCurves, task: str, one: Path, other: Path) -> None:
    """A run in parts has the whole run's points, and one more validation where a part ended."""
    ours, theirs = curves_of(one), curves_of(other)
    for name in LOSSES[task]:
        assert theirs[name] == [point for point in ours[name] if point[0] in dict(theirs[name])], name
    state, right = _state(one / "last.ckpt"), _state(other / "last.ckpt")
    assert state.keys() == right.keys()
    for name, value in state.items():
        assert torch.equal(value, right[name]), name


@pytest.mark.parametrize("task", TASKS)
def test_a_run_leaves_what_is_promised(whole: Path, curves_of: ReadCurves, task: str) -> None:
    folder = whole / task / "whole"
    config = load_config(TrainConfig, folder / "config.yaml")
    assert config.task == task and config.loop.max_steps == STEPS
    curves = curves_of(folder)
    assert [step for step, _ in curves["train/loss"]] == list(range(STEPS))
    assert curves["train/lr"][0][1] == 0.0 and curves["train/lr"][2][1] == pytest.approx(1e-4)
    for name in LOSSES[task]:
        assert name in curves, f"{name} missing of {sorted(curves)}"
    assert list((folder / "tensorboard").glob("events.*"))
    assert not list(folder.glob("*.partial"))


def test_the_discriminator_starts_at_its_step(whole: Path, curves_of: ReadCurves) -> None:
    curves = curves_of(whole / "autoencoder" / "whole")
    assert [step for step, _ in curves["train/discriminator"]] == list(range(3, STEPS))
    adversarial = dict(curves["train/adversarial"])
    assert adversarial[2] == 0.0 and adversarial[3] != 0.0


def test_exports_hold_the_average_and_load(whole: Path, tiny: TinyData) -> None:
    avae = load_avae(whole / "autoencoder" / "whole" / "export")
    state = _state(whole / "autoencoder" / "whole" / "last.ckpt")
    assert torch.equal(avae.last_layer, state["averaged.net.decoder.conv_out.weight"])
    assert not torch.equal(avae.last_layer, state["network.net.decoder.conv_out.weight"])
    encoder = load_text_encoder(whole / "clip" / "whole" / "export")
    assert encoder.encode(["There is no nodule."]).tokens.shape[2] == encoder.dim
    assert len(avae.config.whitening.scale) == 4
    system = load_system(whole / "flow" / "whole" / "export")
    state = _state(whole / "flow" / "whole" / "last.ckpt")
    assert torch.equal(system.fmvt.x_embedder.proj.weight, state["averaged.x_embedder.proj.weight"])
    assert (system.config.image_size, system.config.z_spacing_mm, system.config.max_slices) == (16, 4.0, 47)
    assert system.avae.fingerprint() == load_avae(tiny.avae).fingerprint()


def test_measured_whitening_gives_unit_variance(whole: Path, tiny: TinyData) -> None:
    avae = load_avae(whole / "autoencoder" / "whole" / "export")
    config = load_config(TrainConfig, whole / "autoencoder" / "whole" / "config.yaml")
    data = LatentDataModule(TASKS["autoencoder"].data(config).config)
    batches = [batch.images for batch in data.train_dataloader()]
    with torch.no_grad():
        z = avae.whiten(avae.encode_hu(torch.cat(batches)).sample(torch.Generator().manual_seed(1)))
    assert z.mean(dim=(0, 2, 3)).abs().max() < 0.2  # measured on two of many batches
    assert (z.std(dim=(0, 2, 3)) - 1).abs().max() < 0.2


@pytest.mark.parametrize("task", TASKS)
def test_stopping_and_going_on_equals_one_run(
    whole: Path, tiny: TinyData, tmp_path: Path, curves_of: ReadCurves, task: str
) -> None:
    _same_vocabulary(whole, tmp_path, "parts")
    for steps in (5, 5, STEPS):  # the second command finds nothing left to do
        main(tiny.arguments(task, tmp_path, "name=parts", f"loop.max_steps={steps}"))
    _assert_equal_runs(curves_of, task, tmp_path / task / "parts", whole / task / "whole")


@pytest.mark.slow
def test_killed_runs_go_on_as_if_nothing_had_happened(
    whole: Path, tiny: TinyData, tmp_path: Path, curves_of: ReadCurves
) -> None:
    """SIGKILL in mid-epoch, a batch after the last checkpoint: losses, weights, averages are then equal."""
    commands = [tiny.arguments(task, tmp_path, "name=killed", "loop.max_steps=1000") for task in TASKS]
    (tmp_path / "commands.json").write_text(json.dumps(commands), encoding="utf-8")
    _same_vocabulary(whole, tmp_path, "killed")
    driver = subprocess.Popen(
        [sys.executable, str(DRIVER), "kill", str(tmp_path / "commands.json")],
        stdout=subprocess.PIPE,
        encoding="utf-8",
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert driver.stdout is not None
    children = json.loads(driver.stdout.readline())
    markers = [tmp_path / task / "killed" / "hanging" for task in TASKS]
    until = time.monotonic() + 400
    while not all(marker.exists() for marker in markers) and driver.poll() is None:
        assert time.monotonic() < until, "the trainings did not come to their sixth batch"
        time.sleep(0.2)
    for child in children:
        os.kill(child, signal.SIGKILL)
    assert driver.wait(60) == 0 and all(marker.exists() for marker in markers)
    for task in TASKS:
        folder = tmp_path / task / "killed"
        assert not (folder / "export").exists()
        before = torch.load(folder / "last.ckpt", map_location="cpu", weights_only=True)
        assert before["ctflow_counters"]["updates"] == 4
        main(tiny.arguments(task, tmp_path, "name=killed", f"loop.max_steps={STEPS}"))
        _assert_equal_runs(curves_of, task, folder, whole / task / "whole")


HALF_FLOW = ["data.batch_size=2", "loop.devices=2"]
WAYS = {
    "fsdp": ["loop.strategy=fsdp"],
    "fused": ["flow.optimizer.fused=true"],
    "recompute": ["loop.strategy=fsdp", "flow.network.activation_checkpointing=true"],
}
"""Ways of training the FMvT on two processes that change no result."""


def two_processes(commands: list[Any], folder: Path, mode: str = "rank") -> None:
    """Run command lines one after the other on two gloo processes, in a mode of the driver."""
    folder.mkdir(exist_ok=True)
    (folder / "commands.json").write_text(json.dumps(commands), encoding="utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": "0"}
    command = [sys.executable, str(DRIVER), mode, str(folder / "commands.json")]
    processes = [
        subprocess.Popen(command, env=os.environ | shared | {"WORLD_SIZE": "2", "LOCAL_RANK": rank})
        for rank in "01"
    ]
    try:
        assert [process.wait(500) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()


FLOW_MODULE = "ctflow.training.flow:FlowModule"
STOPS = {
    "batch": (["loop.accumulate=1"], FLOW_MODULE, "validation_step"),
    "end": (["loop.accumulate=1"], FLOW_MODULE, "on_validation_epoch_end"),
    "rollout": (
        ["flow.monitor.rollout_every=1", "flow.monitor.cases=2"],
        "ctflow.training.monitor:RolloutMonitor",
        "_generate",
    ),
    "between two steps": (["loop.accumulate=2", "loop.val_every=3"], FLOW_MODULE, "validation_step"),
}
"""More settings of a run of two processes, and where the second one gets a signal."""


@pytest.mark.slow
def test_a_signal_to_one_process_stops_the_validation_of_all(tiny: TinyData, tmp_path: Path) -> None:
    """Their shares of it are unequal; the driver holds every status against 143."""
    more = ["loop.max_steps=7", "loop.checkpoint_every=100", "data.valid_batch_size=1"]
    commands = [
        [tiny.arguments("flow", tmp_path, f"name={name}", *HALF_FLOW, *more, *keys), *place]
        for name, (keys, *place) in STOPS.items()
    ]
    two_processes(commands, tmp_path / "ranks", mode="stop")
    saved = {
        name: torch.load(tmp_path / "flow" / name / "last.ckpt", weights_only=True)["ctflow_counters"]
        for name in STOPS
    }
    assert {name: counters["updates"] for name, counters in saved.items()} == {
        "batch": 4,
        "end": 5,  # the next batch
        "rollout": 4,
        "between two steps": 1,
    }
    assert not (tmp_path / "flow" / "batch" / "export").exists()


@pytest.fixture(scope="module")
def ranks(whole: Path, tiny: TinyData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs written by two gloo processes, each with half the batch: every task, and the FMvT in every way."""
    runs = tmp_path_factory.mktemp("ranks")
    halves = {"autoencoder": ["data.batch_size=2"], "clip": ["data.batch_size=1", *SPLITTABLE]}
    commands = [
        tiny.arguments(
            task, runs, "name=ddp", f"loop.max_steps={STEPS}", "loop.devices=2", *halves.get(task, HALF_FLOW)
        )
        for task in TASKS
    ]
    for name, way in WAYS.items():
        for steps in (5, STEPS) if name == "fsdp" else (STEPS,):
            own = [f"name={name}", f"loop.max_steps={steps}", *HALF_FLOW, *way]
            commands.append(tiny.arguments("flow", runs, *own))
    for name in ("ddp", "one"):
        _same_vocabulary(whole, runs, name)
    main(tiny.arguments("clip", runs, "name=one", f"loop.max_steps={STEPS}", *SPLITTABLE))
    two_processes(commands, runs)
    return runs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "name"), [*((task, "ddp") for task in TASKS), *(("flow", name) for name in WAYS)]
)
def test_two_processes_train_like_one(
    whole: Path, ranks: Path, curves_of: ReadCurves, task: str, name: str
) -> None:
    """The same global batch: losses within 1e-5, the exported averages too. The sharded run was resumed."""
    right_folder = ranks / task / "one" if task == "clip" else whole / task / "whole"
    ours, one = curves_of(ranks / task / name), curves_of(right_folder)
    for curve in ("train/loss", "train/contrast", "train/discriminator", "val/loss", "val/psnr"):
        if curve in one and not (name in ("fsdp", "recompute") and curve.startswith("val")):
            steps = dict(one[curve])
            values = {step: value for step, value in ours[curve] if step in steps}
            assert values == pytest.approx(steps, rel=1e-5, abs=1e-5), curve
    state, right = (_state(folder / "last.ckpt") for folder in (ranks / task / name, right_folder))
    for key, value in state.items():
        torch.testing.assert_close(
            value, right[key], rtol=1e-3, atol=1e-4, msg=lambda text, k=key: f"{k}: {text}"
        )


@pytest.mark.slow
def test_the_curves_tell_what_a_training_waits_for_and_how_much_it_does(
    whole: Path, ranks: Path, curves_of: ReadCurves
) -> None:
    for folder in (whole / "flow" / "whole", ranks / "flow" / "ddp", whole / "autoencoder" / "whole"):
        curves = {name: [value for _, value in points] for name, points in curves_of(folder).items()}
        assert all(0 <= value < 1 for value in curves["train/data_wait"]) and curves["train/data_wait"]
        assert all(value > 0 for value in curves["train/samples_per_s"])
        flow = "flow" in folder.parts
        assert flow == ("train/tokens_per_s" in curves) == ("train/share_of_peak" in curves)
        if flow:
            tokens, blocks = (curves[f"train/{name}_per_s"] for name in ("tokens", "samples"))
            assert tokens == pytest.approx([TOKENS * value for value in blocks], rel=1e-4)
            assert all(value > 0 for value in curves["train/share_of_peak"])


@pytest.mark.slow
def test_compiled_and_in_bfloat16_two_processes_stay_near_one(
    whole: Path, tiny: TinyData, tmp_path: Path, curves_of: ReadCurves
) -> None:
    """Where the processor has no bfloat16, that half is left out."""
    ways = {"compiled": ["loop.compile=true"]}
    if bf16_supported("cpu"):
        ways["bf16"] = ["loop.precision=bf16-mixed"]
    lines = [
        tiny.arguments("flow", tmp_path, f"name={name}", f"loop.max_steps={STEPS}", *HALF_FLOW, *way)
        for name, way in ways.items()
    ]
    two_processes(lines, tmp_path / "lines")
    right = dict(curves_of(whole / "flow" / "whole")["train/loss"])
    for name in ways:
        ours = dict(curves_of(tmp_path / "flow" / name)["train/loss"])
        assert ours == pytest.approx(right, rel=1e-4 if name == "compiled" else 0.05), name


def test_export_only_rewrites_the_export(whole: Path, tiny: TinyData, tmp_path: Path) -> None:
    last = whole / "flow" / "whole" / "last.ckpt"
    main(tiny.arguments("flow", tmp_path, "name=again", f"resume={last}", "export_only=true"))
    ours, right = (
        load_fmvt(folder / "export" / "fmvt") for folder in (tmp_path / "flow" / "again", last.parent)
    )
    assert torch.equal(ours.x_embedder.proj.weight, right.x_embedder.proj.weight)


def test_the_spectrum_is_measured_once_and_stays(
    whole: Path, tiny: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fine-tuning may add it; whoever starts from weights that have one keeps theirs."""
    old = whole / "flow" / "whole" / "export"
    measured = ["flow.network.spectrum=true", "flow.measured_blocks=6", "loop.max_steps=2"]
    main(tiny.arguments("flow", tmp_path, f"flow.init_from={old}", "name=added", *measured))
    start = tmp_path / "flow" / "added" / "export"
    before, added = load_fmvt(old / "fmvt"), load_fmvt(start / "fmvt")
    assert added.config == replace(before.config, spectrum=True)
    assert added.spectrum is not None and added.spectrum.power.std() > 0.01
    config = load_config(TrainConfig, tmp_path / "flow" / "added" / "config.yaml")
    data = LatentDataModule(replace(config.data, view="blocks", seed=config.seed, num_workers=0))
    data.setup("fit")
    batches = islice(data.train_dataloader(), 2)  # of four blocks each
    targets = torch.cat([batch.target for batch in batches if isinstance(batch, BlockBatch)])
    transformed = torch.from_numpy(scipy.fft.dctn(targets.numpy(), axes=(2, 3, 4), norm="ortho"))
    torch.testing.assert_close(added.spectrum.power, transformed.square().mean(dim=0), rtol=1e-3, atol=1e-4)

    monkeypatch.setattr(Spectrum, "measure", None)  # nobody measures again
    main(tiny.arguments("flow", tmp_path, f"flow.init_from={start}", "name=kept", *measured))
    kept = load_fmvt(tmp_path / "flow" / "kept" / "export" / "fmvt")
    assert kept.spectrum is not None and torch.equal(kept.spectrum.power, added.spectrum.power)
    main(
        tiny.arguments(
            "flow", tmp_path, f"flow.init_from={start}", "name=kept", *measured, "loop.max_steps=3"
        )
    )
    resumed = load_fmvt(tmp_path / "flow" / "kept" / "export" / "fmvt")
    assert resumed.spectrum is not None and torch.equal(resumed.spectrum.power, added.spectrum.power)


def test_start_directions_are_measured_once_and_their_head_alone_can_be_trained(
    whole: Path, tiny: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = whole / "flow" / "whole" / "export"
    asked = ["flow.network.start_directions=3", "flow.measured_blocks=6", "flow.trained_parts=[start_head]"]
    steps = ["loop.max_steps=3", "flow.optimizer.warmup_steps=0"]
    main(tiny.arguments("flow", tmp_path, f"flow.init_from={old}", "name=added", *asked, *steps))
    start = tmp_path / "flow" / "added" / "export"
    before, added = load_fmvt(old / "fmvt"), load_fmvt(start / "fmvt")
    assert added.config == replace(before.config, start_directions=3)
    assert added.start_head is not None and added.start_head.proj.weight.any()
    for name, value in before.state_dict().items():
        assert torch.equal(added.state_dict()[name], value), name
    units, directions = added.start_head.unit_directions(), added.start_head.directions
    torch.testing.assert_close(units @ units.T, torch.eye(3), rtol=0, atol=3e-3)

    monkeypatch.setattr(StartHead, "measure", None)  # nobody measures again
    for more in (steps[:1], ["loop.max_steps=4"]):  # another training, and its resumption
        main(tiny.arguments("flow", tmp_path, f"flow.init_from={start}", "name=kept", *asked, *more))
        kept = load_fmvt(tmp_path / "flow" / "kept" / "export" / "fmvt")
        assert kept.start_head is not None and torch.equal(kept.start_head.directions, directions)
    more = [f"flow.init_from={start}", "name=other", "flow.network.start_directions=4"]
    with pytest.raises(ConfigError, match=r"start_directions=4.*\n.*3, as the network of"):
        main(tiny.arguments("flow", tmp_path, *more))


def test_fine_tuning_starts_from_exported_weights(whole: Path, tiny: TinyData, tmp_path: Path) -> None:
    start = whole / "flow" / "whole" / "export"
    more = [f"flow.init_from={start}", "loop.max_steps=1", "name=tuned", "flow.network.hidden_size=32"]
    main(tiny.arguments("flow", tmp_path, *more))
    before, after = load_fmvt(start / "fmvt"), load_fmvt(tmp_path / "flow" / "tuned" / "export" / "fmvt")
    assert after.config == before.config  # the folder's architecture, not the command's
    # the first step of the warm-up has a learning rate of 0
    assert torch.equal(before.x_embedder.proj.weight, after.x_embedder.proj.weight)

    more = [f"flow.init_from={start}", "loop.max_steps=1", "name=headed", "flow.network.local_channels=8"]
    main(tiny.arguments("flow", tmp_path, *more))
    headed = load_fmvt(tmp_path / "flow" / "headed" / "export" / "fmvt")
    assert headed.config == replace(before.config, local_channels=8)
    assert headed.local_head is not None and headed.local_head.enter.weight.any()
    assert torch.equal(before.x_embedder.proj.weight, headed.x_embedder.proj.weight)
    more = [f"flow.init_from={tmp_path}/flow/headed/export", "name=other", "flow.network.local_channels=4"]
    with pytest.raises(ConfigError, match="local_channels=4"):
        main(tiny.arguments("flow", tmp_path, *more))
    start = tmp_path / "flow/headed/export"
    more = [f"flow.init_from={start}", "loop.max_steps=1", "name=grown", "flow.network.local_blocks=2"]
    main(tiny.arguments("flow", tmp_path, *more))
    grown = load_fmvt(tmp_path / "flow" / "grown" / "export" / "fmvt")
    assert grown.config == replace(headed.config, local_blocks=2)
    for name, value in headed.state_dict().items():
        assert torch.equal(grown.state_dict()[name], value), name
    more = [f"flow.init_from={start}", "loop.max_steps=1", "name=wide", "flow.network.local_channels=12"]
    main(tiny.arguments("flow", tmp_path, *more))
    wide = load_fmvt(tmp_path / "flow" / "wide" / "export" / "fmvt")
    assert wide.config == replace(headed.config, local_channels=12)
    assert wide.local_head is not None and wide.local_head.middle.weight[8:, :8].any()
    assert torch.equal(wide.local_head.middle.weight[:8, :8], headed.local_head.middle.weight)
    more = [f"flow.init_from={tmp_path}/flow/grown/export", "name=less", "flow.network.local_blocks=1"]
    with pytest.raises(ConfigError, match="local_blocks=1"):
        main(tiny.arguments("flow", tmp_path, *more))
    with pytest.raises(ConfigError, match="local_blocks=1 need local_channels"):
        main(tiny.arguments("flow", tmp_path, "name=headless", "flow.network.local_blocks=1"))
    # The network of init_from has heads of 8 numbers, the one that this configuration describes of 12.
    wider = "flow.network.hidden_size=24"
    with pytest.raises(ConfigError, match=r"a head's width, 8, found 12\n.*parts that fit the network of"):
        unfit = ["flow.network.fine_size=12", "flow.network.fine_depth=1", "name=unfit"]
        main(tiny.arguments("flow", tmp_path, f"flow.init_from={start}", wider, *unfit))

    fine = ["flow.network.fine_size=8", "flow.network.fine_depth=1", "flow.trained_parts=[fine]", "name=fine"]
    only = [*fine, wider, "loop.max_steps=3", "flow.optimizer.warmup_steps=0"]
    main(tiny.arguments("flow", tmp_path, f"flow.init_from={start}", *only))
    corrected = load_fmvt(tmp_path / "flow" / "fine" / "export" / "fmvt")
    assert corrected.config == replace(headed.config, fine_size=8, fine_depth=1)
    assert corrected.fine is not None and corrected.fine.final_layer.linear.weight.any()
    for name, value in headed.state_dict().items():
        assert torch.equal(corrected.state_dict()[name], value), name
    more = [f"flow.init_from={tmp_path}/flow/fine/export", "name=finer", "flow.network.fine_size=16"]
    with pytest.raises(ConfigError, match=r"fine_size=16.*\n.*8, as the network of"):
        main(tiny.arguments("flow", tmp_path, *more, "flow.network.fine_depth=1"))
    alone = [
        "flow.trained_parts=[local_head]",
        "name=alone",
        "loop.max_steps=3",
        "flow.optimizer.warmup_steps=0",
    ]
    main(tiny.arguments("flow", tmp_path, f"flow.init_from={start}", *alone))
    relearned = load_fmvt(tmp_path / "flow" / "alone" / "export" / "fmvt")
    for name, value in headed.state_dict().items():
        assert name.startswith("local_head.") or torch.equal(relearned.state_dict()[name], value), name
    changed = relearned.state_dict()["local_head.proj.weight"]
    assert not torch.equal(changed, headed.state_dict()["local_head.proj.weight"])
    more = [f"flow.init_from={start}", "name=none", "flow.trained_parts=[local_head,fine]"]
    with pytest.raises(ConfigError, match=r"no fine in the network of [^\0]*give flow.network.fine_size"):
        main(tiny.arguments("flow", tmp_path, *more))
    with pytest.raises(ConfigError, match="some of local_head, fine, start_head, found middle"):
        main(tiny.arguments("flow", tmp_path, *more[:2], "flow.trained_parts=[middle]"))
    few = ["name=few", "flow.network.start_directions=8", "flow.measured_blocks=8"]
    with pytest.raises(ConfigError, match="8 principal directions need more than 8 first blocks, found 8"):
        main(tiny.arguments("flow", tmp_path, f"flow.init_from={start}", *few))
    with pytest.raises(ConfigError, match="trained_parts needs init_from=FOLDER"):
        main(tiny.arguments("flow", tmp_path, "name=frozen", "flow.trained_parts=[fine]"))

    start = whole / "autoencoder" / "whole" / "export"
    main(
        tiny.arguments(
            "autoencoder", tmp_path, f"autoencoder.init_from={start}", "loop.max_steps=1", "name=tuned"
        )
    )
    tuned = load_avae(tmp_path / "autoencoder" / "tuned" / "export")
    assert torch.equal(tuned.last_layer, load_avae(start).last_layer)


def test_the_decoder_alone_is_trained_and_latents_stay_valid(
    whole: Path, tiny: TinyData, tmp_path: Path
) -> None:
    start = whole / "autoencoder" / "whole" / "export"
    options = ["train_encoder=false", "whitening_batches=0", f"init_from={start}", "adversary.start_step=1"]
    more = [f"autoencoder.{option}" for option in options]
    main(tiny.arguments("autoencoder", tmp_path, *more, "loop.max_steps=4", "name=decoder"))
    before, after = load_avae(start), load_avae(tmp_path / "autoencoder" / "decoder" / "export")
    assert after.fingerprint() == before.fingerprint() and after.config == before.config
    for name, value in before.net.encoder.state_dict().items():
        assert torch.equal(value, after.net.encoder.state_dict()[name]), name
    assert not torch.equal(after.last_layer, before.last_layer)


def test_rollouts_are_shown_and_measured(tiny: TinyData, tmp_path: Path, curves_of: ReadCurves) -> None:
    monitor = ["rollout_every=1", "cases=2", "max_blocks=2"]
    more = ["flow.rollout.steps=2", *(f"flow.monitor.{setting}" for setting in monitor)]
    main(tiny.arguments("flow", tmp_path, "name=shown", "loop.max_steps=2", "loop.val_every=2", *more))
    curves = curves_of(tmp_path / "flow" / "shown")
    assert {"val/fid_rand2d", "val/fvd_rand3d_f16", "val/length_error", "val/checkerboard_2"} <= curves.keys()
    assert [step for step, _ in curves["val/fid_rand2d"]] == [0, 1]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "flow" / "shown" / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    assert set(events.Tags()["images"]) == {"val/rollout_0", "val/rollout_1"}


def test_accumulation_equals_a_larger_batch(
    whole: Path, tiny: TinyData, tmp_path: Path, curves_of: ReadCurves
) -> None:
    more = [
        "name=parts",
        f"loop.max_steps={STEPS}",
        "loop.accumulate=2",
        "data.batch_size=2",
        "loop.val_every=8",
    ]
    main(tiny.arguments("flow", tmp_path, *more))
    folder = tmp_path / "flow" / "parts"
    assert torch.load(folder / "last.ckpt", weights_only=True)["ctflow_counters"] == {
        "batches": 2 * STEPS,
        "updates": STEPS,
    }
    assert curves_of(folder)["val/loss"][-1][1] == pytest.approx(
        curves_of(whole / "flow" / "whole")["val/loss"][-1][1], rel=0.05
    )


def test_time_limit_ends_a_run_with_a_checkpoint(tiny: TinyData, tmp_path: Path) -> None:
    main(tiny.arguments("flow", tmp_path, "name=short", "loop.max_steps=100000", "loop.max_minutes=0.01"))
    folder = tmp_path / "flow" / "short"
    assert (folder / "last.ckpt").is_file() and (folder / "export" / "config.yaml").is_file()


_OPEN = [f"flow.network.{key}=null" for key in ("input_size", "latent_channels", "text_dim")]


def test_the_fmvt_takes_what_is_left_open_from_the_shards(tiny: TinyData, tmp_path: Path) -> None:
    main(tiny.arguments("flow", tmp_path, *_OPEN, "name=open", "loop.max_steps=1"))
    network = load_fmvt(tmp_path / "flow" / "open" / "export" / "fmvt").config
    assert (list(network.input_size), network.latent_channels, network.text_dim) == ([16, 8, 8], 4, 8)
    saved = load_config(TrainConfig, tmp_path / "flow" / "open" / "config.yaml").flow.network
    assert saved.input_size == [16, 8, 8]


def test_few_cases_and_no_validation(
    tiny: TinyData, tmp_path: Path, curves_of: ReadCurves, caplog: pytest.LogCaptureFixture
) -> None:
    """Fewer cases than a batch are seen several times; a set without a validation split is trained on."""
    more = ["data.batch_size=15", "data.valid=", "data.in_memory=true", "loop.max_steps=1", "name=few"]
    main(tiny.arguments("clip", tmp_path, *more))
    assert "holds 6 samples, one optimizer step takes 15" in caplog.text
    assert load_config(TrainConfig, tmp_path / "clip" / "few" / "config.yaml").data.repeat == 3
    assert not any(name.startswith("val/") for name in curves_of(tmp_path / "clip" / "few"))


def test_a_set_larger_than_memory_is_read_from_disk(
    tiny: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ctflow.training.fitting.free_memory", lambda: 10_000)
    main(tiny.arguments("autoencoder", tmp_path, "data.in_memory=true", "loop.max_steps=1", "name=large"))
    assert "read from disk" in caplog.text
    assert not load_config(TrainConfig, tmp_path / "autoencoder" / "large" / "config.yaml").data.in_memory


def test_unfit_shards_are_refused(tiny: TinyData, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="input_size"):
        main(tiny.arguments("flow", tmp_path, "flow.network.input_size=[16,4,4]"))
    with pytest.raises(ConfigError, match="patch_size"):
        main(tiny.arguments("flow", tmp_path, *_OPEN, "flow.network.patch_size=[2,3,3]"))
    with pytest.raises(ConfigError, match="rollout_every"):
        main(tiny.arguments("flow", tmp_path, "loop.strategy=fsdp", "flow.monitor.rollout_every=1"))
    with pytest.raises(ConfigError, match="fingerprint"):
        main([*tiny.arguments("flow", tmp_path), f"flow.clip={tiny.avae}"])


def test_every_task_reads_its_own_default_shards() -> None:
    for task in TASKS:
        config = load_config(TrainConfig, None, [f"task={task}", "loop.max_steps=1"])
        kind = "latents" if task == "flow" else "slices"
        assert (config.data.train, config.data.valid) == tuple(
            f"runs/shards/{kind}/{split}" for split in ("train", "valid")
        )


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", ["false", "true"])
@pytest.mark.parametrize("task", TASKS)
def test_trains_on_a_gpu(tiny: TinyData, tmp_path: Path, task: str, compiled: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    more = ["name=gpu", f"loop.max_steps={STEPS}", "loop.accelerator=gpu", f"loop.compile={compiled}"]
    more += ["loop.precision=auto"]
    more += ["flow.monitor.rollout_every=1", "flow.rollout.steps=2", "flow.monitor.max_blocks=2"]
    main(tiny.arguments(task, tmp_path, *more))
    assert (tmp_path / task / "gpu" / "export" / "config.yaml").is_file()
