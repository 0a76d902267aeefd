"""One run of the command: what was asked for is computed, written and shown."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from ctflow.checkpoint import CLIP_FOLDER
from ctflow.config.evaluation import CHALLENGES, EvalConfig
from ctflow.errors import EvaluationError
from ctflow.evaluation.analyses import run_analysis
from ctflow.evaluation.cases import CaseReader, choose_cases
from ctflow.evaluation.challenge import evaluate_challenge
from ctflow.evaluation.collect import REAL_SET, RECONSTRUCTED, Collector
from ctflow.evaluation.compare import Comparer
from ctflow.evaluation.external import evaluate_external
from ctflow.evaluation.report import write_report
from ctflow.evaluation.results import MODEL, RECONSTRUCTION, Results, findings_table, provenance, with_volumes
from ctflow.evaluation.settings import SETTINGS
from ctflow.evaluation.system import EvalSystem, extractor_of, scorer_at
from ctflow.metrics.clip_score import TextVolumeScorer
from ctflow.outputs import check_writable
from ctflow.processes import Ranks, device_of, keep_freed_buffers, log_threads
from ctflow.shipped import shipped_path

log = logging.getLogger("ctflow")


def run(config: EvalConfig, output: Path, ranks: Ranks, checkpoint: Path | None) -> None:
    """Evaluate as configured; the first rank writes ``output``.

    Args:
        config: What to evaluate.
        output: Folder of this run's results.
        ranks: This process among others.
        checkpoint: Folder of the system; None where none is needed.
    """
    if device_of(config.device).type == "cpu":
        keep_freed_buffers()
    _check_files(config)
    if ranks.first:
        log_threads()
        for folder in (config.output, config.cache):
            check_writable(folder)
    if config.protocol in CHALLENGES:
        folder = config.backbones.clip
        scorer = scorer_at(folder, device_of(config.device)) if folder else None
        results = evaluate_challenge(config, scorer, ranks)
    elif config.external.volumes:
        results = evaluate_external(config, _scorer(config, checkpoint), ranks)
    else:
        assert checkpoint is not None
        system = _system(config, checkpoint)
        if config.analysis.name:
            run_analysis(config, system, ranks, output)
            return
        results = evaluate(config, system, ranks)
    if ranks.first:
        write_report(results, config, output)


def _check_files(config: EvalConfig) -> None:
    """Make sure that what is named is there, before anything is made or computed.

    Raises:
        EvaluationError: A file or folder is missing.
    """
    analysis, external = config.analysis, config.external
    named = {
        "analysis.pairs": shipped_path(analysis.pairs) if analysis.name == "contrast" else "",
        "analysis.labels": analysis.labels,
        "analysis.synthetic": analysis.synthetic,
        "analysis.student": analysis.student if analysis.name == "steps" else "",
        "analysis.readings": analysis.readings if analysis.name == "reading" else "",
        **{f"external.{key}": value for key, value in vars(external).items()},
        **{f"backbones.{key}": path for key, path in config.backbones.files.items()},
    }
    missing = [f"{key}={path}" for key, path in named.items() if path and not Path(path).exists()]
    if missing:
        raise EvaluationError(
            f"nothing at {', '.join(missing)}",
            "files and folders that are there",
            f"check the paths; relative ones begin at the current folder, {Path.cwd()}",
        )


def evaluate(config: EvalConfig, system: EvalSystem, ranks: Ranks) -> Results:
    """Run the settings of ``config`` and score them, with floors.

    Args:
        config: The evaluation.
        system: The model.
        ranks: This process among others; all of them return the same result.

    Raises:
        EvaluationError: Cases that cannot be evaluated.
        ShardError: No slice shards at ``config.slices``.
        WeightsError: A backbone's file that does not hold.
    """
    started = time.monotonic()
    reader = CaseReader(Path(config.slices))
    sets = choose_cases(reader.cases(), config.cases, config.floors, choice=config.evaluated)
    # Only full-body makes whole volumes to hold against the ground truth.
    findings = "full-body" in config.settings and any(case.truth_path for case in sets.evaluated)
    extractor = extractor_of(config, system)
    plan, backbones = extractor.plan, extractor.backbones
    collector = Collector(config, system, reader, extractor, ranks, findings)
    collected = collector.collect(sets, config.settings)
    comparer = Comparer(config, plan, backbones, sets, collected)
    results = Results(between=comparer.between_settings(config.settings))
    for name in config.settings:
        setting = SETTINGS[name]
        results.rows += comparer.rows(setting)
        results.readings += comparer.readings(setting)
        results.pictures[name] = comparer.pictures(setting)
        if config.page.viewer and ranks.first:
            make = partial(collector.volumes, setting, sets.evaluated)
            results.pictures[name] = with_volumes(results.pictures[name], make)
        results.findings += findings_table(MODEL, sets.evaluated, collected.of(name, sets.evaluated), name)
    if results.findings:
        for source, kind, cases in (
            ("phantoms: error of reading", REAL_SET, sets.evaluated),
            (RECONSTRUCTION, RECONSTRUCTED, sets.others),
        ):
            results.findings += findings_table(source, cases, collected.of(kind, cases), "real")
    model = {
        "checkpoint": system.name,
        "checkpoint_sha256": system.fingerprint,
        "sampling": asdict(collector.rollout),
        "precision": config.precision,
        "device": str(system.device),
        "volumes_found_in_cache": collector.cache.reused,
    }
    results.provenance = provenance(config, plan, backbones, sets, model, time.monotonic() - started)
    return results


def _system(config: EvalConfig, checkpoint: Path) -> EvalSystem:
    device, capability = device_of(config.device), torch.backends.cpu.get_cpu_capability()
    if config.precision == "bf16" and device.type == "cpu" and "AVX512" not in capability:
        log.warning("precision=bf16 on this CPU (%s) is emulated and slower than precision=fp32", capability)
    return EvalSystem.load(checkpoint, device)


def _scorer(config: EvalConfig, checkpoint: Path | None) -> TextVolumeScorer | None:
    """The pair that scores another system's volumes against reports."""
    folder = Path(config.backbones.clip) if config.backbones.clip else checkpoint and checkpoint / CLIP_FOLDER
    if not folder or not config.external.reports:
        return None
    return scorer_at(folder, device_of(config.device))
