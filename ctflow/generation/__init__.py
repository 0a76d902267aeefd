"""One system that generates: reports to latents, block by block, to slices in HU. It opens no file."""

from ctflow.generation.redraw import redraw
from ctflow.generation.rollout import (
    BlockMemo,
    encode_reports,
    evaluations,
    guided_velocity,
    rollout,
    rollout_stream,
    seeded_noise,
)
from ctflow.generation.system import SliceUpdate, VolumeGenerator
from ctflow.generation.volumes import (
    Cancelled,
    CaseRollout,
    NoiseSource,
    RolloutCase,
    RolloutRound,
    StopReason,
    StopRule,
    trailing_run,
    white_slices,
)

__all__ = [
    "BlockMemo",
    "Cancelled",
    "CaseRollout",
    "NoiseSource",
    "RolloutCase",
    "RolloutRound",
    "SliceUpdate",
    "StopReason",
    "StopRule",
    "VolumeGenerator",
    "encode_reports",
    "evaluations",
    "guided_velocity",
    "redraw",
    "rollout",
    "rollout_stream",
    "seeded_noise",
    "trailing_run",
    "white_slices",
]
