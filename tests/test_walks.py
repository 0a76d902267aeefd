"""How many files lie on the three ways that a newcomer follows: traced, and held against ``docs/code.md``."""

from __future__ import annotations

import re
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np

from ctflow.data.nifti import write_nifti
from ctflow.types import HUVolume

ROOT = Path(__file__).resolve().parents[1]
LIMITS = {"report to NIfTI": 15, "volume to FID": 14, "scan to training step": 35}
"""Files on each way at most."""
ROOMS = 20
"""Files of the evaluation at most."""
FUNCTION = 0x2
"""Flag of code that runs in a frame of its own: bodies of modules and classes run when they are imported."""


def ground_floor() -> tuple[str, ...]:
    """The helpers of the lowest floor in the import contract; they are named apart."""
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    names = contract["contracts"][0]["layers"][-1].split(" : ")
    return tuple(name.replace(".", "/") for name in names)


@contextmanager
def traced(*waypoints: Callable[..., Any]) -> Iterator[set[str]]:
    """Files of the product whose functions run while one of the waypoints is on the stack."""
    inside = {_code(waypoint) for waypoint in waypoints}
    found: set[str] = set()
    depth = 0

    def look(frame: FrameType, event: str, arg: object) -> None:
        nonlocal depth
        if event not in ("call", "return"):
            return
        code = frame.f_code
        if code in inside:
            depth += 1 if event == "call" else -1
        name = code.co_filename
        ours = code.co_flags & FUNCTION and name.startswith((f"{ROOT}/ctflow/", f"{ROOT}/data_prep/"))
        if event == "call" and depth and ours:
            found.add(name.removeprefix(f"{ROOT}/"))

    sys.setprofile(look)
    threading.setprofile(look)  # of threads that a waypoint starts
    try:
        yield found
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def _code(function: Callable[..., Any]) -> CodeType:
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function.__code__


def main_road(files: set[str], *side_roads: str) -> set[str]:
    """Without the ground floor and without the side roads that the documentation names."""
    apart = tuple(f"{name}{end}" for name in ground_floor() for end in (".py", "/"))
    return {name for name in files if not name.startswith((*apart, *side_roads))}


def check(walk: str, files: set[str]) -> None:
    """The files are those that the documentation lists, and no more than allowed."""
    text = (ROOT / "docs" / "code.md").read_text(encoding="utf-8")
    section = re.search(
        rf"^### {walk}: (\d+) files\n(.*?)(?=^#|\Z)", text, re.DOTALL | re.MULTILINE | re.IGNORECASE
    )
    assert section is not None, f"docs/code.md has no list of {walk}"
    assert files == set(re.findall(r"`((?:ctflow|data_prep)/[\w/]+\.py)`", section[2]))
    assert int(section[1]) == len(files) <= LIMITS[walk]


def test_the_evaluation_has_few_rooms() -> None:
    rooms = {path for path in (ROOT / "ctflow" / "evaluation").rglob("*.py") if path.name != "__init__.py"}
    assert len(rooms) <= ROOMS
    section = (ROOT / "docs" / "code.md").read_text(encoding="utf-8").split("## Rooms of the evaluation")[1]
    named = set(re.findall(r"`(\w+)`", section.split("\n## ")[0]))
    assert {path.stem for path in rooms} <= named, "docs/code.md says what each room is for"


def chest(slices: int, side: int, seed: int) -> np.ndarray:
    """Air, a body of soft tissue with noise, and two lungs."""
    noise = np.random.default_rng(seed).normal(0, 30, (slices, side, side))
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in noise.shape), indexing="ij")
    body = (x / 0.8) ** 2 + (y / 0.6) ** 2 < 1
    lungs = ((np.abs(x) - 0.35) / 0.25) ** 2 + (y / 0.4) ** 2 + (z / 1.2) ** 2 < 1
    return np.where(lungs, -850, np.where(body, 40, -1000)).astype(np.float32) + np.where(
        body, noise, 0
    ).astype(np.float32)


