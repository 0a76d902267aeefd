"""Volumes of any system, as NIfTI in HU, against a folder of real ones, scored the same way."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from ctflow.config.evaluation import EvalConfig
from ctflow.data.nifti import read_geometry, read_nifti, small_nifti
from ctflow.errors import EvaluationError
from ctflow.evaluation.cases import CaseSets, RealCase, rows_by_case
from ctflow.evaluation.collect import Batch, FeatureCache, Wanted
from ctflow.evaluation.compare import pictures, readings
from ctflow.evaluation.features import CaseFeatures, FeatureExtractor, FeaturePlan
from ctflow.evaluation.results import (
    MODEL,
    NOT_AVAILABLE,
    OTHER_REAL,
    RECONSTRUCTION,
    Results,
    Row,
    provenance,
    with_volumes,
)
from ctflow.evaluation.rows import Compared, source_rows
from ctflow.evaluation.settings import ScoredVolume, Setting
from ctflow.files import file_sha256
from ctflow.hounsfield import sample_of, why_not_hu
from ctflow.metrics.backbones import Backbones, build_backbones
from ctflow.metrics.clip_score import TextVolumeScorer
from ctflow.orientation import orientation_doubt
from ctflow.processes import Ranks, device_of
from ctflow.text_files import read_table
from ctflow.types import HUVolume

log = logging.getLogger(__name__)

EXTERNAL = Setting("external", "", 0, spliced=False, stops=False, description="volumes of another system")
ENDINGS = (".nii.gz", ".nii")
HALF = "floor: half of the reference against the other half"


class VolumeFolder:
    """The NIfTI volumes below a folder, by name; their pixels are read when a volume is made.

    Args:
        folder: Searched with all folders below it.

    Attributes:
        cases: One for every volume, without a patient: names do not tell which are of one.

    Raises:
        EvaluationError: No volume there, one name twice, or planes of different sizes.
        ScanError: A file that is not a NIfTI volume.
    """

    def __init__(self, folder: Path) -> None:
        found = sorted(
            p for p in folder.rglob("*") if p.name.endswith(ENDINGS) and not p.name.startswith(".")
        )
        if not found:
            raise EvaluationError(f"no NIfTI volumes in {folder}", "files ending in .nii.gz or .nii, in HU")
        self._paths: dict[str, Path] = {}
        for path in found:
            name = path.name.removesuffix(".gz").removesuffix(".nii")
            if name in self._paths:
                raise EvaluationError(f"case {name!r} twice in {folder}: {path}", "every name once")
            self._paths[name] = path
        self.cases = tuple(self._case(name) for name in self._paths)
        planes = {case.shape[1:]: case.case_id for case in self.cases}
        if len(planes) > 1 or any(rows != columns for rows, columns in planes):
            sizes = ", ".join(f"{rows}×{columns} ({name})" for (rows, columns), name in planes.items())
            raise EvaluationError(
                f"planes of {sizes} in {folder}", "square slices of one size", "resample the volumes first"
            )

    def batch(self, case: RealCase) -> Batch:
        """Features of one volume, on their way."""
        return Batch((Wanted(EXTERNAL.name, case),), lambda note: iter([self._volume(case)]))

    def _case(self, name: str) -> RealCase:
        shape, spacing = read_geometry(self._paths[name])
        return RealCase(name, "", "", shape, spacing, digest=file_sha256(self._paths[name]))

    def has(self, name: str) -> bool:
        """Whether a volume of this name is there."""
        return name in self._paths

    def volume(self, name: str) -> HUVolume:
        """One volume, as it is."""
        return read_nifti(self._paths[name])

    def _volume(self, case: RealCase) -> ScoredVolume:
        volume = self.volume(case.case_id)
        doubts = []
        if doubt := why_not_hu(sample_of(volume.hu)):
            doubts.append(f"not_hu: {doubt}")
        elif doubt := orientation_doubt(volume.hu, volume.spacing):
            doubts.append(f"orientation_doubt: {doubt}")
        return ScoredVolume(
            case.case_id, EXTERNAL, volume.hu, volume.spacing, len(volume.hu), doubts=tuple(doubts)
        )


def evaluate_external(config: EvalConfig, scorer: TextVolumeScorer | None, ranks: Ranks) -> Results:
    """Score a folder of volumes against a folder of real ones.

    Args:
        config: ``external`` names the folders.
        scorer: For the agreement with the reports; None without reports.
        ranks: This process among others; all of them return the same result.

    Raises:
        EvaluationError: A folder without volumes, one name twice, planes of different sizes within a set.
        ScanError: A file that is not a NIfTI volume in HU.
    """
    started = time.monotonic()
    external = config.external
    scored, reference = (VolumeFolder(Path(folder)) for folder in (external.volumes, external.reference))
    if shared := {c.digest for c in scored.cases} & {c.digest for c in reference.cases}:
        raise EvaluationError(
            f"{len(shared)} files are in both {external.volumes} and {external.reference}",
            "generated volumes on one side, real ones on the other",
            "a set scored against itself would look perfect",
        )
    reports = read_reports(Path(external.reports)) if external.reports else {}
    plan = FeaturePlan.of(config, scored.cases[0].shape[1])
    device = device_of(config.device)
    backbones = build_backbones(config.backbones, scorer if reports else None, device)
    cache = FeatureCache(Path(config.cache), FeatureExtractor(plan, backbones, device), ranks)
    mine = sum(len(ranks.share(folder.cases)) for folder in (scored, reference))
    with tqdm(total=mine, unit="volume", disable=not ranks.first) as bar:
        fake, real = (
            cache.collect([(folder.batch(case),) for case in folder.cases], bar).of(
                EXTERNAL.name, folder.cases
            )
            for folder in (scored, reference)
        )
    for folder, features in ((external.volumes, fake), (external.reference, real)):
        _tell_doubts(folder, features)
    compared = Compared(EXTERNAL, MODEL, *_paired(fake, real), plan, config.seed, config.protocol)
    result = Results(rows=source_rows(compared, backbones, reports) + _half_floor(compared, backbones))
    half = len(real) // 2
    reference_half, others = compared.real[:half], compared.real[half:]
    # Of the real volumes, those that are not the reference come first: sets are cut to one size.
    for source, cases in ((MODEL, compared.fake), ("real", [*others, *reference_half])):
        result.readings += readings(
            EXTERNAL, source, cases, reference_half, others, backbones.slices[0], plan.resolutions[0]
        )
    result.pictures[EXTERNAL.name] = pictures(compared, backbones)
    if config.page.viewer and ranks.first:
        sides = {"scored": scored, "reference": reference}
        result.pictures[EXTERNAL.name] = with_volumes(
            result.pictures[EXTERNAL.name],
            lambda ids: {i: {k: small_nifti(f.volume(i)) for k, f in sides.items() if f.has(i)} for i in ids},
        )
    model = {
        "volumes": external.volumes,
        "reference": external.reference,
        "reports": external.reports or "none",
    }
    sets = CaseSets(scored.cases, reference.cases)
    result.provenance = provenance(config, plan, backbones, sets, model, time.monotonic() - started)
    result.provenance["reference_cases"] = result.provenance.pop("floor_cases")
    return result


def _tell_doubts(folder: str, features: Sequence[CaseFeatures]) -> None:
    """One warning for each kind of doubt: how many volumes, and an example."""
    kinds: dict[str, list[str]] = {}
    for one in features:
        for doubt in one.facts.doubts:
            kinds.setdefault(doubt.partition(":")[0], []).append(f"{one.case_id}: {doubt.partition(': ')[2]}")
    for kind, told in kinds.items():
        log.warning(
            "%s: %d of %d volumes in %s, e.g. %s. They are scored as they are: scores compare arrays",
            *(kind, len(told), len(features), folder, told[0]),
        )


def read_reports(path: Path) -> dict[str, str]:
    """Case name to report, from a CSV.

    Raises:
        EvaluationError: No such file, other columns, or a case twice.
    """
    table = read_table(path)
    parts = ["report"] if "report" in table.columns else ["Findings_EN", "Impressions_EN"]
    if not {*parts} <= {*table.columns}:
        raise EvaluationError(
            f"{path} has the columns {', '.join(table.columns)}", "report, or Findings_EN and Impressions_EN"
        )
    return {case: " ".join(row[part] for part in parts) for case, (_, row) in rows_by_case(table).items()}


def _paired(
    fake: Sequence[CaseFeatures], real: Sequence[CaseFeatures]
) -> tuple[list[CaseFeatures], list[CaseFeatures]]:
    """Both sets in one order where their names agree; otherwise as they are, and the log says so."""
    by_name = {r.case_id: r for r in real}
    if all(f.case_id in by_name for f in fake):
        rest = [r for r in real if r.case_id not in {f.case_id for f in fake}]
        return list(fake), [by_name[f.case_id] for f in fake] + rest
    log.warning("the names of both folders differ: clips are paired by the files' order")
    return list(fake), list(real)


def _half_floor(compared: Compared, backbones: Backbones) -> list[Row]:
    """Without other real cases the reference is halved; N is half, so only extrapolated values compare."""
    half = len(compared.real) // 2
    missing = [
        Row(EXTERNAL.name, source, "all", empty=NOT_AVAILABLE, reason=reason)
        for source, reason in (
            (OTHER_REAL, "no second set of real volumes"),
            (RECONSTRUCTION, "the other system's autoencoder is not known"),
        )
    ]
    if half < 1:
        return missing
    halves = replace(compared, source=HALF, fake=compared.real[:half], real=compared.real[half:])
    rows = source_rows(halves, replace(backbones, scorer=None), {})
    kept = [row for row in rows if not row.metric.startswith(("clip", "is"))]
    return [row.noted("N is half: compare extrapolated values only") for row in kept] + missing
