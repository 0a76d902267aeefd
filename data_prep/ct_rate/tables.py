"""CT-RATE's CSVs: reports, metadata and labels, looked up by volume."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from ctflow.config.prep import IngestConfig
from ctflow.errors import CTFlowError, ScanError
from ctflow.text_files import read_table
from data_prep.ct_rate.matching import Line, Match, Matcher, Names, parts_of
from data_prep.ct_rate.naming import folder_and_series
from data_prep.ct_rate.tags import ScanTags, tags_of

log = logging.getLogger(__name__)
_T = TypeVar("_T")
NAME_COLUMN = "VolumeName"
_NOT_GIVEN = ("not given.", "not given", "nan", "")
_FINDINGS = ("findings_en", "findings")
_IMPRESSIONS = ("impressions_en", "impression_en", "impressions", "impression")
_WHOLE = ("report", "text")
_REPORT_COLUMNS = (*_FINDINGS, *_IMPRESSIONS, *_WHOLE)
_PATIENT = ("patientid", "patient_id")
_UNWANTED = str.maketrans("", "", "\"'()")


@dataclass(frozen=True)
class CsvRow:
    """The CSVs' facts of one volume.

    Attributes:
        report: Findings and impression as one text; None where no report CSV names the volume.
        labels: Label to 0 or 1.
        rescale: Slope and intercept; None where not given.
        spacing: Millimetres (slices, rows, columns); None where not given.
        patient_id: Empty where not given.
        tags: Scanner, kernel and geometry.
        unclear: Cells that should be numbers and are none, with their places.
        doubts: Why lines that name it cannot be taken: they fit other volumes too, or contradict each other.
    """

    report: str | None = None
    labels: dict[str, int] = field(default_factory=dict)
    rescale: tuple[float, float] | None = None
    spacing: tuple[float, float, float] | None = None
    patient_id: str = ""
    tags: ScanTags = field(default_factory=ScanTags)
    unclear: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """Changes when what the CSVs say does."""
        return json.dumps(asdict(self), sort_keys=True, ensure_ascii=False)


class _OtherColumns(ScanError):
    """A CSV that is whole, and of another kind."""


class Tables:
    """The CSVs of a source, by volume.

    Args:
        config: Names CSVs, or none; then those under ``source`` are used.
        found: CSVs met under ``source``.
        keys: Keys of the source's items.

    Raises:
        ScanError: A CSV that is missing, unreadable or without the columns it needs.
    """

    def __init__(self, config: IngestConfig, found: Sequence[Path], keys: Iterable[str] = ()) -> None:
        source = Path(config.source)
        self._names = Names(keys, source.parent if source.is_file() else source)
        reports = _load(config.reports, _REPORT_COLUMNS) or _load_found(found, "report", _REPORT_COLUMNS)
        given = [(Path(p).name.lower().removesuffix(".csv"), _load([p])) for p in config.metadata]
        metadata = [line for _, lines in given for line in lines] or _load_found(found, "metadata")
        labels = _load(config.labels) or _load_found(found, "label")
        self.has_reports = bool(reports)
        self._reports, self._metadata, self._labels = (
            Matcher(lines, self._names) for lines in (reports, metadata, labels)
        )
        self._label_columns = _label_columns(labels)
        self._only_metadata = metadata if len(metadata) == 1 and config.metadata else []
        self._sidecars = {parts_of(name)[-1:]: lines for name, lines in given if len(lines) == 1}
        for kind, matcher in (
            ("report", self._reports),
            ("metadata", self._metadata),
            ("label", self._labels),
        ):
            _tell_repeated(kind, matcher)

    def found(self, keys: Iterable[str]) -> None:
        """Volumes that were found in a folder of loose files: lines may name these too."""
        new = [key for key in keys if folder_and_series(key)[0] not in self._names.parts]
        for key in new:
            self._names.add(key)
        if new:
            self._reports, self._metadata, self._labels = (
                Matcher(matcher.lines, self._names)
                for matcher in (self._reports, self._metadata, self._labels)
            )

    def without_file(self) -> list[str]:
        """Volumes that a report CSV lists and the source lacks."""
        return sorted({line.name for line in self._reports.unmatched})

    def row(self, key: str, alone: bool, shared: bool = False) -> CsvRow:
        """Everything the CSVs say of a volume.

        A metadata CSV of a single line, given by name, also counts for the volume whose file name it shares,
        and for the only volume of a source, whatever the line calls it.

        Args:
            key: Of the volume's item.
            alone: Whether it is the only volume of the source.
            shared: Whether it is a series in a folder that holds another patient's too.
        """
        self.found([key])
        metadata = self._metadata.match(key, shared)
        if not metadata.lines and not metadata.doubt:
            sidecar = self._sidecars.get(parts_of(folder_and_series(key)[0])[-1:])
            metadata = Match(tuple(sidecar or (self._only_metadata if alone else [])))
        doubts: list[str] = []
        report = _agreed(self._reports.match(key, shared), lambda line: report_text(_lower(line)), doubts)
        scan = _agreed(metadata, _scan_of, doubts) or _Scan()
        labels = _agreed(self._labels.match(key, shared), self._labels_of, doubts)
        unclear = [*scan.unclear, *(labels[1] if labels else ())]
        return CsvRow(
            report=report,
            labels=labels[0] if labels else {},
            rescale=scan.rescale,
            spacing=scan.spacing,
            patient_id=scan.patient_id,
            unclear=tuple(unclear),
            doubts=tuple(doubts),
            tags=scan.tags,
        )

    def _labels_of(self, line: Line) -> tuple[dict[str, int], list[str]]:
        """Labels of a line, and the cells that are none."""
        labels, unclear = {}, []
        for name in self._label_columns:
            cell = line.cells.get(name, "")
            value = _share(cell)
            if value is not None:
                labels[name] = int(value > 0.5)
            elif cell.lower() not in _NOT_GIVEN:
                unclear.append(f"{name}: {cell!r} ({line.place})")
        return labels, unclear


@dataclass(frozen=True)
class _Scan:
    """The facts in a line of a metadata CSV."""

    rescale: tuple[float, float] | None = None
    spacing: tuple[float, float, float] | None = None
    patient_id: str = ""
    tags: ScanTags = field(default_factory=ScanTags)
    unclear: tuple[str, ...] = ()


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


def _agreed(match: Match, parse: Callable[[Line], _T], doubts: list[str]) -> _T | None:
    """The common value of a volume's lines; None without one, or with a reason added to ``doubts``."""
    if match.doubt:
        doubts.append(match.doubt)
    if not match.lines:
        return None
    said = [parse(line) for line in match.lines]
    for line, value in zip(match.lines[1:], said[1:], strict=True):
        if value != said[0]:
            doubts.append(
                f"{match.lines[0].place} and {line.place} name it ({line.name!r}) and say different things: "
                "leave one of them"
            )
            return None
    return said[0]


