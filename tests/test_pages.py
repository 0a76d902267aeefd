"""The one page: self-contained HTML that escapes all text, and Markdown of the same parts."""

import numpy as np
import pytest
from jinja2 import UndefinedError
from matplotlib.figure import Figure
from page_text import without_payloads

from ctflow.pages import Page, Table, render

EVIL = "<script>alert(1)</script> 'quoted' | \"both\""


def test_every_kind_of_part_escapes_text_and_fetches_nothing(tmp_path):
    page, column = Page(EVIL), Page("column")
    column.text(EVIL)
    page.side_by_side(column, column)
    page.heading(EVIL)
    page.text(EVIL)
    page.code(EVIL)
    page.alarms([EVIL])
    page.table(Table([EVIL], [["✓"], ["✗ no"], [EVIL]], [False, True, False]))
    page.picture(np.zeros((4, 5), np.uint8), EVIL)
    page.picture(Figure(), "a plot", "half")
    page.save(tmp_path / "deep" / "index.html")
    text = without_payloads((tmp_path / "deep" / "index.html").read_text(encoding="utf-8"))
    assert "<script" not in text and "'quoted'" not in text and text.count("&lt;script&gt;") == 12
    assert text.count("data:image/png;base64,") == 2 and "http" not in text
    assert 'class="good"' in text and 'class="bad"' in text and '<tr class="grey">' in text


def test_markdown_holds_the_same_parts_without_pictures():
    page = Page("Title")
    page.heading("Section")
    page.text("Words.")
    page.alarms(["too high"])
    page.table(Table(["a", "b"], [["1", "x | y"]]))
    page.picture(np.zeros((4, 5), np.uint8), "unseen")
    assert page.markdown().split("\n\n") == [
        "# Title",
        "## Section",
        "Words.",
        "- **ALARM** too high",
        "| a | b |\n| --- | --- |\n| 1 | x \\| y |\n",
    ]


def test_a_template_without_a_value_is_an_error():
    with pytest.raises(UndefinedError):
        render("page.html.jinja", title="x")
