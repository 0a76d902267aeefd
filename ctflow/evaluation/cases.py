"""The real cases of an evaluation: those generated from, and others for the floors."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ctflow.config.data import CaseChoice
from ctflow.data import SliceShards
from ctflow.data.choice import chosen_cases
from ctflow.errors import EvaluationError
from ctflow.text_files import Table
from ctflow.types import Acquisition, HUVolume

log = logging.getLogger(__name__)

EVEN, ODD = "even slices", "odd slices"


@dataclass(frozen=True)
class RealCase:
    """A real scan with its report.

    Attributes:
        case_id: Unique in its set.
        patient_id: No patient is on both sides of a floor.
        report: The text volumes are generated from; may be empty.
        shape: (slices, rows, columns).
        spacing: Millimetres along them.
        digest: Identifies the pixels (hash of the source file, else the id).
        truth_path: Ground truth beside a phantom, where there is one.
        labels: Finding name to 0 or 1.
        acquisition: Scan, reconstruction and scanner.
    """

    case_id: str
    patient_id: str
    report: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    digest: str
    truth_path: str | None = None
    labels: dict[str, int] = field(default_factory=dict)
    acquisition: Acquisition = field(default_factory=Acquisition)


@dataclass(frozen=True)
class CaseSets:
    """The two sets of cases of an evaluation.

    Attributes:
        evaluated: Cases generated from; their real volumes are the reference set.
        others: Real cases of other patients for the floors; empty where there are none.
    """

    evaluated: tuple[RealCase, ...]
    others: tuple[RealCase, ...]

    @property
    def digest(self) -> str:
        """SHA-256 over both sets, in order: two tables with one hash were made from the same cases."""
        return case_set_hash(self.evaluated, self.others)


class CaseReader:
    """Real volumes by case, from slice shards.

    Args:
        folder: Folder of slice shards.
    """

    def __init__(self, folder: Path) -> None:
        self._shards = SliceShards(folder)
        self.folder = folder

    def cases(self) -> list[RealCase]:
        """All cases in the manifest's order, without their pixels."""
        found = []
        for index in range(len(self._shards)):
            meta = self._shards.metadata(index)
            entry = self._shards.cases[index]
            found.append(
                RealCase(
                    case_id=entry.case_id,
                    patient_id=entry.patient_id,
                    report=meta.get("report", ""),
                    shape=(entry.slices, *entry.size),
                    spacing=entry.spacing,
                    digest=meta.get("source_sha256", "") or entry.case_id,
                    truth_path=meta.get("truth_path"),
                    labels=dict(meta.get("labels", {})),
                    acquisition=entry.acquisition,
                )
            )
        return found

    def volume(self, case: RealCase) -> HUVolume:
        """The case's pixels in HU."""
        hu = self._shards.hu(self._shards.index(case.case_id))
        return HUVolume(hu.astype(np.float32), case.spacing)


def case_set_hash(*sets: Sequence[RealCase]) -> str:
    """SHA-256 over the ids and pixel digests of ordered sets of cases."""
    digest = hashlib.sha256()
    for cases in sets:
        digest.update(b"set\n")
        for case in cases:
            digest.update(f"{case.case_id}\t{case.digest}\n".encode())
    return digest.hexdigest()


def choose_cases(
    cases: Sequence[RealCase], wanted: int, floors: bool, choice: CaseChoice | None = None
) -> CaseSets:
    """The first ``wanted`` cases, and as many of other patients for the floors.

    One scan represents a patient and one reconstruction a scan, unless the choice says otherwise; the log
    tells how many are left out. Where there are too few cases for both sets, they are shared out half and
    half, and the log says so: floors at another N would not be comparable.

    Args:
        cases: All there are.
        wanted: Cases to generate from.
        floors: Whether other cases are wanted too.
        choice: Which scans and reconstructions; None: the first scan, in its soft reconstruction.

    Raises:
        EvaluationError: A case id twice, or no case at all.
    """
    seen: set[str] = set()
    for case in cases:
        if case.case_id in seen:
            raise EvaluationError(f"case {case.case_id!r} occurs twice in the data", "every case once")
        seen.add(case.case_id)
    if not cases:
        raise EvaluationError("no cases to evaluate", "slice shards with at least one case")
    choice = choice or CaseChoice()
    kept = chosen_cases(cases, choice)
    if len(kept) < len(cases):
        log.info(
            "%d of %d volumes represent their patients (reconstruction: %s, every scan: %s)",
            *(len(kept), len(cases), choice.reconstruction, choice.every_scan),
        )
    cases = [cases[index] for index in kept]
    number = min(wanted, len(cases) // 2 if floors and len(cases) > 1 else len(cases))
    if number < wanted:
        log.warning("%d cases wanted, %d evaluated: the set has %d", wanted, number, len(cases))
    evaluated = tuple(cases[:number])
    patients = {case.patient_id for case in evaluated}
    others = [case for case in cases[number:] if case.patient_id not in patients]
    return CaseSets(evaluated, tuple(others[:number]) if floors else ())


def read_truth(case: RealCase) -> dict[str, Any]:
    """The ground truth of a phantom.

    Raises:
        EvaluationError: The file is gone or is not JSON.
    """
    assert case.truth_path is not None
    try:
        return json.loads(Path(case.truth_path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EvaluationError(
            f"case {case.case_id}: no ground truth at {case.truth_path} ({error})",
            "the phantoms the shards were made from, still in their place",
            "make them again with data_prep.phantom and data_prep.ct_rate",
        ) from error


def rows_by_case(table: Table) -> dict[str, tuple[int, dict[str, str]]]:
    """Line number and cells of a CSV by case: ``case_id``, or ``VolumeName`` without its ending.

    Raises:
        EvaluationError: Neither column, or a case twice.
    """
    key = next((name for name in ("case_id", "VolumeName") if name in table.columns), None)
    if key is None:
        raise EvaluationError(
            f"{table.path} has the columns {', '.join(table.columns)}", "case_id or VolumeName"
        )
    found: dict[str, tuple[int, dict[str, str]]] = {}
    for line, cells in table.rows:
        case = cells[key].removesuffix(".gz").removesuffix(".nii")
        if case in found:
            raise EvaluationError(f"{table.path} names {case!r} twice", "every case once")
        found[case] = (line, cells)
    return found


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
