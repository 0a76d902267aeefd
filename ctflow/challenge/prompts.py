"""The challenge's list of prompts, checked as a whole before anything is generated."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ctflow.errors import CTFlowError

_ENDINGS = (".nii.gz", ".nii", ".mha")
_LONGEST_NAME = 200


@dataclass(frozen=True)
class Prompt:
    """A volume that is asked for.

    Attributes:
        name: Of the volume, without an ending.
        report: Its text.
    """

    name: str
    report: str


def read_prompts(path: Path) -> list[Prompt]:
    """Read ``prompts.json``.

    Raises:
        CTFlowError: No such file, no list of prompts, or faults in some of them; all are told.
    """
    if not path.is_file():
        raise CTFlowError(f"no prompts at {path}", "a JSON list", "give --input prompts.json")
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise CTFlowError(f"{path} is not readable as JSON: {error}", "a list of prompts in UTF-8") from None
    if not isinstance(entries, list) or not entries:
        found = f"a {type(entries).__name__}" if not isinstance(entries, list) else "an empty list"
        raise CTFlowError(f"{path} holds {found}", 'a list of {"input_image_name": …, "report": …}')
    prompts: dict[str, Prompt] = {}
    faults = []
    for number, entry in enumerate(entries, start=1):
        try:
            prompt = _prompt(entry)
            if prompt.name in prompts:
                raise ValueError(f"the name {prompt.name!r} occurs twice")
        except ValueError as error:
            faults.append(f"  prompt {number}: {error}")
            continue
        prompts[prompt.name] = prompt
    if faults:
        listed = "\n".join(faults[:20]) + ("\n  …" if len(faults) > 20 else "")
        raise CTFlowError(
            f"{len(faults)} of {len(entries)} prompts in {path} cannot be used:\n{listed}",
            "a name and a report in each",
            "mend the file: no volume is generated before it is whole",
        )
    return list(prompts.values())


def _prompt(entry: object) -> Prompt:
    if not isinstance(entry, dict):
        raise ValueError(f"a {type(entry).__name__}, no object")
    name, report = entry.get("input_image_name"), entry.get("report")
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"input_image_name is {name!r}")
    stem = next((name[: -len(e)] for e in _ENDINGS if name.lower().endswith(e)), name)
    if not stem or stem.startswith(".") or any(c in stem for c in "/\\") or not stem.isprintable():
        raise ValueError(f"input_image_name {name!r} is not a file name")
    if len(stem.encode()) > _LONGEST_NAME:
        raise ValueError(f"input_image_name {name[:40]!r}… has more than {_LONGEST_NAME} bytes")
    if not isinstance(report, str) or not report.strip():
        raise ValueError(f"the report of {name} is {'empty' if isinstance(report, str) else repr(report)}")
    return Prompt(stem, report.strip())
