"""The evaluation of a model in one or all settings: features in, rows and monitor readings out."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ctflow.config.evaluation import EvalConfig
from ctflow.evaluation.backbones import Backbones, ClipScorer, build_backbones
from ctflow.evaluation.cache import CaseFeatures
from ctflow.evaluation.cases import CaseReader, CaseSets, RealCase, choose_cases
from ctflow.evaluation.collect import REAL_SET, RECONSTRUCTED, Collected, Collector
from ctflow.evaluation.features import FeatureExtractor, FeaturePlan, restricted
from ctflow.evaluation.monitoring import Reading, readings
from ctflow.evaluation.provenance import provenance
from ctflow.evaluation.ranks import Ranks
from ctflow.evaluation.scores import Compared, clip_rows, inception_row, report_rows, slice_rows
from ctflow.evaluation.settings import REGISTRY, Setting
from ctflow.evaluation.system import EvalSystem
from ctflow.evaluation.table import MODEL, NOT_AVAILABLE, OTHER_REAL, RECONSTRUCTION, Row

log = logging.getLogger(__name__)


@dataclass
class Evaluation:
    """All results of one run.

    Attributes:
        rows: The table.
        readings: The monitors.
        provenance: What was compared, with what, how.
        pictures: Montage per (setting, case id), best to worst first by distance from the reference.
        between: Rows over the slices that all settings share, and their ratios as text.
        scorecard: Findings by setting, filled by ``ctflow.evaluation.scorecard``.
    """

    rows: list[Row]
    readings: list[Reading]
    provenance: dict[str, Any]
    pictures: dict[str, list[tuple[str, float, NDArray[np.uint8]]]] = field(default_factory=dict)
    between: list[Row] = field(default_factory=list)
    scorecard: list[dict[str, Any]] = field(default_factory=list)


def evaluate(config: EvalConfig, system: EvalSystem, ranks: Ranks) -> Evaluation:
    """Run the settings of ``config`` and score them, with floors.

    Args:
        config: The evaluation.
        system: The model.
        ranks: This process among others; all of them return the same result.

    Raises:
        EvaluationError: Cases that cannot be evaluated.
        ShardError: No slice shards at ``config.slices``.
        WeightsError: A backbone's file that does not hold.
    """
    started = time.monotonic()
    reader = CaseReader(Path(config.slices))
    sets = choose_cases(reader.cases(), config.cases, config.floors)
    scorer = ClipScorer(system.text, system.scorer_name, system.fingerprint)
    backbones = build_backbones(config.backbones, scorer, system.device)
    plan = FeaturePlan(
        resolutions=tuple(config.resolution) or (system.config.image_size,),
        native=system.config.image_size,
        clip_lengths=tuple(config.clip_lengths),
        clip_stride=config.clip_stride,
        measured=any(case.truth_path for case in sets.evaluated),
        pictures=True,
    )
    extractor = FeatureExtractor(plan, backbones, system.device)
    collected = Collector(config, system, reader, extractor, ranks).collect(sets, config.settings)
    scoring = Scoring(config, plan, backbones, sets, collected)
    result = Evaluation([], [], {})
    for name in config.settings:
        result.rows += scoring.rows(REGISTRY[name])
        result.readings += scoring.readings(REGISTRY[name])
        result.pictures[name] = scoring.pictures(REGISTRY[name])
    model = {"checkpoint": system.name, "checkpoint_sha256": system.fingerprint}
    result.provenance = provenance(config, plan, backbones, sets, model, time.monotonic() - started)
    return result


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
        if source == MODEL:
            fake = self.collected.of(setting.name, self.sets.evaluated)
            chosen = {f.case_id for f in fake}
            reference = [case for case in self.sets.evaluated if case.case_id in chosen]
        else:
            fake = self._restricted(
                REAL_SET if source == OTHER_REAL else RECONSTRUCTED, self.sets.others, setting
            )
            reference = list(self.sets.evaluated)
        real = self._restricted(REAL_SET, reference, setting)
        return Compared(setting, source, fake, real, self.plan, self.config.seed, self.config.protocol)

    def rows(self, setting: Setting) -> list[Row]:
        """The table's rows of one setting: the model, then both floors."""
        rows = self._source_rows(self.compared(setting, MODEL))
        if not self.sets.others:
            reason = (
                "floors are off" if not self.config.floors else "no real cases of other patients are left"
            )
            return rows + [
                Row(setting.name, source, "all", empty=NOT_AVAILABLE, reason=reason)
                for source in (OTHER_REAL, RECONSTRUCTION)
            ]
        for source in (OTHER_REAL, RECONSTRUCTION):
            rows += self._source_rows(self.compared(setting, source))
        return rows

    def readings(self, setting: Setting) -> list[Reading]:
        """The monitors of one setting: the model, and real volumes beside it."""
        compared = self.compared(setting, MODEL)
        others = self._restricted(REAL_SET, self.sets.others, setting)
        backbone, side = self.backbones.slices[0], self.plan.resolutions[0]
        found = readings(setting, MODEL, compared.fake, compared.real, others, backbone, side)
        return found + readings(setting, "real", compared.real, compared.real, others, backbone, side)

    def pictures(self, setting: Setting) -> list[tuple[str, float, NDArray[np.uint8]]]:
        """Montages with each case's distance from the reference, nearest first."""
        compared = self.compared(setting, MODEL)
        distances = case_distances(compared, self.backbones.slices[0].name, self.plan.resolutions[0])
        shown = [
            (case.case_id, distances[case.case_id], case.arrays["montage"])
            for case in compared.fake
            if "montage" in case.arrays and case.case_id in distances
        ]
        return sorted(shown, key=lambda item: item[1])

    def _restricted(self, kind: str, cases: Sequence[RealCase], setting: Setting) -> list[CaseFeatures]:
        return [restricted(features, setting) for features in self.collected.of(kind, cases)]

    def _source_rows(self, compared: Compared) -> list[Row]:
        rows: list[Row] = []
        for side in self.plan.resolutions:
            for backbone in self.backbones.slices:
                rows += slice_rows(compared, backbone, side)
            for backbone in self.backbones.clips:
                for frames in self.plan.clip_lengths:
                    rows += clip_rows(compared, backbone, frames, side)
            rows.append(inception_row(compared, self.backbones, side))
        return rows + report_rows(compared, self.backbones, self.reports)


def case_distances(compared: Compared, backbone: str, side: int) -> dict[str, float]:
    """How far each case's mean slice features lie from the reference, in its standard deviations (RMS)."""
    key = f"slice/{backbone}/{side}"
    means = np.stack([c.arrays[key].mean(0) for c in compared.real if len(c.arrays.get(key, ()))])
    centre, spread = means.mean(0), means.std(0) + 1e-6
    return {
        case.case_id: float(np.sqrt((((case.arrays[key].mean(0) - centre) / spread) ** 2).mean()))
        for case in compared.fake
        if len(case.arrays.get(key, ()))
    }


def device_of(name: str) -> torch.device:
    """``auto`` is CUDA where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
