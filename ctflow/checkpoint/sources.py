"""The kind of a weight file or folder: which network, in which layout, with which files."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ctflow.checkpoint.files import (
    AVAE_FOLDER,
    CLIP_FOLDER,
    CONFIG_FILE,
    FMVT_FOLDER,
    WEIGHTS_FILE,
    read_json,
    read_safetensors,
    unreadable_weights,
)
from ctflow.errors import WeightsError
from ctflow.models import avae_published, fmvt_published

log = logging.getLogger("ctflow")

Kind = Literal["fmvt", "avae", "ctclip"]
Layout = Literal["own", "published", "single-file"]

PUBLISHED_CONFIG, PUBLISHED_WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
PART_FOLDERS: dict[Kind, str] = {"fmvt": FMVT_FOLDER, "avae": AVAE_FOLDER, "ctclip": CLIP_FOLDER}
DESCRIPTIONS: dict[Kind, str] = {
    "fmvt": "a CTFlow transformer (FMvT)",
    "avae": "a FLUX autoencoder (A-VAE)",
    "ctclip": "a CT-CLIP",
}
_PICKLED = (".pt", ".pth", ".bin")
_SAFE = (".safetensors", ".sft")
_WRAPPERS = ("module.", "_orig_mod.", "trained_model.")
"""Prefixes that DistributedDataParallel, torch.compile and training wrappers put before every name."""
_EXPECTED: dict[Kind, str] = {
    "fmvt": f"a folder with {PUBLISHED_CONFIG} and {PUBLISHED_WEIGHTS}",
    "avae": f"a folder with {PUBLISHED_CONFIG} and {PUBLISHED_WEIGHTS}, or the single file ae.safetensors",
    "ctclip": f"a .pt of tensors, or a folder with one (and {PUBLISHED_CONFIG} unless of published size)",
}


@dataclass(frozen=True)
class WeightSource:
    """A recognised weight file.

    Attributes:
        kind: Which network.
        layout: ``own`` sharing folder, the ``published`` one, or FLUX's ``single-file``.
        weights: File of the tensors.
        config: File of the configuration, where the layout has one.
    """

    kind: Kind
    layout: Layout
    weights: Path
    config: Path | None


def locate(path: Path | str, kind: Kind | None = None) -> WeightSource:
    """Recognise a path by its files and keys.

    Args:
        path: A weight file, its folder, a sharing folder, or (with ``kind``) a full checkpoint folder.
        kind: The network that is wanted; None: whatever is there.

    Raises:
        WeightsError: Nothing is there, it is not recognised, or it is another network.
    """
    path = Path(path)
    if not path.exists():
        expected = _EXPECTED[kind] if kind else "a weight file or folder"
        raise WeightsError(f"nothing at {path}", expected, "see docs/published-weights.md for what to fetch")
    source = _from_file(path) if path.is_file() else _from_folder(path, kind)
    if kind is not None and source.kind != kind:
        raise WeightsError(f"{path} holds {DESCRIPTIONS[source.kind]}", DESCRIPTIONS[kind])
    return source


def read_state(path: Path, shapes_only: bool = False) -> dict[str, Tensor]:
    """All tensors of a safetensors file or of a flat ``.pt``, on the CPU, without the names of wrappers.

    Args:
        path: The file.
        shapes_only: Return tensors on the ``meta`` device: shape and dtype without values.

    Raises:
        WeightsError: The file is damaged, or holds anything but named tensors. A ``.pt`` is read with
            ``weights_only=True``: no code in it ever runs.
    """
    return _unwrapped(_read_state(path, shapes_only), path)


def _unwrapped(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The same tensors without what training wrappers put before every name; the log says so."""
    prefix = next((p for p in _WRAPPERS if state and all(key.startswith(p) for key in state)), "")
    if not prefix:
        return state
    log.info("%s: every name begins with %s, which is left out", path, prefix)
    return _unwrapped({key.removeprefix(prefix): value for key, value in state.items()}, path)


def _read_state(path: Path, shapes_only: bool) -> dict[str, Tensor]:
    if path.suffix in _PICKLED:
        return _read_pickled(path, shapes_only)
    if not shapes_only:
        return read_safetensors(path)
    try:
        with safe_open(path, "pt") as file:
            names = file.keys()
            return {k: torch.empty(file.get_slice(k).get_shape(), device="meta") for k in names}
    except (SafetensorError, OSError) as error:
        raise unreadable_weights(path, error) from None


