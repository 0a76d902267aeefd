"""Pages of results and of volumes for readers: self-contained HTML, and Markdown without the pictures."""

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
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from ctflow.files import write_text
from ctflow.pictures import LUNG, SOFT_TISSUE, Window, axial, coronal, sagittal
from ctflow.types import HUVolume

Picture = NDArray[np.uint8] | Figure | Path

_TEMPLATES = Environment(
    loader=PackageLoader("ctflow.evaluation.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        header: Names of the columns.
        lines: Cells of each line; one that begins with ✓ or ✗, or says ALARM, is coloured.
        grey: Which lines stand back; empty: none.
    """

    header: Sequence[str]
    lines: Sequence[Sequence[str]]
    grey: Sequence[bool] = ()

    def markdown(self) -> str:
        """The table in Markdown."""
        rows = [self.header, ["---"] * len(self.header), *self.lines]
        return "\n".join("| " + " | ".join(_one_line(cell) for cell in row) + " |" for row in rows)


class Page:
    """A page that grows from top to bottom. All text is the user's: nothing in it is read as HTML.

    Args:
        title: Shown in the window and as first heading.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.parts: list[dict[str, Any]] = []

    def heading(self, text: str, level: int = 2) -> None:
        """Start a section."""
        self._add("heading", text=text, level=level)

    def text(self, text: str) -> None:
        """A paragraph."""
        self._add("text", text=text)

    def quote(self, text: str) -> None:
        """A report, word for word."""
        self._add("quote", text=text)

    def code(self, text: str) -> None:
        """Commands or files, in a fixed font."""
        self._add("code", text=text)

    def link(self, text: str, target: str) -> None:
        """A link to another file of the result, relative to the page."""
        self._add("link", text=text, target=target)

    def alarms(self, lines: Sequence[str]) -> None:
        """A list that must be seen."""
        self._add("alarms", lines=lines)

    def table(self, table: Table) -> None:
        """A table."""
        self._add("table", table=table)

    def picture(self, image: Picture, caption: str = "", size: str = "") -> None:
        """A picture, stored inside the page.

        Args:
            image: 8-bit ``[H, W]`` or ``[H, W, 3]``, a plot, or a PNG file.
            caption: Stands below it.
            size: ``half`` or ``third`` of the page's width, beside others; empty: its own, on its own line.
        """
        data = base64.b64encode(_png(image)).decode()
        self._add("picture", data=data, caption=caption, size=size, plot=isinstance(image, Figure))

    def side_by_side(self, *columns: Page) -> None:
        """Pages without their titles, beside each other."""
        self._add("columns", columns=[column.parts for column in columns])

    def html(self) -> str:
        """The page as one file that fetches nothing."""
        return render("page.html.jinja", title=self.title, parts=self.parts)

    def markdown(self) -> str:
        """The page in Markdown; pictures are left out."""
        return "\n\n".join([f"# {self.title}", *_markdown(self.parts)]) + "\n"

    def save(self, path: Path) -> None:
        """Write the HTML page; parent folders are made."""
        write_text(path, self.html())

    def _add(self, kind: str, **values: Any) -> None:
        self.parts.append({"kind": kind, **values})


def render(template: str, **values: Any) -> str:
    """A template of this package with its values; text in them is escaped."""
    return _TEMPLATES.get_template(template).render(**values)


def _markdown(parts: Sequence[dict[str, Any]]) -> list[str]:
    found: list[str] = []
    for part in parts:
        match part["kind"]:
            case "heading":
                found.append(f"{'#' * part['level']} {part['text']}")
            case "text":
                found.append(part["text"])
            case "quote":
                found.append(f"> {part['text']}")
            case "code":
                found.append(f"```\n{part['text']}\n```")
            case "link":
                found.append(f"[{part['text']}]({part['target']})")
            case "alarms":
                found.append("\n".join(f"- **ALARM** {line}" for line in part["lines"]))
            case "table":
                found.append(part["table"].markdown())
            case "columns":
                found += [text for column in part["columns"] for text in _markdown(column)]
    return found


def _png(image: Picture) -> bytes:
    if isinstance(image, Path):
        return image.read_bytes()
    buffer = io.BytesIO()
    if isinstance(image, Figure):
        image.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    else:
        Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _one_line(cell: str) -> str:
    return " ".join(cell.split()).replace("|", "\\|")


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
