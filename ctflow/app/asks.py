"""Requests of the page, checked: JSON in, typed and bounded values out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ctflow.config.commands import SamplingChoice
from ctflow.errors import CTFlowError

MOST_LETTERS = 20_000
MOST_STEPS, MOST_GUIDANCE, MOST_CANDIDATES, MOST_SEED = 500, 20.0, 8, 2**53 - 1
"""Bounds of what a page may ask for; a seed is a whole number that JavaScript holds."""


@dataclass(frozen=True)
class Ask:
    """A volume, or two at one seed.

    Attributes:
        reports: One text, or two to be compared.
        seed: Of the noise.
        slices: Requested number; None: the model decides.
        z_spacing: Requested millimetres between slices; None: the checkpoint's.
        sampling: Replaces what the checkpoint recommends.
        candidates: Volumes drawn, of which the best is told.
        source: Volume to be continued; empty: none.
        keep: Its first and last slice that are kept.
    """

    reports: tuple[str, ...]
    seed: int
    slices: int | None
    z_spacing: float | None
    sampling: SamplingChoice
    candidates: int = 1
    source: str = ""
    keep: tuple[int, int] = (0, 0)


def read_ask(body: Any, most_slices: int) -> Ask:
    """Check a page's JSON.

    Args:
        body: As parsed.
        most_slices: The longest volume of the checkpoint.

    Raises:
        CTFlowError: Something is missing, of another type or out of bounds.
    """
    if not isinstance(body, dict):
        raise CTFlowError("the request is not a JSON object", "report, seed, slices …")
    known = {"reports", "seed", "slices", "z_spacing", "steps", "guidance", "candidates", "source", "keep"}
    if strange := sorted(set(body) - known):
        raise CTFlowError(f"unknown keys {', '.join(strange)[:100]}", ", ".join(sorted(known)))
    reports = body.get("reports")
    if not isinstance(reports, list) or not 1 <= len(reports) <= 2:
        raise CTFlowError("no list of one or two reports", "reports: [text] or [text, text]")
    for report in reports:
        if not isinstance(report, str) or not report.strip():
            raise CTFlowError("the report is empty", "findings in words", "type one, or choose an example")
        if len(report) > MOST_LETTERS:
            raise CTFlowError(f"a report of {len(report)} letters", f"at most {MOST_LETTERS}")
    source = body.get("source", "")
    keep = body.get("keep", [0, 0])
    if not isinstance(source, str) or not (isinstance(keep, list) and len(keep) == 2):
        raise CTFlowError("a source or kept slices that are none", "source: id, keep: [first, last]")
    first, last = (_whole({"keep": value}, "keep", 0, 100_000) or 0 for value in keep)
    if first > last or (source and len(reports) > 1):
        raise CTFlowError(
            f"slices {first} to {last} of a volume, {len(reports)} reports", "rising, and one report"
        )
    candidates = _whole(body, "candidates", 1, MOST_CANDIDATES) or 1
    if candidates > 1 and (source or len(reports) > 1):
        raise CTFlowError("candidates of a comparison or a continued volume", "one report from nothing")
    try:
        sampling = SamplingChoice(
            steps=_whole(body, "steps", 1, MOST_STEPS),
            text_guidance=_number(body, "guidance", 0.0, MOST_GUIDANCE),
        )
    except ValueError as error:
        raise CTFlowError(str(error)) from error
    return Ask(
        tuple(report.strip() for report in reports),
        _whole(body, "seed", 0, MOST_SEED) or 0,
        _whole(body, "slices", 1, most_slices),
        _number(body, "z_spacing", 0.05, 20.0),
        sampling,
        candidates,
        source,
        (first, last),
    )


def _number(body: dict[str, Any], name: str, low: float, high: float) -> float | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise CTFlowError(f"{name} is not a number", f"a number from {low:g} to {high:g}")
    if not low <= value <= high:
        raise CTFlowError(f"{name} of {value:g}", f"{low:g} to {high:g}")
    return float(value)


def _whole(body: dict[str, Any], name: str, low: int, high: int) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise CTFlowError(f"{name} is not a whole number", f"a whole number from {low} to {high}")
    if not low <= value <= high:
        raise CTFlowError(f"{name} of {value}", f"{low} to {high}")
    return value
