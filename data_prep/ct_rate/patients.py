"""Which volumes belong to one patient beyond what names and headers say, so that the split never cuts one."""

from __future__ import annotations

import logging

from data_prep.ct_rate.discovery import is_published
from data_prep.ct_rate.likeness import Looks
from data_prep.ct_rate.prepare import Outcome

log = logging.getLogger(__name__)


class PatientLinks:
    """Patients of the volumes so far, and which of them are one.

    Volumes are compared whatever is known of their patients: one scan may lie there as DICOM with an identifier and
    as NIfTI without. Only two of CT-RATE's names are believed against a likeness.
    """

    def __init__(self) -> None:
        self._looks: dict[bool, Looks[Outcome]] = {True: Looks(), False: Looks()}
        self._as: dict[str, tuple[str, str]] = {}
        self._sides: dict[str, str] = {}

    def remember(self, outcome: Outcome) -> None:
        """A volume that is settled, with the patient and side that it has."""
        if outcome.coarse:
            self._looks[is_published(outcome.case_id)].add(outcome.coarse, outcome)
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
        own = outcome.patient_id
        if is_published(outcome.case_id) and copy_of is not None:
            outcome.patient_id, outcome.split = copy_of.patient_id, copy_of.split
            return ""
        like = [copy_of] if copy_of is not None else []
        if outcome.coarse:
            like += self._looks[False].find(outcome.coarse)
            like += [] if is_published(outcome.case_id) else self._looks[True].find(outcome.coarse)
        if own in self._as:
            outcome.patient_id, outcome.split = self._as[own]
        sides = {other.split for other in like}
        known = self._sides.get(outcome.patient_id)
        if len(sides) > 1 or (known and sides - {known}):
            named = ", ".join(f"{other.case_id} in {other.split}" for other in like[:3])
            told = f"; its patient {outcome.patient_id} is in {known}" if known else ""
            return f"it looks like {named}{told}: give patient_pattern or PatientID in a metadata CSV"
        if like and not known:
            first = like[0]
            outcome.patient_id, outcome.split = first.patient_id, first.split
        if outcome.patient_id != own:
            outcome.facts["own_patient"] = own
            if like:
                outcome.facts["patient_from"] = f"likeness to {like[0].case_id}"
                log.info("%s looks like %s and counts as the same patient", outcome.key, like[0].case_id)
        return ""
