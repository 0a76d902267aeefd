"""Functions of the server: load the model, generate, compare, continue, reconstruct; jobs of one queue."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ctflow.app.asks import Ask
from ctflow.app.jobs import Job, Queue
from ctflow.app.opening import title_of
from ctflow.app.store import GROWING, Library
from ctflow.app.work import Work, title_for
from ctflow.config.app import AppConfig
from ctflow.errors import CTFlowError
from ctflow.pipeline import CTFlow, GenerationRequest
from ctflow.processes import log_threads
from ctflow.seeding import SINGLE_REPORT_CASE
from ctflow.shipped import EMBEDDED


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
        self._work: Work | None = None
        self.queue.submit("load", "load the model", self._load)

    @property
    def work(self) -> Work:
        """The jobs of the loaded model.

        Raises:
            CTFlowError: It is not there yet, or cannot be loaded.
        """
        if self._work is None:
            raise CTFlowError("the model is not loaded", "a loaded one", "wait a few seconds")
        return self._work

    @property
    def model(self) -> CTFlow:
        """The loaded model; raises as ``work`` does."""
        return self.work.model

    def about(self) -> dict[str, Any]:
        """Facts of the model for the form; ``ready`` is False until it is loaded."""
        if self._work is None:
            return {"ready": False}
        model = self._work.model
        system, rollout = model.system.config, model.system.config.rollout
        takes_spacing = bool(system.z_spacing_range) and model.fmvt.config.spacing_input
        return {
            "ready": True,
            "checkpoint": _shown_name(model.name),
            "fingerprint": model.fingerprint[:12],
            "device": model.device.type,
            "side": system.image_size,
            "spacing": [system.z_spacing_mm, system.pixel_spacing_mm, system.pixel_spacing_mm],
            "z_spacing_range": list(system.z_spacing_range) if takes_spacing else None,
            "most_slices": rollout.max_slices,
            "steps": rollout.steps,
            "guidance": rollout.text_guidance,
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
        act = partial(self.work.generate, ask=ask, requests=requests)
        return self.queue.submit("generate", title_for(ask.reports), act)

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
        title = f"{entry.title}, slices {first}–{last} kept: {title_for(ask.reports)}"
        return self.queue.submit("continue", title, partial(self.work.generate, ask=ask, requests=[request]))

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
        return self.queue.submit("reconstruct", title, partial(self.work.reconstruct, source=entry))

    def open_file(self, path: Path, name: str) -> Job:
        """A file from the user's disk; it is removed when it has been read.

        Raises:
            CTFlowError: The model, whose grid the scan is brought to, is not there yet.
        """
        title, work = title_of(name), self.work
        act = partial(work.open, path=path, title=title)
        return self.queue.submit("open", f"open {title}", act, partial(path.unlink, missing_ok=True))

    def close(self) -> None:
        """End all work and remove all files."""
        self.queue.close()
        self.library.close()

    def _load(self, job: Job) -> None:
        job.stage = "loading the model"
        model = CTFlow.from_pretrained(self.config.checkpoint or None, self.config.device)
        self._work = Work(model, self.library, self.config, self.changed)
        log_threads()


def _shown_name(name: str) -> str:
    """A checkpoint's name without its place on this machine."""
    return "embedded checkpoint" if name == str(EMBEDDED) else "/".join(Path(name).parts[-2:])
