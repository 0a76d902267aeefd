"""The three trainings by name."""

from __future__ import annotations

from ctflow.training.task import Task
from ctflow.training.task_autoencoder import AutoencoderTraining
from ctflow.training.task_clip import ClipTraining
from ctflow.training.task_flow import FlowTraining

TASKS: dict[str, Task] = {
    "autoencoder": AutoencoderTraining(),
    "clip": ClipTraining(),
    "flow": FlowTraining(),
}
