"""What an analysis is given and what it gives back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ctflow.config.evaluation import EvalConfig
from ctflow.evaluation.backbones import Backbones
from ctflow.evaluation.cache import CaseFeatures
from ctflow.evaluation.cases import CaseReader
from ctflow.evaluation.collect import Collector
from ctflow.evaluation.evaluation import backbones_of, plan_of
from ctflow.evaluation.features import FeatureExtractor, FeaturePlan
from ctflow.evaluation.ranks import Ranks
from ctflow.evaluation.scores import Compared, slice_rows
from ctflow.evaluation.settings import Setting
from ctflow.evaluation.system import EvalSystem
from ctflow.evaluation.table import MODEL


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

    def reader(self, folder: str = "") -> CaseReader:
        """Real cases of a folder of slice shards; the evaluation's own by default."""
        return CaseReader(Path(folder or self.config.slices))

    def tools(self) -> tuple[Backbones, FeaturePlan]:
        """Backbones, and what is kept of each volume: the same as for the table, so that both share files."""
        return backbones_of(self.config, self.system), plan_of(self.config, self.system)

    def collector(
        self,
        reader: CaseReader | None,
        backbones: Backbones,
        plan: FeaturePlan,
        config: EvalConfig | None = None,
        measured: bool = False,
    ) -> Collector:
        """A collector over the common feature cache; ``config`` where it differs from the context's."""
        extractor = FeatureExtractor(plan, backbones, self.system.device)
        return Collector(config or self.config, self.system, reader, extractor, self.ranks, measured)


@dataclass
class AnalysisResult:
    """What is written.

    Attributes:
        title: Heading.
        text: What the numbers mean, and how they were made.
        records: A table: dictionaries with equal keys.
        figures: With captions.
    """

    title: str
    text: str
    records: list[dict[str, Any]]
    figures: list[tuple[Figure, str]] = field(default_factory=list)


def slice_distance(
    setting: Setting,
    fake: Sequence[CaseFeatures],
    real: Sequence[CaseFeatures],
    backbones: Backbones,
    plan: FeaturePlan,
    seed: int,
) -> dict[str, Any]:
    """The slice distance of the best backbone at hand, as columns of a record."""
    compared = Compared(setting, MODEL, fake, real, plan, seed, "matched")
    frechet, kernel = slice_rows(compared, backbones.slices[-1], plan.resolutions[0])
    return {
        "slices": frechet.samples,
        frechet.metric: frechet.text(),
        f"{frechet.metric} at infinite N": frechet.extrapolated_text(),
        kernel.metric: kernel.text(),
    }
