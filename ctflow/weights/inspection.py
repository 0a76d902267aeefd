"""The content of a weight file, and whether it would load."""

from __future__ import annotations

from pathlib import Path

from ctflow.checkpoint import AVAE_FOLDER, CONFIG_FILE
from ctflow.checkpoint.loading import read_weights
from ctflow.checkpoint.sources import DESCRIPTIONS, PART_FOLDERS, Kind, locate, read_state
from ctflow.config import config_to_yaml
from ctflow.errors import CTFlowError

_LAYOUTS = {
    "own": "this project's sharing folder",
    "published": "the published layout",
    "single-file": "the single-file layout",
}


def inspect(path: Path | str) -> tuple[str, bool]:
    """Describe a weight file or folder without reading its values.

    Args:
        path: A file, a part's folder, or a full checkpoint folder.

    Returns:
        The description, and whether everything in it would load.

    Raises:
        WeightsError: Nothing is there, or it is not recognised.
    """
    path = Path(path)
    if (path / CONFIG_FILE).is_file() and (path / AVAE_FOLDER).is_dir():
        parts = [_inspect_part(path, kind) for kind in PART_FOLDERS]
        return "\n".join(text for text, _ in parts), all(loads for _, loads in parts)
    return _inspect_part(path, None)


def _inspect_part(path: Path, kind: Kind | None) -> tuple[str, bool]:
    source = locate(path, kind)
    stored = read_state(source.weights, shapes_only=True)
    values = sum(value.numel() for value in stored.values())
    lines = [
        f"{source.weights}: {DESCRIPTIONS[source.kind]}, {_LAYOUTS[source.layout]}",
        f"  {len(stored)} tensors, {values:,} values, {source.weights.stat().st_size / 2**20:,.1f} MiB",
        f"  configuration: {source.config or 'none in the file; read off the shapes, or the published one'}",
    ]
    try:
        weights = read_weights(path, kind, shapes_only=True)
    except CTFlowError as error:
        return "\n".join(
            [*lines, "  would load: no", *(f"    {line}" for line in str(error).split("\n"))]
        ), False
    settings = config_to_yaml(weights.config).rstrip().replace("\n", "\n    ")
    return "\n".join([*lines, "  would load: yes, as", f"    {settings}"]), True
