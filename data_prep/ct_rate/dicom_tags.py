"""Values of DICOM tags as people's files hold them: of another type, with decimal commas, unreadable.

Nothing here raises: a tag that cannot be understood counts as missing, and its text is there to be named.
"""

from __future__ import annotations

import math
import re
from typing import Any

import pydicom
from pydicom.datadict import tag_for_keyword
from pydicom.multival import MultiValue

from data_prep.ct_rate.reasons import printable

_SEPARATORS = re.compile(r"\s*[,;]\s*|\s+")


def value_of(data: pydicom.Dataset, name: str) -> Any:
    """A tag's value; its text where pydicom cannot convert it; None where it is missing or empty."""
    tag = tag_for_keyword(name)
    if tag is None or tag not in data:
        return None
    try:
        value = data[tag].value
    except Exception:  # converters of damaged values raise whatever they like
        raw = getattr(data.get_item(tag), "value", b"")
        value = raw.decode("latin-1") if isinstance(raw, bytes) else raw
    return None if value is None or str(value) == "" else value


def text(data: pydicom.Dataset, name: str) -> str:
    """A tag as printable text without blanks around it; empty where it is missing."""
    value = value_of(data, name)
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    elif isinstance(value, MultiValue | list):
        value = "\\".join(map(str, value))
    return "" if value is None else printable(str(value)).replace("\\x00", "").strip()


def integer(data: pydicom.Dataset, name: str, default: int) -> int:
    """A tag as a whole number; ``default`` where it is missing or none."""
    found = numbers(value_of(data, name), 1)
    return int(found[0]) if found else default


def numbers(value: Any, count: int) -> tuple[float, ...] | None:
    """A tag's values as floats; None unless there are ``count`` of them and all are finite.

    Text is read too, whatever its type in DICOM: ``5.5\\5.5``, decimal commas between backslashes (``5,5\\5,5``),
    and a comma or blank instead of the backslash where each part has a decimal point (``5.5,5.5``).

    Args:
        value: As pydicom gives it, or text, or bytes.
        count: How many numbers are expected.
    """
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    if value is None:
        return None
    parts = _parts(value, count) if isinstance(value, str) else value
    if not hasattr(parts, "__len__"):
        parts = [parts]
    try:
        found = tuple(float(str(part).strip().strip("\0").replace(",", ".")) for part in parts)
    except ValueError:
        return None
    return found if len(found) == count and all(map(math.isfinite, found)) else None


def _parts(value: str, count: int) -> list[str]:
    cleaned = value.strip(" \0[]()")
    parts = cleaned.split("\\")
    if len(parts) == 1 and count > 1:
        split = _SEPARATORS.split(cleaned)
        if len(split) == count and ("," not in cleaned or all("." in part for part in split)):
            return split
    return parts
