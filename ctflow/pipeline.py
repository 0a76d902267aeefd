"""The Python API: ``CTFlow.from_pretrained(folder)``, then ``model.generate(report)``."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import ctflow
from ctflow.checkpoint import (
    CONFIG_FILE,
    FMVT_FOLDER,
    System,
    fetch,
    folder_fingerprint,
    is_repository,
    load_system,
    save_system,
    send,
)
from ctflow.config.commands import MAX_UNKNOWN, SamplingChoice
from ctflow.config.generation import RolloutConfig
from ctflow.errors import CTFlowError, WeightsError
from ctflow.generation import CaseRollout, RolloutCase, SliceUpdate, VolumeGenerator
from ctflow.models.text import has_words
from ctflow.seeding import SINGLE_REPORT_CASE, case_noise
from ctflow.shipped import EMBEDDED
from ctflow.types import HUVolume

log = logging.getLogger("ctflow")

_BEYOND = 1.02
"""Spacings beyond the trained ones by no more than this factor are taken as within."""


@dataclass(frozen=True)
class GenerationRequest:
    """One volume asked for.

    Attributes:
        report: Text that conditions the volume.
        case_id: Names the volume; unique among the requests of one call.
        seed: Seed of the noise.
        slices: Requested number of slices; None: the model decides where the volume ends.
        z_spacing: Requested distance between slices in mm; None: the checkpoint's, or a chest's height over
            ``slices``.
        pixel_spacing: Requested distance between pixels in mm; None: the checkpoint's.
        noise_id: Names the noise together with the seed; empty: ``case_id``. Requests that share it are
            generated from equal noise and can be compared.
    """

    report: str
    case_id: str = SINGLE_REPORT_CASE
    seed: int = 0
    slices: int | None = None
    z_spacing: float | None = None
    pixel_spacing: float | None = None
    noise_id: str = ""

    def __post_init__(self) -> None:
        if not has_words(self.report):
            found = f"has no word: {self.report.strip()[:40]!r}" if self.report.strip() else "is empty"
            raise CTFlowError(f"case {self.case_id}: the report {found}", "findings in words")
        if self.slices is not None and self.slices < 1:
            raise CTFlowError(f"case {self.case_id}: {self.slices} slices requested", "at least 1")
        for name in ("z_spacing", "pixel_spacing"):
            value = getattr(self, name)
            if value is not None and not 0.05 <= value <= 20:
                raise CTFlowError(f"case {self.case_id}: {name} of {value} mm", "0.05 to 20 mm")


@dataclass(frozen=True)
class GeneratedVolume:
    """A generated CT and where it came from.

    Attributes:
        request: What was asked for.
        volume: HU, S,P,R, with the spacing that the model was told, or (a model that takes none) trained at.
        stop: Why the volume ended.
        provenance: All that is needed to make it again.
    """

    request: GenerationRequest
    volume: HUVolume
    stop: str
    provenance: dict[str, object]


class EmptyVolume(CTFlowError):
    """A rollout whose first slice was already an end slice."""


class CTFlow:
    """A report becomes a chest CT: text encoder, FMvT and A-VAE of one checkpoint.

    Args:
        system: The networks, on the CPU.
        name: Where they came from, for provenance.
        fingerprint: SHA-256 of the checkpoint folder.
        device: ``auto``, ``cpu`` or ``cuda``.
    """

    def __init__(self, system: System, name: str, fingerprint: str, device: str = "auto") -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise CTFlowError("device=cuda on a machine without a CUDA device", "", "leave device=auto")
        self.device = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
        self.system, self.name, self.fingerprint = system, name, fingerprint
        self.avae, self.fmvt = system.avae.to(self.device).eval(), system.fmvt.to(self.device).eval()
        self.text_encoder = system.text_encoder
        self.text_encoder.clip.to(self.device)

    @classmethod
    def from_pretrained(
        cls, folder: Path | str | None = None, device: str = "auto", revision: str | None = None
    ) -> CTFlow:
        """Load a checkpoint; the log names what was taken.

        Args:
            folder: A checkpoint folder, ``run:NAME``, ``latest``, or ``org/name`` on the hub (see
                ``resolve_checkpoint``); None takes the embedded checkpoint.
            device: ``auto``, ``cpu`` or ``cuda``.
            revision: Of a repository on the hub: branch, tag or commit.

        Raises:
            WeightsError: A part is missing or damaged, or the parts do not fit one another.
        """
        path = resolve_checkpoint(folder, revision=revision)
        return cls(load_system(path), str(path), folder_fingerprint(path), device)

    def save_pretrained(self, folder: Path | str, card: str = "", half: bool = False) -> Path:
        """Write a checkpoint folder: configurations, safetensors, tokenizer, and a card with metadata.

        Args:
            folder: Made if missing.
            card: Markdown of the model card; empty: a short description. Metadata are put before it.
            half: Store the weights as float16.

        Returns:
            The folder.
        """
        return save_system(folder, self.system, card, half)

    def push_to_hub(self, repository: str, card: str = "", half: bool = False, private: bool = False) -> str:
        """Write what ``save_pretrained`` writes to the hub, as the user who is logged in there.

        Args:
            repository: ``org/name``; made if missing.
            card: See ``save_pretrained``.
            half: See ``save_pretrained``.
            private: Whether a new repository is private.

        Returns:
            Address of the commit.

        Raises:
            WeightsError: Not logged in, not allowed, or offline.
        """
        with tempfile.TemporaryDirectory() as temporary:
            folder = self.save_pretrained(Path(temporary) / "checkpoint", card, half)
            return send(folder, repository, private, f"ctflow {ctflow.__version__} checkpoint")

    def generate(
        self,
        report: str,
        seed: int = 0,
        slices: int | None = None,
        sampling: SamplingChoice | None = None,
        z_spacing: float | None = None,
        pixel_spacing: float | None = None,
        max_unknown: float = MAX_UNKNOWN,
    ) -> HUVolume:
        """One report to one volume; equal arguments give an equal volume.

        Args:
            report: Findings and impression in words.
            seed: Seed of the noise: one seed compares two reports on equal noise.
            slices: Requested number of slices; None: the model decides.
            sampling: Replaces the sampling that the checkpoint recommends.
            z_spacing: Requested distance between slices in mm.
            pixel_spacing: Requested distance between pixels in mm.
            max_unknown: Largest share of the report's words that the text encoder does not know.

        Raises:
            CTFlowError: An empty report or one in another language, fewer than one slice requested, a spacing
                that the checkpoint cannot give, or nothing generated but the end.
        """
        request = GenerationRequest(
            report, seed=seed, slices=slices, z_spacing=z_spacing, pixel_spacing=pixel_spacing
        )
        self.check_report(request, max_unknown)
        (result,) = self.generate_many([request], sampling)
        if isinstance(result, EmptyVolume):
            raise result
        return result.volume

    def generate_many(
        self,
        requests: Sequence[GenerationRequest],
        sampling: SamplingChoice | None = None,
        progress: Callable[[SliceUpdate], None] | None = None,
        precision: str = "fp32",
        cancelled: Callable[[], bool] | None = None,
        given: Mapping[str, Tensor] | None = None,
    ) -> list[GeneratedVolume | EmptyVolume]:
        """Generate several volumes side by side; each is the same as it would be alone.

        Args:
            requests: With different case ids.
            sampling: Replaces the sampling that the checkpoint recommends.
            progress: Called with every volume's new slices as soon as they are decoded.
            precision: ``fp32`` or ``bf16`` autocast of the FMvT.
            cancelled: Asked before each evaluation of the network; True ends everything with ``Cancelled``.
            given: As for ``stream``.

        Returns:
            One volume per request, in their order; an error, not raised, where nothing came but the end.
        """
        made = self.generate_each(requests, sampling, progress, precision, cancelled, given)
        return [volume for _, volume in sorted(made, key=lambda pair: pair[0])]

    def generate_each(
        self,
        requests: Sequence[GenerationRequest],
        sampling: SamplingChoice | None = None,
        progress: Callable[[SliceUpdate], None] | None = None,
        precision: str = "fp32",
        cancelled: Callable[[], bool] | None = None,
        given: Mapping[str, Tensor] | None = None,
        side_by_side: int = 0,
    ) -> Iterator[tuple[int, GeneratedVolume | EmptyVolume]]:
        """Generate any number of volumes and give each as soon as it is whole.

        A batch stays full: the next request takes the place of a volume that has ended. A
        volume is what it would be alone, up to the rounding of batches (relative L2 of 1e-4).

        Args:
            requests: As for ``generate_many``.
            sampling: As for ``generate_many``.
            progress: As for ``generate_many``.
            precision: As for ``generate_many``.
            cancelled: As for ``generate_many``.
            given: As for ``stream``.
            side_by_side: Volumes of a batch; 0: all of them.

        Yields:
            Index of the request and its volume, in the order in which they end.
        """
        config = (sampling or SamplingChoice()).applied_to(self.system.config.rollout)
        side = self.system.config.image_size
        places = {request.case_id: i for i, request in enumerate(requests)}
        arrays: dict[str, NDArray[np.float32]] = {}
        for update in self.stream(requests, config, precision, cancelled, given, side_by_side):
            request = requests[places[update.case_id]]
            if update.case_id not in arrays:
                # The system gives memory to what is written alone, so the greatest length costs nothing.
                most = min(request.slices or config.max_slices, config.max_slices)
                own = 0 if given is None or request.case_id not in given else given[request.case_id].shape[1]
                arrays[update.case_id] = np.empty((max(most, own), side, side), np.float32)
            stop = update.first + len(update.hu)
            arrays[update.case_id][update.first : stop] = update.hu
            if progress is not None:
                progress(update)
            if update.result is not None:
                hu = arrays.pop(update.case_id)[:stop]
                yield places[update.case_id], self._volume(request, hu, update.result, config, precision)

    def stream(
        self,
        requests: Sequence[GenerationRequest],
        config: RolloutConfig,
        precision: str = "fp32",
        cancelled: Callable[[], bool] | None = None,
        given: Mapping[str, Tensor] | None = None,
        side_by_side: int = 0,
    ) -> Iterator[SliceUpdate]:
        """Generate volumes side by side and give each block's slices as soon as they are decoded.

        Args:
            requests: With different case ids.
            config: Sampling, e.g. ``self.system.config.rollout``.
            precision: ``fp32`` or ``bf16`` autocast of the FMvT.
            cancelled: Asked before each evaluation of the network.
            given: First slices that a case's volume continues (``encode``), by case id.
            side_by_side: Volumes of a batch; 0: all of them.

        Yields:
            What ``VolumeGenerator.stream`` yields.

        Raises:
            CTFlowError: A spacing that the checkpoint cannot give.
            Cancelled: ``cancelled`` said so.
        """
        by_id = {request.case_id: request for request in requests}

        def noise(case_id: str, block: int, shape: Sequence[int]) -> Tensor:
            request = by_id[case_id]
            return case_noise(request.seed, request.noise_id or case_id, block, shape)

        for request in requests:
            if request.slices is not None and request.slices > config.max_slices:
                log.warning(
                    "case %s: %d slices requested, the longest volume of this checkpoint has %d (raise it by "
                    "sampling.max_slices=%d, beyond what it was trained on)",
                    request.case_id,
                    request.slices,
                    config.max_slices,
                    request.slices,
                )
        spacings = [self.spacing(request) for request in requests]
        text = self.text_encoder.encode([request.report for request in requests])
        cases = [
            RolloutCase(
                request.case_id, tokens, mask, request.slices, spacing, (given or {}).get(request.case_id)
            )
            for request, spacing, tokens, mask in zip(requests, spacings, text.tokens, text.mask, strict=True)
        ]
        yield from self.generator(precision).stream(cases, config, noise, cancelled, side_by_side)

    def generator(self, precision: str = "fp32") -> VolumeGenerator:
        """The networks as the one system that generates, encodes and decodes."""
        return VolumeGenerator(self.fmvt, self.avae, self.system.config.image_size, precision)

    def encode(self, hu: NDArray[np.float32]) -> Tensor:
        """Whitened latents ``[C, S, h, w]`` of slices in HU ``[S, image_size, image_size]``.

        Raises:
            CTFlowError: Slices of another size.
        """
        side = self.system.config.image_size
        if hu.ndim != 3 or hu.shape[1:] != (side, side):
            raise CTFlowError(
                f"slices of shape {hu.shape}", f"[S, {side}, {side}], the model's own size", "resample them"
            )
        return self.generator().encode(torch.from_numpy(hu))

    def spacing(self, request: GenerationRequest) -> tuple[float, float, float]:
        """Millimetres between slices, rows and columns of the volume that a request becomes.

        Raises:
            CTFlowError: A spacing is asked for that is far from all that the checkpoint was trained at.
        """
        system = self.system.config
        z, pixel = request.z_spacing, request.pixel_spacing
        takes_spacing = self.fmvt.config.spacing_input
        if z is None and request.slices is not None and system.z_spacing_range and takes_spacing:
            low, high = system.z_spacing_range
            z = min(max(system.height_mm / request.slices, low), high)
        chosen = (z or system.z_spacing_mm, pixel or system.pixel_spacing_mm)
        trained = (system.z_spacing_range, system.pixel_spacing_range)
        own = (system.z_spacing_mm, system.pixel_spacing_mm)
        for name, value, ends, typical in zip(("z", "pixel"), chosen, trained, own, strict=True):
            low, high = ends if ends and takes_spacing else (typical, typical)
            if not low / _BEYOND <= value <= high * _BEYOND:
                raise CTFlowError(
                    f"case {request.case_id}: {name}_spacing of {value:g} mm",
                    f"{low:.3g} to {high:.3g} mm, what this checkpoint was trained at",
                    "ask for a spacing within, and resample the volume afterwards",
                )
        return (chosen[0], chosen[1], chosen[1])

    def check_report(self, request: GenerationRequest, max_unknown: float = MAX_UNKNOWN) -> None:
        """Warn of a report that the text encoder hardly knows a word of, or refuse it.

        Raises:
            CTFlowError: More than ``max_unknown`` of its words are unknown.
        """
        self.text_encoder.check_known(request.report, f"case {request.case_id}", max_unknown)

    def typical_slices(self, request: GenerationRequest) -> int:
        """Slices of a typical chest at the request's spacing."""
        return max(round(self.system.config.height_mm / self.spacing(request)[0]), 1)

    def _volume(
        self,
        request: GenerationRequest,
        hu: NDArray[np.float32],
        result: CaseRollout,
        config: RolloutConfig,
        precision: str,
    ) -> GeneratedVolume | EmptyVolume:
        if not len(hu):
            return EmptyVolume(
                f"case {request.case_id}: the first slice generated was already an end slice",
                "a body before the end",
                "try another seed, or more sampling steps; the checkpoint may be trained too briefly",
            )
        if request.slices is not None and len(hu) != request.slices:
            log.warning(
                "case %s: %d slices, %d were requested (%s)",
                request.case_id,
                len(hu),
                request.slices,
                result.stop,
            )
        volume = HUVolume(hu, self.spacing(request))
        provenance: dict[str, object] = {
            "ctflow": ctflow.__version__,
            "torch": torch.__version__,
            "checkpoint": self.name,
            "checkpoint_sha256": self.fingerprint,
            "request": asdict(request),
            "sampling": asdict(config),
            "precision": precision,
            "slices": len(hu),
            "spacing_mm": list(volume.spacing),
            "stop": str(result.stop),
        }
        if result.redrawn:
            provenance["redrawn_blocks"] = result.redrawn
        if result.given_slices:
            provenance["given_slices"] = result.given_slices
        return GeneratedVolume(request, volume, str(result.stop), provenance)


