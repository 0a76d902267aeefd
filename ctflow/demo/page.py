"""The page that ``make demo`` ends with."""

from __future__ import annotations

import csv
from pathlib import Path

from matplotlib.figure import Figure

from ctflow.config.demo import DemoConfig
from ctflow.data.nifti import read_nifti
from ctflow.demo.checks import Check, Draw, asked_sides
from ctflow.pages import Page, Table
from ctflow.pictures import SOFT_TISSUE, axial_and_coronal, beside, montage, save_png, stack
from ctflow.training.curves import read_curves
from ctflow.types import HUVolume

_TILE = 200


def write_page(
    root: Path,
    config: DemoConfig,
    checkpoint: str,
    draws: list[Draw],
    phantoms: list[Path],
    checks: list[Check],
    seconds: dict[str, float],
) -> None:
    """Write ``index.html`` and ``overview.png`` of the demonstration from what lies in its folder.

    Args:
        root: The folder.
        config: What was asked for.
        checkpoint: What generated the volumes.
        draws: Every generated volume.
        phantoms: For each report a phantom that shows what it states.
        checks: Their counts.
        seconds: Wall time of each stage.
    """
    page = Page("ctflow: reports and the chest CTs drawn from them")
    page.text(
        f"All volumes come from the checkpoint {checkpoint}, trained on procedural phantoms. Each report was "
        f"drawn with the seeds {config.seed} to {config.seed + config.seeds - 1}, and one seed means equal "
        "noise for every report. No volume was left out. They are synthetic and show no patient."
    )
    page.heading("What is measured in them")
    page.text(
        f"A line holds where at least {100 * config.least_hits:.0f} % of all volumes show what it names, as "
        "a measuring program finds it in the Hounsfield units. The demonstration fails where a line does not."
    )
    page.table(Table(["", "asked", "measured"], [["✓" if c.holds else "✗", c.name, c.found] for c in checks]))
    rows = []
    for number, report in enumerate(config.reports):
        own = [draw for draw in draws if draw.report == number]
        phantom, first = read_nifti(phantoms[number]), read_nifti(own[0].path)
        page.heading(report)
        page.side_by_side(
            _volume("A phantom that shows it", phantom), _volume(f"Generated, seed {own[0].seed}", first)
        )
        for draw in own:
            held = "✓" if draw.sides == asked_sides(report) else "✗"
            caption = f"{held} seed {draw.seed}: {draw.told}"
            page.picture(axial_and_coronal(read_nifti(draw.path), SOFT_TISSUE, _TILE), caption, "third")
        rows.append(beside([montage(phantom), montage(first)]))
    save_png(root / "overview.png", stack(rows))
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
    lines = [[name, f"{value:.0f} s"] for name, value in seconds.items()]
    page.table(Table(["stage", "wall time"], [*lines, ["together", f"{sum(seconds.values()) / 60:.1f} min"]]))
    page.save(root / "index.html")


def _volume(title: str, volume: HUVolume) -> Page:
    page, spacing = Page(title), volume.spacing
    page.picture(
        montage(volume),
        f"{title}: {len(volume.hu)} slices of {spacing[2]:.2f}×{spacing[1]:.2f}×{spacing[0]:.2f} mm. "
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
    page.link(
        "All of it, with intervals, monitors and provenance",
        (tables[-1].parent / "report.html").relative_to(root).as_posix(),
    )


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
