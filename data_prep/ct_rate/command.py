"""The command: parse, find, run, report."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from ctflow.config import Flag, parse_command
from ctflow.config.prep import IngestConfig
from ctflow.errors import ConfigError, ScanError

log = logging.getLogger(__name__)
SETTINGS = "settings.json"
_FLAGS = [
    Flag("--source", "source", {"help": "folder of scans (CT-RATE's tree, or any files)", "metavar": "DIR"}),
    Flag("--output", "output", {"help": "folder for the slice shards", "metavar": "DIR"}),
    *(
        Flag(
            f"--{name}",
            name,
            {"help": f"CT-RATE's {name} CSV; may be given again", "metavar": "CSV", "action": "append"},
        )
        for name in ("reports", "metadata", "labels")
    ),
]


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare scans; 0: all accepted or flagged, 1: something was refused, 2: nothing usable.

    Raises:
        CTFlowError: A user's mistake (``run_command`` ends with status 2).
    """
    config = parse_command(
        IngestConfig,
        "ctflow prepare",
        "Chest CT scans and reports to slice shards.",
        _FLAGS,
        argv,
    ).config
    if not config.source or not config.output:
        raise ConfigError("no --source or no --output", "--source DIR --output DIR", "see --help")
    return ingest(config)


def ingest(config: IngestConfig) -> int:
    """Prepare everything under ``config.source``; see ``main`` for the status.

    Raises:
        CTFlowError: No such source, nothing in it, unreadable CSVs, or an output made with other settings.
    """
    # Heavy imports wait until here: workers import this module anew and need none of them.
    from data_prep.ct_rate.discovery import find_items
    from data_prep.ct_rate.journal import Journal
    from data_prep.ct_rate.report import SHEET, log_summary, write_contact_sheet, write_reports
    from data_prep.ct_rate.run import IngestRun, settings
    from data_prep.ct_rate.tables import Tables

    output = Path(config.output)
    source_dir = Path(config.source)
    source = find_items(source_dir, output)
    if not source.items:
        raise ScanError(
            f"no scan under {config.source} ({len(source.stray)} other files)",
            "NIfTI, DICOM, NRRD or MetaImage files",
            "check --source",
        )
    tables = Tables(config, source.csvs)
    if not tables.has_reports:
        log.warning("no report CSV: volumes get empty reports (give --reports)")
    missing = tables.without_file(Path(item.files[0]).name for item in source.items)
    if missing:
        log.warning(
            "%d volumes of the report CSVs are not under %s: %s …", len(missing), source_dir, missing[0]
        )
    _claim(output, settings(config))
    with Journal(output) as journal:
        run = IngestRun(config, source, tables, journal)
        pending = run.pending
        log.info("%d files or folders, %d to do", len(source.items), pending)
        run.work()
    summary = write_reports(output, run.seen.values(), source.stray, settings(config), len(missing))
    if pending or not (output / SHEET).is_file():
        write_contact_sheet(output)
    log_summary(summary)
    if not summary["accepted"] + summary["flagged"]:
        log.error("nothing usable under %s; see %s", config.source, output / "quarantine.csv")
        return 2
    return 1 if summary["refused"] else 0


def _claim(output: Path, settings: dict[str, object]) -> None:
    """An output belongs to one set of settings; volumes of two kinds never mix in it."""
    path = output / SETTINGS
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = [
            f"{k}={before.get(k)!r} there, {v!r} now" for k, v in settings.items() if before.get(k) != v
        ]
        if changed:
            raise ConfigError(
                f"{output} was prepared with other settings: {'; '.join(changed)}",
                "one set of settings per output",
                "give another --output, or delete this one",
            )
        return
    output.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)
