"""``python -m ctflow.generate``: reports to CT volumes (in HU, with provenance JSON and montage PNG)."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ctflow.config import Flag, parse_command, run_command
from ctflow.config.commands import START_PREFIX, GenerateConfig
from ctflow.errors import CTFlowError
from ctflow.files import write_text
from ctflow.formats import ORIENTATIONS, VOXEL_TYPES, check_choices, ending_of
from ctflow.outputs import check_writable
from ctflow.parts import this_part
from ctflow.processes import log_threads, use_own_device
from ctflow.seeding import SINGLE_REPORT_CASE
from ctflow.text_files import read_table, read_text

if TYPE_CHECKING:
    from torch import Tensor

    from ctflow.generation import SliceUpdate
    from ctflow.nearest import RetrievedStart, StartShards
    from ctflow.pipeline import CTFlow, EmptyVolume, GeneratedVolume, GenerationRequest

log = logging.getLogger("ctflow")

DESCRIPTION = """Turn a radiology report into a whole chest CT in Hounsfield units; a CSV into many.
The ending of --output names the format. Beside each out.nii.gz lie out.json (all that is needed to make it
again) and out.png (a montage)."""

_TEXTS = 256
"""Reports whose text vectors are held at a time."""
_LONGEST_CASE_ID = 200
"""Bytes of a case's name, so that a file name holds it and an ending."""

FLAGS = [
    Flag("--report", options={"help": "the report's text, or @file.txt"}),
    Flag(
        "--reports",
        options={
            "type": Path,
            "help": "CSV with a row per volume: report (or Findings_EN and Impressions_EN), "
            "and, where wanted, case_id (or VolumeName), seed, slices, z_spacing, pixel_spacing, noise_id",
        },
    ),
    Flag(
        "--output",
        "output",
        {"help": "for --report: out.nii.gz, .nii, .mha, .nrrd, or .dcm (a folder); for --reports: a folder"},
    ),
    Flag("--dtype", "dtype", {"choices": VOXEL_TYPES, "help": "type of the voxels; default: int16"}),
    Flag(
        "--orientation",
        "orientation",
        {"choices": ORIENTATIONS, "help": "order of the voxels; default: RAS in NIfTI, LPS elsewhere"},
    ),
    Flag(
        "--checkpoint",
        "checkpoint",
        {"help": "checkpoint folder, run:NAME or latest; default: the embedded one"},
    ),
    Flag("--seed", "seed", {"type": int, "help": "seed of the noise"}),
    Flag("--slices", "slices", {"type": int, "help": "requested number of slices"}),
    Flag("--spacing", "z_spacing", {"type": float, "help": "requested distance between slices in mm"}),
    Flag(
        "--candidates",
        "candidates",
        {
            "type": int,
            "help": "volumes drawn for each report; the best by CLIP score, seams and drift is kept",
        },
    ),
    Flag(
        "--start",
        "start",
        {"help": "nearest:SHARDS starts with the first slices of the case whose report is nearest"},
    ),
    Flag("--steps", "sampling.steps", {"type": int, "help": "solver steps per block"}),
]


def main(argv: Sequence[str] | None = None) -> int:
    """Generate one volume or a CSV of them.

    Returns:
        0; 1 where rows of a CSV were refused or became no volume (they are listed), 2 where all were.

    Raises:
        CTFlowError: Nothing could be generated as asked.
    """
    line = parse_command(GenerateConfig, "ctflow generate", DESCRIPTION, FLAGS, argv)
    config, report, table = line.config, line.flags["report"], line.flags["reports"]
    if (report is None) == (table is None):
        raise CTFlowError("neither or both of --report and --reports", "one of them")
    if report is not None:
        paths = {SINGLE_REPORT_CASE: _single_output(config.output or "generated.nii.gz")}
        rows: list[dict[str, Any]] = [{"report": _report_text(report), "case_id": SINGLE_REPORT_CASE}]
        refused: list[str] = []
    else:
        rows, refused = read_requests(table)
        part = this_part(config.part, config.parts)
        if part.count > 1:
            log.info("%s: every %d-th row", part, part.count)
            rows = [row for number, row in enumerate(rows) if part.owns(number)]
            refused = refused if part.index == 0 else []
        folder = Path(config.output or "generated")
        paths = {str(row["case_id"]): folder / f"{row['case_id']}{config.format}" for row in rows}
    asked = len(rows) + len(refused)
    if rows:
        for path in paths.values():
            check_choices(path, *_written(config).values())
            for beside in (_beside(path, ".json"), _beside(path, ".png")):
                if beside.is_dir():
                    found = f"{beside} is a folder"
                    raise CTFlowError(found, "a file beside the volume", "choose another name")
        check_writable(next(iter(paths.values())).parent)
        refused += _generate(config, rows, paths)
    if report is not None and refused:
        raise CTFlowError(refused[0])
    for reason in refused:
        log.error("refused: %s", reason)
    if not refused:
        return 0
    return 2 if len(refused) == asked else 1  # as a single report that is refused


