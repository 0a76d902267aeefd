"""The plan of a run, from names and tables alone: no image is opened, nothing is written."""

from __future__ import annotations

import logging
import os
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ctflow.config.prep import IngestConfig
from ctflow.errors import ScanError
from data_prep.ct_rate.discovery import chosen_images
from data_prep.ct_rate.geometry import check_spacing
from data_prep.ct_rate.journal import read_outcomes
from data_prep.ct_rate.memory import WORKER_BYTES
from data_prep.ct_rate.naming import case_id_of, patient_and_split
from data_prep.ct_rate.survey import survey_source
from data_prep.ct_rate.tables import CsvRow, Tables
from data_prep.ct_rate.tags import acquisition_of

log = logging.getLogger(__name__)
USUAL_SHAPE, USUAL_MM = (512, 512, 261), 1.25
"""Columns, rows, slices and their distance of a volume that no metadata describe: CT-RATE's medians."""
COMPRESSED = 0.42
"""Bytes in a shard over bytes of int16 HU (a real chest at 512 x 512)."""
READ_SECONDS, READ_SECONDS_PER_VOXEL = 0.3, 2.1e-8
WRITE_SECONDS_PER_VOXEL = 2.3e-8
"""Measured on one core of a 2-core cloud machine, see docs/ingest.md; reading is shared among the workers."""
MIN_MEASURED = 20
"""Volumes that an earlier run must have read before its own rate is believed."""


@dataclass
class Plan:
    """Counts and estimates.

    Attributes:
        volumes: To be read, by split.
        scans: Distinct ones among them.
        patients: Distinct ones among them.
        folders: Folders of loose files that may be DICOM series; what they hold is not known yet.
        left_out: Files left out, by cause.
        expected: Volumes that will be refused by what names and metadata say, by cause.
        kernels: Volumes by kind of kernel.
        without_report: Volumes that no report CSV names.
        without_file: Lines of report CSVs without a volume.
        bytes: Of the shards.
        seconds: Of the run.
        rate_from: Where the rate comes from.
    """

    volumes: Counter[str] = field(default_factory=Counter)
    scans: int = 0
    patients: int = 0
    folders: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    expected: Counter[str] = field(default_factory=Counter)
    kernels: Counter[str] = field(default_factory=Counter)
    without_report: int = 0
    without_file: int = 0
    bytes: float = 0.0
    seconds: float = 0.0
    rate_from: str = ""


def make_plan(config: IngestConfig) -> Plan:
    """Count what a run with these settings would find.

    Raises:
        ScanError: No such source, nothing in it, unreadable CSVs or lists.
    """
    root = Path(config.source)
    survey = survey_source(root, Path(config.output) if config.output else None)
    layout, excluded = chosen_images(survey, config)
    if not layout.kept and not survey.loose:
        raise ScanError(f"no scan under {root}", "NIfTI, DICOM, NRRD or MetaImage files", "check --source")
    tables = Tables(config, survey.csvs, [*layout.kept, *excluded, *survey.loose])
    plan = Plan(folders=len(survey.loose))
    for group in layout.left_out:
        plan.left_out[f"{group.code} ({group.place})"] += group.count
    if excluded:
        plan.left_out["listed_no_chest"] += len(excluded)
    for key, status, code, detail in survey.told:
        if status == "refused":
            plan.expected[code] += 1
            log.warning("%s: %s (%s)", key, code, detail)
    scans, patients, voxels = set(), set(), np.zeros(2)
    for key in layout.kept:
        case, row = case_id_of(key), tables.row(key, len(layout.kept) == 1)
        patient, split = patient_and_split(key, case, row.patient_id, config)
        acquisition = acquisition_of(case, row.tags.kernel, row.tags.manufacturer, None)
        plan.volumes[split] += 1
        plan.kernels[acquisition.sharpness or "kernel unknown"] += 1
        scans.add(acquisition.scan or case)
        patients.add(patient)
        plan.without_report += tables.has_reports and row.report is None
        if cause := _refusal(row, config):
            plan.expected[cause] += 1
        else:
            voxels += _voxels(row, config)
    plan.scans, plan.patients = len(scans), len(patients)
    plan.without_file = len(tables.without_file())
    plan.bytes = 2 * COMPRESSED * voxels[1]
    plan.seconds, plan.rate_from = _duration(config, voxels, plan.volumes.total())
    return plan


