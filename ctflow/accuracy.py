"""``python -m ctflow.accuracy --volumes DIR``: how well anatomy and findings are read from phantoms."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ctflow.anatomy import SIDED, compare_with_truth, lung_ranges, measure, save_ranges
from ctflow.anatomy.accuracy import aggregate
from ctflow.config import Flag, parse_command, run_command
from ctflow.config.accuracy import AccuracyConfig
from ctflow.errors import CTFlowError
from ctflow.files import write_text
from ctflow.metrics.damage import blur, noise, seam
from ctflow.pages import Page, Table
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


def accuracy_page(result: dict[str, Any]) -> Page:
    """The result of ``aggregate`` as tables of anatomy, findings and nodules by diameter."""
    page, anatomy = Page("Accuracy on phantoms"), result["anatomy"]
    page.text(f"{result['volumes']} volumes.")
    errors = ["error, mean", "error, median of absolute", "error, 95 % of absolute"]
    rows = (
        ("two lungs; aerated volume of each", "two_lungs", "lung_error_percent", "%"),
        ("spine; centre", "spine", "spine_error_mm", "mm"),
        ("heart; width", "heart", "heart_error_mm", "mm"),
        ("trachea; carina", "trachea", "trachea_error_mm", "mm"),
    )
    lines = [
        [
            name,
            _percent(anatomy[share]),
            *(_number(anatomy[error][key], unit) for key in ("bias", "median_absolute", "p95_absolute")),
        ]
        for name, share, error, unit in rows
    ]
    page.table(Table(["anatomy", "found", *errors], lines))
    header = ["finding", "volumes with it", "recall", "false positives", "side right", "size error, mean"]
    lines = [
        [
            label,
            str(row["n"]),
            *(_percent(row[key]) for key in ("recall", "false_positive_rate")),
            _percent(row["side_accuracy"] if label in SIDED else None),
            *(_number(row["size_error_percent"][key], "%") for key in ("bias", "median_absolute")),
        ]
        for label, row in result["findings"].items()
    ]
    page.table(Table([*header, "median of absolute"], lines))
    header = ["nodule diameter", "true", "recall", "diameter error, mean", "median of absolute"]
    lines = [
        [
            f"{row['from_mm']:.0f}–{row['to_mm']:.0f} mm",
            str(row["n"]),
            _percent(row["recall"]),
            *(_number(row["diameter_error_mm"][key], "mm") for key in ("bias", "median_absolute")),
            _number(row["false_positives_per_volume"], digits=2),
        ]
        for row in result["nodules"]
    ]
    page.table(Table([*header, "false positives per volume"], lines))
    page.text(f"Nodules given the right side: {_percent(result['nodule_side_accuracy'])}.")
    return page


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _number(value: float | None, unit: str = "", digits: int = 1) -> str:
    return "–" if value is None else f"{value:.{digits}f} {unit}".rstrip()


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
    write_text(output / "anatomy-accuracy.json", json.dumps(result, indent=1) + "\n")
    write_text(output / "anatomy-accuracy.md", accuracy_page(result).markdown())
    if config.ranges_file:
        save_ranges(lung_ranges(measurements), config.ranges_file)
    log.info("accuracy on %d phantoms: %s", len(comparisons), output / "anatomy-accuracy.md")
    return 0


if __name__ == "__main__":
    run_command(main)
