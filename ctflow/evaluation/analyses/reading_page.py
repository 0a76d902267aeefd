"""The readers' page: one file, no network; volumes as strips of JPEGs that a slider moves through."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ctflow.data.montage import LUNG, SOFT_TISSUE, Window, axial, coronal, sagittal
from ctflow.types import HUVolume

SIDE = 224
FRAMES = {"axial": 48, "coronal": 24, "sagittal": 24}
WINDOWS: dict[str, Window] = {"lung": LUNG, "soft": SOFT_TISSUE}
QUALITY = 70

STYLE = """body{font:15px/1.5 system-ui,sans-serif;margin:1em auto;max-width:1100px;padding:0 1em}
section{border-top:1px solid #ccc;padding:1em
0}.plane{display:inline-block;margin-right:1em;vertical-align:top}
.view{background-color:#000;background-repeat:no-repeat}input[type=range]{width:100%}"""
SCRIPT = """
const paint = plane => {
  const data = JSON.parse(plane.dataset.strips), soft = document.body.dataset.window === 'soft';
  const strip = data[soft ? 'soft' : 'lung'], view = plane.querySelector('.view');
  const slider = plane.querySelector('input');
  view.style.width = strip.width + 'px'; view.style.height = strip.height + 'px';
  view.style.backgroundImage = 'url(' + images[strip.image] + ')';
  view.style.backgroundPosition = '0 -' + slider.value * strip.height + 'px';
};
const all = () => document.querySelectorAll('.plane').forEach(paint);
document.querySelectorAll('.plane').forEach(plane => {
  plane.querySelector('input').addEventListener('input', () => paint(plane));
  plane.querySelector('.view').addEventListener('wheel', event => {
    event.preventDefault();
    const slider = plane.querySelector('input');
    slider.value = Number(slider.value) + Math.sign(event.deltaY); paint(plane);
  });
});
document.querySelectorAll('[name=window]').forEach(box => box.addEventListener('change', () => {
  document.body.dataset.window = box.value; all();
}));
all();
"""


def sprites(volume: HUVolume) -> dict[str, dict[str, dict[str, Any]]]:
    """Plane → window → a strip of frames, one below the other: JPEG in base64, frame size and number."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for plane, number in FRAMES.items():
        found[plane] = {}
        for name, window in WINDOWS.items():
            frames = _frames(volume, plane, number, window)
            buffer = io.BytesIO()
            Image.fromarray(np.concatenate(frames)).save(buffer, format="JPEG", quality=QUALITY)
            found[plane][name] = {
                "jpeg": base64.b64encode(buffer.getvalue()).decode(),
                "height": frames[0].shape[0],
                "width": frames[0].shape[1],
                "frames": len(frames),
            }
    return found


def _frames(volume: HUVolume, plane: str, number: int, window: Window) -> list[NDArray[np.uint8]]:
    axis = {"axial": 0, "coronal": 1, "sagittal": 2}[plane]
    size = volume.hu.shape[axis]
    # The outer tenth of coronal and sagittal cuts shows air only.
    low, high = (0.0, 1.0) if plane == "axial" else (0.1, 0.9)
    indices = np.unique(
        np.linspace(low * (size - 1), high * (size - 1), min(number, size)).round().astype(int)
    )
    cuts = {
        "axial": lambda i: axial(volume, i, window, SIDE),
        "coronal": lambda i: coronal(volume, window, SIDE, row=i),
        "sagittal": lambda i: sagittal(volume, window, SIDE, column=i),
    }
    return [cuts[plane](int(i)) for i in indices]


def reading_page(items: Sequence[dict[str, Any]], labels: Sequence[str]) -> str:
    """The page: every item with its report, three planes to scroll through and the findings to look for."""
    images: list[str] = []
    sections = []
    for item in items:
        planes = []
        for plane, windows in item["sprites"].items():
            strips = {}
            for name, strip in windows.items():
                strips[name] = {"image": len(images), "width": strip["width"], "height": strip["height"]}
                images.append("data:image/jpeg;base64," + strip["jpeg"])
            frames = next(iter(windows.values()))["frames"]
            planes.append(
                f"<div class='plane' data-strips='{html.escape(json.dumps(strips))}'>{plane}"
                f"<div class='view'></div><input type='range' min='0' max='{frames - 1}' "
                f"value='{frames // 2}' aria-label='{plane}'></div>"
            )
        sections.append(
            f"<section><h2>{html.escape(item['item'])}</h2><p>{html.escape(item['report'])}</p>"
            f"{''.join(planes)}</section>"
        )
    windows = "".join(
        f"<label><input type='radio' name='window' value='{value}'{checked}> {text} window</label> "
        for value, text, checked in (("lung", "lung", " checked"), ("soft", "soft tissue", ""))
    )
    intro = (
        "<h1>Reading</h1><p>For every item write into the CSV: real or synthetic; for every finding 1 (seen) "
        f"or 0 (not seen): {html.escape(', '.join(labels))}. The patient's right is on the left of axial and "
        f"coronal images. Scroll with the slider or the wheel.</p>{windows}"
    )
    head = f"<meta charset='utf-8'><title>Reading</title><style>{STYLE}</style>"
    script = f"<script>const images={json.dumps(images)};{SCRIPT}</script>"
    body = f"<body data-window='lung'>{intro}{''.join(sections)}{script}</body>"
    return f"<!doctype html><html lang='en'><head>{head}</head>{body}</html>"
