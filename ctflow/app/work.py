"""Jobs of the queue: they run the model and fill the library slice by slice, until they end."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ctflow.app.asks import Ask
from ctflow.app.facts import findings_of, score_of, seams_of
from ctflow.app.jobs import Job
from ctflow.app.opening import add_scan, read_file
from ctflow.app.store import (
    CANCELLED,
    CONTINUED,
    FAILED,
    GENERATED,
    GROWING,
    RECONSTRUCTED,
    WHOLE,
    Entry,
    Library,
)
from ctflow.candidates import drawn_for, generate_best
from ctflow.config.app import AppConfig
from ctflow.evaluation.system import ClipScorer
from ctflow.generation import Cancelled, SliceUpdate
from ctflow.pipeline import CTFlow, EmptyVolume, GeneratedVolume, GenerationRequest
from ctflow.reports import parse_report, summarised
from ctflow.types import BLOCK_LENGTH, HUVolume

_TITLE_LETTERS = 60
_AT_ONCE = 4
"""Slices between two questions whether to go on."""


class Work:
    """The work of jobs.

    Args:
        model: Generates, encodes, scores.
        library: Takes what is made.
        config: Of the command.
        changed: Called when something that the page shows has changed.
    """

    def __init__(
        self, model: CTFlow, library: Library, config: AppConfig, changed: Callable[[], None]
    ) -> None:
        self.model, self.library, self.config, self.changed = model, library, config, changed
        self.scorer = ClipScorer(model.text_encoder, model.fingerprint)

    def generate(self, job: Job, ask: Ask, requests: Sequence[GenerationRequest]) -> None:
        """One volume for each request, from nothing or from kept slices; of candidates, all are kept."""
        kept = ask.keep[1] - ask.keep[0] + 1 if ask.source else 0
        cases = drawn_for(requests[0], ask.candidates) if ask.candidates > 1 else list(requests)
        entries = {case.case_id: self._begin(case, ask, kept) for case in cases}
        own = list(entries.values())
        if len(requests) == 2:
            own[0].pair, own[1].pair = own[1].id, own[0].id
        job.volumes, job.expected = [entry.id for entry in own], sum(entry.expected for entry in own)
        self.changed()

        def arrived(update: SliceUpdate) -> None:
            self.library.append(entries[update.case_id].id, update.hu)
            job.arrive(len(update.hu))
            self.changed()

        with self._growing(own):
            given = {requests[0].case_id: self._encoded(job, ask)} if kept else None
            self._stage(job, "drawing")
            how = (ask.sampling, arrived, self.config.precision, job.cancelled)
            if ask.candidates > 1:
                (best,) = generate_best(self.model, requests, ask.candidates, *how, given)
                self._finish_candidates(job, entries, cases, _whole(best), ask)
                return
            results = self.model.generate_many(requests, *how, given)
            for case, result in zip(cases, results, strict=True):
                self._finish(job, entries[case.case_id], _whole(result), ask)

    def reconstruct(self, job: Job, source: Entry) -> None:
        """A volume through the A-VAE and back."""
        entry = self.library.add(
            RECONSTRUCTED,
            f"{source.title}, reconstructed",
            source.spacing,
            source.side,
            source.done,
            source=source.id,
            pair=source.id,
        )
        job.volumes, job.expected = [entry.id], source.done
        self._stage(job, "encoding and decoding")
        generator = self.model.generator()
        with self._growing([entry]):
            slices = self.library.voxels(source.id)
            for start in range(0, source.done, _AT_ONCE):
                job.check()
                part = slices[start : start + _AT_ONCE].astype(np.float32)
                hu = generator.decode(self.model.encode(part))
                self.library.append(entry.id, hu)
                job.arrive(len(hu))
                self.changed()
            source.pair = entry.id
            entry.state, entry.message = WHOLE, "the A-VAE's reconstruction"
            entry.record = {
                "reconstruction_of": source.title,
                "checkpoint": self.model.name,
                "checkpoint_sha256": self.model.fingerprint,
                "spacing_mm": list(entry.spacing),
                "slices": entry.done,
            }
        self._measure(job, entry, None)

    def open(self, job: Job, path: Path, title: str) -> None:
        """Read a file from the user's disk into the library."""
        self._stage(job, "reading the file")
        output = self.library.temporary("")
        entries: list[Entry] = []
        try:
            told = read_file(job, path, output, self.model.system.config, self.config)
            with self._growing(entries):
                add_scan(job, self.library, title, output, told, entries)
        finally:
            shutil.rmtree(output, ignore_errors=True)
            output.with_suffix(".log").unlink(missing_ok=True)
        self._measure(job, entries[0], None)

    def _begin(self, case: GenerationRequest, ask: Ask, kept: int) -> Entry:
        """A volume without slices in the library."""
        return self.library.add(
            CONTINUED if kept else GENERATED,
            title_for([case.report]),
            self.library[ask.source].spacing if kept else self.model.spacing(case),
            self.model.system.config.image_size,
            case.slices or max(self.model.typical_slices(case), kept + BLOCK_LENGTH),
            report=case.report,
            seed=case.seed,
            source=ask.source,
            kept=kept,
        )

    def _encoded(self, job: Job, ask: Ask) -> Tensor:
        """Latents of the slices that are kept."""
        self._stage(job, "encoding the kept slices")
        first, last = ask.keep
        slices = self.library.voxels(ask.source)[first : last + 1].astype(np.float32)
        parts = []
        for start in range(0, len(slices), _AT_ONCE):
            job.check()
            parts.append(self.model.encode(slices[start : start + _AT_ONCE]))
        return torch.cat(parts, dim=1)

    def _finish(self, job: Job, entry: Entry, result: GeneratedVolume, ask: Ask) -> None:
        """Measure a finished volume; the picture is whole already."""
        entry.record, entry.message, entry.state = dict(result.provenance), result.stop, WHOLE
        if entry.kept:
            kept = {"volume": ask.source, "first": ask.keep[0], "last": ask.keep[1]}
            entry.record |= {"continued": kept, "spacing_mm": list(entry.spacing)}
        self._measure(job, entry, self._overlap(ask))

    def _finish_candidates(
        self,
        job: Job,
        entries: dict[str, Entry],
        cases: Sequence[GenerationRequest],
        best: GeneratedVolume,
        ask: Ask,
    ) -> None:
        """Say of every candidate what it scored, and of one that it is the best."""
        told: Any = best.provenance["candidates"]
        places = {candidate["noise_id"]: candidate for candidate in told}
        for number, case in enumerate(cases, 1):
            entry, place = entries[case.case_id], places.get(case.noise_id)
            if place is None:  # nothing came but the end
                entry.state = FAILED
                self.library.remove(entry.id)
                continue
            shared = {k: v for k, v in best.provenance.items() if k not in ("candidates", "stop", "slices")}
            entry.record = shared | {"request": asdict(case), "slices": entry.done, "candidate": place}
            of = f"candidate {number} of {len(cases)}"
            entry.title = f"{entry.title} ({of}{', the best' if place['kept'] else ''})"
            entry.message = f"{of}, rank {place['rank']:g}{', the best' if place['kept'] else ''}"
            entry.state = WHOLE
        for entry in entries.values():
            if entry.state == WHOLE:
                self._measure(job, entry, self._overlap(ask))

    def _overlap(self, ask: Ask) -> int:
        return ask.sampling.applied_to(self.model.system.config.rollout).overlap

    def _measure(self, job: Job, entry: Entry, overlap: int | None) -> None:
        """All facts shown with a volume; ``overlap`` is None for volumes without blocks."""
        self._stage(job, "measuring")
        volume: HUVolume = self.library.volume(entry.id)
        facts = {"seams": seams_of(volume, overlap, entry.kept or BLOCK_LENGTH)}
        if entry.report:
            facts["score"] = score_of(self.scorer, entry.report, volume)
        job.check()
        facts["findings"], measured = findings_of(entry.report, volume, job.check)
        entry.facts, entry.record = facts, entry.record | measured

    def _stage(self, job: Job, stage: str) -> None:
        job.check()
        job.stage = stage
        self.changed()

    @contextmanager
    def _growing(self, entries: Sequence[Entry]) -> Iterator[None]:
        """Say of volumes that are left unfinished why they are; the error goes on to the job."""
        try:
            yield
        except BaseException as error:
            for entry in entries:
                if entry.state == GROWING:
                    cancelled = isinstance(error, Cancelled)
                    entry.state = CANCELLED if cancelled else FAILED
                    entry.message = "cancelled" if cancelled else str(error)
                    if not entry.done:
                        self.library.remove(entry.id)
            raise
        finally:
            self.changed()


def _whole(result: GeneratedVolume | EmptyVolume) -> GeneratedVolume:
    if isinstance(result, EmptyVolume):
        raise result
    return result


def title_for(reports: Sequence[str]) -> str:
    """A title: the findings that the reports name, else their first words."""
    return " | ".join(_named(report) for report in reports)


def _named(report: str) -> str:
    stated = summarised(parse_report(report))
    words = "; ".join(str(finding) for finding in stated if finding.present)
    if not words:
        words = "no finding" if stated else " ".join(report.split())
    words = words[0].upper() + words[1:]
    return words if len(words) <= _TITLE_LETTERS else words[: _TITLE_LETTERS - 1].rstrip() + "…"