def tell(plan: Plan, config: IngestConfig) -> None:
    """The plan in a few lines of the log."""
    log.info(
        "%d volumes (train %d, valid %d), %d scans, %d patients",
        *(plan.volumes.total(), plan.volumes["train"], plan.volumes["valid"], plan.scans, plan.patients),
    )
    if plan.folders:
        log.info(
            "and %d folders of loose files, whose series are not known before they are read", plan.folders
        )
    log.info("kernels: %s", ", ".join(f"{kind} {count}" for kind, count in sorted(plan.kernels.items())))
    for cause, count in sorted(plan.left_out.items()):
        log.info("left out: %s %d", cause, count)
    for cause, count in sorted(plan.expected.items()):
        log.info("will be refused, by names and metadata: %s %d", cause, count)
    log.info(
        "reports: %d volumes without one; %d lines of the CSVs without a volume",
        *(plan.without_report, plan.without_file),
    )
    output = Path(config.output or ".").resolve()
    folder = next(path for path in (output, *output.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    log.info("disk: %.1f GB for the shards, %.1f GB free in %s", plan.bytes / 1e9, free / 1e9, folder)
    if plan.bytes > free:
        log.warning("the disk is too small: give another --output, or a smaller resolution")
    workers = _workers(config)
    log.info("time: %.1f hours with %d workers (%s)", plan.seconds / 3600, workers, plan.rate_from)


def _refusal(row: CsvRow, config: IngestConfig) -> str:
    """Why the metadata say that a volume cannot be used; empty where they do not."""
    if row.doubts:
        return "ambiguous_row"
    if row.tags.shape is None:
        return ""
    if row.spacing is None:
        return "no spacing"
    columns, rows, slices = row.tags.shape
    if check_spacing(row.spacing, (slices, rows, columns)):
        return "implausible_spacing"
    if 2.0 * columns * rows * slices + WORKER_BYTES > config.memory_gb * 2**30:
        return f"too_large for memory_gb={config.memory_gb:g}"
    return ""


def _voxels(row: CsvRow, config: IngestConfig) -> tuple[float, float]:
    """Voxels of a volume as it is and as it is prepared."""
    columns, rows, slices = row.tags.shape or USUAL_SHAPE
    z = row.spacing[0] if row.spacing else USUAL_MM
    prepared = slices * z / (config.z_spacing or z)
    prepared = min(prepared, config.max_slices or prepared)
    return float(columns) * rows * slices, prepared * config.resolution**2


def _duration(config: IngestConfig, voxels: np.ndarray, volumes: int) -> tuple[float, str]:
    """Seconds of a run, by an earlier run's own rate where there is one, and where the rate comes from.

    Reading is shared among the workers, writing is one process's; the slower of the two decides.
    """
    writing = WRITE_SECONDS_PER_VOXEL * voxels[1]
    earlier = read_outcomes(Path(config.output)) if config.output else {}
    done = [outcome.seconds for outcome in earlier.values() if outcome.usable]
    if len(done) >= MIN_MEASURED:
        reading = float(np.mean(done)) * volumes
        rate = f"{np.mean(done):.2f} s a volume and core, measured on {len(done)} volumes of this output"
    else:
        reading = READ_SECONDS * volumes + READ_SECONDS_PER_VOXEL * voxels[0]
        rate = f"{reading / max(1, volumes):.2f} s a volume and core, the documentation's rate"
    return max(reading / _workers(config), writing), rate


def _workers(config: IngestConfig) -> int:
    return config.workers or os.cpu_count() or 1
