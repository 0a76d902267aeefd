"""Volumes are reconstructions of scans of patients: which of them represent a patient.

A scan has two reconstructions on average in CT-RATE, and one report. Training draws a scan, then one of its
reconstructions; an evaluation takes one scan of a patient and one reconstruction of it, by kernel. The order
of reconstructions differs between scanners and decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ctflow.config.data import CaseChoice
from ctflow.types import SHARP, Acquisition


class Reconstructed(Protocol):
    """A case that knows its patient and its scan."""

    @property
    def case_id(self) -> str:
        """The case."""

    @property
    def patient_id(self) -> str:
        """Its patient."""

    @property
    def acquisition(self) -> Acquisition:
        """Scan, reconstruction and scanner."""


def scans_of(cases: Sequence[Reconstructed]) -> list[list[int]]:
    """Indices of the reconstructions of every scan, scans in the order of their first one."""
    scans: dict[tuple[str, str], list[int]] = {}
    for index, case in enumerate(cases):
        scan = case.acquisition.scan
        scans.setdefault(("scan", scan) if scan else ("case", case.case_id), []).append(index)
    return list(scans.values())


def chosen_cases(cases: Sequence[Reconstructed], choice: CaseChoice) -> list[int]:
    """Indices of the cases that an evaluation takes, in the order of the set.

    A patient's scan is the first by name (CT-RATE: the earliest); its reconstruction is the one whose kernel
    is of the kind asked for, of several the smoothest (``soft``) or the grainiest (``sharp``).
    """
    if choice.reconstruction == "all":
        scans = scans_of(cases)
    else:
        scans = [[_by_kernel(cases, scan, choice.reconstruction)] for scan in scans_of(cases)]
    if not choice.every_scan:
        patients: dict[str, list[list[int]]] = {}
        for scan in scans:
            patients.setdefault(cases[scan[0]].patient_id, []).append(scan)
        scans = [min(own, key=lambda scan: _scan_name(cases[scan[0]])) for own in patients.values()]
    return sorted(index for scan in scans for index in scan)


def _by_kernel(cases: Sequence[Reconstructed], scan: Sequence[int], wanted: str) -> int:
    def rank(index: int) -> tuple[int, float, str]:
        found, noise = cases[index].acquisition, cases[index].acquisition.noise_hu
        unlike = 0 if found.sharpness == wanted else 2 if found.sharpness else 1
        grain = 0.0 if noise is None else -noise if wanted == SHARP else noise
        return unlike, grain, cases[index].case_id

    return min(scan, key=rank)


def _scan_name(case: Reconstructed) -> tuple[int, str]:
    """Shorter names first, so that scan b comes before scan aa and 9 before 10."""
    name = case.acquisition.scan or case.case_id
    return len(name), name
