"""The range of the phantoms' lung volumes: what a plausible generated chest is held against."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from ctflow.anatomy.types import SIDES, Measurement
from ctflow.errors import CTFlowError

RESOURCE = "phantom_ranges.json"


@dataclass(frozen=True)
class LungRanges:
    """1st and 99th percentile of each lung's measured aerated volume over a set of phantoms.

    Attributes:
        volumes: How many phantoms were measured.
        lung_ml: Per side, (1 %, 99 %).
    """

    volumes: int
    lung_ml: dict[str, tuple[float, float]]

    def holds(self, measurement: Measurement) -> dict[str, bool]:
        """Per side, whether the measured lung lies within the range."""
        return {
            side: self.lung_ml[side][0] <= measurement.lungs.volume_ml[side] <= self.lung_ml[side][1]
            for side in SIDES
        }


def lung_ranges(measurements: Sequence[Measurement]) -> LungRanges:
    """The 1–99 % range over measurements."""
    if not measurements:
        raise ValueError("a range needs at least one measurement, found none")
    ranges = {}
    for side in SIDES:
        low, high = np.percentile([m.lungs.volume_ml[side] for m in measurements], [1, 99])
        ranges[side] = (round(float(low), 1), round(float(high), 1))
    return LungRanges(len(measurements), ranges)


def phantom_ranges(file: Path | str | None = None) -> LungRanges:
    """The range shipped with the module (its command is in docs/anatomy.md), or one in a file.

    Raises:
        CTFlowError: The file is missing or holds no ranges.
    """
    source = Path(file) if file else resources.files("ctflow.anatomy") / RESOURCE
    try:
        stored = json.loads(source.read_text(encoding="utf-8"))
        return LungRanges(int(stored["volumes"]), {side: tuple(stored["lung_ml"][side]) for side in SIDES})
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise CTFlowError(
            f"no lung ranges in {source}: {error}",
            "a JSON with volumes and lung_ml",
            "measure phantoms with `python -m ctflow.accuracy --volumes DIR ranges_file=FILE`",
        ) from error


def save_ranges(ranges: LungRanges, file: Path | str) -> None:
    """Write ranges as the JSON that ``phantom_ranges`` reads."""
    stored = {"volumes": ranges.volumes, "lung_ml": {side: list(ranges.lung_ml[side]) for side in SIDES}}
    Path(file).write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
