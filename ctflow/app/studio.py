"""What the server can do: load the model, generate, compare, continue, reconstruct; jobs of one queue."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ctflow.app.asks import Ask
from ctflow.app.facts import findings_of, score_of, seams_of
from ctflow.app.jobs import Job, Queue
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
from ctflow.config.app import AppConfig
from ctflow.errors import CTFlowError
from ctflow.evaluation.backbones import ClipScorer
from ctflow.evaluation.system import scorer_name
from ctflow.generation import Cancelled, SliceUpdate
from ctflow.pipeline import CTFlow, EmptyVolume, GeneratedVolume, GenerationRequest
from ctflow.processes import log_threads
from ctflow.reports import parse_report, summarised
from ctflow.seeding import SINGLE_REPORT_CASE
from ctflow.types import BLOCK_LENGTH, HUVolume

log = logging.getLogger("ctflow")
_TITLE_LETTERS = 60
_RECONSTRUCTED_AT_ONCE = 4


class Studio:
    """Model, library and queue of one server.

    Args:
        config: Of the command.
        changed: Called, from any thread, when something that the page shows has changed.
    """

    def __init__(self, config: AppConfig, changed: Callable[[], None]) -> None:
        self.config, self.changed = config, changed
        self.library = Library(config.library_gb * 2**30)
        self.queue = Queue(changed)
        self._model: CTFlow | None = None
        self.queue.submit("load", "load the model", self._load)

    @property
    def model(self) -> CTFlow:
        """The loaded model.

        Raises:
            CTFlowError: It is not there yet, or cannot be loaded.
        """
        if self._model is None:
            raise CTFlowError("the model is not loaded", "a loaded one", "wait a few seconds")
        return self._model

    def about(self) -> dict[str, Any]:
        """What the form needs to know of the model; ``ready`` is False until it is loaded."""
        if self._model is None:
            return {"ready": False}
        system, rollout = self._model.system.config, self._model.system.config.rollout
        takes_spacing = bool(system.z_spacing_range) and self._model.fmvt.config.spacing_input
        return {
            "ready": True,
            "checkpoint": self._model.name,
            "fingerprint": self._model.fingerprint[:12],
            "device": self._model.device.type,
            "side": system.image_size,
            "spacing": [system.z_spacing_mm, system.pixel_spacing_mm, system.pixel_spacing_mm],
            "z_spacing_range": list(system.z_spacing_range) if takes_spacing else None,
            "most_slices": rollout.max_slices,
            "steps": rollout.steps,
            "guidance": rollout.text_guidance,
            "provenance": dict(system.provenance),
        }

    def generate(self, ask: Ask) -> Job:
        """One volume, or two from equal noise side by side.

        Raises:
            CTFlowError: A report that the model does not know, a spacing that it cannot give, no room.
        """
        letters = "ab" if len(ask.reports) == 2 else ("",)
        requests = [
            GenerationRequest(
                report,
                f"{SINGLE_REPORT_CASE}{letter}",
                ask.seed,
                ask.slices,
                ask.z_spacing,
                noise_id=SINGLE_REPORT_CASE,
            )
            for letter, report in zip(letters, ask.reports, strict=True)
        ]
        for request in requests:
            self.model.check_report(request, self.config.max_unknown)
            self.model.spacing(request)
        return self.queue.submit(
            "generate", _title(ask.reports), lambda job: self._generate(job, ask, requests)
        )

    def continue_volume(self, ask: Ask) -> Job:
        """Slices of a volume kept, and the model writing on from there.

        Raises:
            CTFlowError: A volume on another grid than the model's, slices that it does not have, a report
                that the model does not know.
        """
        entry = self.library[ask.source]
        first, last = ask.keep
        side = self.model.system.config.image_size
        if entry.side != side:
            raise CTFlowError(
                f"slices of {entry.side}×{entry.side} pixels",
                f"{side}×{side}, the model's own",
                "choose the volume's reconstruction, which is on the model's grid",
            )
        if last >= entry.done:
            raise CTFlowError(f"slices {first} to {last} of {entry.done}", f"at most slice {entry.done - 1}")
        kept = last - first + 1
        limit = ask.slices or self.model.system.config.rollout.max_slices
        if kept >= limit:
            raise CTFlowError(f"{kept} kept slices of {limit}", "fewer", "keep fewer, or ask for more slices")
        z, y, _ = entry.spacing
        # A model that takes no spacing has one distance of slices; its pixels are a field of view's, resized.
        pixel = y if self.model.fmvt.config.spacing_input else None
        request = GenerationRequest(ask.reports[0], SINGLE_REPORT_CASE, ask.seed, ask.slices, z, pixel)
        self.model.check_report(request, self.config.max_unknown)
        self.model.spacing(request)
        title = f"{entry.title}, slices {first}–{last} kept: {_title(ask.reports)}"
        return self.queue.submit("continue", title, lambda job: self._generate(job, ask, [request]))

    def reconstruct(self, volume_id: str) -> Job:
        """A volume through the A-VAE and back: the best that any generator on it can do.

        Raises:
            CTFlowError: A volume of another grid than the model's.
        """
        entry = self.library[volume_id]
        side = self.model.system.config.image_size
        if entry.side != side or entry.state == GROWING:
            raise CTFlowError(
                f"{entry.state} slices of {entry.side}×{entry.side} pixels", f"whole, {side}×{side} pixels"
            )
        title = f"{entry.title}, reconstructed"
        return self.queue.submit("reconstruct", title, lambda job: self._reconstruct(job, entry))

    def close(self) -> None:
        """End all work and remove all files."""
        self.queue.close()
        self.library.close()

    def _load(self, job: Job) -> None:
        job.stage = "loading the model"
        self._model = CTFlow.from_pretrained(self.config.checkpoint or None, self.config.device)
        log_threads()

    def _generate(self, job: Job, ask: Ask, requests: Sequence[GenerationRequest]) -> None:
        model = self.model
        given: dict[str, Tensor] = {}
        first, last = ask.keep
        kept = last - first + 1 if ask.source else 0
        kind = CONTINUED if kept else GENERATED
        job.stage = "reading the report"
        entries: dict[str, Entry] = {}
        for request in requests:
            expected = request.slices or max(model.typical_slices(request), kept + BLOCK_LENGTH)
            entries[request.case_id] = self.library.add(
                kind,
                _title([request.report]),
                self.library[ask.source].spacing if kept else model.spacing(request),
                model.system.config.image_size,
                expected,
                report=request.report,
                seed=request.seed,
                source=ask.source,
                kept=kept,
            )
        own = list(entries.values())
        if len(own) == 2:
            own[0].pair, own[1].pair = own[1].id, own[0].id
        job.volumes, job.expected = [e.id for e in own], sum(e.expected for e in own)
        self.changed()
        with self._growing(own):
            if kept:
                slices = self.library.voxels(ask.source)[first : last + 1].astype(np.float32)
                given = {requests[0].case_id: self._encoded(job, slices)}
            job.stage = "drawing"

            def arrived(update: SliceUpdate) -> None:
                self.library.append(entries[update.case_id].id, update.hu)
                job.arrive(len(update.hu))
                self.changed()

            results = model.generate_many(
                requests, ask.sampling, arrived, self.config.precision, job.cancelled, given
            )
            for request, result in zip(requests, results, strict=True):
                if isinstance(result, EmptyVolume):
                    raise result
                self._finish(job, entries[request.case_id], result, ask)

    def _finish(self, job: Job, entry: Entry, result: GeneratedVolume, ask: Ask) -> None:
        """Measure a finished volume; the picture is whole already."""
        entry.record, entry.message, entry.state = dict(result.provenance), result.stop, WHOLE
        if entry.kept:
            kept = {"volume": ask.source, "first": ask.keep[0], "last": ask.keep[1]}
            entry.record |= {"continued": kept, "spacing_mm": list(entry.spacing)}
        job.stage = "measuring"
        self.changed()
        overlap = ask.sampling.applied_to(self.model.system.config.rollout).overlap
        self._measure(job, entry, HUVolume(result.volume.hu, entry.spacing), overlap)

    def _measure(self, job: Job, entry: Entry, volume: HUVolume, overlap: int | None) -> None:
        entry.facts["seams"] = seams_of(volume, overlap, entry.kept or BLOCK_LENGTH)
        if entry.report:
            scorer = ClipScorer(self.model.text_encoder, scorer_name(self.model.text_encoder), "")
            entry.facts["score"] = score_of(scorer, entry.report, volume)
        job.check()
        entry.facts["findings"], measured = findings_of(entry.report, volume)
        entry.record |= measured

    def _reconstruct(self, job: Job, source: Entry) -> None:
        entry = self.library.add(
            RECONSTRUCTED,
            f"{source.title}, reconstructed",
            source.spacing,
            source.side,
            source.done,
            source=source.id,
            pair=source.id,
        )
        job.volumes, job.expected, job.stage = [entry.id], source.done, "encoding and decoding"
        self.changed()
        generator = self.model.generator()
        with self._growing([entry]):
            slices = self.library.voxels(source.id)
            for start in range(0, source.done, _RECONSTRUCTED_AT_ONCE):
                job.check()
                part = slices[start : start + _RECONSTRUCTED_AT_ONCE].astype(np.float32)
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
            job.stage = "measuring"
            self.changed()
            self._measure(job, entry, self.library.volume(entry.id), None)

    def _encoded(self, job: Job, slices: NDArray[np.float32]) -> Tensor:
        job.stage = "encoding the kept slices"
        self.changed()
        job.check()
        return self.model.encode(slices)

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


def _title(reports: Sequence[str]) -> str:
    """What the reports name, else their first words."""
    return " | ".join(_named(report) for report in reports)


def _named(report: str) -> str:
    stated = summarised(parse_report(report))
    words = "; ".join(str(finding) for finding in stated if finding.present)
    if not words:
        words = "no finding" if stated else " ".join(report.split())
    words = words[0].upper() + words[1:]
    return words if len(words) <= _TITLE_LETTERS else words[: _TITLE_LETTERS - 1].rstrip() + "…"
