"""The whole contract on three prompts, as a process of its own that is killed and started again."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ctflow.challenge.checking import problems_of
from ctflow.challenge.prompts import read_prompts
from ctflow.challenge.run import ARCHIVE, expected_names
from ctflow.config import config_to_yaml
from ctflow.config.challenge import ChallengeConfig
from ctflow.data.writers import write_volume
from ctflow.errors import CTFlowError
from ctflow.files import write_text
from ctflow.formats import Orientation
from ctflow.types import BLOCK_LENGTH, HUVolume

log = logging.getLogger("ctflow.challenge")

PROMPTS = [
    {"input_image_name": "self_test_1", "report": "Large right pleural effusion."},
    {"input_image_name": "self_test_2", "report": "No pleural effusion. The heart is of normal size."},
    {"input_image_name": "self_test_3", "report": "The heart is enlarged."},
]
_POLL_SECONDS = 0.002


def self_test(config: ChallengeConfig) -> None:
    """Test prompts, names, dtype, shape, geometry and resuming in a temporary folder; the log names each.

    Args:
        config: Weights, form, orientation and sampling are tested as given; without others, volumes are one
            block of one step.

    Raises:
        CTFlowError: Something does not hold.
    """
    with tempfile.TemporaryDirectory(prefix="ctflow-challenge-") as folder:
        root = Path(folder)
        short = replace(
            config,
            input=str(root / "input" / "prompts.json"),
            output=str(root / "output"),
            progress=str(root / "checkpoint"),
            slices=config.slices or BLOCK_LENGTH,
            sampling=replace(config.sampling, steps=config.sampling.steps or 1),
        )
        write_text(root / "config.yaml", config_to_yaml(short))
        _check_sides(root / "sides", short)
        _refuses_an_empty_report(root, short)
        _write_prompts(short, PROMPTS)
        kept = _killed_after_one(root, short)
        shutil.rmtree(short.output, ignore_errors=True)  # as between two tries; it may be too early for one
        result = _start(root).communicate()
        _check(result[1], short)
        for path, changed in kept.items():
            if path.stat().st_mtime_ns != changed:
                raise CTFlowError(f"self-test: {path.name} was made again", "what was finished is kept")
        log.info("self-test: resumed after a kill; %d finished volumes were kept", len(kept))
    log.info("self-test passed")


def _start(root: Path) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "ctflow.challenge", "--config", str(root / "config.yaml")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, encoding="utf-8"
    )


def _write_prompts(config: ChallengeConfig, prompts: list[dict[str, str]]) -> None:
    write_text(Path(config.input), json.dumps(prompts))


def _refuses_an_empty_report(root: Path, config: ChallengeConfig) -> None:
    _write_prompts(config, [*PROMPTS[:2], {**PROMPTS[2], "report": " "}])
    process = _start(root)
    told = process.communicate()[1]
    if process.returncode == 0 or "is empty" not in told or Path(config.output).exists():
        raise CTFlowError(f"self-test: an empty report ended so: {told[-500:]}", "a refusal")
    log.info("self-test: an empty report is refused")


def _killed_after_one(root: Path, config: ChallengeConfig) -> dict[Path, int]:
    """Kill a run as soon as a volume is kept; the kept files and their times."""
    process = _start(root)
    progress = Path(config.progress)
    while process.poll() is None and not _records(progress):
        time.sleep(_POLL_SECONDS)
    ended = process.poll()
    process.kill()
    told = process.communicate()[1]
    records = _records(progress)
    if ended is not None or not 0 < len(records) < len(PROMPTS):
        raise CTFlowError(
            f"self-test: the run ended with {ended} and {len(records)} volumes before it was killed:\n"
            f"{told[-2000:]}",
            "one or two volumes at the time of the kill",
        )
    volumes = [record.with_name(record.stem + config.ending) for record in records]
    return {path: path.stat().st_mtime_ns for path in (*records, *volumes)}


def _records(progress: Path) -> list[Path]:
    paths = [progress / f"{prompt['input_image_name']}.json" for prompt in PROMPTS]
    return [path for path in paths if path.is_file()]


def _check(told: str, config: ChallengeConfig) -> None:
    prompts = read_prompts(Path(config.input))
    if not Path(config.output).is_dir():
        raise CTFlowError(f"self-test: no output:\n{told[-2000:]}", "volumes")
    problems = problems_of(config, expected_names(config, prompts), [p.name for p in prompts])
    if problems:
        told = "\n".join([*problems, told[-2000:]])
        raise CTFlowError(f"self-test:\n{told}", "volumes by the contract")
    for prompt in prompts:
        image = sitk.ReadImage(str(Path(config.progress) / f"{prompt.name}{config.ending}"))
        log.info(
            "self-test: %s%s: %s, %s voxels of %s mm",
            prompt.name,
            config.ending,
            image.GetPixelIDTypeAsString(),
            " x ".join(map(str, image.GetSize())),
            " x ".join(f"{s:.3g}" for s in image.GetSpacing()),
        )
    log.info("self-test: %d volumes in %s", len(prompts), ARCHIVE if config.form == "2025" else "the output")


def _check_sides(folder: Path, config: ChallengeConfig) -> None:
    """A volume whose right, back and top are marked, by the array that those who score it get."""
    hu = np.full((5, 6, 7), -1000.0, np.float32)
    hu[:, :, -1], hu[:, -1, :], hu[-1] = 100.0, 200.0, 300.0  # right, back, top of S,P,R
    orientation: Orientation = "RAS" if config.orientation == "RAS" else "LPS"
    path = folder / f"sides{config.ending}"
    write_volume(path, HUVolume(hu, (3.0, 1.0, 1.0)), dtype="float32", orientation=orientation)
    array = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    right, back = (0, -1) if orientation == "LPS" else (-1, 0)
    if not ((array[-1] == 300).all() and (array[0, back] == 200).all() and array[0, 2, right] == 100):
        raise CTFlowError("self-test: sides of a marked volume are exchanged", f"the order of {orientation}")
    log.info("self-test: GetArrayFromImage gives %s", orientation)
