"""Which volumes belong to one patient beyond what names and headers say, so that the split never cuts one."""

from __future__ import annotations

import logging
import re

from data_prep.ct_rate.likeness import Looks
from data_prep.ct_rate.naming import is_published
from data_prep.ct_rate.prepare import Outcome

log = logging.getLogger(__name__)


class PatientLinks:
    """Patients of the volumes so far, and which of them are one.

    Volumes are compared whatever is known of their patients: one scan may lie there as DICOM with a
    patient's identifier and as NIfTI without. CT-RATE's names and what
    ``patient_pattern`` finds are believed: two volumes that have them are not joined by a likeness.

    Args:
        valid_fraction: Share of the patients in ``valid``; where it lies between 0 and 1, the second patient
            goes to the side that the first left empty, so that few scans can be trained on too.
        patient_pattern: Expression that finds the patient in a path; empty where there is none.
    """

    def __init__(self, valid_fraction: float, patient_pattern: str = "") -> None:
        self._pattern = patient_pattern
        self._both_sides = 0.0 < valid_fraction < 1.0
        self._looks: dict[bool, Looks[Outcome]] = {True: Looks(), False: Looks()}
        self._as: dict[str, tuple[str, str]] = {}
        self._sides: dict[str, str] = {}

    def remember(self, outcome: Outcome) -> None:
        """A volume that is settled, with the patient and side that it has."""
        if outcome.coarse:
            self._looks[self._is_told(outcome)].add(outcome.coarse, outcome)
        if not is_published(outcome.case_id):
            self._sides.setdefault(outcome.patient_id, outcome.split)
        own = outcome.facts.get("own_patient")
        if own:
            self._as.setdefault(own, (outcome.patient_id, outcome.split))

    def join(self, outcome: Outcome, copy_of: Outcome | None) -> str:
        """Give a volume the patient and side of the volumes that show the same one.

        Args:
            outcome: Of the volume, with the patient that names and headers tell; changed in place.
            copy_of: An earlier volume that equals it voxel for voxel.

        Returns:
            Why it can be on neither side; empty where it can.
        """
        own, published = outcome.patient_id, is_published(outcome.case_id)
        if published and copy_of is not None:
            outcome.patient_id, outcome.split = copy_of.patient_id, copy_of.split
            return ""
        like = [copy_of] if copy_of is not None else []
        if outcome.coarse:
            like += self._looks[False].find(outcome.coarse)
            like += [] if self._is_told(outcome) else self._looks[True].find(outcome.coarse)
        if own in self._as:
            outcome.patient_id = self._as[own][0]
        known = outcome.split if published else self._as.get(own, (own, self._sides.get(own, "")))[1]
        sides = {other.split for other in like}
        if len(sides) > 1 or (known and sides - {known}):
            named = ", ".join(f"{other.case_id} in {other.split}" for other in like[:3])
            told = f"; its patient {outcome.patient_id} is in {known}" if known else ""
            return f"it looks like {named}{told}: give patient_pattern or PatientID in a metadata CSV"
        if like and not known:
            outcome.patient_id, known = like[0].patient_id, like[0].split
        outcome.split = known or self._side_of_a_new_patient(outcome.split)
        if outcome.patient_id != own:
            outcome.facts["own_patient"] = own
            if like:
                outcome.facts["patient_from"] = f"likeness to {like[0].case_id}"
                outcome.acquisition["scan"] = like[0].acquisition.get("scan") or like[0].case_id
                log.info("%s looks like %s and counts as the same patient", outcome.key, like[0].case_id)
        return ""

    def _is_told(self, outcome: Outcome) -> bool:
        """Whether the volume's path says whose it is."""
        found = bool(self._pattern) and re.search(self._pattern, outcome.key) is not None
        return found or is_published(outcome.case_id)

    def _side_of_a_new_patient(self, split: str) -> str:
        if self._both_sides and len(self._sides) == 1 and split in self._sides.values():
            return "valid" if split == "train" else "train"
        return split
