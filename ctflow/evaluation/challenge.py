"""The VLM3D challenge's metrics of text-to-CT on two folders, as its public evaluators define them.

Facts from ``forithmus/VLM3D-Dockers`` (``ctgen_evaluation`` of 2025 and 2026). What differs between the
years: the network of FID 2.5D, and a small regularisation of FVD's covariances. Both years read FVD and CLIP
volumes in the order of the file, without reorienting them; FID takes the first 100 names of either folder,
paired or not.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ctflow.config.evaluation import BackboneFiles, EvalConfig
from ctflow.errors import EvaluationError, MetricError, WeightsError
from ctflow.evaluation.collect import store_arrays, stored_arrays
from ctflow.evaluation.external import read_reports
from ctflow.evaluation.results import MODEL, Results, Row, run_facts
from ctflow.evaluation.system import ClipScorer
from ctflow.files import file_sha256
from ctflow.metrics import bias
from ctflow.metrics.challenge import clip_input, clip_score
from ctflow.metrics.ctnet import CTNet, ctnet_input, stratified_fvd
from ctflow.metrics.planes import PLANES, RADIMAGENET, SQUEEZENET, PlaneBackbone, plane_volume
from ctflow.metrics.statistics import CaseStatistic, FrechetStatistic, MeanOf, PerCaseMean
from ctflow.processes import Ranks, device_of
from ctflow.types import HUVolume

log = logging.getLogger(__name__)

ENDINGS = (".nii.gz", ".nii", ".mha")
FID_VOLUMES = 100
PLANE_NETWORKS = {"vlm3d-2025": RADIMAGENET, "vlm3d-2026": SQUEEZENET}
REGULARISED = {"vlm3d-2025": False, "vlm3d-2026": True}
FVD, CLIP, CLIP_I2I, CLIP_MEAN = "FVD_CTNet", "CLIPScore", "CLIPScore_I2I", "CLIPScore_mean"
FID = {"xy": "FID_2p5D_XY", "yz": "FID_2p5D_YZ", "xz": "FID_2p5D_XZ"}
FID_MEAN = "FID_2p5D_Avg"
"""Names as the evaluators write them."""

Arrays = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Definition:
    """A network of the challenge, and what it gives of one file.

    Attributes:
        name: Key in the cache.
        sha256: Of its weights.
        extract: A file to named features.
    """

    name: str
    sha256: str
    extract: Callable[[Path], Arrays] = field(repr=False)


def stored_volume(path: Path) -> tuple[Tensor, tuple[float, float, float]]:
    """HU ``[z, x, y]`` in the order of the file, and millimetres along z, y, x.

    Raises:
        EvaluationError: A file that cannot be read as a volume.
    """
    image = _read(path)
    array = sitk.GetArrayFromImage(image).astype(np.float32)  # [z, y, x]
    x, y, z = image.GetSpacing()
    return torch.from_numpy(array).transpose(1, 2).contiguous(), (z, y, x)


def oriented_volume(path: Path) -> HUVolume:
    """The same file with axes S,P,R."""
    image = sitk.DICOMOrient(_read(path), "RPS")
    x, y, z = image.GetSpacing()
    return HUVolume(sitk.GetArrayFromImage(image).astype(np.float32), (z, y, x))


def _read(path: Path) -> sitk.Image:
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise EvaluationError(f"{path} cannot be read ({str(error)[-200:]})", "a CT volume in HU") from error
    if image.GetDimension() != 3:
        raise EvaluationError(f"{path} has {image.GetDimension()} dimensions", "a volume of three")
    return image


def evaluate_challenge(config: EvalConfig, scorer: ClipScorer | None, ranks: Ranks) -> Results:
    """``config.protocol`` on the folders of ``config.external``.

    Args:
        config: Folders, reports, weights.
        scorer: CT-CLIP; None without ``backbones.clip``: the scores are n/a.
        ranks: This process among others; files are shared out.

    Raises:
        EvaluationError: No volumes, a scored volume without its real one, or a file that cannot be read.
        WeightsError: Weights that are missing, cut, or of another layout than the protocol's.
    """
    started = time.monotonic()
    external, device = config.external, device_of(config.device)
    fake, real = (volumes_in(Path(folder)) for folder in (external.volumes, external.reference))
    if missing := [name for name in fake if name not in real]:
        raise EvaluationError(
            f"{len(missing)} volumes of {external.volumes} have no real one, e.g. {missing[0]}",
            f"a file of the same name in {external.reference}",
        )
    files = config.backbones
    ctnet, planes = _ctnet(files, device), _planes(files, config.protocol, device)
    clip = None if scorer is None else _clip(scorer)
    cache = _Cache(Path(config.cache), ranks)
    found: dict[str, tuple[list[Arrays], list[Arrays]]] = {}
    for definition in (ctnet, clip, planes):
        if definition is None:
            continue
        names = list(fake)[:FID_VOLUMES] if definition is planes else list(fake)
        pairs = sorted(real)[:FID_VOLUMES] if definition is planes else names
        made = cache.collect(definition, [fake[n] for n in names] + [real[n] for n in pairs])
        found[definition.name] = (made[: len(names)], made[len(names) :])
    rows = _fvd_rows(config, found.get("ctnet"))
    rows += _clip_rows(config, scorer, list(fake), found.get("clip"))
    rows += _fid_rows(config, found.get("planes"))
    results = Results(rows=rows)
    hashes = {d.name: d.sha256 for d in (ctnet, clip, planes) if d is not None}
    results.provenance = run_facts(config, time.monotonic() - started) | {
        **{key: value or "none" for key, value in vars(external).items()},
        "protocol": config.protocol,
        "cases": len(fake),
        "reference_cases": len(real),
        "backbones_sha256": hashes,
        "interval": "95 %, delete-a-group jackknife over volumes (strata for FVD); not part of the protocol",
    }
    return results


def volumes_in(folder: Path) -> dict[str, Path]:
    """Files of a folder (not of folders below it) by name without ending, sorted.

    Raises:
        EvaluationError: None there, or a name twice.
    """
    found: dict[str, Path] = {}
    for path in sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")):
        ending = next((end for end in ENDINGS if path.name.lower().endswith(end)), None)
        if ending is None:
            continue
        name = path.name[: -len(ending)]
        if name in found:
            raise EvaluationError(f"{name!r} occurs twice in {folder}", "every name once")
        found[name] = path
    if not found:
        raise EvaluationError(f"no volumes in {folder}", f"files ending in {', '.join(ENDINGS)}")
    return found


class _Cache:
    """A file of features per volume and definition."""

    def __init__(self, folder: Path, ranks: Ranks) -> None:
        self.folder, self.ranks = folder, ranks
        self._digests: dict[Path, str] = {}

    def collect(self, definition: Definition, paths: Sequence[Path]) -> list[Arrays]:
        """Features of every file, in order; each rank makes its own share, then all are read."""
        names = [self._name(definition, path) for path in paths]
        mine = self.ranks.share(list(zip(paths, names, strict=True)))
        for path, name in tqdm(mine, definition.name, unit="volume", disable=not self.ranks.first):
            if stored_arrays(name) is None:
                store_arrays(name, definition.extract(path))
        self.ranks.wait()
        loaded = [stored_arrays(name) for name in names]
        assert all(arrays is not None for arrays in loaded), "features vanished from the cache"
        return [arrays for arrays in loaded if arrays is not None]

    def _name(self, definition: Definition, path: Path) -> Path:
        digest = self._digests.setdefault(path, file_sha256(path))
        key = json.dumps(["challenge 1", definition.name, definition.sha256, digest])
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"


def _ctnet(files: BackboneFiles, device: torch.device) -> Definition | None:
    if not files.ctnet:
        return None
    network = CTNet(Path(files.ctnet), files.ctnet_sha256).to(device)

    def extract(path: Path) -> Arrays:
        return {"features": network(ctnet_input(stored_volume(path)[0])[None].to(device))[0].cpu().numpy()}

    return Definition("ctnet", network.sha256, extract)


def _planes(files: BackboneFiles, protocol: str, device: torch.device) -> Definition | None:
    if not files.fid_2p5d:
        return None
    network = PlaneBackbone(Path(files.fid_2p5d), files.fid_2p5d_sha256).to(device)
    if network.kind != PLANE_NETWORKS[protocol]:
        raise WeightsError(
            f"{files.fid_2p5d} is {network.kind}", f"{PLANE_NETWORKS[protocol]} for {protocol}"
        )

    def extract(path: Path) -> Arrays:
        features = network.planes(plane_volume(oriented_volume(path)), device)
        return {plane: values.numpy() for plane, values in zip(PLANES, features, strict=True)}

    return Definition("planes", network.sha256, extract)


def _clip(scorer: ClipScorer) -> Definition:
    grid = scorer.encoder.clip.config.grid

    def extract(path: Path) -> Arrays:
        stored, spacing = stored_volume(path)
        return {
            "latent": scorer.encode_grid(clip_input(stored, spacing, grid.shape, grid.spacing_mm)).numpy()
        }

    return Definition("clip", scorer.sha256, extract)


def _row(config: EvalConfig, metric: str) -> Row:
    return Row(config.protocol, MODEL, metric)


def _filled(row: Row, statistic: CaseStatistic, samples: int, cases: int, seed: int) -> Row:
    counted = Row(row.setting, row.source, row.metric, samples=samples, cases=cases, reason=row.reason)
    return counted.with_value(bias.jackknife(statistic, seed))


def _fvd_rows(config: EvalConfig, found: tuple[list[Arrays], list[Arrays]] | None) -> list[Row]:
    row = _row(config, FVD)
    if found is None:
        return [row.without("no CT-Net given (backbones.ctnet)")]
    fake, real = (torch.from_numpy(np.stack([a["features"] for a in side])) for side in found)
    try:
        strata = torch.tensor(stratified_fvd(fake, real, REGULARISED[config.protocol]))
    except MetricError as error:
        return [row.without(str(error).replace("\n", "; "))]
    row = row.noted(f"mean of {len(strata)} strata of 4: biased strongly, comparable at equal N alone")
    return [_filled(row, PerCaseMean(strata), len(fake), len(fake), config.seed)]


def _clip_rows(
    config: EvalConfig,
    scorer: ClipScorer | None,
    names: Sequence[str],
    found: tuple[list[Arrays], list[Arrays]] | None,
) -> list[Row]:
    rows = [_row(config, name) for name in (CLIP, CLIP_I2I, CLIP_MEAN)]
    if scorer is None or found is None:
        return [row.without("no CT-CLIP given (backbones.clip)") for row in rows]
    fake, real = ([torch.from_numpy(a["latent"]) for a in side] for side in found)
    between = [clip_score(f, r) for f, r in zip(fake, real, strict=True)]
    prompts = _prompts(config)
    if prompts is None:
        no = "no reports given (--reports)"
        pairs = PerCaseMean(torch.tensor(between))
        middle = _filled(rows[1], pairs, len(fake), len(fake), config.seed)
        return [rows[0].without(no), middle, rows[2].without(no)]
    if missing := sum(name not in prompts for name in names):
        log.warning(
            "%d of %d volumes have no report; the protocol scores them against none", missing, len(names)
        )
    texts = scorer.encode_reports([prompts.get(name, "") for name in names])
    agreement = [clip_score(f, t) for f, t in zip(fake, texts, strict=True)]
    values = [torch.tensor(agreement), torch.tensor(between)]
    return [
        _filled(row, PerCaseMean(value), len(fake), len(fake), config.seed)
        for row, value in zip(rows, (*values, torch.stack(values).mean(dim=0)), strict=True)
    ]


def _prompts(config: EvalConfig) -> dict[str, str] | None:
    return read_reports(Path(config.external.reports)) if config.external.reports else None


def _fid_rows(config: EvalConfig, found: tuple[list[Arrays], list[Arrays]] | None) -> list[Row]:
    network = PLANE_NETWORKS[config.protocol]
    rows = {plane: _row(config, name).noted(network) for plane, name in FID.items()}
    mean = _row(config, FID_MEAN).noted(f"{network}; mean of the three planes")
    if found is None:
        return [row.without("no weights given (backbones.fid_2p5d)") for row in (mean, *rows.values())]
    statistics: dict[str, CaseStatistic] = {
        plane: FrechetStatistic(*([torch.from_numpy(a[plane]) for a in side] for side in found))
        for plane in FID
    }
    slices = sum(len(a["xy"]) for a in found[0])
    cases = len(found[0])
    filled: list[tuple[Row, Any]] = [(mean, MeanOf(list(statistics.values())))]
    filled += [(rows[plane], statistics[plane]) for plane in FID]
    return [_filled(row, statistic, slices, cases, config.seed) for row, statistic in filled]