@dataclass(frozen=True)
class _Case:
    """A volume to make.

    Attributes:
        request: As it was asked for.
        start: With a retrieved start: the request that continues it, where it is from, and its latents.
    """

    request: GenerationRequest
    start: tuple[GenerationRequest, RetrievedStart, Tensor] | None = None

    @property
    def asked(self) -> GenerationRequest:
        """What the model is asked for."""
        return self.start[0] if self.start else self.request


def _generate(config: GenerateConfig, rows: list[dict[str, Any]], paths: dict[str, Path]) -> list[str]:
    """Make and write what is not there yet; returns what could not be made and why."""
    # These take seconds: after the arguments.
    from ctflow.nearest import StartShards
    from ctflow.pipeline import CTFlow, GenerationRequest

    requests, failed = [], []
    for row in rows:
        try:
            requests.append(GenerationRequest(**{**config.request(), **row}))
        except CTFlowError as error:
            failed.append(str(error))
    use_own_device()
    model = CTFlow.from_pretrained(config.checkpoint or None, config.device)
    starts = StartShards(config.start.removeprefix(START_PREFIX), model) if config.start else None
    log_threads()
    cases = []
    for request in requests:
        try:
            model.check_report(request, config.max_unknown)
            model.spacing(request)
            if _is_made(paths[request.case_id], _wanted(config, model, request)):
                log.info("%s is already there", paths[request.case_id])
                continue
            cases.append(_Case(request, starts.nearest(request) if starts else None))
        except CTFlowError as error:
            failed.append(str(error))
    return failed + _make(config, model, cases, paths, starts)


def _wanted(config: GenerateConfig, model: CTFlow, request: GenerationRequest) -> dict[str, Any]:
    """What the JSON beside a volume says if it was made as it is asked for now."""
    return {
        "request": asdict(request),
        "sampling": asdict(config.sampling.applied_to(model.system.config.rollout)),
        "checkpoint_sha256": model.fingerprint,
        "written": _written(config),
        "precision": config.precision,
        "choice": _choice(config),
    }


def _make(
    config: GenerateConfig,
    model: CTFlow,
    cases: list[_Case],
    paths: dict[str, Path],
    starts: StartShards | None,
) -> list[str]:
    """Make and write the cases; returns what could not be made and why."""
    from ctflow.pipeline import EmptyVolume

    failed = []
    given = {case.request.case_id: case.start[2] for case in cases if case.start}
    asked = [case.asked for case in cases]
    # Where no length is asked for, the typical one: the model decides.
    lengths = [request.slices or model.typical_slices(request) for request in asked]
    began = time.perf_counter()
    with (
        tqdm(desc="slices", unit="slice", total=sum(lengths) * config.candidates) as bar,
        logging_redirect_tqdm(),
    ):
        show = partial(_show_progress, bar)
        for done, (index, result) in enumerate(_volumes(model, asked, config, show, given), start=1):
            case = cases[index]
            if isinstance(result, EmptyVolume):
                failed.append(str(result))
                continue
            if config.candidates == 1 and bar.total is not None:
                bar.total += len(result.volume.hu) - lengths[index]
            if len(cases) > 1:
                bar.set_postfix_str(f"{done} of {len(cases)} volumes", refresh=False)
            if starts is not None and case.start is not None:
                result = starts.told(result, case.start[1])
                result = replace(result, provenance=result.provenance | {"request": asdict(case.request)})
            _write(paths[case.request.case_id], result, (time.perf_counter() - began) / done, config)
    return failed


def _volumes(
    model: CTFlow,
    requests: Sequence[GenerationRequest],
    config: GenerateConfig,
    show: Callable[[SliceUpdate], None],
    given: dict[str, Tensor],
) -> Iterator[tuple[int, GeneratedVolume | EmptyVolume]]:
    """Every request's index and volume, as soon as it is whole."""
    from ctflow.candidates import generate_best

    if config.candidates > 1:
        for index, request in enumerate(requests):
            made = generate_best(
                model, [request], config.candidates, config.sampling, show, config.precision, given=given
            )
            yield index, made[0]
        return
    for first in range(0, len(requests), _TEXTS):  # so many reports are encoded at a time
        group = requests[first : first + _TEXTS]
        for index, volume in model.generate_each(
            group, config.sampling, show, config.precision, None, given, config.batch_size
        ):
            yield first + index, volume


def _choice(config: GenerateConfig) -> dict[str, Any]:
    return {"candidates": config.candidates, "start": config.start}


def _written(config: GenerateConfig) -> dict[str, Any]:
    return {"dtype": config.dtype, "orientation": config.orientation}


