"""Verify a folder of shards, say what is in it, and draw a contact sheet.

Every chunk's checksum is compared, every file's SHA-256, and the manifest with the files. Parts of a
preparation or encoding that never ran or did not finish are named. Exit status 1 where something does not
hold or is missing.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ctflow.config import Flag, parse_command, run_command
from ctflow.config.data import CheckConfig
from ctflow.data import LatentShards, SliceShards, read_manifest
from ctflow.data.manifest import MANIFEST
from ctflow.data.reader import ShardSet
from ctflow.data.verify import verify_folder
from ctflow.errors import ShardError
from ctflow.pictures import LUNG, SOFT_TISSUE, axial, coronal, save_png, stack
from ctflow.types import HUVolume
from data_prep.unfinished import unfinished

log = logging.getLogger("data_prep.check")
HISTOGRAM_EDGES = (-1024, -950, -700, -300, -150, -30, 20, 80, 200, 600, 1000)
"""HU limits of the printed histogram: air, lung, fat, water, soft tissue, contrast, bone."""
TILE = 192
"""Pixels of a picture's side on the contact sheet."""


def main(argv: Sequence[str] | None = None) -> int:
    """Check a folder.

    Raises:
        CTFlowError: It holds no shards.
    """
    folder_flag = Flag("folder", options={"type": Path, "metavar": "DIR", "help": "folder of shards"})
    command = parse_command(CheckConfig, "ctflow check", __doc__ or "", [folder_flag], argv)
    folder = command.flags["folder"]
    folders = [folder] if (folder / MANIFEST).is_file() else sorted(p.parent for p in folder.rglob(MANIFEST))
    results = [_check(path, command.config) for path in folders or [folder]]
    return 0 if all(results) else 1


def _check(folder: Path, config: CheckConfig) -> bool:
    """Verify one folder and describe it; False where something does not hold."""
    log.info("checking %s", folder)
    problems = [*verify_folder(folder), *unfinished(folder)]
    for problem in problems:
        log.error("%s", problem)
    if problems:
        log.error("%d problems in %s", len(problems), folder)
        return False
    sheet = folder / "contact_sheet.png"
    try:
        lines, picture = _content(folder, config.columns)
    except ShardError as error:  # latents that are not numbers, under checksums that hold
        log.error("%s", error)
        return False
    for line in lines:
        log.info("%s", line)
    log.info("all checksums of %s hold", folder)
    try:
        save_png(sheet, picture)
        log.info("contact sheet in %s", sheet)
    except OSError as error:  # shards on a disk that is only read are whole all the same
        log.warning("no contact sheet: %s: %s", error.strerror, sheet)
    return True


def _content(folder: Path, columns: int) -> tuple[list[str], NDArray[np.uint8]]:
    """What the shards hold, in lines and as a contact sheet.

    Raises:
        ShardError: Latents that are not numbers; names the shard and the case.
    """
    if read_manifest(folder)[0].kind == SliceShards.kind:
        slices = SliceShards(folder)
        return _describe(slices) + _histogram(slices), _slice_sheet(slices, columns)
    latents = LatentShards(folder)
    moments = _moments(latents)
    return _describe(latents) + moments, _latent_sheet(latents, columns)


def _describe(shards: ShardSet) -> list[str]:
    counts = np.array([case.slices for case in shards.cases])
    spacing = np.array([case.spacing for case in shards.cases])
    lines = [
        f"{shards.kind}: {len(shards)} volumes of {len({c.patient_id for c in shards.cases})} patients "
        f"in {len(shards.shard_sizes)} shards",
        f"splits: {dict(Counter(case.split for case in shards.cases))}",
        f"rows and columns: {sorted({case.size for case in shards.cases})}",
        f"slices: {counts.sum()} in all; {_range(counts)} per volume",
    ]
    names = ("z", "y", "x")
    return lines + [f"spacing {n}: {_range(column)} mm" for n, column in zip(names, spacing.T, strict=True)]


def _range(values: NDArray) -> str:
    low, middle, high = np.percentile(values, [0, 50, 100])
    return f"{low:g} … {high:g}, median {middle:g}"


def _histogram(shards: SliceShards) -> list[str]:
    edges = np.array([-np.inf, *HISTOGRAM_EDGES, np.inf])
    counts = np.zeros(len(edges) - 1)
    for i in range(len(shards)):
        counts += np.histogram(shards.hu(i), edges)[0]
    share = 100.0 * counts / counts.sum()
    return [
        f"HU {low:>6g} … {high:<6g} {part:5.1f} %"
        for low, high, part in zip(edges[:-1], edges[1:], share, strict=True)
    ]


def _moments(shards: LatentShards) -> list[str]:
    """Mean and variance of whitened posterior samples, in closed form: they should be near 0 and 1."""
    count = 0
    total, squares, noise = torch.zeros(3, shards.header.air.shape[0], dtype=torch.float64)
    scale = torch.tensor(shards.header.whitening.scale, dtype=torch.float64)[:, None, None]
    for i in range(len(shards)):
        _, logvar = shards.posterior(i)
        z = shards.whitened(i).double()
        variance = torch.from_numpy(logvar).double().exp() * scale.square()
        total += z.sum(dim=(1, 2, 3))
        squares += z.square().sum(dim=(1, 2, 3))
        noise += variance.sum(dim=(0, 2, 3))
        count += z[0].numel()
    mean = total / count
    std = ((squares + noise) / count - mean.square()).sqrt()
    header = shards.header
    return [
        f"A-VAE {header.avae_fingerprint}",
        f"text encoder {header.text_fingerprint}",
        f"text tokens: {_range(np.array([case.tokens for case in shards.cases]))}",
        f"latents {list(shards.whitened(0).shape)[:1] + list(header.air.shape[1:])} of HU {header.hu_window}",
        f"whitened mean per channel: {_range(mean.numpy())}",
        f"whitened std per channel: {_range(std.numpy())}",
        f"posterior std, whitened: {float((noise.sum() / count / len(mean)).sqrt()):g}",
    ]


def _chosen(shards: ShardSet, columns: int) -> list[int]:
    return np.unique(np.linspace(0, len(shards) - 1, columns).round().astype(int)).tolist()


def _slice_sheet(shards: SliceShards, columns: int) -> NDArray[np.uint8]:
    pages = []
    for i in _chosen(shards, columns):
        volume = HUVolume(shards.hu(i).astype(np.float32), shards.cases[i].spacing)
        middle = volume.hu.shape[0] // 2
        tiles = [axial(volume, middle, window, TILE) for window in (LUNG, SOFT_TISSUE)]
        pages.append(stack([*tiles, coronal(volume, LUNG, TILE)]))
    return stack([page.T for page in pages]).T


def _latent_sheet(shards: LatentShards, columns: int) -> NDArray[np.uint8]:
    """Per volume three channels of the middle slice and a coronal cut of the first; ±3 is black to white."""
    pages = []
    for i in _chosen(shards, columns):
        z = shards.whitened(i).numpy()
        planes = [z[c, z.shape[1] // 2, :, ::-1] for c in range(min(3, z.shape[0]))]
        planes.append(z[0, ::-1, z.shape[2] // 2, ::-1])
        pages.append(stack([_enlarged(plane) for plane in planes]))
    return stack([page.T for page in pages]).T


def _enlarged(plane: NDArray[np.floating]) -> NDArray[np.uint8]:
    factor = max(TILE // plane.shape[1], 1)
    grey = (np.clip(plane / 6.0 + 0.5, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
    return grey.repeat(factor, axis=0).repeat(factor, axis=1)


if __name__ == "__main__":
    run_command(main)
