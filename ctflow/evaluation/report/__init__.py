"""Drawing results: tables of everything found; Markdown, CSV, JSON, HTML and TensorBoard."""

from ctflow.evaluation.report.write import write_analysis, write_report

__all__ = ["write_analysis", "write_report"]