def _read_pickled(path: Path, shapes_only: bool) -> dict[str, Tensor]:
    device = "meta" if shapes_only else "cpu"
    try:
        content = torch.load(path, map_location=device, weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # what the unpickler raises on a stranger's file is anything
        raise unreadable_weights(path, error) from None
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{path} holds a {type(content).__name__}", "named tensors")
    strangers = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if strangers:
        found = f"{path} holds values other than tensors: {', '.join(strangers[:8])}"
        raise WeightsError(found, "a flat state dict", "save the state dict alone")
    return dict(content)


def _from_file(path: Path) -> WeightSource:
    kind, layout = _recognise(path, read_state(path, shapes_only=True))
    own, published = path.parent / CONFIG_FILE, path.parent / PUBLISHED_CONFIG
    if own.is_file() and (path.name == WEIGHTS_FILE or layout == "own"):
        return WeightSource(kind, "own", path, own)
    if layout == "own":
        raise WeightsError(f"no {CONFIG_FILE} beside {path}", f"a sharing folder with {CONFIG_FILE}")
    if published.is_file() and _kind_of_config(read_json(published)) == kind:
        return WeightSource(kind, layout, path, published)
    if kind == "fmvt" or (kind == "avae" and layout == "published"):
        what = "another network's" if published.is_file() else "no"
        found = f"{what} {PUBLISHED_CONFIG} beside {path}, which is {DESCRIPTIONS[kind]}"
        raise WeightsError(found, _EXPECTED[kind])
    return WeightSource(kind, layout, path, None)


def _recognise(path: Path, state: Mapping[str, Tensor]) -> tuple[Kind, Layout]:
    if any(key.startswith(("visual_transformer.", "text_transformer.")) for key in state):
        return "ctclip", "published"
    if avae_published.SINGLE_FILE_MARK in state:
        return "avae", "single-file"
    if any(key.startswith("encoder.down_blocks.") for key in state):
        return "avae", "published"
    if any(key.startswith(f"{fmvt_published.PREFIX}x_embedder") for key in state):
        return "fmvt", "published"
    if any(key.startswith("x_embedder") for key in state):
        return "fmvt", "own"
    if any(key.startswith("volume.to_tokens") for key in state):
        return "ctclip", "own"
    keys = ", ".join(list(state)[:4])
    expected = "; or ".join(f"{DESCRIPTIONS[kind]}: {text}" for kind, text in _EXPECTED.items())
    raise WeightsError(f"{path} holds {len(state)} tensors of an unknown layout ({keys}, …)", expected)


def _from_folder(path: Path, kind: Kind | None) -> WeightSource:
    if kind is not None and (path / PART_FOLDERS[kind] / WEIGHTS_FILE).is_file():
        path = path / PART_FOLDERS[kind]
    if (path / CONFIG_FILE).is_file() and (path / WEIGHTS_FILE).is_file():
        kind_found, _ = _recognise(path, read_state(path / WEIGHTS_FILE, shapes_only=True))
        return WeightSource(kind_found, "own", path / WEIGHTS_FILE, path / CONFIG_FILE)
    if (path / PUBLISHED_WEIGHTS).is_file():
        return _from_file(path / PUBLISHED_WEIGHTS)
    if (path / "vae" / PUBLISHED_WEIGHTS).is_file() and kind in (None, "avae"):  # a whole FLUX folder
        return _from_file(path / "vae" / PUBLISHED_WEIGHTS)
    files = sorted(p for p in path.iterdir() if p.suffix in (*_PICKLED, *_SAFE))
    if len(files) == 1:
        return _from_file(files[0])
    sources = [source for source in map(_try_file, files) if source and kind in (None, source.kind)]
    if len(sources) == 1:
        return sources[0]
    found = f"{path} holds {len(files)} weight files, {len(sources)} of them recognised"
    raise WeightsError(found, _EXPECTED[kind] if kind else "one", "give the path of the file itself")


def _try_file(path: Path) -> WeightSource | None:
    try:
        return _from_file(path)
    except WeightsError:
        return None


def _kind_of_config(config: Mapping[str, Any]) -> Kind | None:
    """By the class it names; where it names none, by keys that only one of them has."""
    if "bert" in config and "ctvit" in config:
        return "ctclip"
    classes: dict[str, Kind] = {fmvt_published.CLASS_NAME: "fmvt", avae_published.CLASS_NAME: "avae"}
    if "_class_name" in config:
        return classes.get(str(config["_class_name"]))
    marks: dict[str, Kind] = {"caption_channels": "fmvt", "block_out_channels": "avae"}
    return next((kind for key, kind in marks.items() if key in config), None)
