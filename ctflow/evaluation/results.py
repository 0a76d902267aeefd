"""The results of an evaluation, and the facts needed to compare or repeat it."""

from __future__ import annotations

import math
import platform
import resource
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from numpy.typing import NDArray

import ctflow
from ctflow.anatomy import LABELS, Agreement, check_labels
from ctflow.config.evaluation import EvalConfig
from ctflow.evaluation.cases import CaseSets, RealCase, read_truth
from ctflow.evaluation.features import CaseFeatures, FeaturePlan
from ctflow.metrics.backbones import Backbones
from ctflow.metrics.bias import Interval
from ctflow.metrics.images import SCORE_WINDOW
from ctflow.processes import launched_number

MODEL, OTHER_REAL, RECONSTRUCTION = "model", "floor: other real cases", "floor: A-VAE of other real cases"
NOT_AVAILABLE, DOES_NOT_EXIST = "n/a", "–"
NOT_EXTRAPOLATED = "not extrapolated: "


@dataclass(frozen=True)
class Row:
    """A line of the table: one number, with all that must be known of it.

    Attributes:
        setting: Setting, or the name of an external set.
        source: The model, or which floor.
        metric: Name; stand-in backbones have their own.
        resolution: Side in pixels; 0 where the metric has none.
        value: The number; NaN where there is none, see ``reason``.
        low: Lower end of its 95 % interval; NaN without one.
        high: Upper end.
        extrapolated: The number at infinite N; NaN without one.
        extrapolated_low: Lower end of its 95 % interval.
        extrapolated_high: Upper end.
        samples: Slices, clips or cases scored.
        reference: Slices, clips or cases they are compared with; 0 where there are none.
        cases: Cases they come from.
        empty: What is printed instead of a missing number: ``n/a`` or ``–``.
        reason: Why a number is missing, or what to know about it.
    """

    setting: str
    source: str
    metric: str
    resolution: int = 0
    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    extrapolated: float = math.nan
    extrapolated_low: float = math.nan
    extrapolated_high: float = math.nan
    samples: int = 0
    reference: int = 0
    cases: int = 0
    empty: str = ""
    reason: str = ""

    @property
    def missing(self) -> bool:
        """Whether there is not a number."""
        return not math.isfinite(self.value)

    def text(self) -> str:
        """The number with its interval, as printed."""
        return self.empty or NOT_AVAILABLE if self.missing else _interval(self.value, self.low, self.high)

    def extrapolated_text(self) -> str:
        """The extrapolated number with its interval, as printed; empty for what needs no extrapolation."""
        if not math.isfinite(self.extrapolated):
            wanted = self.missing or NOT_EXTRAPOLATED in self.reason
            return self.empty or NOT_AVAILABLE if wanted else ""
        return _interval(self.extrapolated, self.extrapolated_low, self.extrapolated_high)

    def noted(self, note: str) -> Row:
        """The row with one more remark."""
        return replace(self, reason="; ".join(part for part in (self.reason, note) if part))

    def without(self, reason: str, empty: str = NOT_AVAILABLE) -> Row:
        """The row without a number, and why."""
        return replace(self.noted(reason), empty=empty)

    def with_value(self, interval: Interval) -> Row:
        """The row with a value and its interval."""
        return replace(self, value=interval.value, low=interval.low, high=interval.high)

    def with_extrapolation(self, interval: Interval) -> Row:
        """The row with the value at infinite N and its interval."""
        return replace(
            self,
            extrapolated=interval.value,
            extrapolated_low=interval.low,
            extrapolated_high=interval.high,
        )


@dataclass(frozen=True)
class Reading:
    """One monitor over one set.

    Attributes:
        setting: Setting, or the name of an external set.
        source: The model, or which floor.
        monitor: Its name.
        value: NaN where it does not exist.
        threshold: Beyond it an alarm is raised; NaN without one.
        alarm: Whether it is.
        reason: Why there is no value.
    """

    setting: str
    source: str
    monitor: str
    value: float
    threshold: float
    alarm: bool
    reason: str = ""


@dataclass(frozen=True)
class Picture:
    """A montage of a scored volume.

    Attributes:
        case_id: The case.
        distance: Of its mean slice features from the reference, in the reference's standard deviations (RMS).
        image: 8-bit grey ``[height, width]``.
        volumes: Title to a small NIfTI file, for the viewer; empty: none is shown.
    """

    case_id: str
    distance: float
    image: NDArray[np.uint8]
    volumes: Mapping[str, bytes] = field(default_factory=dict)