def test_report_to_nifti(tiny_checkpoint: Path, tmp_path: Path) -> None:
    from ctflow.data.writers import write_volume
    from ctflow.pipeline import CTFlow

    model = CTFlow.from_pretrained(tiny_checkpoint, device="cpu")
    with traced(CTFlow.generate, write_volume) as files:
        made = model.generate("A nodule.", slices=20)
        write_volume(tmp_path / "x.nii.gz", made)
    check("report to NIfTI", main_road(files))


def test_volume_to_fid(tmp_path: Path) -> None:
    from ctflow.config.evaluation import EvalConfig, ExternalConfig
    from ctflow.evaluation.external import evaluate_external
    from ctflow.processes import Ranks

    for seed, folder in enumerate(("fake", "real")):
        (tmp_path / folder).mkdir()
        for number in range(8):
            volume = HUVolume(chest(20, 32, 10 * seed + number), (12.0, 12.0, 12.0))
            write_nifti(tmp_path / folder / f"{number}.nii.gz", volume)
    external = ExternalConfig(str(tmp_path / "fake"), str(tmp_path / "real"))
    config = EvalConfig(external=external, cache=str(tmp_path / "cache"), clip_lengths=[16], device="cpu")
    with traced(evaluate_external) as files:
        results = evaluate_external(config, None, Ranks())
    assert any(row.metric == "fid_rand2d" and not row.missing for row in results.rows)
    check(
        "volume to FID",
        main_road(
            files, "ctflow/metrics/monitors/", "ctflow/evaluation/compare.py", "ctflow/metrics/neighbours"
        ),
    )


def test_scan_to_training_step(tiny_checkpoint: Path, tmp_path: Path) -> None:
    from ctflow.config.prep import IngestConfig
    from ctflow.data import LatentDataModule, SliceRecord, SliceShardWriter
    from ctflow.data.stream import TrainLoader
    from ctflow.train import main as train
    from ctflow.training.flow import FlowModule
    from data_prep import encode
    from data_prep.ct_rate.discovery import find_items
    from data_prep.ct_rate.prepare import Job, prepare
    from data_prep.ct_rate.tables import CsvRow
    from data_prep.encode_predict import EncodeLoader, Encoder, ShardWriting

    write_nifti(tmp_path / "scan.nii.gz", HUVolume(chest(40, 64, 0), (6.0, 6.0, 6.0)))
    config = IngestConfig(source=str(tmp_path), output=str(tmp_path), resolution=32, z_spacing=None)
    staged = tmp_path / "staged.npy"
    with traced(prepare, SliceShardWriter.append) as ingest:
        outcome = prepare(Job(find_items(tmp_path).items[0], CsvRow(report="A nodule."), config, str(staged)))
        assert outcome.usable, outcome.reasons
        with SliceShardWriter(tmp_path / "slices") as writer:
            z, y, x = outcome.spacing
            writer.append(SliceRecord("scan", "scan", np.load(staged), (z, y, x), outcome.report))
    parts = [f"avae={tiny_checkpoint}/avae", f"clip={tiny_checkpoint}/clip", "accelerator=cpu"]
    with traced(EncodeLoader.__iter__, Encoder.predict_step, ShardWriting.on_predict_batch_end) as encoding:
        encode.main([f"source={tmp_path}/slices", f"output={tmp_path}/latents", *parts])
    steps = (LatentDataModule.train_dataloader, TrainLoader.__iter__, FlowModule.training_step)
    with traced(*steps) as training:
        train(
            [
                *("task=flow", f"runs_dir={tmp_path}/runs", "default_data.make=false", "data.batch_size=1"),
                *(f"data.train={tmp_path}/latents", f"data.valid={tmp_path}/latents", "loop.max_steps=1"),
                *("loop.accelerator=cpu", "loop.precision=32-true", "flow.monitor.rollout_every=0"),
                *("flow.network.patch_size=[4,4,4]", "flow.network.hidden_size=16", "flow.network.depth=1"),
                *("flow.network.num_heads=2", "flow.optimizer.warmup_steps=1"),
                *(f"flow.avae={tiny_checkpoint}/avae", f"flow.clip={tiny_checkpoint}/clip"),
            ]
        )
    check("scan to training step", main_road(ingest | encoding | training))
