"""Networks that other runs, or the embedded checkpoint, hold: found by what they are, or the newest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ctflow.checkpoint import (
    AVAE_FOLDER,
    CLIP_FOLDER,
    CONFIG_FILE,
    folder_fingerprint,
    load_avae,
    part_folder,
)
from ctflow.data import LatentHeader
from ctflow.errors import ConfigError, WeightsError
from ctflow.shipped import EMBEDDED
from ctflow.training.runs import EXPORT

FOLDERS = {"autoencoder": AVAE_FOLDER, "clip": CLIP_FOLDER}
TARGETS = {"autoencoder": "make train-vae", "clip": "make train-clip"}


@dataclass(frozen=True)
class Part:
    """A network that was looked for, and why it is this one.

    Attributes:
        folder: Its sharing folder.
        why: In words, for the log.
    """

    folder: Path
    why: str


def newest_part(runs: Path, task: str) -> Part:
    """The sharing folder of the task's newest run, else the embedded checkpoint's.

    Args:
        runs: Folder of the runs.
        task: ``autoencoder`` or ``clip``.

    Raises:
        ConfigError: Neither exists.
    """
    for folder in _candidates(runs, task):
        if folder == EMBEDDED / FOLDERS[task]:
            return Part(folder, f"embedded: {_why_no_run(runs / task)}")
        return Part(folder, f"the newest run under {runs / task}")
    raise ConfigError(
        f"no trained network for {task!r} ({_why_no_run(runs / task)}), none in {EMBEDDED}",
        "an exported run or the embedded checkpoint",
        f"run `{TARGETS[task]}` first",
    )


def _why_no_run(folder: Path) -> str:
    """The runs of a task, in words, if none of them can be taken."""
    unfinished = sorted(path.parent.name for path in folder.glob("*/config.yaml"))
    if not unfinished:
        return f"no run under {folder}"
    names = ", ".join(unfinished)
    return f"no exported run under {folder}; {names} not exported yet (export_only=true does it)"


def matching_avae(runs: Path, header: LatentHeader, given: str = "", init_from: str = "") -> Path:
    """The A-VAE that made the latents of some shards.

    Args:
        runs: Folder of the runs; the embedded checkpoint is searched too.
        header: Of the shards.
        given: Folder to take instead of searching; checked all the same.
        init_from: Checkpoint that training starts from: its own A-VAE is tried first.

    Raises:
        ConfigError: There is none.
    """
    places = _places(runs, "autoencoder", given, init_from)
    return _matching(places, _avae_fingerprint, header.avae_fingerprint, "A-VAE", "flow.avae")


def matching_clip(runs: Path, header: LatentHeader, given: str = "", init_from: str = "") -> Path:
    """The text encoder that embedded the reports of some shards; arguments as in ``matching_avae``.

    Raises:
        ConfigError: There is none.
    """
    places = _places(runs, "clip", given, init_from)
    return _matching(places, folder_fingerprint, header.text_fingerprint, "text encoder", "flow.clip")


def _places(runs: Path, task: str, given: str, init_from: str) -> list[Path]:
    """The folder that was given alone; else the part of ``init_from``, then those of the runs."""
    if given:
        return [part_folder(given, FOLDERS[task])]
    own = Path(init_from) / FOLDERS[task]
    first = [own] if init_from and (own / CONFIG_FILE).is_file() else []
    return [*first, *_candidates(runs, task)]


def _matching(
    places: list[Path], fingerprint_of: Callable[[Path], str], wanted: str, what: str, key: str
) -> Path:
    for folder in places:
        if fingerprint_of(folder) == wanted:
            return folder
    raise ConfigError(
        f"the latent shards were made with the {what} of fingerprint {wanted[:12]}…, which is none of: "
        + (", ".join(map(str, places)) or "no candidates"),
        f"the {what} the shards were encoded with",
        f"give its folder as {key}=FOLDER, or encode the shards again with one that is there",
    )


def _candidates(runs: Path, task: str) -> Iterator[Path]:
    """Exports of the task, the newest first, then the embedded part."""
    configs = [p for p in (runs / task).glob(f"*/{EXPORT}/{CONFIG_FILE}") if p.is_file()]
    yield from (p.parent for p in sorted(configs, key=lambda p: p.stat().st_mtime, reverse=True))
    embedded = EMBEDDED / FOLDERS[task]
    if (embedded / CONFIG_FILE).is_file():
        yield embedded


def _avae_fingerprint(folder: Path) -> str:
    try:
        return load_avae(folder).fingerprint()
    except WeightsError:
        return ""
