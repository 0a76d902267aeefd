"""``python -m ctflow.demo`` (``make demo``): from nothing to pictures, and a check of what they show."""

from __future__ import annotations

import csv
import logging
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from ctflow.config import parse_command
from ctflow.config.demo import DemoConfig
from ctflow.errors import CTFlowError
from ctflow.processes import run_module

log = logging.getLogger("ctflow")

DESCRIPTION = """Make phantoms and shards, train both networks briefly from scratch, generate volumes from
a few reports at several seeds with the embedded checkpoint, score it on a few cases, measure every volume.
Exit status 1 where too few of them show the anatomy, or the finding where the report puts it."""

SIZE, Z_SPACING = 128, 4.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demonstration.

    Returns:
        0 where every check holds, 1 where one does not.

    Raises:
        CTFlowError: A stage failed; its output says why.
    """
    config = parse_command(DemoConfig, "python -m ctflow.demo", DESCRIPTION, [], argv).config
    from ctflow.demo.checks import asked_sides, check_draws, measured  # these take seconds
    from ctflow.demo.page import write_page

    for report in config.reports:
        asked_sides(report)  # a report without effusions ends here, before minutes of work
    root = Path(config.output)
    if root.exists():
        shutil.rmtree(root)
    root.mkdir(parents=True)
    checkpoint = _checkpoint(config)
    stages = Stages()
    _data(config, root, stages)
    _training(config, root, checkpoint, stages)
    _generation(config, root, checkpoint, stages)
    _evaluation(config, root, checkpoint, stages)
    draws = [measured(number, seed, path) for (number, seed), path in _draws(config, root).items()]
    checks = check_draws(draws, config.reports, config.least_hits)
    phantoms = [next(_truth(root, number).rglob("*.nii.gz")) for number in range(len(config.reports))]
    write_page(root, config, str(checkpoint), draws, phantoms, checks, stages.seconds)
    for check in checks:
        (log.info if check.holds else log.error)(
            "%s %s: %s", "✓" if check.holds else "✗", check.name, check.found
        )
    log.info("all stages took %.1f minutes", sum(stages.seconds.values()) / 60)
    log.info("pictures, curves and the table: %s", root / "index.html")
    log.info("the generated CTs: %s", root / "generated")
    return 0 if all(check.holds for check in checks) else 1


class Stages:
    """Runs the project's own commands one after the other and keeps their times."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def run(self, name: str, module: str, arguments: Sequence[str]) -> None:
        """Run ``python -m module`` with its output on this one's.

        Raises:
            CTFlowError: It ended with another status than 0.
        """
        log.info("== %s: python -m %s %s", name, module, " ".join(arguments))
        began = time.perf_counter()
        status = run_module(module, arguments)
        self.seconds[name] = time.perf_counter() - began
        if status:
            raise CTFlowError(f"{name} ended with status {status}", "0", "its output above says why")


def _checkpoint(config: DemoConfig) -> Path:
    from ctflow.pipeline import EMBEDDED, resolve_checkpoint

    return resolve_checkpoint(config.checkpoint or EMBEDDED)


def _data(config: DemoConfig, root: Path, stages: Stages) -> None:
    phantoms = ["--output", f"{root}/phantoms", "--volumes", str(config.volumes), "--seed", str(config.seed)]
    stages.run("phantoms", "data_prep.phantom", [*phantoms, "--size", str(SIZE), "valid_fraction=0.3"])
    prepare = ["--source", f"{root}/phantoms", "--output", f"{root}/shards/slices"]
    stages.run(
        "slice shards", "data_prep.ct_rate", [*prepare, f"resolution={SIZE}", f"z_spacing={Z_SPACING}"]
    )


def _training(config: DemoConfig, root: Path, checkpoint: Path, stages: Stages) -> None:
    common = [f"runs_dir={root}", "name=scratch", f"seed={config.seed}"]
    slices, latents = f"{root}/shards/slices", f"{root}/shards/latents"
    stages.run(
        "A-VAE from scratch",
        "ctflow.train",
        ["--config", "configs/demo/vae.yaml", *common, f"loop.max_minutes={config.vae_minutes}"]
        + [f"data.train={slices}/train", f"data.valid={slices}/valid"],
    )
    for split in ("train", "valid"):
        weights = [f"avae={root}/autoencoder/scratch/export", f"clip={checkpoint}/clip"]
        places = [f"source={slices}/{split}", f"output={latents}/{split}"]
        stages.run(f"latent shards ({split})", "data_prep.encode", [*weights, *places])
    stages.run(
        "FMvT from scratch",
        "ctflow.train",
        ["--config", "configs/demo/flow.yaml", *common, f"loop.max_minutes={config.flow_minutes}"]
        + [f"data.train={latents}/train", f"data.valid={latents}/valid"],
    )


def _draws(config: DemoConfig, root: Path) -> dict[tuple[int, int], Path]:
    """Where the volume of each (report's number, seed) lies."""
    seeds = range(config.seed, config.seed + config.seeds)
    folder = root / "generated"
    return {
        (number, seed): folder / f"report{number + 1}_seed{seed}.nii.gz"
        for number in range(len(config.reports))
        for seed in seeds
    }


def _truth(root: Path, number: int) -> Path:
    """Where the phantom of a report lies."""
    return root / "truth" / f"report{number + 1}"


def _generation(config: DemoConfig, root: Path, checkpoint: Path, stages: Stages) -> None:
    table = root / "reports.csv"
    draws = _draws(config, root)
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["case_id", "report", "seed", "noise_id"])
        for (number, seed), path in draws.items():
            writer.writerow([path.name.removesuffix(".nii.gz"), config.reports[number], seed, "demo"])
    arguments = ["--checkpoint", str(checkpoint), "--reports", str(table), "--output", f"{root}/generated"]
    stages.run(f"{len(draws)} volumes", "ctflow.generate", [*arguments, f"batch_size={config.seeds}"])
    for number, report in enumerate(config.reports):
        one = ["--output", str(_truth(root, number)), "--volumes", "1", "--seed", str(config.seed)]
        same = ["--size", str(SIZE), f"slice_spacing={Z_SPACING}", "valid_fraction=0", "--report", report]
        stages.run(f"a phantom of report {number + 1}", "data_prep.phantom", [*one, *same])


def _evaluation(config: DemoConfig, root: Path, checkpoint: Path, stages: Stages) -> None:
    arguments = ["--checkpoint", str(checkpoint), "--setting", "next-block", f"cases={config.eval_cases}"]
    places = [f"slices={root}/shards/slices/valid", f"output={root}/eval", f"cache={root}/eval/cache"]
    stages.run("scores of a few cases", "ctflow.eval", [*arguments, *places])
