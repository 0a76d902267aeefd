"""Targets of the text tower: columns that the parser finds in reports."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from ctflow.reports import StatedFinding, parse_report

RIGHT, LEFT = "right", "left"
_BOTH = (RIGHT, LEFT)


@dataclass(frozen=True)
class Columns:
    """Questions to a text, each by its name.

    Attributes:
        stated: Yes or no: ``LABEL`` (stated), ``no LABEL`` (denied), ``LABEL|SIDE``, ``LABEL|LOBE``,
            ``LABEL|GRADE``, ``LABEL|SIDE|GRADE``.
        sizes: Numbers: ``LABEL|mm``, ``LABEL|ratio``, ``LABEL|SIDE|ml`` and others; the greatest where
            there are several.
        mean: Mean logarithm of each size over the reports the columns were mined from.
        scale: Its standard deviation.
    """

    stated: list[str]
    sizes: list[str]
    mean: list[float]
    scale: list[float]

    def __len__(self) -> int:
        """Columns of both kinds."""
        return len(self.stated) + len(self.sizes)

    def targets(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Answers of B texts: ``[B, stated]`` of 0 and 1; ``[B, sizes]`` standardised, NaN if not stated."""
        stated = torch.zeros(len(texts), len(self.stated))
        sizes = torch.full((len(texts), len(self.sizes)), torch.nan)
        place = {name: i for i, name in enumerate(self.stated)}
        for row, text in enumerate(texts):
            names, numbers = answers(parse_report(text))
            for name in names & place.keys():
                stated[row, place[name]] = 1.0
            for i, name in enumerate(self.sizes):
                if name in numbers:
                    sizes[row, i] = (math.log(numbers[name]) - self.mean[i]) / self.scale[i]
        return stated, sizes

    def side_pairs(self) -> list[tuple[int, int]]:
        """(right, left) columns of each label that has both."""
        place = {name: i for i, name in enumerate(self.stated)}
        pairs = [(place[n], place.get(f"{n[: -len(RIGHT)]}{LEFT}")) for n in place if n.endswith(f"|{RIGHT}")]
        return [(right, left) for right, left in pairs if left is not None]


def answers(findings: Iterable[StatedFinding]) -> tuple[set[str], dict[str, float]]:
    """Names of the yes/no columns that hold for these statements, and the stated sizes."""
    names: set[str] = set()
    sizes: dict[str, float] = {}

    def size(name: str, value: float | None) -> None:
        if value:
            sizes[name] = max(value, sizes.get(name, 0.0))

    for f in findings:
        if not f.present:
            names.add(f"no {f.label}")
            continue
        sides = _BOTH if f.side == "both" else (f.side,) if f.side else ()
        names.update([f.label, *(f"{f.label}|{side}" for side in sides)])
        if f.lobe:
            names.add(f"{f.label}|{f.lobe}")
        if f.grade:
            names.update([f"{f.label}|{f.grade}", *(f"{f.label}|{side}|{f.grade}" for side in sides)])
        for place in (f.label, *(f"{f.label}|{side}" for side in sides)):
            size(f"{place}|mm", f.size_mm)
            size(f"{place}|ml", f.volume_ml)
            size(f"{place}|ratio", f.ratio)
    return names, sizes


def mine(reports: Sequence[str], least: int) -> Columns:
    """The columns that at least ``least`` of the reports answer with yes, or with a size."""
    counts: dict[str, int] = defaultdict(int)
    values: dict[str, list[float]] = defaultdict(list)
    for report in tqdm(reports, "reading reports", leave=False, disable=len(reports) < 1000):
        names, numbers = answers(parse_report(report))
        for name in names:
            counts[name] += 1
        for name, value in numbers.items():
            values[name].append(math.log(value))
    sizes = sorted(name for name, v in values.items() if len(v) >= least)
    logs = [torch.tensor(values[name]) for name in sizes]
    return Columns(
        stated=sorted(name for name, n in counts.items() if n >= least),
        sizes=sizes,
        mean=[float(v.mean()) for v in logs],
        scale=[max(float(v.std(correction=0)), 0.05) for v in logs],
    )
