"""What ``make demo`` checks in its generated volumes, and the page it ends with."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from ctflow.anatomy import SIDES, Measurement, findings, measure, phantom_ranges
from ctflow.config.demo import ContrastPair, DemoConfig
from ctflow.data.nifti import read_nifti
from ctflow.evaluation.report import Page, Table
from ctflow.pictures import montage
from ctflow.training.curves import read_curves


@dataclass(frozen=True)
class Check:
    """One thing a generated volume must show.

    Attributes:
        name: What must hold.
        holds: Whether it does.
        found: The measured value in words.
    """

    name: str
    holds: bool
    found: str


def check_pair(with_finding: Path, without_finding: Path, pair: ContrastPair) -> list[Check]:
    """Measure both volumes: anatomy in each, the differing finding in the one and not in the other."""
    measured = [measure(read_nifti(path)) for path in (with_finding, without_finding)]
    checks = []
    for name, measurement in zip(("with the finding", "without it"), measured, strict=True):
        checks += anatomy_checks(measurement, name)
    for wanted, measurement in zip((True, False), measured, strict=True):
        found = [item for item in findings(measurement).get(pair.label, []) if item.side == pair.side]
        size = ", ".join(f"{item.size:.0f} {item.unit}" for item in found) or "none"
        verb = "present" if wanted else "absent"
        checks.append(Check(f"{pair.label} on the {pair.side} {verb}", bool(found) == wanted, size))
    return checks


def anatomy_checks(measurement: Measurement, name: str) -> list[Check]:
    """Two lungs of a phantom's volume, spine, heart and trachea."""
    ranges = phantom_ranges()
    inside = ranges.holds(measurement)
    checks = []
    for side in SIDES:
        low, high = ranges.lung_ml[side]
        found = f"{measurement.lungs.volume_ml[side]:.0f} ml, phantoms {low:.0f}–{high:.0f} ml"
        checks.append(Check(f"{name}: {side} lung", inside[side], found))
    heart, trachea, spine = measurement.heart, measurement.trachea, measurement.spine
    return [
        *checks,
        Check(f"{name}: spine", spine.present, f"in {100 * spine.coverage:.0f} % of the slices"),
        Check(f"{name}: heart", heart.present, f"{heart.width_mm:.0f} mm wide"),
        Check(f"{name}: trachea", trachea.present, f"{trachea.length_mm:.0f} mm long"),
    ]


def write_page(
    root: Path, config: DemoConfig, checkpoint: str, checks: list[Check], seconds: dict[str, float]
) -> None:
    """Write ``index.html`` of the demonstration from what lies in its folder."""
    page = Page("ctflow: two reports, two chest CTs")
    page.text(
        f"Both volumes come from the checkpoint {checkpoint}, trained on procedural phantoms, and "
        f"from the same noise (seed {config.seed}); the reports differ in one finding. They are synthetic "
        "and show no patient."
    )
    page.side_by_side(
        _volume(root / "pair" / "with.nii.gz", config.pair.with_finding),
        _volume(root / "pair" / "without.nii.gz", config.pair.without_finding),
    )
    page.heading("What is measured in them")
    page.text("Each line must hold for the demonstration to succeed.")
    lines = [["✓" if check.holds else "✗", check.name, check.found] for check in checks]
    page.table(Table(["", "check", "measured"], lines))
    page.heading("Scores of a few held-out phantoms")
    _scores(page, root)
    page.heading("Both trainings, briefly, from scratch")
    page.text(
        "These two runs show that the trainings work on this machine; minutes are far too short for a "
        "good model. The volumes above do not come from them."
    )
    for task, title in (("autoencoder", "A-VAE"), ("flow", "FMvT")):
        page.picture(_curves(root / task / "scratch" / "curves.csv", title), f"{title}, trained here")
    page.heading("Time")
    rows = [[name, f"{value:.0f} s"] for name, value in seconds.items()]
    page.table(Table(["stage", "wall time"], [*rows, ["together", f"{sum(seconds.values()) / 60:.1f} min"]]))
    page.save(root / "index.html")


def _volume(path: Path, report: str) -> Page:
    page, volume = Page(path.name), read_nifti(path)
    page.quote(report)
    slices, spacing = volume.hu.shape[0], volume.spacing
    page.picture(
        montage(volume),
        f"{path.name}: {slices} slices of {spacing[2]:.2f}×{spacing[1]:.2f}×{spacing[0]:.2f} mm. "
        "Above: lung window, below it soft tissue, then coronal and sagittal cuts. "
        "The patient's right is on the left.",
    )
    return page


def _scores(page: Page, root: Path) -> None:
    """The table of the newest evaluation below ``root``."""
    tables = sorted((root / "eval").glob("*/table.csv"))
    if not tables:
        raise FileNotFoundError(f"no table under {root / 'eval'}")
    with tables[-1].open(newline="", encoding="utf-8") as file:
        records = list(csv.DictReader(file))
    rows = [
        [
            record["source"],
            record["metric"],
            _number(record["value"]) or record["empty"] or "n/a",
            _number(record["extrapolated"]),
            record["cases"],
            record["reason"],
        ]
        for record in records
        if record["value"] or record["source"] == "model"
    ]
    page.text(
        "Setting next-block: every block is generated from the real one before it. The floors say what other "
        "real phantoms, and their A-VAE reconstructions, score. So few cases show that the command works, no "
        "more; metrics named rand2d and rand3d use frozen random convolutions."
    )
    page.table(Table(["source", "metric", "value", "at infinite N", "cases", "note"], rows))
    page.text(f"All of it, with intervals, monitors and provenance: {tables[-1].parent / 'report.html'}")


def _number(text: str) -> str:
    return f"{float(text):.4g}" if text else ""


def _curves(path: Path, title: str) -> Figure:
    """Loss curves of a run."""
    curves = {name: points for name, points in read_curves(path).items() if name.endswith(("loss", "psnr"))}
    figure = Figure(figsize=(4 * len(curves), 2.6), layout="tight")
    axes = figure.subplots(1, len(curves), squeeze=False)
    for axis, (name, points) in zip(axes[0], sorted(curves.items()), strict=True):
        axis.plot(*zip(*points, strict=True))
        axis.set_title(f"{title}: {name}", fontsize=9)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    return figure
