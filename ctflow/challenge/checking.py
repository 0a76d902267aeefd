"""The output read back by SimpleITK, as those who score it do."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ctflow.config.challenge import ChallengeConfig

DIRECTIONS = {"LPS": (1, 0, 0, 0, 1, 0, 0, 0, 1), "RAS": (-1, 0, 0, 0, -1, 0, 0, 0, 1)}
_LIMIT = 1000.0


def problems_of(config: ChallengeConfig, files: set[str], names: list[str]) -> list[str]:
    """Faults of the output, a line each.

    Args:
        config: Names the folder, form and orientation.
        files: Files that it is to hold.
        names: Volumes that it is to hold, without endings.
    """
    output = Path(config.output)
    found = {p.name for p in output.iterdir()}
    problems = [f"  {name} is missing" for name in sorted(files - found)]
    problems += [f"  {name} belongs to no prompt" for name in sorted(found - files)]
    if problems:
        return problems
    with _volumes(config, output) as folder:
        held = sorted(p.name for p in folder.iterdir())
        if held != sorted(f"{name}{config.ending}" for name in names):
            return [f"  {len(held)} volumes for {len(names)} prompts: {', '.join(held[:5])} …"]
        lines = (_problem(folder / name, config.orientation) for name in held)
        return [line for line in lines if line]


@contextmanager
def _volumes(config: ChallengeConfig, output: Path) -> Iterator[Path]:
    """The folder of the volumes; the archive's is unpacked."""
    if config.form == "2026":
        yield output
        return
    with tempfile.TemporaryDirectory() as temporary:
        (archive,) = output.iterdir()
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(temporary)  # our own names, without folders
        yield Path(temporary)


def _problem(path: Path, orientation: str) -> str:
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        return f"  {path.name} cannot be read: {str(error).strip().splitlines()[-1]}"
    if image.GetDimension() != 3 or image.GetPixelID() != sitk.sitkFloat32:
        return f"  {path.name} is {image.GetDimension()}D {image.GetPixelIDTypeAsString()}, not 3D float32"
    if not np.allclose(image.GetDirection(), DIRECTIONS[orientation], atol=1e-4):
        return f"  {path.name} has the direction {image.GetDirection()}, not that of {orientation}"
    if not all(0.1 < s < 20 for s in image.GetSpacing()):
        return f"  {path.name} has the spacing {image.GetSpacing()}"
    array = sitk.GetArrayViewFromImage(image)
    if not np.isfinite(array).all() or array.min() < -_LIMIT or array.max() > _LIMIT:
        return f"  {path.name} has values from {array.min():g} to {array.max():g}, not in ±{_LIMIT:g}"
    return ""
