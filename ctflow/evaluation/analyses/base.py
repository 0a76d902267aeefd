"""Input and result of an analysis, and the means and plots that analyses share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from tqdm import tqdm

from ctflow.config.evaluation import EvalConfig
from ctflow.config.generation import RolloutConfig
from ctflow.evaluation.cases import CaseReader, RealCase
from ctflow.evaluation.collect import Collector
from ctflow.evaluation.compare import readings
from ctflow.evaluation.features import CaseFeatures, FeatureExtractor
from ctflow.evaluation.report.write import AnalysisResult
from ctflow.evaluation.results import MODEL, Row
from ctflow.evaluation.rows import Compared, clip_rows, slice_rows
from ctflow.evaluation.settings import SETTINGS, ScoredVolume, Setting
from ctflow.evaluation.system import EvalSystem, extractor_of, generate_batch
from ctflow.metrics import bias
from ctflow.metrics.statistics import PerCaseMean
from ctflow.processes import Ranks

__all__ = [
    "AnalysisResult",
    "Context",
    "clip_distance",
    "line_plot",
    "mean_row",
    "monitor_values",
    "slice_distance",
]


@dataclass(frozen=True)
class Context:
    """Everything an analysis may use.

    Attributes:
        config: The evaluation.
        system: The model.
        ranks: This process among others.
        output: Folder for files of its own.
    """

    config: EvalConfig
    system: EvalSystem
    ranks: Ranks
    output: Path

    @property
    def rollout(self) -> RolloutConfig:
        """How volumes are generated."""
        return self.config.sampling.applied_to(self.system.config.rollout)

    def reader(self, folder: str = "") -> CaseReader:
        """Real cases of a folder of slice shards; the evaluation's own by default."""
        return CaseReader(Path(folder or self.config.slices))

    def extractor(self) -> FeatureExtractor:
        """The features kept of each volume: the same as for the table, so that both share files."""
        return extractor_of(self.config, self.system)

    def collector(
        self,
        reader: CaseReader | None,
        extractor: FeatureExtractor,
        config: EvalConfig | None = None,
        findings: bool = False,
        bar: tqdm | None = None,
    ) -> Collector:
        """A collector over the common feature cache.

        Args:
            reader: Real volumes; None where none are wanted.
            extractor: What is kept of a volume.
            config: Where it differs from the context's.
            findings: Whether findings are read.
            bar: Shared by all collectors of an analysis; None: every call shows its own.
        """
        return Collector(config or self.config, self.system, reader, extractor, self.ranks, findings, bar)

    @contextmanager
    def progress(self, volumes: int) -> Iterator[tqdm]:
        """One bar over all volumes of an analysis, this process's share of them, for collectors to share."""
        with tqdm(total=volumes // self.ranks.size, unit="volume", disable=not self.ranks.first) as bar:
            yield bar

    def generate(self, setting: str, case: RealCase, reader: CaseReader) -> ScoredVolume:
        """One volume in one setting, with its pixels."""
        made = generate_batch(
            self.system,
            SETTINGS[setting],
            [case],
            reader.volume,
            self.rollout,
            self.config.seed,
            self.config.precision,
        )
        return next(made)


def slice_distance(
    setting: Setting,
    fake: Sequence[CaseFeatures],
    real: Sequence[CaseFeatures],
    extractor: FeatureExtractor,
    seed: int,
) -> dict[str, Any]:
    """The slice distance of the best backbone at hand, as columns of a record."""
    plan = extractor.plan
    compared = Compared(setting, MODEL, fake, real, plan, seed, "matched")
    frechet, kernel = slice_rows(compared, extractor.backbones.slices[-1], plan.resolutions[0])
    return {
        "slices": frechet.samples,
        frechet.metric: frechet.text(),
        f"{frechet.metric} at infinite N": frechet.extrapolated_text(),
        kernel.metric: kernel.text(),
    }


def clip_distance(
    setting: Setting,
    fake: Sequence[CaseFeatures],
    real: Sequence[CaseFeatures],
    extractor: FeatureExtractor,
    seed: int,
) -> dict[str, Any]:
    """The clip distance of the best backbone at hand, as columns of a record; empty without clips."""
    plan = extractor.plan
    if not plan.clip_lengths:
        return {}
    compared = Compared(setting, MODEL, fake, real, plan, seed, "matched")
    (row,) = clip_rows(compared, extractor.backbones.clips[-1], plan.clip_lengths[0], plan.resolutions[0])
    return {row.metric: row.text(), f"{row.metric} at infinite N": row.extrapolated_text()}


def mean_row(metric: str, values: Sequence[float] | torch.Tensor, seed: int, reason: str = "") -> Row:
    """The mean over cases with its interval; cases without a value are NaN and left out.

    Args:
        metric: Its name.
        values: One per case.
        seed: Of the interval.
        reason: Noted where no case has a value.
    """
    numbers = torch.as_tensor(values, dtype=torch.float64)
    row = Row("full-body", MODEL, metric, cases=len(numbers))
    if not torch.isfinite(numbers).any():
        return row.without(reason)
    return row.with_value(bias.jackknife(PerCaseMean(numbers), seed))


def line_plot(
    lines: Mapping[str, tuple[ArrayLike, ArrayLike]],
    xlabel: str,
    ylabel: str,
    style: str = "o-",
    size: tuple[float, float] = (5, 3),
    **look: Any,
) -> Figure:
    """Named lines in one plot.

    Args:
        lines: Label to x and y.
        xlabel: Below.
        ylabel: On the left.
        style: Matplotlib's format of marker and line.
        size: Width and height in inches.
        look: Passed to ``plot``.
    """
    figure = Figure(figsize=size, layout="tight")
    axes = figure.add_subplot()
    for label, (xs, ys) in lines.items():
        axes.plot(xs, ys, style, label=label, **look)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.legend(fontsize=8)
    return figure


def monitor_values(
    setting: Setting,
    fake: Sequence[CaseFeatures],
    real: Sequence[CaseFeatures],
    others: Sequence[CaseFeatures],
    extractor: FeatureExtractor,
) -> dict[str, float]:
    """The monitors' numbers by name; arguments as of ``readings``."""
    backbone, side = extractor.backbones.slices[0], extractor.plan.resolutions[0]
    return {r.monitor: r.value for r in readings(setting, MODEL, fake, real, others, backbone, side)}
