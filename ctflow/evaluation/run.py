"""One run of the command: what was asked for is computed, written and shown."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from ctflow.checkpoint import CLIP_FOLDER, folder_fingerprint, load_system, load_text_encoder
from ctflow.config import config_to_yaml
from ctflow.config.evaluation import EvalConfig
from ctflow.config.system import SystemConfig
from ctflow.data.default_shards import complete, make_phantom_slices
from ctflow.evaluation.analyses import run_analysis
from ctflow.evaluation.backbones import ClipScorer
from ctflow.evaluation.cases import EvaluationError
from ctflow.evaluation.evaluation import Evaluation, device_of, evaluate
from ctflow.evaluation.external import evaluate_external
from ctflow.evaluation.memory import keep_freed_buffers
from ctflow.evaluation.ranks import Ranks
from ctflow.evaluation.report_page import write_page
from ctflow.evaluation.system import EvalSystem, scorer_name
from ctflow.evaluation.tensorboard import write_scalars
from ctflow.evaluation.writers import monitors_markdown, table_markdown, write_all
from ctflow.outputs import check_writable
from ctflow.shipped import shipped_path
from ctflow.threads import log_threads

log = logging.getLogger("ctflow")

WITHOUT_CASES = ("contrast",)
"""Analyses that generate from texts of their own and need no real cases."""
PHANTOM_VOLUMES = 160
"""For default cases; a tenth of them is held out from training."""


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
    if config.external.volumes:
        result = evaluate_external(config, _scorer(config, checkpoint), ranks)
    else:
        assert checkpoint is not None
        system = _system(config, checkpoint)
        if ranks.first and config.analysis.name not in WITHOUT_CASES:
            _ensure_default_cases(config, system.config)
        ranks.wait()
        if config.analysis.name:
            run_analysis(config, system, ranks, output)
            return
        result = evaluate(config, system, ranks)
    if ranks.first:
        _write(result, config, output)


def _check_files(config: EvalConfig) -> None:
    """Make sure that what is named is there, before anything is made or computed.

    Raises:
        EvaluationError: A file or folder is missing.
    """
    analysis, external = config.analysis, config.external
    named = {
        "analysis.pairs": shipped_path(analysis.pairs) if analysis.name == "contrast" else "",
        "analysis.readings": analysis.readings if analysis.name == "reading" else "",
        **{f"external.{key}": value for key, value in vars(external).items()},
        **{f"backbones.{k}": v for k, v in vars(config.backbones).items() if not k.endswith("_sha256")},
    }
    missing = [f"{key}={path}" for key, path in named.items() if path and not Path(path).exists()]
    if missing:
        raise EvaluationError(
            f"nothing at {', '.join(missing)}",
            "files and folders that are there",
            f"check the paths; relative ones begin at the current folder, {Path.cwd()}",
        )


def _write(result: Evaluation, config: EvalConfig, output: Path) -> None:
    write_all(result, output)
    (output / "config.yaml").write_text(config_to_yaml(config), encoding="utf-8")
    write_page(result, output / "report.html")
    write_scalars(result, output)
    log.info("results\n\n%s\n", table_markdown(result.rows))
    log.info("monitors\n\n%s\n", monitors_markdown(result.readings))
    for reading in result.readings:
        if reading.alarm and reading.source == "model":
            log.warning(
                "ALARM %s: %s = %.3g is above %g",
                reading.setting,
                reading.monitor,
                reading.value,
                reading.threshold,
            )
    log.info("written to %s (open %s)", output, output / "report.html")


def _system(config: EvalConfig, checkpoint: Path) -> EvalSystem:
    fingerprint, device = folder_fingerprint(checkpoint), device_of(config.device)
    capability = torch.backends.cpu.get_cpu_capability()
    if config.precision == "bf16" and device.type == "cpu" and "AVX512" not in capability:
        log.warning("precision=bf16 on this CPU (%s) is emulated and slower than precision=fp32", capability)
    pair = folder_fingerprint(checkpoint / CLIP_FOLDER)
    return EvalSystem.of(load_system(checkpoint), str(checkpoint), fingerprint, device, pair)


def _scorer(config: EvalConfig, checkpoint: Path | None) -> ClipScorer | None:
    """The pair that scores another system's volumes against reports."""
    folder = Path(config.backbones.clip) if config.backbones.clip else checkpoint and checkpoint / CLIP_FOLDER
    if not folder or not config.external.reports:
        return None
    encoder = load_text_encoder(folder)
    encoder.clip.to(device_of(config.device))
    return ClipScorer(encoder, scorer_name(encoder), folder_fingerprint(folder))


def _ensure_default_cases(config: EvalConfig, system: SystemConfig) -> None:
    """Make the default slice shards from phantoms if they are missing; other folders are the user's own."""
    folder = Path(config.slices)
    if config.slices == EvalConfig().slices and not complete(folder):
        runs = folder.parents[2]
        size, spacing = system.image_size, system.z_spacing_mm
        make_phantom_slices(runs, volumes=PHANTOM_VOLUMES, size=size, z_spacing=spacing)
