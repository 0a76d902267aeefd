#!/usr/bin/env python
"""Train small FMvTs that differ in one thing each, and write their validation losses as a Markdown table.

    python scripts/ablations.py --data runs/embedded/latents --avae checkpoints/avae --clip checkpoints/clip

Run it again after a kill, or with more seeds: a training goes on where it stopped, and none is done twice.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
import time
from pathlib import Path

from omegaconf import OmegaConf

from ctflow.processes import run_module

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs" / "ablations"
SHOWN = {
    "all times": "val/loss",
    "t < 0.1": "val/loss_t0.0",
    "t in 0.5 … 0.6": "val/loss_t0.5",
    "t > 0.9": "val/loss_t0.9",
}


def main() -> int:
    """Train what is missing, then print and write the table of what is there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="latent shards: a folder with train and valid"
    )
    parser.add_argument("--avae", default="checkpoints/avae", help="the A-VAE that encoded them")
    parser.add_argument("--clip", default="checkpoints/clip", help="their text encoder")
    parser.add_argument("--output", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each variant")
    parser.add_argument("--only", default="", help="regular expression of names")
    parser.add_argument("options", nargs="*", help="keys of ctflow.train for every training")
    arguments = parser.parse_args()
    variants = OmegaConf.to_container(OmegaConf.load(CONFIGS / "variants.yaml"))
    assert isinstance(variants, dict)
    chosen = {str(k): v for k, v in variants.items() if re.search(arguments.only, str(k))}
    if not chosen:
        parser.error(f"--only {arguments.only!r} names none of {', '.join(map(str, variants))}")
    arguments.output.mkdir(parents=True, exist_ok=True)
    failed = [
        f"{name}, seed {seed}"
        for seed in range(arguments.seeds)
        for name, changes in chosen.items()
        if not train(arguments, name, changes, seed)
    ]
    table = written(arguments, list(chosen))
    print(table)
    (arguments.output / "table.md").write_text(table, encoding="utf-8")
    if failed:
        print(f"error: these trainings failed: {'; '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


def run_name(name: str, seed: int) -> str:
    """Folder of a training."""
    return f"{re.sub('[^a-z0-9]+', '-', name.lower())}-{seed}"


def train(arguments: argparse.Namespace, name: str, changes: list[str], seed: int) -> bool:
    """One training; True where it is done."""
    folder = arguments.output / "flow" / run_name(name, seed)
    if (folder / "seconds.txt").is_file():
        return True
    print(f"{time.strftime('%H:%M:%S')} {name}, seed {seed}", file=sys.stderr, flush=True)
    began = time.monotonic()
    keys = {
        "name": run_name(name, seed), "runs_dir": arguments.output, "seed": seed,
        "data.train": arguments.data / "train", "data.valid": arguments.data / "valid",
        "flow.avae": arguments.avae, "flow.clip": arguments.clip,
    }  # fmt: skip
    command = ["--config", str(CONFIGS / "base.yaml"), *(f"{key}={value}" for key, value in keys.items())]
    if run_module("ctflow.train", [*command, *changes, *arguments.options]):
        return False
    (folder / "seconds.txt").write_text(f"{time.monotonic() - began:.0f}\n", encoding="utf-8")
    return True


def written(arguments: argparse.Namespace, names: list[str]) -> str:
    """The table: mean over seeds and the lowest and highest, of the last validation."""
    lines = [f"| | seeds | {' | '.join(SHOWN)} | minutes |", "|---" * (len(SHOWN) + 3) + "|"]
    for name in names:
        folders = [arguments.output / "flow" / run_name(name, seed) for seed in range(arguments.seeds)]
        folders = [folder for folder in folders if (folder / "seconds.txt").is_file()]
        if not folders:
            continue
        found = [last_values(folder / "curves.csv") for folder in folders]
        cells = [told([v[key] for v in found if key in v]) for key in SHOWN.values()]
        minutes = sum(float((folder / "seconds.txt").read_text()) for folder in folders) / 60 / len(folders)
        lines.append(f"| {name} | {len(folders)} | {' | '.join(cells)} | {minutes:.1f} |")
    return "\n".join(lines) + "\n"


def last_values(path: Path) -> dict[str, float]:
    """The newest value of every curve."""
    with path.open(newline="", encoding="utf-8") as file:
        return {row["name"]: float(row["value"]) for row in csv.DictReader(file)}


def told(values: list[float]) -> str:
    """``mean [lowest, highest]``; a dash where a small validation had no sample there."""
    if not values:
        return "–"
    return f"{sum(values) / len(values):.3f} [{min(values):.3f}, {max(values):.3f}]"


if __name__ == "__main__":
    raise SystemExit(main())
