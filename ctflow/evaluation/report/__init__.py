"""Drawing results: one page class, one table, one style; Markdown, CSV, JSON, HTML and TensorBoard."""

from ctflow.evaluation.report.page import Page, Table
from ctflow.evaluation.report.write import write_analysis, write_report

__all__ = ["Page", "Table", "write_analysis", "write_report"]
