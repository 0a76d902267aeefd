"""Facts in a file's path: the case's name, the patient and the side of the split."""

from __future__ import annotations

import hashlib
import re

from ctflow.config.prep import IngestConfig

NIFTI = (".nii.gz", ".nii", ".hdr.gz", ".hdr")
ITK = (".mha", ".mhd", ".nrrd", ".nhdr")
DICOM = (".dcm", ".dicom", ".ima")
_LONGEST_CASE = 150
"""Most characters of a case's name, so that it fits into file names."""
_CT_RATE = re.compile(r"^((?:train|valid)_\d+)_[a-z]+_\d+$", re.IGNORECASE)
_SERIES = re.compile(r"/#(\d+-[^/]*)$")
"""At the end of a series' key: its number in the folder, and the scanner's."""


def folder_and_series(key: str) -> tuple[str, str]:
    """A key without slash at its end, and the series in that folder; empty if the key names no series."""
    found = _SERIES.search(key)
    return (key[: found.start()].rstrip("/"), found[1]) if found else (key.rstrip("/"), "")


def case_id_of(key: str) -> str:
    """Name of the case of an item: CT-RATE's volume name, else the path with dashes for slashes."""
    path, series = folder_and_series(key)
    for ending in (*NIFTI, *ITK, *DICOM):
        if path.lower().endswith(ending):
            path = path[: -len(ending)]
            break
    name = path.rsplit("/", 1)[-1]
    name = name if _CT_RATE.match(name) else path.replace("/", "-")
    case_id = re.sub(r"[^\w.+=-]", "_", f"{name}-{series}" if series else name)
    return case_id if len(case_id) <= _LONGEST_CASE else distinct_case_id(case_id, key)


def distinct_case_id(case_id: str, key: str) -> str:
    """A name for a case whose own is too long or taken: paths may differ in separators or endings only.

    Args:
        case_id: The name that cannot be used.
        key: Path under the source, unique.
    """
    return f"{case_id[: _LONGEST_CASE - 9]}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"


def is_published(case_id: str) -> bool:
    """Whether a case has one of CT-RATE's names, which say the side of the split."""
    return bool(_CT_RATE.match(case_id))


def patient_and_split(key: str, case_id: str, known_patient: str, config: IngestConfig) -> tuple[str, str]:
    """Whose scan it is, and on which side of the split: all scans of a patient on the same.

    Args:
        key: Path under the source.
        case_id: The case.
        known_patient: From the metadata CSV or the DICOM header; empty where unknown.
        config: Pattern and share of validation.
    """
    published = _CT_RATE.match(case_id)
    pattern = re.search(config.patient_pattern, key) if config.patient_pattern else None
    if pattern:
        patient = pattern.group(1) or case_id
    elif published:
        patient = published.group(1).lower()
    else:
        patient = known_patient or case_id
    if published and not pattern:
        return patient, "valid" if patient.startswith("valid") else "train"
    share = int(hashlib.sha256(patient.encode()).hexdigest()[:8], 16) / 2**32
    return patient, "valid" if share < config.valid_fraction else "train"