def placed(pictures: Sequence[Picture]) -> dict[str, Picture]:
    """The pictures that a page shows, of those sorted by their distance."""
    if not pictures:
        return {}
    places = {"nearest to the real set": 0, "median": len(pictures) // 2, "farthest": len(pictures) - 1}
    return {name: pictures[place] for name, place in places.items()}


def with_volumes(
    pictures: Sequence[Picture], make: Callable[[Sequence[str]], dict[str, dict[str, bytes]]]
) -> list[Picture]:
    """The same, with the volumes of those that a page shows.

    Args:
        pictures: Sorted by their distance.
        make: From case ids to their volumes by title.
    """
    made = make(list(dict.fromkeys(picture.case_id for picture in placed(pictures).values())))
    return [replace(picture, volumes=made.get(picture.case_id, {})) for picture in pictures]


@dataclass
class Results:
    """All results of one run.

    Attributes:
        rows: The table.
        readings: The monitors.
        provenance: What was compared, with what, how.
        pictures: By setting, nearest to the reference first.
        between: Rows over the slices that all settings share, and their ratios.
        findings: The table of findings on phantoms: dictionaries with equal keys.
    """

    rows: list[Row] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, list[Picture]] = field(default_factory=dict)
    between: list[Row] = field(default_factory=list)
    findings: list[dict[str, Any]] = field(default_factory=list)

    @property
    def alarms(self) -> list[Reading]:
        """The model's readings beyond their thresholds."""
        return [reading for reading in self.readings if reading.alarm and reading.source == MODEL]


def number(value: float) -> str:
    """Four significant digits, no exponent for everyday sizes."""
    if value == 0 or 1e-4 <= abs(value) < 1e6:
        return f"{value:.{max(0, 3 - math.floor(math.log10(abs(value))))}f}" if value else "0"
    return f"{value:.3g}"


def _interval(value: float, low: float, high: float) -> str:
    text = number(value)
    return f"{text} [{number(low)}, {number(high)}]" if math.isfinite(low) and math.isfinite(high) else text


PACKAGES = ("torch", "torchmetrics", "torch-fidelity", "numpy", "scipy")


def run_facts(config: EvalConfig, seconds: float, argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Facts of any run of the command, as JSON values.

    Args:
        config: What was asked for.
        seconds: Wall time so far.
        argv: Arguments of the command; None: this process's own.
    """
    processes = launched_number("WORLD_SIZE") or 1
    launcher = "python" if processes == 1 else f"torchrun --nproc-per-node {processes}"
    arguments = shlex.join(sys.argv[1:] if argv is None else argv)
    return {
        "command": f"{launcher} -m ctflow.eval {arguments}".rstrip(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": config.seed,
        "versions": {"python": platform.python_version(), "ctflow": ctflow.__version__, **_versions()},
        "processes": processes,
        "seconds": round(seconds, 1),
        "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def provenance(
    config: EvalConfig,
    plan: FeaturePlan,
    backbones: Backbones,
    sets: CaseSets,
    model: dict[str, Any],
    seconds: float,
    argv: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The provenance of a table, as JSON values."""
    low, high = SCORE_WINDOW
    strides = ", ".join(f"{n} slices every {plan.stride(n)}" for n in plan.clip_lengths)
    return {
        **run_facts(config, seconds, argv),
        **model,
        "case_set_sha256": sets.digest,
        "cases": len(sets.evaluated),
        "floor_cases": len(sets.others),
        "protocol": config.protocol,
        "hu_window": f"[{low:g}, {high:g}] HU to 0 … 255, rounded",
        "resize": "bilinear, antialiased, after clipping to the window",
        "slices": "all that the setting may score; reference: real slices at the positions it may score",
        "clips": f"{strides}, from the inferior end",
        "resolutions": list(plan.resolutions),
        "covariance_ddof": 1,
        "interval": "95 %, delete-a-group jackknife over cases (10 groups); extrapolation: linear in 1/N",
        "backbones_sha256": backbones.hashes,
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


ALL = "all (micro-average)"


def findings_table(
    source: str, cases: Sequence[RealCase], features: Sequence[CaseFeatures], setting: str
) -> list[dict[str, Any]]:
    """One line per finding and their micro-average; empty where no case has ground truth.

    Args:
        source: What was read: the model's volumes, or the phantoms themselves (the error of reading).
        cases: The cases, with ground truth beside the phantoms they come from.
        features: Of their volumes, with findings.
        setting: For the lines.
    """
    truths = {case.case_id: read_truth(case) for case in cases if case.truth_path}
    checks = [
        check_labels(case.findings, truths[case.case_id])
        for case in features
        if case.findings is not None and case.case_id in truths
    ]
    if not checks:
        return []
    lines = {label: Agreement.of([case[label] for case in checks]) for label in LABELS}
    lines[ALL] = Agreement.of([case[label] for label in LABELS for case in checks])
    return [{"setting": setting, "source": source, "finding": k, **_columns(v)} for k, v in lines.items()]


def _columns(agreement: Agreement) -> dict[str, Any]:
    errors = agreement.size_errors
    return {
        "present": agreement.present,
        "recall": agreement.recall,
        "absent": agreement.absent,
        "false positives": agreement.false_positive_rate,
        "right side": agreement.side_accuracy,
        "median size error": float(np.median(np.abs(errors))) if errors else None,
    }
