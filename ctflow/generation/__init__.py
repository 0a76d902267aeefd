"""Block rollout, stop rule and guidance; tensors only, no files."""

from ctflow.generation.rollout import (
    BlockProgress,
    CaseRollout,
    NoiseSource,
    RolloutCase,
    StopReason,
    rollout,
)
from ctflow.generation.stop import StopRule, trailing_run, white_slices

__all__ = [
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
