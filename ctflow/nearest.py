"""Retrieved start: a volume begins with the first slices of the case whose report is nearest.

A peer (RAGText2CT, 2026) lets the anatomy of the nearest report's case guide the generation; here its first
block is given, as in gt-head, and the rest is generated.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ctflow.checkpoint import CLIP_FOLDER, folder_fingerprint
from ctflow.data import LatentShards
from ctflow.errors import CTFlowError
from ctflow.pipeline import CTFlow, GeneratedVolume, GenerationRequest
from ctflow.types import BLOCK_LENGTH

log = logging.getLogger("ctflow")

_ALIKE = 1.05
"""Spacings that differ by no more than this factor count as equal."""
_OTHERS = 32
"""Cases that the memorisation check compares with, spread over the shards."""


@dataclass(frozen=True)
class RetrievedStart:
    """Another patient's first slices, under the report that is nearest to the one asked for.

    Attributes:
        case_id: The case.
        shards: Where it lies.
        similarity: Cosine of both reports' pooled embeddings.
        slices: How many of its slices are given.
        likeness: Distance of the generated slices to this case's own ones at the same place, over the median
            distance to other cases: near 0 where the case is repeated, near 1 where it is not nearer than
            others. NaN before anything is generated, or where nothing can be compared.
    """

    case_id: str
    shards: str
    similarity: float
    slices: int
    likeness: float = float("nan")


class StartShards:
    """Latent shards as a source of first blocks.

    Args:
        folder: Latent shards, encoded by the model's A-VAE and text encoder.
        model: Generates.

    Raises:
        CTFlowError: Latents of another A-VAE, or embeddings of another width.
    """

    def __init__(self, folder: Path | str, model: CTFlow) -> None:
        self.model, self.shards, self.folder = model, LatentShards(folder), str(folder)
        header, own = self.shards.header, model.avae.fingerprint()
        if header.avae_fingerprint != own:
            raise CTFlowError(
                f"{folder} holds latents of the A-VAE {header.avae_fingerprint[:12]}…",
                f"latents of the checkpoint's own, {own[:12]}…",
                "encode the slices with it: ctflow encode avae=CHECKPOINT/avae clip=CHECKPOINT/clip",
            )
        self.pooled = torch.stack(
            [torch.from_numpy(np.asarray(self.shards.text(i)[2])).float() for i in range(len(self.shards))]
        )  # [N, D]
        if self.pooled.shape[1] != model.text_encoder.dim:
            raise CTFlowError(
                f"{folder} holds report embeddings of width {self.pooled.shape[1]}",
                f"width {model.text_encoder.dim}, the checkpoint's text encoder's",
                "encode the slices with its text encoder",
            )
        clip = Path(model.name) / CLIP_FOLDER
        if clip.is_dir() and folder_fingerprint(clip) != header.text_fingerprint:
            log.warning("%s was encoded with another text encoder file than %s", folder, clip)

    def nearest(self, request: GenerationRequest) -> tuple[GenerationRequest, RetrievedStart, Tensor]:
        """The case whose report is nearest to the request's, among those of the spacing that is asked for.

        Args:
            request: Without ``z_spacing``, every spacing counts, and the volume takes the case's.

        Returns:
            The request with the case's spacing, what was found, and its first slices
            ``[C, 16, h, w]``, whitened.

        Raises:
            CTFlowError: No case of that spacing has more slices than a block.
        """
        usable = [
            i for i, case in enumerate(self.shards.cases) if self._fits(case.spacing, request, case.slices)
        ]
        if not usable:
            raise CTFlowError(
                f"case {request.case_id}: no case of {self.folder} has a spacing of {request.z_spacing} mm",
                f"a case within {100 * (_ALIKE - 1):.0f} % of it and longer than {BLOCK_LENGTH} slices",
                "ask for another spacing, or for none",
            )
        pooled = self.model.text_encoder.encode([request.report]).pooled[0].cpu().float()
        cosines = torch.cosine_similarity(self.pooled[usable], pooled[None], dim=1)
        best = int(cosines.argmax())
        i = usable[best]
        case = self.shards.cases[i]
        found = RetrievedStart(case.case_id, self.folder, float(cosines[best]), BLOCK_LENGTH)
        own = replace(request, z_spacing=case.spacing[0], pixel_spacing=case.spacing[1])
        return own, found, self.shards.whitened(i)[:, :BLOCK_LENGTH]

    def told(self, result: GeneratedVolume, start: RetrievedStart) -> GeneratedVolume:
        """The volume with the start, and how like its case it is, in its provenance."""
        checked = replace(start, likeness=self._likeness(result, start))
        log.info(
            "case %s starts with %d slices of case %s (reports %.2f alike); distance to that case over the "
            "distance to others: %.2f",
            result.request.case_id,
            start.slices,
            start.case_id,
            start.similarity,
            checked.likeness,
        )
        return replace(result, provenance=result.provenance | {"start": asdict(checked)})

    def _fits(self, spacing: Sequence[float], request: GenerationRequest, slices: int) -> bool:
        if slices <= BLOCK_LENGTH:
            return False
        try:
            self.model.spacing(replace(request, z_spacing=spacing[0], pixel_spacing=spacing[1]))
        except CTFlowError:  # beyond what the checkpoint was trained at
            return False
        wanted = (request.z_spacing, request.pixel_spacing)
        return all(
            asked is None or max(own / asked, asked / own) <= _ALIKE
            for own, asked in zip(spacing[:2], wanted, strict=True)
        )

    def _likeness(self, result: GeneratedVolume, start: RetrievedStart) -> float:
        generated = self.model.encode(result.volume.hu)[:, start.slices :].cpu()  # [C, S, h, w]
        others = list(range(0, len(self.shards), max(len(self.shards) // _OTHERS, 1)))
        distances = {}
        for i in {*others, self._index(start.case_id)}:
            own = self.shards.whitened(i)[:, start.slices :]
            common = min(own.shape[1], generated.shape[1])
            if common:
                difference = own[:, :common] - generated[:, :common]
                distances[self.shards.cases[i].case_id] = float(difference.square().mean().sqrt())
        to_source = distances.pop(start.case_id, float("nan"))
        return to_source / float(np.median(list(distances.values()))) if distances else float("nan")

    def _index(self, case_id: str) -> int:
        return [case.case_id for case in self.shards.cases].index(case_id)
