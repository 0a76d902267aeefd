"""The Python API: ``CTFlow.from_pretrained(folder)``, then ``model.generate(report)``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

import ctflow
from ctflow.checkpoint import CONFIG_FILE, FMVT_FOLDER, System, folder_fingerprint, load_system
from ctflow.config.commands import SamplingChoice
from ctflow.config.generation import RolloutConfig
from ctflow.errors import CTFlowError, WeightsError
from ctflow.generation import BlockProgress, CaseRollout, RolloutCase, StopRule, rollout
from ctflow.seeding import SINGLE_REPORT_CASE, case_noise
from ctflow.shipped import EMBEDDED
from ctflow.types import HUVolume

log = logging.getLogger("ctflow")


@dataclass(frozen=True)
class GenerationRequest:
    """One volume asked for.

    Attributes:
        report: Text that conditions the volume.
        case_id: Names the volume; unique among the requests of one call.
        seed: Seed of the noise.
        slices: Requested number of slices; None: the model decides where the volume ends.
        noise_id: Names the noise together with the seed; empty: ``case_id``. Requests that share it are
            generated from equal noise and can be compared.
    """

    report: str
    case_id: str = SINGLE_REPORT_CASE
    seed: int = 0
    slices: int | None = None
    noise_id: str = ""

    def __post_init__(self) -> None:
        if not self.report.strip():
            raise CTFlowError(f"case {self.case_id}: the report is empty", "findings in words")
        if self.slices is not None and self.slices < 1:
            raise CTFlowError(f"case {self.case_id}: {self.slices} slices requested", "at least 1")


@dataclass(frozen=True)
class GeneratedVolume:
    """A generated CT and where it came from.

    Attributes:
        request: What was asked for.
        volume: HU, S,P,R, with the spacing the checkpoint was trained at.
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
    def from_pretrained(cls, folder: Path | str | None = None, device: str = "auto") -> CTFlow:
        """Load a checkpoint folder; None takes the newest run's export, else the embedded checkpoint.

        Raises:
            WeightsError: A part is missing or damaged, or the parts do not fit one another.
        """
        path = resolve_checkpoint(folder)
        return cls(load_system(path), str(path), folder_fingerprint(path), device)

    def generate(
        self, report: str, seed: int = 0, slices: int | None = None, sampling: SamplingChoice | None = None
    ) -> HUVolume:
        """One report to one volume; equal arguments give an equal volume.

        Args:
            report: Findings and impression in words.
            seed: Seed of the noise: one seed compares two reports on equal noise.
            slices: Requested number of slices; None: the model decides.
            sampling: Replaces the sampling that the checkpoint recommends.

        Raises:
            CTFlowError: An empty report, fewer than one slice requested, or nothing generated but the end.
        """
        (result,) = self.generate_many([GenerationRequest(report, seed=seed, slices=slices)], sampling)
        if isinstance(result, EmptyVolume):
            raise result
        return result.volume

    @torch.no_grad()
    def generate_many(
        self,
        requests: Sequence[GenerationRequest],
        sampling: SamplingChoice | None = None,
        progress: Callable[[BlockProgress], None] | None = None,
        precision: str = "fp32",
    ) -> list[GeneratedVolume | EmptyVolume]:
        """Generate several volumes side by side; each is the same as it would be alone.

        Args:
            requests: With different case ids.
            sampling: Replaces the sampling that the checkpoint recommends.
            progress: Called after each round of blocks.
            precision: ``fp32`` or ``bf16`` autocast of the FMvT.

        Returns:
            One volume per request, in their order; an error, not raised, where nothing came but the end.
        """
        config = (sampling or SamplingChoice()).applied_to(self.system.config.rollout)
        by_id = {request.case_id: request for request in requests}

        def noise(case_id: str, block: int, shape: Sequence[int]) -> Tensor:
            request = by_id[case_id]
            return case_noise(request.seed, request.noise_id or case_id, block, shape)

        side = self.system.config.image_size
        rule = StopRule(config.stop, self.avae.white_latent(side), self.avae.white_spread(side))
        text = self.text_encoder.encode([request.report for request in requests])
        cases = [
            RolloutCase(request.case_id, tokens, mask, length=request.slices)
            for request, tokens, mask in zip(requests, text.tokens, text.mask, strict=True)
        ]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16"):
            results = rollout(
                self.fmvt, cases, self.avae.air_latent(side), rule, config, noise=noise, progress=progress
            )
        return [
            self._decode(request, result, config, precision)
            for request, result in zip(requests, results, strict=True)
        ]

    def _decode(
        self, request: GenerationRequest, result: CaseRollout, config: RolloutConfig, precision: str
    ) -> GeneratedVolume | EmptyVolume:
        if not result.slices:
            return EmptyVolume(
                f"case {request.case_id}: the first slice generated was already an end slice",
                "a body before the end",
                "try another seed, or more sampling steps; the checkpoint may be trained too briefly",
            )
        system = self.system.config
        hu = self.avae.decode_to_hu(result.latents.transpose(0, 1)).float().cpu().numpy()
        volume = HUVolume(hu, (system.z_spacing_mm, system.pixel_spacing_mm, system.pixel_spacing_mm))
        provenance: dict[str, object] = {
            "ctflow": ctflow.__version__,
            "torch": torch.__version__,
            "checkpoint": self.name,
            "checkpoint_sha256": self.fingerprint,
            "request": asdict(request),
            "sampling": asdict(config),
            "precision": precision,
            "slices": result.slices,
            "spacing_mm": list(volume.spacing),
            "stop": str(result.stop),
        }
        return GeneratedVolume(request, volume, str(result.stop), provenance)


def resolve_checkpoint(folder: Path | str | None = None, runs_dir: Path | str = "runs") -> Path:
    """The folder given; else the newest exported FMvT run; else the embedded checkpoint. Logs its choice.

    Raises:
        WeightsError: There is none.
    """
    if folder:
        if not (Path(folder) / CONFIG_FILE).is_file():
            raise WeightsError(
                f"no checkpoint at {folder}",
                f"a folder with {CONFIG_FILE} and the sub-folders avae, fmvt and clip",
                "give a run's export folder, or leave --checkpoint out for the default",
            )
        path = Path(folder)
    else:
        exports = [p.parent for p in Path(runs_dir).glob(f"flow/*/export/{FMVT_FOLDER}") if p.is_dir()]
        exports = [p for p in exports if (p / CONFIG_FILE).is_file()]
        path = max(exports, key=lambda p: (p / CONFIG_FILE).stat().st_mtime, default=EMBEDDED)
        if not (path / CONFIG_FILE).is_file():
            raise WeightsError(
                f"no exported run under {runs_dir}/flow and no embedded checkpoint at {path}",
                "a checkpoint folder",
                "train one (`make train-flow`), or give --checkpoint",
            )
    log.info("checkpoint: %s%s", path, " (embedded, trained on phantoms)" if path == EMBEDDED else "")
    return path