LATEST, RUN = "latest", "run:"
"""Ways to name a checkpoint of one's own training, besides its folder."""


def resolve_checkpoint(
    name: Path | str | None = None, runs_dir: Path | str = "runs", revision: str | None = None
) -> Path:
    """The folder of a checkpoint; the log names it.

    Args:
        name: A folder (of a checkpoint, or of a run that has exported one), ``run:NAME`` (that run of
            ``make train-flow``), ``latest`` (its newest run), ``org/name`` (a repository on the hub, from its
            cache where that has it; a folder of that name goes before, and is read without the network);
            empty: the embedded checkpoint, whatever else is there.
        runs_dir: Where runs lie.
        revision: Of a repository on the hub.

    Raises:
        WeightsError: There is none.
    """
    if name and is_repository(str(name)):
        path = fetch(str(name), revision)
    else:
        path = _named_checkpoint(str(name), Path(runs_dir)) if name else EMBEDDED
    if not (path / CONFIG_FILE).is_file():
        raise WeightsError(
            f"no checkpoint at {path}",
            f"a folder with {CONFIG_FILE} and the sub-folders avae, fmvt and clip",
            f"give a folder, {RUN}NAME or {LATEST} as the checkpoint, or none for the embedded one",
        )
    log.info("checkpoint: %s%s", path, " (embedded, trained on phantoms)" if path == EMBEDDED else "")
    return path


def _named_checkpoint(name: str, runs_dir: Path) -> Path:
    runs = runs_dir / "flow"
    exports = {p.parents[1].name: p.parent for p in runs.glob(f"*/export/{CONFIG_FILE}")}
    if name == LATEST and exports:
        return max(exports.values(), key=lambda folder: (folder / CONFIG_FILE).stat().st_mtime)
    if name.startswith(RUN) and name.removeprefix(RUN) in exports:
        return exports[name.removeprefix(RUN)]
    if name == LATEST or name.startswith(RUN):
        raise WeightsError(
            f"checkpoint {name}: no such exported run under {runs}",
            f"one of: {', '.join(sorted(exports))}"
            if exports
            else "a run of `make train-flow` that has exported",
            "train one, export it (export_only=true name=…), or give a folder",
        )
    folder = Path(name)
    return folder / "export" if (folder / "export" / FMVT_FOLDER).is_dir() else folder
