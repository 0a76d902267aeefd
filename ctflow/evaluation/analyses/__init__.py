"""Analyses: other questions than the table, each a function under one name."""

from ctflow.evaluation.analyses.registry import REGISTRY, AnalysisResult, Context, run_analysis

__all__ = ["REGISTRY", "AnalysisResult", "Context", "run_analysis"]
