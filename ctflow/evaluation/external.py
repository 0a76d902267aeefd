"""Volumes of any system, as NIfTI in HU, against a folder of real ones, scored the same way."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from ctflow.config.evaluation import EvalConfig
from ctflow.data.manifest import file_sha256
from ctflow.data.nifti import read_nifti
from ctflow.errors import EvaluationError
from ctflow.evaluation.backbones import Backbones, build_backbones
from ctflow.evaluation.cache import CaseFeatures, FeatureCache
from ctflow.evaluation.cases import CaseSets, RealCase
from ctflow.evaluation.evaluation import Evaluation, device_of
from ctflow.evaluation.features import FeatureExtractor, FeaturePlan, real_volume
from ctflow.evaluation.monitoring import readings
from ctflow.evaluation.provenance import provenance
from ctflow.evaluation.ranks import Ranks
from ctflow.evaluation.scores import Compared
from ctflow.evaluation.scoring import pictures, source_rows
from ctflow.evaluation.settings import Setting
from ctflow.evaluation.table import MODEL, NOT_AVAILABLE, OTHER_REAL, RECONSTRUCTION, Row
from ctflow.hounsfield import sample_of, why_not_hu
from ctflow.metrics.clip_score import TextVolumeScorer
from ctflow.orientation import orientation_doubt
from ctflow.text_files import read_table

log = logging.getLogger(__name__)

EXTERNAL = Setting("external", "", 0, spliced=False, stops=False, description="volumes of another system")
ENDINGS = (".nii.gz", ".nii")
HALF = "floor: half of the reference against the other half"


def evaluate_external(config: EvalConfig, scorer: TextVolumeScorer | None, ranks: Ranks) -> Evaluation:
    """Score a folder of volumes against a folder of real ones.

    Args:
        config: ``external`` names the folders.
        scorer: For the agreement with the reports; None without reports.
        ranks: This process among others; all of them return the same result.

    Raises:
        EvaluationError: A folder without volumes, one name twice, planes of different sizes within a set.
        ScanError: A file that is no NIfTI volume in HU.
    """
    started = time.monotonic()
    external = config.external
    scored, reference = (list_volumes(Path(folder)) for folder in (external.volumes, external.reference))
    if shared := {c.digest for c in scored} & {c.digest for c in reference}:
        raise EvaluationError(
            f"{len(shared)} files are in both {external.volumes} and {external.reference}",
            "generated volumes on one side, real ones on the other",
            "a set scored against itself would look perfect",
        )
    reports = read_reports(Path(external.reports)) if external.reports else {}
    side = scored[0].shape[1]
    plan = FeaturePlan(
        resolutions=tuple(config.resolution) or (side,),
        native=side,
        clip_lengths=tuple(config.clip_lengths),
        clip_stride=config.clip_stride,
    )
    device = device_of(config.device)
    backbones = build_backbones(config.backbones, scorer if reports else None, device)
    extractor = FeatureExtractor(plan, backbones, device)
    cache = FeatureCache(Path(config.cache), {"plan": asdict(plan), "backbones": backbones.hashes})
    features = _collect([*scored, *reference], extractor, cache, ranks)
    fake, real = features[: len(scored)], features[len(scored) :]
    fake, real = _paired(fake, real)
    compared = Compared(EXTERNAL, MODEL, fake, real, plan, config.seed, config.protocol)
    result = Evaluation([], [], {})
    result.rows = source_rows(compared, backbones, reports) + _half_floor(compared, backbones)
    first, resolution = backbones.slices[0], plan.resolutions[0]
    half = len(real) // 2
    # Of the real volumes, those that are not the reference come first: sets are cut to one size.
    for source, cases in ((MODEL, fake), ("real", [*real[half:], *real[:half]])):
        result.readings += readings(EXTERNAL, source, cases, real[:half], real[half:], first, resolution)
    result.pictures[EXTERNAL.name] = pictures(compared, first.name, resolution)
    model = {
        "volumes": external.volumes,
        "reference": external.reference,
        "reports": external.reports or "none",
    }
    sets = CaseSets(tuple(scored), tuple(reference))
    result.provenance = provenance(config, plan, backbones, sets, model, time.monotonic() - started)
    result.provenance["reference_cases"] = result.provenance.pop("floor_cases")
    return result


def list_volumes(folder: Path) -> list[RealCase]:
    """All NIfTI volumes below a folder, by name.

    Raises:
        EvaluationError: None there, one name twice, or planes of different sizes.
        ScanError: A file that is no NIfTI volume, or holds values of another scale than HU.
    """
    paths = sorted(p for p in folder.rglob("*") if p.name.endswith(ENDINGS) and not p.name.startswith("."))
    if not paths:
        raise EvaluationError(f"no NIfTI volumes in {folder}", "files ending in .nii.gz or .nii, in HU")
    cases: dict[str, RealCase] = {}
    doubts: list[str] = []
    turned: list[str] = []
    for path in paths:
        name = path.name.removesuffix(".gz").removesuffix(".nii")
        if name in cases:
            raise EvaluationError(f"case {name!r} twice in {folder}: {path}", "every name once")
        volume = read_nifti(path)
        if doubt := why_not_hu(sample_of(volume.hu)):
            doubts.append(f"{path.name}: {doubt}")
        elif doubt := orientation_doubt(volume.hu, volume.spacing):
            turned.append(f"{path.name}: {doubt}")
        cases[name] = RealCase(
            case_id=name,
            patient_id=str(path),
            report="",
            shape=(len(volume.hu), volume.hu.shape[1], volume.hu.shape[2]),
            spacing=volume.spacing,
            digest=file_sha256(path),
        )
    if doubts:
        log.warning(
            "%d of %d volumes in %s do not look like a CT in HU and are scored as they are (%s)",
            *(len(doubts), len(paths), folder, doubts[0]),
        )
    if turned:
        log.warning(
            "orientation_doubt: %d of %d volumes in %s look turned, e.g. %s. Scores compare arrays",
            *(len(turned), len(paths), folder, turned[0]),
        )
    planes = {case.shape[1:]: case.case_id for case in cases.values()}
    if len(planes) > 1 or any(rows != columns for rows, columns in planes):
        found = ", ".join(f"{rows}×{columns} ({name})" for (rows, columns), name in planes.items())
        raise EvaluationError(
            f"planes of {found} in {folder}", "square slices of one size", "resample the volumes first"
        )
    return list(cases.values())


def read_reports(path: Path) -> dict[str, str]:
    """Case name to report, from a CSV.

    Raises:
        EvaluationError: No such file, other columns, or a case twice.
    """
    read = read_table(path)
    table = pd.DataFrame([cells for _, cells in read.rows], columns=list(read.columns), dtype=str)
    names = [column for column in ("case_id", "VolumeName") if column in table]
    if not names or not ({"report"} <= set(table) or {"Findings_EN", "Impressions_EN"} <= set(table)):
        raise EvaluationError(
            f"{path} has the columns {', '.join(table)}",
            "case_id or VolumeName, and report or Findings_EN and Impressions_EN",
        )
    texts = table["report"] if "report" in table else table["Findings_EN"] + " " + table["Impressions_EN"]
    ids = table[names[0]].str.removesuffix(".gz").str.removesuffix(".nii")
    if ids.duplicated().any():
        raise EvaluationError(f"{path} names {ids[ids.duplicated()].iloc[0]!r} twice", "every case once")
    return dict(zip(ids, texts, strict=True))


def _collect(
    cases: Sequence[RealCase], extractor: FeatureExtractor, cache: FeatureCache, ranks: Ranks
) -> list[CaseFeatures]:
    todo = [case for case in ranks.share(cases) if cache.load("file", case.digest) is None]
    for case in tqdm(todo, "volumes", unit="case", disable=not ranks.first):
        # ``patient_id`` holds the path: without patients' names no two files can be told to be of one
        # patient.
        volume = real_volume(case.case_id, read_nifti(case.patient_id))
        volume = replace(volume, setting=EXTERNAL)
        cache.store(extractor.extract(volume), "file", case.digest)
    ranks.wait()
    features = []
    for case in cases:
        loaded = cache.load("file", case.digest)
        assert loaded is not None, f"features of {case.case_id} vanished from the cache"
        features.append(CaseFeatures(case.case_id, loaded.arrays, loaded.info))
    return features


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
