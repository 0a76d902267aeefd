"""Two comparable sets out of few scans: every second slice of each, and the slices between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ctflow.evaluation.cases import CaseReader, CaseSets, RealCase
from ctflow.types import HUVolume

EVEN, ODD = "even slices", "odd slices"


class HalvedReader(CaseReader):
    """Pixels of the half scans that ``halved`` makes of a folder's cases."""

    def volume(self, case: RealCase) -> HUVolume:
        """Every second slice of the case's scan, in HU."""
        scan_id, half = case.case_id.rsplit(": ", 1)
        whole = super().volume(replace(case, case_id=scan_id))
        return HUVolume(whole.hu[(EVEN, ODD).index(half) :: 2].copy(), case.spacing)


def halved(cases: Sequence[RealCase]) -> CaseSets:
    """Even slices as the cases evaluated, odd ones as the others.

    Both halves show the same bodies, so that the floor between them is far below that of other patients.
    """
    return CaseSets(*(tuple(_half(case, half) for case in cases) for half in (EVEN, ODD)))


def _half(case: RealCase, half: str) -> RealCase:
    slices = (case.shape[0] + (half == EVEN)) // 2
    return replace(
        case,
        case_id=f"{case.case_id}: {half}",
        shape=(slices, *case.shape[1:]),
        spacing=(2 * case.spacing[0], *case.spacing[1:]),
        digest=f"{case.digest}: {half}",
    )
