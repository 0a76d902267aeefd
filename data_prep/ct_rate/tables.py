"""CT-RATE's CSVs: reports, metadata and labels, looked up by volume."""

from __future__ import annotations

import csv
import json
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pandas as pd

from ctflow.config.prep import IngestConfig
from ctflow.errors import ScanError
from data_prep.ct_rate.tags import ScanTags, tags_of

log = logging.getLogger(__name__)
NAME_COLUMN = "VolumeName"
_ENDINGS = (".nii.gz", ".nii", ".hdr.gz", ".hdr", ".img.gz", ".img", ".mha", ".mhd", ".nrrd", ".nhdr", ".dcm")
_NOT_GIVEN = ("not given.", "not given", "nan", "")
_FINDINGS = ("findings_en", "findings")
_IMPRESSIONS = ("impressions_en", "impression_en", "impressions", "impression")
_WHOLE = ("report", "text")
_PATIENT = ("patientid", "patient_id")
_UNWANTED = str.maketrans("", "", "\"'()")


@dataclass(frozen=True)
class CsvRow:
    """What the CSVs say of one volume.

    Attributes:
        report: Findings and impression as one text; None where no report CSV names the volume.
        labels: Label to 0 or 1.
        rescale: Slope and intercept; None where not given.
        spacing: Millimetres (slices, rows, columns); None where not given.
        patient_id: Empty where not given.
        tags: Scanner, kernel and geometry.
    """

    report: str | None = None
    labels: dict[str, int] = field(default_factory=dict)
    rescale: tuple[float, float] | None = None
    spacing: tuple[float, float, float] | None = None
    patient_id: str = ""
    tags: ScanTags = field(default_factory=ScanTags)

    def fingerprint(self) -> str:
        """Changes when what the CSVs say does."""
        return json.dumps(asdict(self), sort_keys=True, ensure_ascii=False)


class Tables:
    """The CSVs of a source, by volume name without ending.

    Args:
        config: Names CSVs, or none; then those under ``source`` are used.
        found: CSVs met under ``source``.

    Raises:
        ScanError: A CSV that is missing, unreadable or without ``VolumeName``.
    """

    def __init__(self, config: IngestConfig, found: Sequence[Path]) -> None:
        self.reports = _load(config.reports) or _load_found(found, "report")
        self.metadata = _load(config.metadata) or _load_found(found, "metadata")
        self.labels = _load(config.labels) or _load_found(found, "label")
        self._sidecars = {_stem(p): _load([p]) for p in config.metadata}

    @property
    def has_reports(self) -> bool:
        """Whether any report was found."""
        return bool(self.reports)

    def without_file(self, names: Iterable[str]) -> list[str]:
        """Volumes that a report CSV lists and the source lacks.

        Args:
            names: File names of the source.
        """
        there = {_stem(name) for name in names}
        return sorted(name for name in self.reports if name not in there)

    def row(self, name: str, alone: bool) -> CsvRow:
        """Everything the CSVs say of a volume.

        A metadata CSV of a single line, given by name, also counts for the volume whose file name it shares,
        and for the only volume of a source, whatever the line calls it.

        Args:
            name: File name of the volume.
            alone: Whether it is the only volume of the source.
        """
        key = _stem(Path(name))
        metadata = self.metadata.get(key)
        if metadata is None:
            sidecar = self._sidecars.get(key, self.metadata if alone and self._sidecars else {})
            metadata = next(iter(sidecar.values())) if len(sidecar) == 1 else {}
        report = self.reports.get(key)
        return CsvRow(
            report=None if report is None else report_text(report),
            labels=_labels(self.labels.get(key, {})),
            rescale=_rescale(metadata),
            spacing=_spacing(metadata),
            patient_id=_first(metadata, _PATIENT),
            tags=tags_of(metadata),
        )


def report_text(row: dict[str, str]) -> str:
    """Findings and impression as one text; "Not given." dropped, quotes and brackets stripped, as published.

    Args:
        row: A line of a report CSV, keys in lower case.
    """
    parts = [_first(row, _FINDINGS), _first(row, _IMPRESSIONS)]
    if not any(parts):
        parts = [_first(row, _WHOLE)]
    text = " ".join(part for part in parts if part.lower() not in _NOT_GIVEN)
    return " ".join(text.translate(_UNWANTED).split())


def _load_found(found: Sequence[Path], word: str) -> dict[str, dict[str, str]]:
    """Rows of CSVs met by the way; one that is of another kind is none of the user's mistakes."""
    rows: dict[str, dict[str, str]] = {}
    for path in found:
        if word in path.name.lower():
            try:
                rows |= _load([path])
            except ScanError as error:
                log.warning("left out: %s", error.found)
    return rows


def _load(paths: Sequence[str | Path]) -> dict[str, dict[str, str]]:
    rows: dict[str, dict[str, str]] = {}
    for path in paths:
        try:
            table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
        except (OSError, ValueError, csv.Error) as error:  # pandas' parser errors are ValueErrors
            raise ScanError(
                f"{path} cannot be read as CSV: {str(error).strip()}",
                "CT-RATE's layout",
                "check --reports, --metadata, --labels",
            ) from error
        names = {str(c).strip().lower(): c for c in table.columns}
        if NAME_COLUMN.lower() not in names:
            raise ScanError(
                f"{path} has the columns {', '.join(map(str, table.columns[:8]))}",
                f"a column {NAME_COLUMN} with file names",
                "rename the column that names the volume's file",
            )
        for values in table.itertuples(index=False, name=None):
            row = {str(c).strip(): str(v).strip() for c, v in zip(table.columns, values, strict=True)}
            lower = {k.lower(): v for k, v in row.items()} | {"": ""}
            rows[_stem(Path(lower[NAME_COLUMN.lower()]))] = (
                row if "label" in Path(path).name.lower() else lower
            )
    return rows


def _stem(path: str | Path) -> str:
    name = Path(path).name.lower()
    for ending in (*_ENDINGS, ".csv"):
        if name.endswith(ending):
            return name.removesuffix(ending)
    return name


def _first(row: dict[str, str], names: Sequence[str]) -> str:
    return next((row[name] for name in names if row.get(name)), "")


def _number(text: str) -> float | None:
    numbers = _numbers(text)
    return numbers[0] if len(numbers) == 1 else None


def _numbers(text: str) -> list[float]:
    return [float(t) for t in re.findall(r"[-+]?\d*\.?\d+(?:[eE][-+]?\d+)?", text)]


def _rescale(row: dict[str, str]) -> tuple[float, float] | None:
    slope, intercept = _number(row.get("rescaleslope", "")), _number(row.get("rescaleintercept", ""))
    if intercept is None or slope == 0:
        return None
    return (1.0 if slope is None else slope, intercept)


def _spacing(row: dict[str, str]) -> tuple[float, float, float] | None:
    plane, z = _numbers(row.get("xyspacing", "")), _number(row.get("zspacing", ""))
    if len(plane) not in (1, 2) or z is None or min(plane) <= 0 or z == 0:
        return None
    return (abs(z), plane[0], plane[-1])


def _labels(row: dict[str, str]) -> dict[str, int]:
    labels = {}
    for name, value in row.items():
        number = _number(value) if name.lower() != NAME_COLUMN.lower() else None
        if number is not None:
            labels[name] = int(number > 0.5)
    return labels
