"""Block rollout, stop rule and guidance; tensors only, no files."""

from ctflow.generation.cases import BlockProgress, CaseRollout, NoiseSource, RolloutCase, StopReason
from ctflow.generation.memo import BlockMemo
from ctflow.generation.rollout import rollout
from ctflow.generation.stop import StopRule, trailing_run, white_slices

__all__ = [
    "BlockMemo",
    "BlockProgress",
    "CaseRollout",
    "NoiseSource",
    "RolloutCase",
    "StopReason",
    "StopRule",
    "rollout",
    "trailing_run",
    "white_slices",
]
