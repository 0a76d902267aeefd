"""The one page: self-contained HTML that escapes all text, and Markdown of the same parts."""

import csv
import json
import math

import numpy as np
import pytest
from jinja2 import UndefinedError
from matplotlib.figure import Figure
from page_text import without_payloads

from ctflow.config.evaluation import EvalConfig
from ctflow.evaluation.report import Page, Table, write_analysis, write_report
from ctflow.evaluation.report.page import ReadingItem, reading_page, render
from ctflow.evaluation.report.write import AnalysisResult
from ctflow.evaluation.results import MODEL, OTHER_REAL, Picture, Reading, Results, Row
from ctflow.types import HUVolume

EVIL = "<script>alert(1)</script> 'quoted' | \"both\""


def test_every_kind_of_part_escapes_text_and_fetches_nothing(tmp_path):
    page, column = Page(EVIL), Page("column")
    column.quote(EVIL)
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


def test_readers_page_escapes_reports_also_inside_its_script():
    volume = HUVolume(np.zeros((6, 8, 8), np.float32), (4.0, 9.0, 9.0))
    page = reading_page([ReadingItem.of("item 01", EVIL, volume)], ["Lung nodule"])
    assert "<script>alert" not in page and page.count("data:image/jpeg;base64,") == 6
    strips = page.split("data-strips='")[1].split("'")[0]
    assert json.loads(strips).keys() == {"lung", "soft"}


def results() -> Results:
    return Results(
        rows=[
            Row("full-body", MODEL, "fid_rand2d", 32, 1.5, 1.0, 2.0, 1.2, samples=40, reference=40, cases=2),
            Row("full-body", OTHER_REAL, "fid_rand2d", 32, empty="n/a", reason=EVIL),
        ],
        readings=[
            Reading("full-body", MODEL, "seam_ratio", 1.3, 1.15, True),
            Reading("full-body", "real", "seam_ratio", math.nan, 1.15, False, "too few"),
        ],
        provenance={"command": f"python -m ctflow.eval {EVIL}", "checkpoint": "c", "seed": 0},
        pictures={"full-body": [Picture(EVIL, 0.5, np.zeros((4, 4), np.uint8))]},
        findings=[{"finding": "Lung nodule", "recall": None, "present": 3}],
    )


def test_report_files_say_the_same(tmp_path):
    write_report(results(), EvalConfig(), tmp_path)
    page = without_payloads((tmp_path / "report.html").read_text(encoding="utf-8"))
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    for part in ("1.500 [1.000, 2.000]", "seam_ratio = 1.300 is above 1.150", "n/a (too few)", "Lung nodule"):
        assert part in page and part in text, part
    assert "<script" not in page and page.count("<img") == 3 + 1
    stored = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert stored["rows"][1]["value"] is None and stored["findings"][0]["recall"] is None
    with (tmp_path / "table.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["value"] for row in rows] == ["1.5", ""]
    assert list(tmp_path.glob("events.out*")) and (tmp_path / "config.yaml").is_file()


def test_analysis_files(tmp_path):
    result = AnalysisResult("Title", "Text.", [{"a": 1.0, "b": math.nan}], {"curve": (Figure(), "A curve")})
    write_analysis("steps", result, {"command": "x"}, EvalConfig(), tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"steps.md", "steps.csv", "steps.json", "steps.html", "steps-curve.png", "config.yaml"}
    assert json.loads((tmp_path / "steps.json").read_text(encoding="utf-8")) == [{"a": 1.0, "b": None}]
