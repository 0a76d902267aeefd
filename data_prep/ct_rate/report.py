"""Reports of a run: quarantine CSV, volume CSV, summary JSON, contact sheet."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ctflow.data import schema
from ctflow.data.manifest import read_manifest
from ctflow.files import write_text
from ctflow.pictures import LUNG, SOFT_TISSUE, axial, coronal, save_png, stack
from ctflow.types import HUVolume
from data_prep.ct_rate.discovery import Source
from data_prep.ct_rate.layout import LeftOut
from data_prep.ct_rate.naming import is_published
from data_prep.ct_rate.prepare import ACCEPTED, EXCLUDED, EXPANDED, FLAGGED, IGNORED, REFUSED, Outcome
from data_prep.ct_rate.units import SPLITS

log = logging.getLogger(__name__)
QUARANTINE, VOLUMES, SUMMARY, SHEET = "quarantine.csv", "volumes.csv", "summary.json", "contact_sheet.png"
_SHEET_CASES = 36
_SHEET_COLUMNS = 4
_TILE = 128
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_MANY = 4
"""Fewest scans for a warning of one patient with most of them."""
_TILE_HEIGHT = 172


def write_reports(
    output: Path, outcomes: Iterable[Outcome], source: Source, settings: dict[str, Any], missing: int
) -> dict[str, Any]:
    """Write the quarantine, the list of volumes and the summary.

    Args:
        output: Folder of the run.
        outcomes: Of every item.
        source: What was found; files that are not images, and what was left unread.
        settings: Keys that shaped the volumes.
        missing: Volumes of the report CSVs that are not there.

    Returns:
        The summary.
    """
    outcomes = sorted((o for o in outcomes if o.status != EXPANDED), key=lambda o: o.key)
    told = [o for o in outcomes if o.status != ACCEPTED and not _is_label_map(o)]
    quarantine = [[o.key, o.case_id, o.status, code, detail] for o in told for code, detail in o.reasons]
    groups = [*source.left_out, *_label_maps(outcomes)]
    quarantine += [[g.place, "", EXCLUDED, g.code, f"{g.count} files: {g.detail}"] for g in groups]
    quarantine += [[name, "", IGNORED, "stray_file", "no image by its name"] for name in sorted(source.stray)]
    _write_csv(output / QUARANTINE, ["source", "case_id", "status", "reason", "detail"], quarantine)
    kept = _kept(outcomes, settings)
    columns = [
        "case_id",
        "patient_id",
        "scan",
        "reconstruction",
        "kernel",
        "sharpness",
        "manufacturer",
        "noise_hu",
        "split",
        "status",
        "flags",
        "slices",
        "z_mm",
        "pixel_mm",
        "has_report",
        "source",
    ]
    facts = [
        "format",
        "stored_axes",
        "oblique_degrees",
        "native_shape",
        "native_spacing",
        "spacing_from",
        "rescale",
    ]
    facts += ["padding_share", "lung_ml", "lung_left_ml", "lung_right_ml", "coverage_mm"]
    rows = [
        [o.case_id, o.patient_id]
        + [o.acquisition.get(name, "") for name in columns[2:8]]
        + [o.split, o.status, " ".join(code for code, _ in o.reasons), o.slices]
        + [*o.spacing[:2], int(bool(o.report)), o.key]
        + [
            json.dumps(o.facts[f]) if isinstance(o.facts.get(f), (list, dict)) else o.facts.get(f, "")
            for f in facts
        ]
        for o in kept
    ]
    _write_csv(output / VOLUMES, columns + facts, rows)
    summary = summarise(outcomes, source, settings) | {"listed_but_missing": missing}
    write_text(output / SUMMARY, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    return summary


def summarise(outcomes: list[Outcome], source: Source, settings: dict[str, Any]) -> dict[str, Any]:
    """Counts by status and reason."""
    by_status = Counter(o.status for o in outcomes)
    kept = _kept(outcomes, settings)
    excluded = Counter(o.reasons[0][0] for o in outcomes if o.status == EXCLUDED)
    for group in source.left_out:
        excluded[group.code] += group.count
    return {
        "items": len(outcomes),
        "accepted": by_status[ACCEPTED],
        "flagged": by_status[FLAGGED],
        "refused": by_status[REFUSED],
        "excluded": excluded.total(),
        "ignored": by_status[IGNORED] + len(source.stray),
        "refused_by_reason": _by_reason(outcomes, REFUSED),
        "flagged_by_reason": _by_reason(outcomes, FLAGGED),
        "excluded_by_reason": dict(sorted(excluded.items())),
        "splits": {s: sum(o.split == s for o in kept) for s in SPLITS},
        "patients": len({o.patient_id for o in kept}),
        "scans": len({o.acquisition.get("scan") or o.case_id for o in kept}),
        "slices": sum(o.slices for o in kept),
        "without_report": sum(not o.report for o in kept),
        "settings": settings,
    }


def _is_label_map(outcome: Outcome) -> bool:
    return outcome.status == EXCLUDED and outcome.reasons[0][0] == "label_map"


def _label_maps(outcomes: list[Outcome]) -> list[LeftOut]:
    """Label maps recognised by their values alone, as one group."""
    found = [o for o in outcomes if _is_label_map(o)]
    if not found:
        return []
    return [LeftOut(found[0].key, "label_map", len(found), f"{found[0].reasons[0][1]}; this is the first")]


def _kept(outcomes: list[Outcome], settings: dict[str, Any]) -> list[Outcome]:
    """The scans that are in the shards."""
    return [o for o in outcomes if o.status == ACCEPTED or (o.status == FLAGGED and settings["keep_flagged"])]


def log_summary(summary: dict[str, Any], outcomes: Iterable[Outcome]) -> None:
    """The summary in a few lines of the log, and a warning where one patient has most scans."""
    log.info(
        "%d accepted, %d flagged, %d refused, %d excluded, %d ignored; train %d, valid %d: %d scans "
        "of %d patients, %d slices",
        *(summary[k] for k in ("accepted", "flagged", "refused", "excluded", "ignored")),
        *(summary["splits"][s] for s in SPLITS),
        *(summary[k] for k in ("scans", "patients", "slices")),
    )
    _tell_patients(outcomes, summary)
    for status in ("refused", "flagged", "excluded"):
        for code, count in summary[f"{status}_by_reason"].items():
            log.info("%s: %s %d", status, code, count)


def _tell_patients(outcomes: Iterable[Outcome], summary: dict[str, Any]) -> None:
    kept = [o for o in _kept(list(outcomes), summary["settings"]) if not is_published(o.case_id)]
    contents = {o.voxels_sha256: o for o in reversed(kept)}.values()  # copies count once
    scans = {(o.acquisition.get("scan") or o.case_id): o.patient_id for o in contents}
    counts = Counter(scans.values()).most_common(1)
    if not counts or len(scans) < 2:
        return
    patient, count = counts[0]
    if count == len(scans) or (len(scans) >= _MANY and 2 * count > len(scans)):
        empty = [split for split in SPLITS if not summary["splits"][split]]
        log.warning(
            "%d of %d scans count as one patient (%s)%s: where they are not, give patient_pattern, an "
            "expression whose first group is the patient in a file's path: patient_pattern='(case[0-9]+)'",
            *(count, len(scans), patient, f", so {empty[0]} is empty" if empty else ""),
        )


def write_contact_sheet(output: Path) -> None:
    """Picture of volumes evenly spread over the shards: axial in two windows, and coronal, for each."""
    places = [(s, e.file, i) for s in SPLITS for e in read_manifest(output / s) for i in range(len(e.cases))]
    if not places:
        return
    chosen = [places[round(k)] for k in np.linspace(0, len(places) - 1, min(len(places), _SHEET_CASES))]
    tiles = []
    for split, file, index in chosen:
        with schema.open_shard(output / split / file, schema.SLICES) as shard:
            record = schema.read_slice_record(shard, index)
        tiles.append(_tile(HUVolume(record.hu.astype(np.float32), record.spacing), record.case_id))
    rows = [tiles[k : k + _SHEET_COLUMNS] for k in range(0, len(tiles), _SHEET_COLUMNS)]
    save_png(output / SHEET, stack([_beside(row) for row in rows]))


def _tile(volume: HUVolume, name: str) -> NDArray[np.uint8]:
    """Three views of a volume beside each other, its name below them."""
    middle = volume.hu.shape[0] // 2
    views = [
        axial(volume, middle, LUNG, _TILE),
        axial(volume, middle, SOFT_TISSUE, _TILE),
        coronal(volume, LUNG, _TILE),
    ]
    framed = np.zeros((_TILE_HEIGHT, 3 * _TILE), np.uint8)
    for k, view in enumerate(views):
        height = min(view.shape[0], _TILE_HEIGHT)
        framed[:height, k * _TILE : (k + 1) * _TILE] = view[:height]
    page = Image.fromarray(framed)
    ImageDraw.Draw(page).text((3, _TILE_HEIGHT - 12), name[-60:], fill=255)
    return np.asarray(page)


def _beside(tiles: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    return stack([tile.T for tile in tiles]).T


def _by_reason(outcomes: list[Outcome], status: str) -> dict[str, int]:
    counts = Counter(code for o in outcomes if o.status == status for code, _ in o.reasons)
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def _write_csv(path: Path, header: list[str], rows: list[list[Any]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows([[_inert(cell) for cell in row] for row in rows])
    write_text(path, text.getvalue())


def _inert(cell: Any) -> Any:
    """A cell that no spreadsheet takes for a formula: names and tags may come from anybody."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell
