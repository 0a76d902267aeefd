"""A self-contained HTML page: headings, text, tables, pictures; nothing is fetched when it is opened."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #8884; }
figure { margin: 1rem 0; } figcaption { font-size: .9rem; opacity: .8; }
img { max-width: 100%; background: #000; } img.plot { background: #fff; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #8884; text-align: left; }
blockquote { margin: .6rem 0; padding: .2rem 1rem; border-left: 4px solid #48c; }
pre { overflow-x: auto; padding: .6rem 1rem; background: #8882; }
.good { color: #2a8a3e; } .bad { color: #c0392b; }
.row { display: flex; flex-wrap: wrap; gap: 1.5rem; } .row > * { flex: 1 1 24rem; }
"""


class Page:
    """A page that grows from top to bottom and is written as one file.

    Args:
        title: Shown in the window and as first heading.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._parts = [f"<h1>{escape(title)}</h1>"]

    def heading(self, text: str) -> None:
        """Start a section."""
        self._parts.append(f"<h2>{escape(text)}</h2>")

    def text(self, text: str) -> None:
        """A paragraph."""
        self._parts.append(f"<p>{escape(text)}</p>")

    def quote(self, text: str) -> None:
        """A report, word for word."""
        self._parts.append(f"<blockquote>{escape(text)}</blockquote>")

    def code(self, text: str) -> None:
        """Commands or files, in a fixed font."""
        self._parts.append(f"<pre>{escape(text)}</pre>")

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table; a cell that begins with ✓ or ✗ is coloured."""
        head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
        body = "".join("<tr>" + "".join(self._cell(cell) for cell in row) + "</tr>" for row in rows)
        self._parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")

    def picture(self, image: NDArray[np.uint8] | Path, caption: str = "", plot: bool = False) -> None:
        """A picture, stored inside the page: an 8-bit array ``[H, W]`` or ``[H, W, 3]``, or a PNG file."""
        if isinstance(image, Path):
            data = image.read_bytes()
        else:
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "PNG", optimize=True)
            data = buffer.getvalue()
        kind = ' class="plot"' if plot else ""
        source = base64.b64encode(data).decode()
        self._parts.append(
            f'<figure><img{kind} alt="{escape(caption)}" src="data:image/png;base64,{source}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )

    def begin_row(self) -> None:
        """What follows stands side by side, each ``column`` beside the other, until ``end_row``."""
        self._parts.append('<div class="row"><div>')

    def column(self) -> None:
        """Go on in the next column of a row."""
        self._parts.append("</div><div>")

    def end_row(self) -> None:
        """End a row."""
        self._parts.append("</div></div>")

    def save(self, path: Path) -> None:
        """Write the page; parent folders are made."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(self._title)}</title><style>{STYLE}</style></head><body>"
            + "\n".join(self._parts)
            + "</body></html>\n",
            encoding="utf-8",
        )

    @staticmethod
    def _cell(text: str) -> str:
        kind = {"✓": ' class="good"', "✗": ' class="bad"'}.get(text[:1], "")
        return f"<td{kind}>{escape(text)}</td>"