def _write(path: Path, result: GeneratedVolume, seconds: float, config: GenerateConfig) -> None:
    from ctflow.asked import asked_and_found
    from ctflow.data.writers import write_volume
    from ctflow.pictures import montage, save_png

    told = f"ctflow {result.provenance['ctflow']} synthetic CT in HU"
    write_volume(path, result.volume, told, synthetic=True, **_written(config))
    save_png(_beside(path, ".png"), montage(result.volume))
    record = result.provenance | {"seconds_per_volume": round(seconds, 2), "written": _written(config)}
    record["choice"] = _choice(config)
    try:
        measured = asked_and_found(result.request.report, result.volume)
        record, told = record | {"measured": asdict(measured)}, str(measured)
    except CTFlowError as error:  # the volume is whole all the same
        told = f"the findings are not measured: {error}"
    # The JSON comes last: where it is, the volume is whole.
    write_text(_beside(path, ".json"), json.dumps(record, indent=2) + "\n")
    log.info("%s: %d slices, %s, %.1f s", path, len(result.volume.hu), result.stop, seconds)
    log.info("%s", told)


def _show_progress(bar: tqdm, done: SliceUpdate) -> None:
    bar.update(len(done.hu))


def _is_made(path: Path, wanted: dict[str, Any]) -> bool:
    record = _beside(path, ".json")
    if not (path.exists() and record.is_file()):
        return False
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(found, dict) and all(found.get(key) == value for key, value in wanted.items())


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name[: -len(ending_of(path))] + ending)


def _single_output(output: str) -> Path:
    try:
        ending_of(output)
    except CTFlowError as error:
        raise CTFlowError(
            f"--output {output}", f"{error.expected}, since --report makes one volume"
        ) from None
    return Path(output)


def _report_text(report: str) -> str:
    if not report.startswith("@"):
        return report
    path = Path(report[1:])
    if not path.is_file():
        raise CTFlowError(f"no file {path}", "a text file after @, or the report itself")
    return read_text(path)


def read_requests(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of a CSV of reports as arguments of ``GenerationRequest``, and what was refused and why.

    Raises:
        CTFlowError: No such file, or a CSV without the columns of a report.
    """
    if not path.is_file():
        raise CTFlowError(f"no file {path}", "a CSV of reports")
    table = read_table(path)
    if "report" not in table.columns and not {"Findings_EN", "Impressions_EN"} <= set(table.columns):
        raise CTFlowError(
            f"{path} has the columns {', '.join(table.columns)}",
            "a column report, or Findings_EN and Impressions_EN",
        )
    rows: dict[str, dict[str, Any]] = {}
    refused = []
    for number, record in table.rows:
        try:
            row = dict(_row_values(record, number))
        except ValueError as error:
            refused.append(f"line {number} of {path}: {error}")
            continue
        case_id = str(row["case_id"])
        if case_id in rows:
            refused.append(f"line {number} of {path}: case id {case_id!r} stands there twice")
            continue
        rows[case_id] = row
    return list(rows.values()), refused


def whole_number(text: str, name: str) -> int:
    """A whole number as spreadsheets write it: ``3`` or ``3.0``.

    Raises:
        ValueError: It is none.
    """
    value = number(text, name)
    if not value.is_integer():
        raise ValueError(f"{name} {text!r} is not a whole number")
    return int(text) if text.strip().lstrip("+-").isdigit() else int(value)


def number(text: str, name: str) -> float:
    """A finite number.

    Raises:
        ValueError: It is none.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{name} {text!r} is not a number")
    return value


def _row_values(record: dict[str, str], line: int) -> Iterator[tuple[str, Any]]:
    report = record.get("report") or f"{record.get('Findings_EN', '')} {record.get('Impressions_EN', '')}"
    if not report.strip():
        raise ValueError("the report is empty")
    yield "report", report.strip()
    case_id = (
        record.get("case_id") or record.get("VolumeName", "").removesuffix(".nii.gz") or f"case_{line - 1}"
    )
    if "/" in case_id or "\\" in case_id or case_id.startswith("."):
        raise ValueError(f"case id {case_id!r} is not a file name")
    if not case_id.isprintable() or len(case_id.encode()) > _LONGEST_CASE_ID:
        raise ValueError(
            f"case id {case_id[:40]!r}… has {len(case_id.encode())} bytes or unprintable letters; a file "
            f"name has at most {_LONGEST_CASE_ID} here"
        )
    yield "case_id", case_id
    for name in ("seed", "slices"):
        if record.get(name):
            value = whole_number(record[name], name)
            if name == "slices" and value < 1:
                raise ValueError(f"{value} slices requested")
            yield name, value
    for name in ("z_spacing", "pixel_spacing"):
        if record.get(name):
            yield name, number(record[name], name)
    if record.get("noise_id"):
        yield "noise_id", record["noise_id"]


if __name__ == "__main__":
    run_command(main)
