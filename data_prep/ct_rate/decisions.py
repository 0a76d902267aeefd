"""Decisions about a volume that depend on earlier ones: a name that is taken, a copy, its patient's side."""

from __future__ import annotations

from collections.abc import Iterable

from ctflow.config.prep import IngestConfig
from data_prep.ct_rate.naming import distinct_case_id, is_published, patient_and_split
from data_prep.ct_rate.patients import PatientLinks
from data_prep.ct_rate.prepare import FLAGGED, REFUSED, Outcome


class Decisions:
    """Decides on volumes in the order of their paths.

    Args:
        config: Settings.
        done: Valid outcomes, in any order.
        cases: Names that are taken.
    """

    def __init__(self, config: IngestConfig, done: Iterable[Outcome], cases: Iterable[str]) -> None:
        self.config = config
        done = sorted(done, key=lambda o: o.key)
        self.cases = set(cases)
        self._contents = {o.voxels_sha256: o for o in reversed(done)}  # the first of equal ones, as in one go
        self._patients = PatientLinks(config.valid_fraction, config.patient_pattern)
        for outcome in done:
            self._patients.remember(outcome)

    def decide(self, outcome: Outcome, own_name: bool = False) -> bool:
        """Settle a usable outcome; it is changed in place.

        Args:
            outcome: As it was read.
            own_name: Its name is in use by itself.

        Returns:
            Whether its volume belongs into a shard.
        """
        if outcome.case_id in self.cases and not own_name:
            self._rename(outcome)
        there = outcome.usable and outcome.case_id in self.cases
        if outcome.usable:
            self._compare(outcome)
        if not outcome.usable or self.drops(outcome):
            return False
        self._patients.remember(outcome)
        self.cases.add(outcome.case_id)
        return not there

    def drops(self, outcome: Outcome) -> bool:
        """Flagged scans stay out of the shards where ``keep_flagged`` is false."""
        return outcome.status == FLAGGED and not self.config.keep_flagged

    def _rename(self, outcome: Outcome) -> None:
        """Another case of this name is in the shards: a duplicate by CT-RATE's names, else named anew."""
        if is_published(outcome.case_id):
            outcome.status = REFUSED
            outcome.reasons = [["duplicate", f"a case {outcome.case_id} is already there"]]
            return
        alone = outcome.patient_id == outcome.case_id
        outcome.case_id = distinct_case_id(outcome.case_id, outcome.key)
        if alone:
            outcome.patient_id, outcome.split = patient_and_split(
                outcome.key, outcome.case_id, "", self.config
            )

    def _compare(self, outcome: Outcome) -> None:
        """A copy or reconstruction of an earlier volume is the same patient's, on the same side."""
        first = self._contents.setdefault(outcome.voxels_sha256, outcome)
        if first.key != outcome.key:
            outcome.status = FLAGGED
            outcome.reasons = [*outcome.reasons, ["duplicate_content", f"equals {first.case_id}"]]
        conflict = self._patients.join(outcome, first if first.key != outcome.key else None)
        if conflict:
            outcome.status, outcome.reasons = REFUSED, [["split_conflict", conflict]]
