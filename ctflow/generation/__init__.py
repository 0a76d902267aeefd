"""Block rollout, stop rule and guidance; tensors only, no files."""

from ctflow.generation.cases import (
    BlockProgress,
    Cancelled,
    CaseRollout,
    NoiseSource,
    RolloutCase,
    RolloutRound,
    StopReason,
)
from ctflow.generation.memo import BlockMemo
from ctflow.generation.rollout import rollout, rollout_stream, seeded_noise
from ctflow.generation.stop import StopRule, trailing_run, white_slices
from ctflow.generation.system import SliceUpdate, VolumeGenerator

__all__ = [
    "BlockMemo",
    "BlockProgress",
    "Cancelled",
    "CaseRollout",
    "NoiseSource",
    "RolloutCase",
    "RolloutRound",
    "SliceUpdate",
    "StopReason",
    "StopRule",
    "VolumeGenerator",
    "rollout",
    "rollout_stream",
    "seeded_noise",
    "trailing_run",
    "white_slices",
]
