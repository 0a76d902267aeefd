"""Pages of results: self-contained HTML, and Markdown without the pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from ctflow.files import write_text

Picture = NDArray[np.uint8] | Figure | Path

_TEMPLATES = Environment(
    loader=PackageLoader("ctflow"),
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
        grey: Which lines are pale; empty: none.
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

    def volumes(self, volumes: Mapping[str, bytes], caption: str) -> None:
        """Volumes beside each other in NiiVue, with linked crosshairs; nothing in a browser without WebGL2.

        Args:
            volumes: Title to a gzipped NIfTI file in HU, stored inside the page.
            caption: Opens and closes them.
        """
        self._add("volumes", volumes=embedded(volumes), caption=caption)

    def side_by_side(self, *columns: Page) -> None:
        """Pages without their titles, beside each other."""
        self._add("columns", columns=[column.parts for column in columns])

    def html(self) -> str:
        """The page as one file that fetches nothing."""
        return render(
            "page.html.jinja",
            title=self.title,
            parts=self.parts,
            bundle=viewer_bundle() if _has_volumes(self.parts) else "",
        )

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


def embedded(volumes: Mapping[str, bytes]) -> list[dict[str, str]]:
    """Gzipped NIfTI files by title, as the templates' ``viewer`` takes them."""
    return [
        {"title": title, "data": base64.b64encode(content).decode()} for title, content in volumes.items()
    ]


def viewer_bundle() -> str:
    """NiiVue's program, for a page that shows volumes; the browser's server sends the same file."""
    text = (files("ctflow") / "app" / "static" / "niivue.umd.js").read_text(encoding="utf-8")
    return text.replace("</script", "<\\/script")


def _has_volumes(parts: Sequence[dict[str, Any]]) -> bool:
    return any(
        part["kind"] == "volumes" or any(_has_volumes(column) for column in part.get("columns", ()))
        for part in parts
    )


def _markdown(parts: Sequence[dict[str, Any]]) -> list[str]:
    found: list[str] = []
    for part in parts:
        match part["kind"]:
            case "heading":
                found.append(f"{'#' * part['level']} {part['text']}")
            case "text":
                found.append(part["text"])
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
