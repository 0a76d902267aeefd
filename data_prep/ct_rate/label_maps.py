"""Label maps (segmentations) under a volume's name, recognised by their values if no folder's name does it.

A label map holds few different whole numbers from 0 up; a CT, whether in HU or as stored, has hundreds in any
slice.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.ct_rate.nifti_reader import is_nifti, read_nifti_header
from data_prep.ct_rate.reasons import ScanRefused

MOST_LABELS = 150
"""TotalSegmentator has 117 classes; a picture in 8 bits has all 256 values."""
_CHUNK_BYTES = 2**22


def is_label_map(values: NDArray[np.generic]) -> bool:
    """Whether values are few different whole numbers from 0 up, more than one of them.

    Args:
        values: Of any shape and type.
    """
    distinct = np.unique(values)
    return 1 < distinct.size <= MOST_LABELS and _are_labels(distinct)


def is_label_map_file(path: Path) -> bool:
    """Whether a NIfTI file is a label map, by its first few MB of voxels; an empty one is read to its end.

    Args:
        path: The file; one that cannot be read is none, and will be told as such when it is read.
    """
    try:
        if not is_nifti(path):
            return False
        with path.open("rb") as raw:
            compressed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            stream = gzip.GzipFile(fileobj=raw) if compressed else raw
            header = read_nifti_header(stream)
            dtype = header.get_data_dtype()
            stream.seek(int(header.get_data_offset()))
            distinct = np.empty(0, dtype)
            while chunk := stream.read(_CHUNK_BYTES):
                values = np.frombuffer(chunk[: len(chunk) // dtype.itemsize * dtype.itemsize], dtype)
                distinct = np.union1d(distinct, values)
                if distinct.size > MOST_LABELS or not _are_labels(distinct):
                    return False
                if distinct.size > 1:
                    return True
            return bool(distinct.size and distinct[0] == 0)
    except (OSError, EOFError, zlib.error, ValueError, OverflowError, ScanRefused):
        return False


def _are_labels(distinct: NDArray[np.generic]) -> bool:
    if distinct.dtype.kind not in "iuf" or not np.isfinite(distinct).all():
        return False
    return bool(distinct.min() >= 0 and (distinct.dtype.kind != "f" or (distinct == np.rint(distinct)).all()))
