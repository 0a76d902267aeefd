"""All rows, monitor readings and pictures of a setting, from collected features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctflow.config.evaluation import EvalConfig
from ctflow.evaluation.backbones import Backbones
from ctflow.evaluation.cache import CaseFeatures
from ctflow.evaluation.cases import CaseSets, RealCase
from ctflow.evaluation.collect import REAL_SET, RECONSTRUCTED, Collected
from ctflow.evaluation.features import FeaturePlan, restricted
from ctflow.evaluation.monitoring import Reading, readings
from ctflow.evaluation.scores import Compared, clip_rows, inception_row, report_rows, slice_rows
from ctflow.evaluation.settings import Setting
from ctflow.evaluation.table import MODEL, NOT_AVAILABLE, OTHER_REAL, RECONSTRUCTION, Row

FLOORS = {OTHER_REAL: REAL_SET, RECONSTRUCTION: RECONSTRUCTED}


@dataclass(frozen=True)
class Picture:
    """A montage of a scored volume.

    Attributes:
        case_id: The case.
        distance: Of its mean slice features from the reference, in the reference's standard deviations (RMS).
        image: 8-bit grey ``[height, width]``.
    """

    case_id: str
    distance: float
    image: NDArray[np.uint8]


class Scoring:
    """Rows and readings from collected features.

    Args:
        config: The evaluation.
        plan: What was extracted.
        backbones: With what.
        sets: Evaluated and other cases.
        collected: Their features.
    """

    def __init__(
        self,
        config: EvalConfig,
        plan: FeaturePlan,
        backbones: Backbones,
        sets: CaseSets,
        collected: Collected,
    ) -> None:
        self.config, self.plan, self.backbones = config, plan, backbones
        self.sets, self.collected = sets, collected
        self.reports = {case.case_id: case.report for case in (*sets.evaluated, *sets.others)}

    def compared(self, setting: Setting, source: str) -> Compared:
        """The scored set and its reference, case by case."""
        reference: Sequence[RealCase] = self.sets.evaluated
        if source == MODEL:
            fake = self.collected.of(setting.name, self.sets.evaluated)
            chosen = {f.case_id for f in fake}
            reference = [case for case in reference if case.case_id in chosen]
        else:
            fake = self._restricted(FLOORS[source], self.sets.others, setting)
        real = self._restricted(REAL_SET, reference, setting)
        return Compared(setting, source, fake, real, self.plan, self.config.seed, self.config.protocol)

    def rows(self, setting: Setting) -> list[Row]:
        """The table's rows of one setting: the model, then both floors."""
        rows = self.source_rows(setting, MODEL)
        if not self.sets.others:
            reason = (
                "floors are off" if not self.config.floors else "no real cases of other patients are left"
            )
            return rows + [Row(setting.name, f, "all", empty=NOT_AVAILABLE, reason=reason) for f in FLOORS]
        for source in FLOORS:
            rows += self.source_rows(setting, source)
        return rows

    def source_rows(self, setting: Setting, source: str) -> list[Row]:
        """All metrics of the model or of one floor."""
        return source_rows(self.compared(setting, source), self.backbones, self.reports)

    def readings(self, setting: Setting) -> list[Reading]:
        """The monitors of one setting: the model, and beside it other real cases (else the reference)."""
        compared = self.compared(setting, MODEL)
        others = self._restricted(REAL_SET, self.sets.others, setting)
        backbone, side = self.backbones.slices[0], self.plan.resolutions[0]
        found = readings(setting, MODEL, compared.fake, compared.real, others, backbone, side)
        return found + readings(setting, "real", others or compared.real, compared.real, [], backbone, side)

    def pictures(self, setting: Setting) -> list[Picture]:
        """Montages of the scored volumes, nearest to the reference first."""
        compared = self.compared(setting, MODEL)
        return pictures(compared, self.backbones.slices[0].name, self.plan.resolutions[0])

    def _restricted(self, kind: str, cases: Sequence[RealCase], setting: Setting) -> list[CaseFeatures]:
        return [restricted(features, setting) for features in self.collected.of(kind, cases)]


def source_rows(compared: Compared, backbones: Backbones, reports: dict[str, str]) -> list[Row]:
    """All metrics of one scored set against its reference."""
    rows: list[Row] = []
    for side in compared.plan.resolutions:
        for backbone in backbones.slices:
            rows += slice_rows(compared, backbone, side)
        for backbone in backbones.clips:
            for frames in compared.plan.clip_lengths:
                rows += clip_rows(compared, backbone, frames, side)
        rows.append(inception_row(compared, backbones, side))
    return rows + report_rows(compared, backbones, reports)


def pictures(compared: Compared, backbone: str, side: int) -> list[Picture]:
    """Montages of the scored volumes, nearest to the reference first."""
    key = f"slice/{backbone}/{side}"
    means = [c.arrays[key].mean(0) for c in compared.real if _filled(c.arrays.get(key))]
    if not means:
        return []
    centre, spread = np.mean(means, 0), np.std(means, 0) + 1e-6
    found = []
    for case in compared.fake:
        if "montage" in case.arrays and _filled(case.arrays.get(key)):
            distance = np.sqrt((((case.arrays[key].mean(0) - centre) / spread) ** 2).mean())
            found.append(Picture(case.case_id, float(distance), case.arrays["montage"]))
    return sorted(found, key=lambda picture: picture.distance)


def _filled(array: NDArray[Any] | None) -> bool:
    return array is not None and len(array) > 0
