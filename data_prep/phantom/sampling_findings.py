"""Random findings of a patient."""

from __future__ import annotations

from typing import Any

import numpy as np

from data_prep.phantom.spec import LABELS, LOBES, Anatomy, Finding

HEALTHY_SHARE = 0.2
MOST_LABELS = 6

RATES = {
    "Pleural effusion": 0.39,
    "Consolidation": 0.27,
    "Lung nodule": 0.39,
    "Cardiomegaly": 0.17,
    "Lung opacity": 0.16,
    "Atelectasis": 0.16,
    "Emphysema": 0.12,
    "Arterial wall calcification": 0.2,
    "Coronary artery wall calcification": 0.16,
    "Medical material": 0.13,
    "Pericardial effusion": 0.1,
    "Pulmonary fibrotic sequela": 0.12,
    "Lymphadenopathy": 0.11,
    "Hiatal hernia": 0.09,
    "Bronchiectasis": 0.08,
    "Peribronchial thickening": 0.06,
    "Mosaic attenuation pattern": 0.06,
    "Interlobular septal thickening": 0.05,
}
"""How often each label is drawn in a patient who is not healthy."""

NODULE_MM = (6.0, 30.0)
CONSOLIDATION_MM = (35.0, 75.0)
EFFUSION_ML = (120.0, 1300.0)


def sample_findings(rng: np.random.Generator, anatomy: Anatomy, age: int) -> tuple[Finding, ...]:
    """Draw the findings of one patient; about a quarter of all has none."""
    if rng.random() < HEALTHY_SHARE:
        return ()
    with_age = {
        "Arterial wall calcification",
        "Coronary artery wall calcification",
        "Emphysema",
        "Hiatal hernia",
    }
    chosen = [
        label
        for label, rate in RATES.items()
        if rng.random() < rate * (np.clip(age / 57, 0.3, 1.6) if label in with_age else 1)
    ]
    if len(chosen) > MOST_LABELS:
        chosen = [str(label) for label in rng.choice(chosen, MOST_LABELS, replace=False)]
    findings: list[Finding] = []
    for label in sorted(chosen, key=LABELS.index):
        findings.extend(sample_finding(rng, label, anatomy))
    return tuple(findings)


def sample_finding(rng: np.random.Generator, label: str, anatomy: Anatomy) -> list[Finding]:
    """Draw the findings of one label, e.g. one to four nodules or one effusion on each side.

    Raises:
        ValueError: ``label`` is none of CT-RATE's.
    """

    def new(**values: Any) -> Finding:
        return Finding(label, seed=int(rng.integers(2**31)), **values)

    def log_uniform(low: float, high: float) -> float:
        return float(np.exp(rng.uniform(np.log(low), np.log(high))))

    def somewhere(lobes: tuple[str, ...] = (*LOBES["right"], *LOBES["left"])) -> dict[str, str]:
        lobe = str(rng.choice(lobes))
        return {"side": lobe.split()[0], "lobe": lobe}

    def one_of(*kinds: str) -> str:
        return str(rng.choice(kinds))

    def whole(low: float, high: float) -> float:
        return float(np.round(rng.uniform(low, high)))

    lower = ("right lower lobe", "left lower lobe")
    match label:
        case "Pleural effusion":
            # Half of what one lung holds at most.
            room = (
                0.21
                * anatomy.half_width
                * 2
                * anatomy.half_depth
                * (anatomy.apex_z - anatomy.dome_z)
                / 1000.0
            )
            which = one_of("right", "left", "both")
            sides = [side for side in ("right", "left") if which in (side, "both")]
            most = min(EFFUSION_ML[1], room)
            return [
                new(side=side, volume_ml=float(10 * np.round(log_uniform(EFFUSION_ML[0], most) / 10)))
                for side in sides
            ]
        case "Consolidation":
            count = 2 if rng.random() < 0.2 else 1
            found = []
            for _ in range(count):
                place = somewhere()
                most = CONSOLIDATION_MM[1] - (25 if "middle" in place["lobe"] else 0)
                found.append(new(size_mm=whole(CONSOLIDATION_MM[0], most), **place))
            return found if count == 1 or found[0].lobe != found[1].lobe else found[:1]
        case "Lung nodule":
            count = int(rng.choice([1, 2, 3, 4], p=[0.5, 0.27, 0.15, 0.08]))
            kind = "calcified" if rng.random() < 0.15 else "solid"
            return [
                new(size_mm=float(np.round(log_uniform(*NODULE_MM))), kind=kind, **somewhere())
                for _ in range(count)
            ]
        case "Lung opacity":
            lobes = rng.permutation([*LOBES["right"], *LOBES["left"]])[: int(rng.integers(1, 4))]
            return [new(side=str(lobe).split()[0], lobe=str(lobe), size_mm=whole(40, 85)) for lobe in lobes]
        case "Cardiomegaly":
            return [new(ratio=float(np.round(rng.uniform(0.55, 0.65), 2)))]
        case "Pericardial effusion":
            return [new(size_mm=whole(8, 22))]
        case "Emphysema":
            kind = one_of("centrilobular", "centrilobular", "bullous")
            return [new(side="both", kind=kind, size_mm=whole(22, 45) if kind == "bullous" else None)]
        case "Atelectasis":
            lobes_at = ("right middle lobe", *lower, *lower)
            return [new(size_mm=whole(40, 75), kind="linear", **somewhere(lobes_at))]
        case "Arterial wall calcification" | "Coronary artery wall calcification":
            return [new(kind=one_of("mild", "moderate", "severe"))]
        case "Medical material":
            kind = one_of("pacemaker", "port", "sternal wires", "tracheal tube", "gastric tube")
            side = {"pacemaker": "left", "port": "right"}.get(kind)
            return [new(kind=kind, side=side)]
        case "Hiatal hernia":
            return [new(size_mm=whole(35, 70))]
        case "Lymphadenopathy":
            kind = one_of("paratracheal", "subcarinal", "prevascular", "multiple")
            return [new(kind=kind, size_mm=whole(13, 26))]
        case "Pulmonary fibrotic sequela":
            return [new(side=side) for side in one_of("right", "left", "right left").split()]
        case "Bronchiectasis":
            return [new(size_mm=whole(8, 12), **somewhere())]
        case "Mosaic attenuation pattern" | "Peribronchial thickening" | "Interlobular septal thickening":
            return [new(side="both")]
    raise ValueError(f"label {label!r} is none of CT-RATE's: {', '.join(LABELS)}")
