"""The table's numbers as TensorBoard scalars."""

from __future__ import annotations

from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from ctflow.evaluation.evaluation import Evaluation
from ctflow.evaluation.table import MODEL


def write_scalars(evaluation: Evaluation, folder: Path) -> None:
    """Every number of the model's rows and monitors as ``eval/<setting>/<name>`` in ``folder``."""
    with SummaryWriter(str(folder)) as writer:
        for row in evaluation.rows:
            if row.source == MODEL and not row.missing:
                name = f"{row.metric}_{row.resolution}" if row.resolution else row.metric
                writer.add_scalar(f"eval/{row.setting}/{name}", row.value)
        for reading in evaluation.readings:
            if reading.source == MODEL and not reading.reason:
                writer.add_scalar(f"eval/{reading.setting}/{reading.monitor}", reading.value)
