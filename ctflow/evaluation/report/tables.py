"""The tables of a report, and what each name in them means, on which scale, and which way is better."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from ctflow.evaluation.results import MODEL, Reading, Results, Row, number
from ctflow.pages import Table


class Meaning(NamedTuple):
    """One line of the glossary.

    Attributes:
        arrow: ``↓`` lower is better, ``↑`` higher is better; empty: neither.
        text: What it is, with scale and unit.
    """

    arrow: str
    text: str


_FRECHET = (
    "Fréchet distance, 0 for equal sets; biased upwards at small N, at infinite N around 0 where sets agree"
)
_KERNEL = (
    "unbiased kernel distance (squared MMD, kernel (x·y/d + 1)³), not multiplied by 1000; 0 for equal sets, "
    "and then slightly negative too; for far sets it grows with the cube of the Fréchet distance"
)
_RANDOM = "in units of the real set's own standard deviation, from frozen random convolutions"
_PAIR = "100 · max(0, cosine) of report and volume, 0 … 100"
_MEANINGS = (  # the longest fitting beginning counts
    ("fid", Meaning("↓", f"slices: {_FRECHET}; Inception-v3 features")),
    ("fid_rand2d", Meaning("↓", f"slices: {_FRECHET}; {_RANDOM}")),
    ("kid", Meaning("↓", f"slices: {_KERNEL}; Inception-v3 features")),
    ("kid_rand2d", Meaning("↓", f"slices: {_KERNEL}; {_RANDOM}")),
    ("fvd_f", Meaning("↓", f"clips of as many slices as the name says: {_FRECHET}; I3D logits")),
    ("fvd_rand3d_f", Meaning("↓", f"clips of as many slices as the name says: {_FRECHET}; {_RANDOM}")),
    (
        "is",
        Meaning("↑", "Inception score of the slices, 1 … 1008; needs varied and recognisable slices"),
    ),
    (
        "fd_ct3d",
        Meaning("↓", f"whole volumes: {_FRECHET}; 2048 features of a 3D ResNet-152 trained on chest CT"),
    ),
    ("kd_ct3d", Meaning("↓", f"whole volumes: {_KERNEL}; the same features")),
    ("fid_2p5d", Meaning("↓", "mean of the distances over the three planes")),
    *(
        (f"fid_2p5d_{plane}", Meaning("↓", f"slices of the {plane} plane at 1 mm, 512²: {_FRECHET}"))
        for plane in ("xy", "yz", "xz")
    ),
    *(
        (f"{name}_{backbone}", Meaning("↑", f"{text}; one sample per volume, 5 neighbours"))
        for name, text in (
            ("precision", "share of scored volumes near a real one, 0 … 1"),
            ("recall", "share of real volumes near a scored one, 0 … 1"),
            ("density", "how densely real volumes lie about scored ones; 1 for equal sets, may exceed it"),
            ("coverage", "share of real volumes with a scored one near, 0 … 1"),
        )
        for backbone in ("ct3d", "inception", "rand2d")
    ),
    (
        "FVD_CTNet",
        Meaning("↓", "the challenge's: mean over strata of 4 pairs of the Fréchet distance of CT-Net"),
    ),
    ("CLIPScore", Meaning("↑", f"the challenge's, CT-CLIP_v2: {_PAIR}")),
    ("CLIPScore_I2I", Meaning("↑", "the challenge's: the same of a generated and its real volume")),
    ("CLIPScore_mean", Meaning("↑", "the challenge's: mean of the two before")),
    ("FID_2p5D_Avg", Meaning("↓", "the challenge's: mean of the distances over three planes")),
    *(
        (
            f"FID_2p5D_{plane}",
            Meaning("↓", f"the challenge's: slices of the {plane} plane at 1 mm, 512²: {_FRECHET}"),
        )
        for plane in ("XY", "YZ", "XZ")
    ),
    ("clip", Meaning("↑", f"CT-CLIP: {_PAIR}")),
    ("clip_shuffled", Meaning("", f"CT-CLIP: {_PAIR}, against the other cases' reports: its zero point")),
    ("clip_phantom", Meaning("↑", f"the embedded pair trained on phantoms, not CT-CLIP: {_PAIR}")),
    ("clip_phantom_shuffled", Meaning("", f"the embedded pair: {_PAIR}, against the other cases' reports")),
    ("seam_ratio", Meaning("", "step between slices at block boundaries over those beside it; real: 1.0")),
    ("seam_ratio_patch", Meaning("", "the same at every second slice (patches of two); real: 1.0")),
    ("sharpest_steps", Meaning("↓", "largest twelfth of the steps between slices over those beside it")),
    ("checkerboard_", Meaning("↓", "share of fine structure that repeats with this period in pixels")),
    ("drift_z", Meaning("↓", "distance of slice statistics from real slices there, in standard deviations")),
    ("drift_z_slope", Meaning("↓", "how much drift_z grows per block of 16 slices; no drift: 0")),
    ("drift_last_over_first", Meaning("↓", "distance from real slices, last window over first; no drift: 1")),
    ("drift_slope", Meaning("↓", "how much that distance grows per block, in real-against-real distances")),
    ("premature", Meaning("↓", "share of volumes that end more than 16 slices early, 0 … 1")),
    ("length_error", Meaning("↓", "mean absolute difference from the length asked for, in slices")),
    ("interior_white", Meaning("↓", "white slices before the end, per volume")),
    ("end_slices", Meaning("↓", "scored slices that the model meant as the volume's end, per volume")),
)


def meaning(name: str) -> Meaning:
    """Of a metric or monitor; ratios and names unknown here have no direction and no text."""
    if name.endswith(" ratio"):
        return Meaning("↓", "over next-block's value on the same cases and slices")
    fitting = [(key, found) for key, found in _MEANINGS if _fits(name, key)]
    return max(fitting, key=lambda pair: len(pair[0]))[1] if fitting else Meaning("", "")


def labelled(name: str) -> str:
    """The name with its direction."""
    return f"{name} {meaning(name).arrow}".rstrip()


def explained(names: Iterable[str]) -> list[tuple[str, str]]:
    """Name and text of those that have one, each once, in order."""
    return [(labelled(name), meaning(name).text) for name in dict.fromkeys(names) if meaning(name).text]


def _fits(name: str, key: str) -> bool:
    return name == key or (key[-1] in "_f" and name.startswith(key) and name[len(key) :].isdigit())


def summary_table(rows: Sequence[Row]) -> Table:
    """The paper's table: a line per setting, resolution and source, a column per metric.

    Metrics without a resolution (reports) are in every line of their setting.

    Args:
        rows: The whole table.
    """
    shown = [row for row in rows if row.metric != "all"]
    metrics = list(dict.fromkeys(row.metric for row in shown))
    lines = []
    for setting, source in dict.fromkeys((row.setting, row.source) for row in shown):
        own = [row for row in shown if (row.setting, row.source) == (setting, source)]
        sides = list(dict.fromkeys(row.resolution for row in own if row.resolution)) or [0]
        for side in sides:
            cells = {row.metric: row for row in own if row.resolution in (side, 0)}
            upsampled = any("upsampled" in row.reason for row in cells.values())
            head = [setting, f"{side or ''}{'*' if upsampled else ''}", source]
            lines.append(head + [_short(cells[name]) if name in cells else "" for name in metrics])
    header = ["setting", "px", "source", *map(labelled, metrics)]
    return Table(header, lines, [line[2] != MODEL for line in lines])


def rows_table(rows: Sequence[Row]) -> Table:
    """Every row with its number, interval, counts and notes."""
    header = ["setting", "source", "metric", "px", "value [95 %]", "at infinite N [95 %]"]
    lines = [
        [
            row.setting,
            row.source,
            row.metric,
            str(row.resolution or ""),
            row.text(),
            row.extrapolated_text(),
            *(str(n or "") for n in (row.samples, row.reference, row.cases)),
            row.reason,
        ]
        for row in rows
    ]
    header += ["N", "reference", "cases", "notes"]
    return Table(header, lines, [row.source != MODEL for row in rows])


def monitors_table(found: Sequence[Reading]) -> Table:
    """The monitors; alarms are marked."""
    lines = [
        [
            r.setting,
            r.source,
            r.monitor,
            number(r.value) if math.isfinite(r.value) else f"n/a ({r.reason})",
            number(r.threshold) if math.isfinite(r.threshold) else "",
            "ALARM" if r.alarm else "",
        ]
        for r in found
    ]
    header = ["setting", "source", "monitor", "value", "alarm above", ""]
    return Table(header, lines, [r.source != MODEL for r in found])


def records_table(records: Sequence[dict[str, Any]]) -> Table:
    """Dictionaries with equal keys."""
    header = list(records[0]) if records else []
    return Table(header, [[_cell(record[name]) for name in header] for record in records])


def glossary_table(results: Results) -> Table:
    """The meaning of every printed metric and monitor."""
    names = [*(row.metric for row in results.rows), *(r.monitor for r in results.readings)]
    return Table(["name", "meaning"], explained(names))


def facts_table(facts: dict[str, Any]) -> Table:
    """A block of provenance."""
    lines = [
        (name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for name, value in facts.items()
    ]
    return Table(["fact", "value"], lines)


def _short(row: Row) -> str:
    if row.missing:
        return row.text()
    value = number(row.value)
    return f"{value} → {number(row.extrapolated)}" if math.isfinite(row.extrapolated) else value


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return number(value) if isinstance(value, float) else str(value)