def _tell_repeated(kind: str, matcher: Matcher) -> None:
    if repeated := matcher.repeated():
        key, match = repeated[0]
        log.warning(
            "%d volumes are named more than once in the %s CSVs (%s in %s); equal lines count once, a volume "
            "whose lines differ is refused",
            *(len(repeated), kind, key, " and ".join(line.place for line in match.lines[:2])),
        )


def _load_found(found: Sequence[Path], word: str, needed: Sequence[str] = ()) -> list[Line]:
    """Lines of CSVs met by the way; one of another kind may lie there on purpose, a damaged one is told.

    Raises:
        ScanError: A CSV of this name cannot be read: all that it says would be lost.
    """
    lines: list[Line] = []
    for path in found:
        if word in path.name.lower():
            try:
                lines += _load([path], needed)
            except _OtherColumns as error:
                log.warning("left out: %s", error.found)
    return lines


def _load(paths: Sequence[str | Path], needed: Sequence[str] = ()) -> list[Line]:
    """Lines of CSVs that name a volume; ``needed`` are columns of which there must be one."""
    lines: list[Line] = []
    for path in map(Path, paths):
        try:
            table = read_table(path)
        except CTFlowError as error:
            action = error.action or "mend it, or name the right CSVs by --reports, --metadata and --labels"
            raise ScanError(error.found, error.expected or "CT-RATE's layout", action) from error
        columns = {name.lower(): name for name in table.columns}
        name_column = columns.get(NAME_COLUMN.lower())
        if name_column is None or (needed and not columns.keys() & set(needed)):
            raise _OtherColumns(
                f"{path} has the columns {', '.join(table.columns[:8])}",
                f"a column {NAME_COLUMN} with file names"
                + (", and one of Findings_EN, Impressions_EN, report" if needed else ""),
                "rename the columns, or check --reports, --metadata, --labels",
            )
        nameless = [number for number, cells in table.rows if not cells[name_column]]
        if nameless:
            log.warning("%d rows of %s name no volume: row %d", len(nameless), path, nameless[0])
        lines += [
            Line(f"row {number} of {path.name}", cells[name_column], cells)
            for number, cells in table.rows
            if cells[name_column]
        ]
    return lines


def _lower(line: Line) -> dict[str, str]:
    return {name.lower(): cell for name, cell in line.cells.items()}


def _first(row: dict[str, str], names: Sequence[str]) -> str:
    return next((row[name] for name in names if row.get(name)), "")


@lru_cache(maxsize=2**14)
def _number(text: str) -> float | None:
    """A number, with a point or a decimal comma."""
    try:
        value = float(text.replace(",", ".") if text.count(",") == 1 else text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _numbers(text: str) -> list[float]:
    found = (float(t) for t in re.findall(r"[-+]?\d*\.?\d+(?:[eE][-+]?\d+)?", text))
    return [value for value in found if math.isfinite(value)]


def _share(text: str) -> float | None:
    """A label's number; None unless it lies in [0, 1]."""
    value = _number(text)
    return value if value is not None and 0.0 <= value <= 1.0 else None


def _scan_of(line: Line) -> _Scan:
    row = _lower(line)
    texts = {name: row.get(name, "") for name in ("rescaleslope", "rescaleintercept", "zspacing")}
    given = {name: _number(text) for name, text in texts.items()}
    plane = _numbers(row.get("xyspacing", ""))
    unclear = [
        f"{name}: {text!r} ({line.place})"
        for name, text in texts.items()
        if given[name] is None and text.lower() not in _NOT_GIVEN
    ]
    if len(plane) not in (1, 2) and row.get("xyspacing", "").lower() not in _NOT_GIVEN:
        unclear.append(f"xyspacing: {row['xyspacing']!r} ({line.place})")
    return _Scan(
        _rescale(given["rescaleslope"], given["rescaleintercept"]),
        _spacing(plane, given["zspacing"]),
        _first(row, _PATIENT),
        tags_of(row),
        tuple(unclear),
    )


def _rescale(slope: float | None, intercept: float | None) -> tuple[float, float] | None:
    if intercept is None or slope == 0:
        return None
    return (1.0 if slope is None else slope, intercept)


def _spacing(plane: Sequence[float], z: float | None) -> tuple[float, float, float] | None:
    if len(plane) not in (1, 2) or z is None or min(plane) <= 0 or z == 0:
        return None
    return (abs(z), plane[0], plane[-1])


def _label_columns(lines: Sequence[Line]) -> list[str]:
    """Columns that hold labels: at least half of their cells lie in [0, 1]; others are named once."""
    names = dict.fromkeys(name for line in lines for name in line.cells if name)
    kept, left_out = [], []
    for name in names:
        if name.lower() == NAME_COLUMN.lower():
            continue
        cells = [c for line in lines if (c := line.cells.get(name, "")).lower() not in _NOT_GIVEN]
        if cells and 2 * sum(_share(cell) is not None for cell in cells) >= len(cells):
            kept.append(name)
        elif cells:
            odd = next(cell for cell in cells if _share(cell) is None)
            left_out.append(f"{name} ({odd!r})")
    if left_out:
        log.warning(
            "columns of the label CSVs that hold no labels (0 to 1) are left out: %s", ", ".join(left_out)
        )
    return kept
