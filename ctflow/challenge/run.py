"""One volume per prompt: kept in the progress folder when made, and put where the contract has it."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
import zipfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from tqdm import tqdm

from ctflow.challenge.pace import Pace
from ctflow.challenge.prompts import Prompt, read_prompts
from ctflow.config.challenge import ChallengeConfig
from ctflow.config.commands import SamplingChoice
from ctflow.data.writers import write_volume
from ctflow.errors import CTFlowError
from ctflow.files import replaced, write_text
from ctflow.formats import Orientation
from ctflow.outputs import check_writable
from ctflow.pipeline import CTFlow, EmptyVolume, GeneratedVolume, GenerationRequest
from ctflow.processes import log_threads
from ctflow.types import BLOCK_LENGTH, HUVolume

log = logging.getLogger("ctflow.challenge")

HU_LIMIT = 1000.0
ARCHIVE = "predictions.zip"
_DRAWS = 5
"""Noises tried where a volume turns out empty."""
_PROBE_STEPS = (1, 3)


def run(config: ChallengeConfig) -> None:
    """Generate what is missing, and check that all is there.

    Raises:
        CTFlowError: Prompts, weights or folders are not as they should be, a volume cannot be made, or the
            output is not what the contract asks for.
    """
    started = time.monotonic()
    os.environ["HF_HUB_OFFLINE"] = "1"
    prompts = read_prompts(Path(config.input))
    output, progress = Path(config.output), Path(config.progress)
    if output.resolve() == progress.resolve():
        raise CTFlowError(f"output and progress are both {output}", "two folders", "give another --progress")
    for folder in (output, progress):
        check_writable(folder)
    _check_strangers(output, prompts, config)
    model = CTFlow.from_pretrained(config.checkpoint or None, config.device)
    log_threads()
    keeper = Keeper(config, model)
    keeper.sweep()
    todo = [prompt for prompt in prompts if not keeper.has(prompt)]
    log.info("%d prompts, %d volumes are kept in %s", len(prompts), len(prompts) - len(todo), progress)
    for prompt in prompts:
        if prompt not in todo and config.form == "2026":
            _copy(keeper.path(prompt), output)
    _generate(config, model, todo, keeper, started)
    if config.form == "2025":
        _pack(output / ARCHIVE, [keeper.path(prompt) for prompt in prompts])
    check_output(config, prompts)
    log.info("%d volumes in %s, all as the contract says", len(prompts), output)


class Keeper:
    """Finished volumes in the progress folder, each with a record of what it was made from.

    Args:
        config: Names the folder, and what volumes are made from.
        model: As ``config.checkpoint``.
    """

    def __init__(self, config: ChallengeConfig, model: CTFlow) -> None:
        self.folder, self.config, self.model = Path(config.progress), config, model
        self._wanted = {
            "checkpoint_sha256": model.fingerprint,
            "sampling": asdict(config.sampling.applied_to(model.system.config.rollout)),
            "form": config.form,
            "orientation": config.orientation,
            "precision": config.precision,
        }

    def path(self, prompt: Prompt) -> Path:
        """Where a volume is kept."""
        return self.folder / f"{prompt.name}{self.config.ending}"

    def request(self, prompt: Prompt) -> GenerationRequest:
        """The request to the model."""
        return GenerationRequest(prompt.report, prompt.name, self.config.seed, self.config.slices)

    def has(self, prompt: Prompt) -> bool:
        """Whether a volume was finished for this prompt, these weights and these settings."""
        try:
            record = json.loads(self._record(prompt).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        wanted = self._wanted | {"request": asdict(self.request(prompt))}
        return self.path(prompt).is_file() and all(record.get(k) == v for k, v in wanted.items())

    def keep(self, prompt: Prompt, volume: HUVolume, facts: dict[str, Any]) -> None:
        """Write a volume by the contract, then its record: where that is, the volume is whole."""
        self._record(prompt).unlink(missing_ok=True)
        clipped = HUVolume(np.clip(volume.hu, -HU_LIMIT, HU_LIMIT), volume.spacing)
        write_volume(
            self.path(prompt),
            clipped,
            "ctflow synthetic CT in HU",
            synthetic=True,
            dtype="float32",
            orientation=cast("Orientation", self.config.orientation),
        )
        record = self._wanted | {"request": asdict(self.request(prompt))} | facts
        write_text(self._record(prompt), json.dumps(record, indent=1) + "\n")

    def sweep(self) -> None:
        """Remove what a killed run left half written."""
        for partial in self.folder.glob(".*.partial.*"):
            partial.unlink(missing_ok=True)

    def _record(self, prompt: Prompt) -> Path:
        return self.folder / f"{prompt.name}.json"


def _generate(
    config: ChallengeConfig, model: CTFlow, todo: list[Prompt], keeper: Keeper, started: float
) -> None:
    pace = _probe(config, model, todo[0]) if todo and config.time_budget is not None else None
    wanted = config.sampling.applied_to(model.system.config.rollout).steps
    blocks = [_blocks(config, model, keeper.request(prompt)) for prompt in todo]
    for number, prompt in enumerate(tqdm(todo, desc="volumes", unit="volume")):
        model.check_report(keeper.request(prompt), max_unknown=1.0)  # warns, and refuses none
        steps, began = wanted, time.monotonic()
        if pace is not None and config.time_budget is not None:
            left = config.time_budget * 60 - (began - started)
            steps = pace.steps(left, blocks[number:], wanted)
            if pace.seconds(steps, sum(blocks[number:])) > left:
                log.warning("the time budget is too short for %d more volumes", len(todo) - number)
        sampling = config.sampling if steps == wanted else replace(config.sampling, steps=steps)
        result = _draw(model, keeper.request(prompt), sampling, config.precision)
        keeper.keep(prompt, result.volume, {"steps": steps, "stop": result.stop})
        if config.form == "2026":
            _copy(keeper.path(prompt), Path(config.output))
        seconds = time.monotonic() - began
        if pace is not None:
            pace.learn(steps, blocks[number], seconds)
        log.info("%s: %d slices, %d steps, %.1f s", prompt.name, len(result.volume.hu), steps, seconds)


def _draw(
    model: CTFlow, request: GenerationRequest, sampling: SamplingChoice, precision: str
) -> GeneratedVolume:
    """A volume; other noise where the first gives none, since a missing case costs more than an odd one."""
    for number in range(_DRAWS):
        noise = "" if number == 0 else f"{request.case_id}/{number}"
        (result,) = model.generate_many([replace(request, noise_id=noise)], sampling, precision=precision)
        if not isinstance(result, EmptyVolume):
            return result
        log.warning("%s", result)
    raise CTFlowError(
        f"case {request.case_id}: {_DRAWS} noises gave no slice", "a volume", "try more sampling.steps"
    )


def _probe(config: ChallengeConfig, model: CTFlow, prompt: Prompt) -> Pace:
    """Seconds of one block, measured after a first one that warms the machine up."""
    rollout = config.sampling.applied_to(model.system.config.rollout)
    if rollout.solver == "dopri5":
        raise CTFlowError("time_budget with sampling.solver=dopri5", "a solver with a number of steps")
    request = GenerationRequest(prompt.report, prompt.name, slices=BLOCK_LENGTH)
    timer: Callable[[], float] = time.monotonic
    seconds = {}
    for steps in (_PROBE_STEPS[0], *_PROBE_STEPS):
        began = timer()
        model.generate_many([request], replace(config.sampling, steps=steps), precision=config.precision)
        seconds[steps] = timer() - began
    low, high = ((steps, seconds[steps]) for steps in _PROBE_STEPS)
    return Pace.measured(low, high)


def _blocks(config: ChallengeConfig, model: CTFlow, request: GenerationRequest) -> int:
    """Blocks that a request is expected to take."""
    slices = request.slices or model.typical_slices(request)
    new = BLOCK_LENGTH - config.sampling.applied_to(model.system.config.rollout).overlap
    return 1 + max(0, -(-(slices - BLOCK_LENGTH) // new))


def _copy(path: Path, folder: Path) -> None:
    with replaced(folder / path.name) as temporary:
        shutil.copyfile(path, temporary)


def _pack(path: Path, files: list[Path]) -> None:
    with replaced(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for file in files:
            archive.write(file, file.name)


def _check_strangers(output: Path, prompts: list[Prompt], config: ChallengeConfig) -> None:
    """Refuse files in the output that belong to no prompt: they would make the count wrong.

    Raises:
        CTFlowError: Names it.
    """
    if not output.is_dir():
        return
    expected = expected_names(config, prompts)
    strangers = sorted(
        p.name for p in output.iterdir() if p.name not in expected and ".partial." not in p.name
    )
    if strangers:
        raise CTFlowError(
            f"{len(strangers)} entries in {output} belong to no prompt: {', '.join(strangers[:10])}",
            "an empty output, or one of the same prompts",
            "remove them",
        )
    for partial in output.glob(".*.partial.*"):
        partial.unlink(missing_ok=True)


def expected_names(config: ChallengeConfig, prompts: list[Prompt]) -> set[str]:
    """Names of the files that the output holds in the end."""
    return {f"{p.name}{config.ending}" for p in prompts} if config.form == "2026" else {ARCHIVE}


def check_output(config: ChallengeConfig, prompts: list[Prompt]) -> None:
    """Read the output back: names, count, type, axes, range.

    Raises:
        CTFlowError: Tells all that is not as the contract says.
    """
    from ctflow.challenge.checking import problems_of

    problems = problems_of(config, expected_names(config, prompts), [p.name for p in prompts])
    if problems:
        raise CTFlowError(
            f"the output at {config.output} does not hold to the contract:\n" + "\n".join(problems[:20]),
            f"{len(prompts)} volumes",
            "run it again; remove the progress folder if that does not help",
        )
