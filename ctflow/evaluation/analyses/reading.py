"""``reading``: a blinded pack for human readers, and what their filled CSV says."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import stats
from tqdm import tqdm

from ctflow.anatomy import LABELS, findings, measure, true_places
from ctflow.data.nifti import small_nifti
from ctflow.errors import EvaluationError
from ctflow.evaluation.analyses.base import AnalysisResult, Context
from ctflow.evaluation.cases import RealCase, read_truth
from ctflow.evaluation.settings import SETTINGS
from ctflow.evaluation.system import generate_batch
from ctflow.files import write_text
from ctflow.metrics.bias import share_interval
from ctflow.metrics.images import volume_at
from ctflow.pages import embedded, render, viewer_bundle
from ctflow.pictures import LUNG, SOFT_TISSUE, Window, axial, coronal, sagittal
from ctflow.text_files import read_table
from ctflow.types import HUVolume

REAL_ITEM, SYNTHETIC_ITEM = "real", "synthetic"
JUDGEMENT = "real_or_synthetic"
YES, NO = "1", "0"
FORM, KEY, PAGE = "readings.csv", "key.json", "readings.html"
SIDE = 224
FRAMES = {"axial": 48, "coronal": 24, "sagittal": 24}
WINDOWS: dict[str, Window] = {"lung": LUNG, "soft": SOFT_TISSUE}
QUALITY = 70


def reading(context: Context) -> AnalysisResult:
    """Write a new pack, or evaluate the CSV named by ``analysis.readings``."""
    if context.config.analysis.readings:
        return evaluate_readings(Path(context.config.analysis.readings))
    return new_pack(context)


def new_pack(context: Context) -> AnalysisResult:
    """A page of anonymous items in random order, a CSV to fill in, and the key that readers do not get."""
    config = context.config
    reader = context.reader()
    with_report = [case for case in reader.cases() if case.report.strip()]
    cases = systematic(with_report, config.analysis.read_reports)
    if len(cases) < 2:
        raise EvaluationError(f"{len(cases)} cases with a report", "at least 2, one real and one synthetic")
    rng = np.random.default_rng(config.seed)
    synthetic = set(rng.permutation(len(cases))[: len(cases) // 2].tolist())
    shown = _volumes(context, cases, synthetic)
    order = rng.permutation(len(cases))
    items: list[ReadingItem] = []
    key: list[dict[str, Any]] = []
    for number, index in enumerate(
        tqdm(order.tolist(), "pictures", disable=not context.ranks.first), start=1
    ):
        case, volume = cases[index], shown[index]
        name = f"item {number:02d}"
        items.append(ReadingItem.of(name, case.report, volume, config.page.viewer))
        found = findings(measure(volume))
        key.append(
            {
                "item": name,
                "case_id": case.case_id,
                "source": SYNTHETIC_ITEM if index in synthetic else REAL_ITEM,
                "named": named_findings(case),
                "automatic": {label: label in found for label in LABELS},
            }
        )
    if context.ranks.first:
        write_pack(context.output, items, key, [JUDGEMENT, *LABELS, "remarks"])
    text = (
        f"{len(items)} items, {len(synthetic)} of them synthetic, in random order. Give readers {PAGE} and "
        f"{FORM}; keep {KEY}. The filled CSV comes back with --analysis reading --readings FILE, "
        f"{KEY} beside it."
    )
    counts = [{"items": len(items), "real": len(items) - len(synthetic), "synthetic": len(synthetic)}]
    return AnalysisResult("Reading pack", text, counts)


def named_findings(case: RealCase) -> dict[str, bool]:
    """Whether a case has each finding, from its ground truth, else its labels; empty without either."""
    if case.truth_path:
        truth = read_truth(case)
        return {label: bool(true_places(label, truth)) for label in LABELS}
    return {label: bool(case.labels[label]) for label in LABELS if label in case.labels}


def systematic(cases: Sequence[RealCase], number: int) -> list[RealCase]:
    """Cases such that every finding, and "none", is named as evenly often as the set allows.

    Again and again the first case is taken that has the finding taken least often so far.

    Args:
        cases: To choose from; without ground truth or labels all are alike, and the first are taken.
        number: How many, at most.
    """
    left = [(case, [x for x, has in named_findings(case).items() if has] or ["none"]) for case in cases]
    counts: Counter[str] = Counter()
    chosen: list[RealCase] = []
    while left and len(chosen) < number:
        rarest = min(range(len(left)), key=lambda i: (min(counts[x] for x in left[i][1]), i))
        case, names = left.pop(rarest)
        chosen.append(case)
        counts.update(names)
    return chosen


def evaluate_readings(path: Path) -> AnalysisResult:
    """Real against synthetic, agreement with the named findings, correlation with the automatic score.

    Raises:
        EvaluationError: No key beside the file, items that are not in it, or nothing filled in.
    """
    key_path = path.with_name(KEY)
    if not path.is_file() or not key_path.is_file():
        raise EvaluationError(
            f"{path} or {key_path} is missing", f"the filled CSV with the pack's {KEY} beside it"
        )
    key = {entry["item"]: entry for entry in json.loads(key_path.read_text(encoding="utf-8"))}
    table = read_table(path)
    rows = [cells for _, cells in table.rows]
    items = [row.get("item", "") for row in rows]
    unknown = [item for item in items if item not in key]
    if not {"item", JUDGEMENT} <= {*table.columns} or unknown or len({*items}) < len(items):
        raise EvaluationError(
            f"{path} does not fit the key (unknown items: {unknown[:3]})",
            f"the {FORM} of this pack, filled in",
        )
    judged = [
        (row[JUDGEMENT].strip().lower(), key[row["item"]]["source"]) for row in rows if row[JUDGEMENT].strip()
    ]
    if not judged:
        raise EvaluationError(
            f"{path} has no judgement filled in", f"{REAL_ITEM} or {SYNTHETIC_ITEM} per item"
        )
    records = [_accuracy_record(judged)]
    for source in (REAL_ITEM, SYNTHETIC_ITEM):
        own = [row for row in rows if key[row["item"]]["source"] == source]
        records.append(_agreement_record(f"findings named in the report, {source} items", own, key, "named"))
    pairs = _item_scores(rows, key)
    if len(pairs) > 2:
        rho, p = stats.spearmanr(*zip(*pairs, strict=True))
        note = f"Spearman, p = {p:.3g}"
        records.append(
            _record("reader's against automatic agreement, per item", float(rho), len(pairs), note)
        )
    records.append(_agreement_record("anatomy module, all items", rows, key, "automatic"))
    return AnalysisResult("Readings", f"{len(judged)} of {len(rows)} items were judged.", records)


def _volumes(context: Context, cases: Sequence[RealCase], synthetic: set[int]) -> dict[int, HUVolume]:
    config, system = context.config, context.system
    reader = context.reader()
    # Real items at the model's own resolution: a finer picture would give them away.
    shown = {
        i: volume_at(reader.volume(case), system.config.image_size)
        for i, case in enumerate(cases)
        if i not in synthetic
    }
    wanted = sorted(synthetic)
    for start in tqdm(range(0, len(wanted), config.batch_size), "generating"):
        batch = wanted[start : start + config.batch_size]
        made = generate_batch(
            system,
            SETTINGS["full-body"],
            [cases[i] for i in batch],
            reader.volume,
            context.rollout,
            config.seed,
            config.precision,
        )
        for index, volume in zip(batch, made, strict=True):
            if not len(volume.hu):
                raise EvaluationError(
                    f"case {volume.case_id}: the model generated no slice", "a volume to read"
                )
            shown[index] = volume.scored()
    return shown


def _accuracy_record(judged: Sequence[tuple[str, str]]) -> dict[str, Any]:
    right = sum(given == true for given, true in judged)
    interval = share_interval(right, len(judged))
    note = f"95 % [{interval.low:.2f}, {interval.high:.2f}]; 0.5 is guessing"
    return _record("real or synthetic, accuracy", interval.value, len(judged), note)


def _agreement_record(
    name: str, rows: Sequence[dict[str, str]], key: dict[str, dict[str, Any]], truth: str
) -> dict[str, Any]:
    """Share of filled-in findings that equal the key's, and Cohen's kappa."""
    pairs = [
        (row[label].strip() == YES, key[row["item"]][truth][label])
        for row in rows
        for label in LABELS
        if row.get(label, "").strip() in (YES, NO) and label in key[row["item"]][truth]
    ]
    if not pairs:
        return _record(name, None, 0, "nothing filled in")
    given, true = np.array(pairs).T
    observed = float((given == true).mean())
    chance = float(given.mean() * true.mean() + (1 - given.mean()) * (1 - true.mean()))
    kappa = (observed - chance) / (1 - chance) if chance < 1 else math.nan
    return _record(name, observed, len(pairs), f"Cohen's kappa {kappa:.2f}")


def _item_scores(rows: Sequence[dict[str, str]], key: dict[str, dict[str, Any]]) -> list[tuple[float, float]]:
    """Per item: share of findings on which the reader, and on which the module, agrees with the report."""
    found = []
    for row in rows:
        entry = key[row["item"]]
        labels = [x for x in LABELS if row.get(x, "").strip() in (YES, NO) and x in entry["named"]]
        if labels:
            reader = np.mean([(row[x].strip() == YES) == entry["named"][x] for x in labels])
            module = np.mean([entry["automatic"][x] == entry["named"][x] for x in labels])
            found.append((float(reader), float(module)))
    return found


def _record(name: str, value: float | None, number: int, note: str) -> dict[str, Any]:
    return {"measure": name, "value": value, "number": number, "note": note}


@dataclass(frozen=True)
class Strip:
    """Frames of one plane in one window, one below the other.

    Attributes:
        jpeg: The picture in base64.
        height: Of one frame, in pixels.
        width: Of one frame.
        frames: How many there are.
    """

    jpeg: str
    height: int
    width: int
    frames: int


@dataclass(frozen=True)
class ReadingItem:
    """A volume as readers see it.

    Attributes:
        name: Says nothing of where it comes from.
        report: Its text.
        strips: Plane to window to frames.
        volumes: The volume for the viewer, by the item's name; empty: the page has none.
    """

    name: str
    report: str
    strips: dict[str, dict[str, Strip]]
    volumes: Mapping[str, bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, report: str, volume: HUVolume, viewer: bool = False) -> ReadingItem:
        """A volume in all planes and windows; with ``viewer`` the volume itself too."""
        strips = {
            plane: {window: _strip(volume, plane, limits) for window, limits in WINDOWS.items()}
            for plane in FRAMES
        }
        return cls(name, report, strips, {name: small_nifti(volume)} if viewer else {})


def write_pack(
    folder: Path, items: Sequence[ReadingItem], key: Sequence[dict[str, Any]], form: Sequence[str]
) -> None:
    """Write the page, the form to fill in and the key that readers do not get.

    Args:
        folder: Is made.
        items: What is shown, in order.
        key: What they are: JSON values.
        form: Columns of the form, behind the item's name.
    """
    labels = form[1:-1]
    write_text(folder / PAGE, reading_page(items, labels))
    write_text(folder / KEY, json.dumps(key, indent=1))
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["item", *form])
    writer.writerows([[item.name, *[""] * len(form)] for item in items])
    write_text(folder / FORM, text.getvalue())


def reading_page(items: Sequence[ReadingItem], labels: Sequence[str]) -> str:
    """Every item with its report, three planes to scroll through and the findings to look for."""
    images: list[str] = []
    shown = []
    for item in items:
        planes = []
        for plane, windows in item.strips.items():
            strips = {}
            for window, strip in windows.items():
                strips[window] = {"image": len(images), "width": strip.width, "height": strip.height}
                images.append("data:image/jpeg;base64," + strip.jpeg)
            frames = next(iter(windows.values())).frames
            planes.append({"name": plane, "strips": strips, "frames": frames})
        volumes = embedded(item.volumes)
        shown.append({"name": item.name, "report": item.report, "planes": planes, "volumes": volumes})
    bundle = viewer_bundle() if any(item.volumes for item in items) else ""
    values = {"items": shown, "labels": labels, "images": images, "bundle": bundle}
    return render("reading.html.jinja", title="Reading", **values)


def _strip(volume: HUVolume, plane: str, window: Window) -> Strip:
    frames = _frames(volume, plane, window)
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(frames)).save(buffer, format="JPEG", quality=QUALITY)
    height, width = frames[0].shape
    return Strip(base64.b64encode(buffer.getvalue()).decode(), height, width, len(frames))


def _frames(volume: HUVolume, plane: str, window: Window) -> list[NDArray[np.uint8]]:
    size = volume.hu.shape[list(FRAMES).index(plane)]
    # The outer tenth of coronal and sagittal cuts shows air only.
    low, high = (0.0, 1.0) if plane == "axial" else (0.1, 0.9)
    places = np.linspace(low * (size - 1), high * (size - 1), min(FRAMES[plane], size))
    cuts = {
        "axial": lambda i: axial(volume, i, window, SIDE),
        "coronal": lambda i: coronal(volume, window, SIDE, row=i),
        "sagittal": lambda i: sagittal(volume, window, SIDE, column=i),
    }
    return [cuts[plane](int(i)) for i in np.unique(places.round().astype(int))]
