"""The one page: self-contained HTML that escapes all text, and Markdown of the same parts."""

import re
from base64 import b64decode

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


def test_volumes_come_with_their_viewer_and_a_page_without_them_has_none(tmp_path):
    page, column = Page("Volumes"), Page("column")
    column.volumes({EVIL: b"one", "real": b"two"}, EVIL)
    page.side_by_side(column)
    text = page.html()
    viewer = text.split('<details class="viewer">')[1].split("</details>")[0]
    assert EVIL not in viewer and viewer.count("&lt;script&gt;") == 2
    assert [b64decode(data) for data in re.findall(r">([A-Za-z0-9+/=]+)</script>", viewer)] == [
        b"one",
        b"two",
    ]
    assert (
        text.count("</script>") == 4 and "niivue.Niivue(" in text and "src=" not in text.split("<script>")[0]
    )
    page = Page("None")
    page.text("no volume")
    assert len(page.html()) < 10_000 and "<script" not in page.html()


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
