"""The evaluation of a model in one or all settings: features in, rows, monitors and findings out."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ctflow.checkpoint import folder_fingerprint, load_text_encoder
from ctflow.config.evaluation import EvalConfig
from ctflow.evaluation.backbones import Backbones, ClipScorer, build_backbones
from ctflow.evaluation.between import between_settings
from ctflow.evaluation.cases import CaseReader, choose_cases
from ctflow.evaluation.collect import REAL_SET, RECONSTRUCTED, Collector
from ctflow.evaluation.features import FeatureExtractor, FeaturePlan
from ctflow.evaluation.findings import findings_table
from ctflow.evaluation.monitoring import Reading
from ctflow.evaluation.provenance import provenance
from ctflow.evaluation.ranks import Ranks
from ctflow.evaluation.scoring import Picture, Scoring
from ctflow.evaluation.settings import REGISTRY
from ctflow.evaluation.system import EvalSystem, scorer_name
from ctflow.evaluation.table import MODEL, RECONSTRUCTION, Row


@dataclass
class Evaluation:
    """All results of one run.

    Attributes:
        rows: The table.
        readings: The monitors.
        provenance: What was compared, with what, how.
        pictures: By setting, nearest to the reference first.
        between: Rows over the slices that all settings share, and their ratios.
        findings: Findings on phantoms.
    """

    rows: list[Row]
    readings: list[Reading]
    provenance: dict[str, Any]
    pictures: dict[str, list[Picture]] = field(default_factory=dict)
    between: list[Row] = field(default_factory=list)
    findings: list[dict[str, Any]] = field(default_factory=list)


def evaluate(config: EvalConfig, system: EvalSystem, ranks: Ranks) -> Evaluation:
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
    backbones = backbones_of(config, system)
    # Only full-body makes whole volumes to hold against the ground truth.
    measured = "full-body" in config.settings and any(case.truth_path for case in sets.evaluated)
    plan = plan_of(config, system)
    extractor = FeatureExtractor(plan, backbones, system.device)
    collector = Collector(config, system, reader, extractor, ranks, measured)
    collected = collector.collect(sets, config.settings)
    scoring = Scoring(config, plan, backbones, sets, collected)
    result = Evaluation([], [], {}, between=between_settings(scoring, config.settings))
    for name in config.settings:
        setting = REGISTRY[name]
        result.rows += scoring.rows(setting)
        result.readings += scoring.readings(setting)
        result.pictures[name] = scoring.pictures(setting)
        result.findings += findings_table(MODEL, sets.evaluated, collected.of(name, sets.evaluated), name)
    if result.findings:
        result.findings += findings_table(
            "phantoms: error of reading", sets.evaluated, collected.of(REAL_SET, sets.evaluated), "real"
        )
        result.findings += findings_table(
            RECONSTRUCTION, sets.others, collected.of(RECONSTRUCTED, sets.others), "real"
        )
    model = {
        "checkpoint": system.name,
        "checkpoint_sha256": system.fingerprint,
        "sampling": asdict(collector.rollout),
        "precision": config.precision,
        "device": str(system.device),
        "volumes_found_in_cache": collector.reused,
    }
    result.provenance = provenance(config, plan, backbones, sets, model, time.monotonic() - started)
    return result


def plan_of(config: EvalConfig, system: EvalSystem) -> FeaturePlan:
    """What is kept of each volume."""
    return FeaturePlan(
        resolutions=tuple(config.resolution) or (system.config.image_size,),
        native=system.config.image_size,
        clip_lengths=tuple(config.clip_lengths),
        clip_stride=config.clip_stride,
    )


def backbones_of(config: EvalConfig, system: EvalSystem) -> Backbones:
    """The embedded extractors and those whose files are given; a CT-CLIP replaces the system's own pair."""
    scorer = ClipScorer(system.text, scorer_name(system.text), system.text_fingerprint)
    if config.backbones.clip:
        encoder = load_text_encoder(config.backbones.clip)
        encoder.clip.to(system.device)
        scorer = ClipScorer(encoder, scorer_name(encoder), folder_fingerprint(config.backbones.clip))
    return build_backbones(config.backbones, scorer, system.device)


def device_of(name: str) -> torch.device:
    """``auto`` is CUDA where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
