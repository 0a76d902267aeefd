"""The files of a run say the same, and escape all text."""

import csv
import json
import math

import numpy as np
from matplotlib.figure import Figure
from page_text import without_payloads

from ctflow.config.evaluation import EvalConfig
from ctflow.evaluation.report import write_analysis, write_report
from ctflow.evaluation.report.write import AnalysisResult
from ctflow.evaluation.results import MODEL, OTHER_REAL, Picture, Reading, Results, Row

EVIL = "<script>alert(1)</script> 'quoted' | \"both\""


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
