"""Analyses: other questions than the table, each a function under one name."""

from ctflow.evaluation.analyses.registry import ANALYSES, AnalysisResult, Context, run_analysis

__all__ = ["ANALYSES", "AnalysisResult", "Context", "run_analysis"]
