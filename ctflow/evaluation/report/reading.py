"""The readers' pack: a page of volumes as strips of frames that a slider moves through, a form, a key."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ctflow.evaluation.report.page import render
from ctflow.files import write_text
from ctflow.pictures import LUNG, SOFT_TISSUE, Window, axial, coronal, sagittal
from ctflow.types import HUVolume

FORM, KEY, PAGE = "readings.csv", "key.json", "readings.html"
SIDE = 224
FRAMES = {"axial": 48, "coronal": 24, "sagittal": 24}
WINDOWS: dict[str, Window] = {"lung": LUNG, "soft": SOFT_TISSUE}
QUALITY = 70


@dataclass(frozen=True)
class Strip:
    """Frames of one plane in one window, one below the other.

    Attributes:
        jpeg: The picture in base64.
        height: Of one frame, in pixels.
        width: Of one frame.
        frames: How many there are.
    """

    jpeg: str
    height: int
    width: int
    frames: int


@dataclass(frozen=True)
class ReadingItem:
    """A volume as readers see it.

    Attributes:
        name: Says nothing of where it comes from.
        report: Its text.
        strips: Plane to window to frames.
    """

    name: str
    report: str
    strips: dict[str, dict[str, Strip]]

    @classmethod
    def of(cls, name: str, report: str, volume: HUVolume) -> ReadingItem:
        """A volume in all planes and windows."""
        strips = {
            plane: {window: _strip(volume, plane, limits) for window, limits in WINDOWS.items()}
            for plane in FRAMES
        }
        return cls(name, report, strips)


def write_pack(
    folder: Path, items: Sequence[ReadingItem], key: Sequence[dict[str, Any]], form: Sequence[str]
) -> None:
    """Write the page, the form to fill in and the key that readers do not get.

    Args:
        folder: Is made.
        items: What is shown, in order.
        key: What they are: JSON values.
        form: Columns of the form, behind the item's name.
    """
    labels = form[1:-1]
    write_text(folder / PAGE, reading_page(items, labels))
    write_text(folder / KEY, json.dumps(key, indent=1))
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["item", *form])
    writer.writerows([[item.name, *[""] * len(form)] for item in items])
    write_text(folder / FORM, text.getvalue())


def reading_page(items: Sequence[ReadingItem], labels: Sequence[str]) -> str:
    """Every item with its report, three planes to scroll through and the findings to look for."""
    images: list[str] = []
    shown = []
    for item in items:
        planes = []
        for plane, windows in item.strips.items():
            strips = {}
            for window, strip in windows.items():
                strips[window] = {"image": len(images), "width": strip.width, "height": strip.height}
                images.append("data:image/jpeg;base64," + strip.jpeg)
            frames = next(iter(windows.values())).frames
            planes.append({"name": plane, "strips": strips, "frames": frames})
        shown.append({"name": item.name, "report": item.report, "planes": planes})
    return render("reading.html.jinja", title="Reading", items=shown, labels=labels, images=images)


def _strip(volume: HUVolume, plane: str, window: Window) -> Strip:
    frames = _frames(volume, plane, window)
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(frames)).save(buffer, format="JPEG", quality=QUALITY)
    height, width = frames[0].shape
    return Strip(base64.b64encode(buffer.getvalue()).decode(), height, width, len(frames))


def _frames(volume: HUVolume, plane: str, window: Window) -> list[NDArray[np.uint8]]:
    size = volume.hu.shape[list(FRAMES).index(plane)]
    # The outer tenth of coronal and sagittal cuts shows air only.
    low, high = (0.0, 1.0) if plane == "axial" else (0.1, 0.9)
    places = np.linspace(low * (size - 1), high * (size - 1), min(FRAMES[plane], size))
    cuts = {
        "axial": lambda i: axial(volume, i, window, SIDE),
        "coronal": lambda i: coronal(volume, window, SIDE, row=i),
        "sagittal": lambda i: sagittal(volume, window, SIDE, column=i),
    }
    return [cuts[plane](int(i)) for i in np.unique(places.round().astype(int))]
