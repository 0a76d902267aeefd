"""The record of a prepared volume in its shard."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctflow.config.prep import IngestConfig
from ctflow.data.records import SliceRecord
from ctflow.types import Acquisition
from data_prep.ct_rate.prepare import Outcome


def settings(config: IngestConfig) -> dict[str, object]:
    """The keys that decide what a prepared volume looks like; a folder of shards has one set of them."""
    names = (
        "resolution",
        "z_spacing",
        "field_of_view",
        "max_slices",
        "valid_fraction",
        "patient_pattern",
        "keep_flagged",
        "keep_no_chest",
    )
    values = asdict(config)
    return {name: values[name] for name in names}


def fields_of(outcome: Outcome) -> dict[str, Any]:
    """Everything of a volume's record but the voxels."""
    z, y, x = outcome.spacing
    return {
        "case_id": outcome.case_id,
        "patient_id": outcome.patient_id,
        "spacing": (z, y, x),
        "report": outcome.report,
        "labels": outcome.labels,
        "source_sha256": outcome.source_sha256,
        "split": outcome.split,
        "truth_path": outcome.truth_path,
        "extra": {"ingest": outcome.facts, "flags": outcome.reasons},
        "acquisition": Acquisition(**outcome.acquisition),
    }


def record_of(outcome: Outcome, hu: NDArray[np.int16]) -> SliceRecord:
    """The record of a volume, int16 HU ``[slices, rows, columns]``."""
    return SliceRecord(hu=hu, **fields_of(outcome))
