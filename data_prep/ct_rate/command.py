"""The command: parse, find, run, report."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from ctflow.config import Flag, parse_command
from ctflow.config.prep import IngestConfig
from ctflow.errors import ConfigError, ScanError
from ctflow.files import write_text

if TYPE_CHECKING:
    from ctflow.parts import Part
    from data_prep.ct_rate.run import IngestRun

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
    Flag(
        "--tables",
        "tables",
        {"help": "folder of CSVs and no_chest lists outside the source", "metavar": "DIR"},
    ),
    Flag(
        "--exclude",
        "exclude",
        {
            "help": "list of volumes to leave out, a name a line; may be given again",
            "metavar": "TXT",
            "action": "append",
        },
    ),
    Flag(
        "--plan",
        options={
            "help": "read names and tables alone, say what a run would do, and end",
            "action": "store_true",
        },
    ),
]


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare scans; 0: all accepted or flagged, 1: something was refused, 2: nothing usable.

    Raises:
        CTFlowError: A user's mistake (``run_command`` ends with status 2).
    """
    command = parse_command(
        IngestConfig,
        "ctflow prepare",
        "Chest CT scans and reports to slice shards.",
        _FLAGS,
        argv,
    )
    config = command.config
    if command.flags["plan"] and config.source:
        from data_prep.ct_rate.plan import make_plan, tell

        tell(make_plan(config), config)
        return 0
    if not config.source or not config.output:
        raise ConfigError("no --source or no --output", "--source DIR --output DIR", "see --help")
    return ingest(config)


def ingest(config: IngestConfig) -> int:
    """Prepare everything under ``config.source``; see ``main`` for the status.

    Raises:
        CTFlowError: No such source, nothing in it, unreadable CSVs, or an output made with other settings.
    """
    # Heavy imports wait until here: workers import this module anew and need none of them.
    from ctflow.outputs import check_writable
    from ctflow.parts import claimed, this_part, when_free
    from data_prep.ct_rate.discovery import find_items
    from data_prep.ct_rate.joining import join_parts
    from data_prep.ct_rate.journal import FOLDER, JOIN_LOCK, Journal
    from data_prep.ct_rate.records import settings
    from data_prep.ct_rate.report import SHEET, log_summary, write_contact_sheet, write_reports
    from data_prep.ct_rate.run import IngestRun
    from data_prep.ct_rate.tables import Tables

    part = this_part(config.part, config.parts)
    output = Path(config.output)
    source_dir = Path(config.source)
    check_writable(output)
    source = find_items(source_dir, output, config)
    for group in source.left_out:
        log.info("left out unread: %s, %d files (%s: %s)", group.place, group.count, group.code, group.detail)
    if source.excluded:
        log.info("excluded: %d volumes that lists name (listed_no_chest)", len(source.excluded))
    if not source.items:
        told = "".join(f"; {key}: {detail}" for key, _, _, detail in source.told[:3])
        raise ScanError(
            f"no scan under {config.source} ({len(source.stray)} other files, "
            f"{len(source.excluded) + sum(group.count for group in source.left_out)} left out{told})",
            "NIfTI, DICOM, NRRD or MetaImage files",
            "check --source",
        )
    tables = Tables(config, source.csvs, source.keys())
    if not tables.has_reports:
        log.warning("no report CSV: volumes get empty reports (give --reports)")
    missing = tables.without_file()
    if missing:
        log.warning(
            "%d volumes of the report CSVs are not under %s: %s …", len(missing), source_dir, missing[0]
        )
    _claim(output, settings(config))
    with ExitStack() as stack:
        with when_free(output / FOLDER / JOIN_LOCK):
            stack.enter_context(claimed(output / FOLDER, part, output))
        journal = stack.enter_context(Journal(output))
        decides = part.count == 1 and not journal.undecided
        if not decides:
            journal = stack.enter_context(Journal(output, part))
        run = IngestRun(config, source, tables, journal, part, decides)
        pending = run.pending
        log.info("%d files or folders, %d to do%s", len(source.items), pending, _of(part))
        run.work()
    if not decides:
        if not join_parts(config):
            return _unfinished(output, part, run)
        with Journal(output) as journal:
            run = IngestRun(config, source, tables, journal, retry=False)
    summary = write_reports(output, run.seen.values(), source, settings(config), len(missing))
    if pending or not decides or not (output / SHEET).is_file():
        write_contact_sheet(output)
    log_summary(summary, run.seen.values())
    if not summary["accepted"] + summary["flagged"]:
        log.error("nothing usable under %s; see %s", config.source, output / "quarantine.csv")
        return 2
    return 1 if summary["refused"] else 0


def _of(part: Part) -> str:
    return "" if part.count == 1 else f" ({part})"


def _unfinished(output: Path, part: Part, run: IngestRun) -> int:
    """This part is done and others are not; 1 where it refused something."""
    from data_prep.unfinished import unfinished

    statuses = Counter(outcome.status for outcome in run.seen.values())
    told = ", ".join(f"{count} {status}" for status, count in sorted(statuses.items()))
    log.info("%s is done: %s", part, told or "nothing was its own")
    for line in unfinished(output):
        log.info("%s", line)
    log.info("the last part to end joins the shards and writes the reports")
    return 1 if statuses["refused"] else 0


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
    write_text(path, json.dumps(settings, indent=2) + "\n")
