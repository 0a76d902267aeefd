"""``python -m ctflow.accuracy --volumes DIR``: how well anatomy and findings are read from phantoms."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ctflow.anatomy import compare_with_truth, lung_ranges, measure, save_ranges
from ctflow.anatomy.accuracy import aggregate, to_markdown
from ctflow.config import Flag, parse_command, run_command
from ctflow.config.accuracy import AccuracyConfig
from ctflow.errors import CTFlowError
from ctflow.metrics.damage import blur, noise, seam
from ctflow.types import HUVolume

log = logging.getLogger("ctflow")
TRUTH_SUFFIX = ".truth.json"
FLAGS = [
    Flag("--volumes", "volumes", {"help": "folder of phantoms with their truth files"}),
    Flag("--limit", "limit", {"type": int, "help": "measure the first so many volumes only"}),
    Flag("--output", "output", {"help": "folder for the tables"}),
]


def find_phantoms(folder: Path) -> list[tuple[Path, Path]]:
    """Pairs of (volume, truth) below a folder, in order of their paths.

    Raises:
        CTFlowError: The folder holds none.
    """
    pairs = []
    for truth in sorted(folder.rglob(f"*{TRUTH_SUFFIX}")):
        volume = truth.with_name(truth.name.removesuffix(TRUTH_SUFFIX) + ".nii.gz")
        if volume.is_file():
            pairs.append((volume, truth))
    if not pairs:
        raise CTFlowError(
            f"no phantoms in {folder}",
            f"volumes *.nii.gz, each beside its *{TRUTH_SUFFIX}",
            "make some with `python -m data_prep.phantom --output DIR --volumes 200`",
        )
    return pairs


def spoil(volume: HUVolume, config: AccuracyConfig, rng: np.random.Generator) -> HUVolume:
    """Blur, add noise, and shift blocks of slices, as configured."""
    hu = volume.hu
    damages = ((blur, config.blur_pixels), (noise, config.noise_hu), (seam, config.seam_hu))
    for damage, severity in damages:
        if severity:
            hu = damage(hu, severity, rng)
    return HUVolume(hu, volume.spacing)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every phantom, compare it with its truth, write the tables."""
    from ctflow.data.nifti import read_nifti

    config = parse_command(
        AccuracyConfig,
        "python -m ctflow.accuracy",
        "Read anatomy and findings from phantoms and compare them with the truth beside them.",
        FLAGS,
        argv,
    ).config
    if not config.volumes:
        raise CTFlowError("no folder of volumes given", "--volumes DIR", "see --help")
    pairs = find_phantoms(Path(config.volumes))
    rng = np.random.default_rng(config.seed)
    comparisons, measurements = [], []
    for volume_path, truth_path in tqdm(pairs[: config.limit or None], desc="measure", unit="volume"):
        measurement = measure(spoil(read_nifti(volume_path), config, rng))
        measurements.append(measurement)
        comparisons.append(
            compare_with_truth(measurement, json.loads(truth_path.read_text(encoding="utf-8")))
        )
    result = aggregate(comparisons)
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    (output / "anatomy-accuracy.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (output / "anatomy-accuracy.md").write_text(to_markdown(result), encoding="utf-8")
    if config.ranges_file:
        save_ranges(lung_ranges(measurements), config.ranges_file)
    log.info("accuracy on %d phantoms: %s", len(comparisons), output / "anatomy-accuracy.md")
    return 0


if __name__ == "__main__":
    run_command(main)
