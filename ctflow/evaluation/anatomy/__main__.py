"""``python -m ctflow.evaluation.anatomy --volumes DIR``: how well the measuring module reads phantoms."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from ctflow.config import Flag, parse_command, run_command
from ctflow.config.measuring import MeasuringConfig
from ctflow.errors import CTFlowError
from ctflow.evaluation.anatomy.accuracy import aggregate, to_markdown
from ctflow.evaluation.anatomy.measure import measure
from ctflow.evaluation.anatomy.ranges import lung_ranges, save_ranges
from ctflow.evaluation.anatomy.truth import compare_with_truth
from ctflow.types import BLOCK_LENGTH, HUVolume

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


def spoil(volume: HUVolume, config: MeasuringConfig, rng: np.random.Generator) -> HUVolume:
    """Blur, add noise, and shift whole blocks of slices, as configured."""
    hu = volume.hu
    if config.blur_voxels:
        hu = ndimage.gaussian_filter(hu, config.blur_voxels)
    if config.noise_hu:
        hu = hu + rng.normal(0.0, config.noise_hu, hu.shape).astype(np.float32)
    if config.seam_hu:
        blocks = np.arange(hu.shape[0]) // BLOCK_LENGTH
        hu = hu + rng.normal(0.0, config.seam_hu, blocks[-1] + 1).astype(np.float32)[blocks][:, None, None]
    return HUVolume(hu, volume.spacing)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every phantom, compare it with its truth, write the tables."""
    from ctflow.data.nifti import read_nifti

    config = parse_command(
        MeasuringConfig,
        "python -m ctflow.evaluation.anatomy",
        "Accuracy of the measuring module on phantoms.",
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
