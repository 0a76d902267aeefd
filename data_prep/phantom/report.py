"""The radiologist: findings and impressions in varied plain English."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_prep.phantom.spec import PhantomSpec


@dataclass(frozen=True)
class Report:
    """A report in CT-RATE's four parts.

    Attributes:
        clinical_information: Why the scan was made.
        technique: How.
        findings: What is seen.
        impressions: What it means.
    """

    clinical_information: str
    technique: str
    findings: str
    impressions: str

    @property
    def text(self) -> str:
        """Findings and impressions as one text."""
        return f"Findings: {self.findings} Impressions: {self.impressions}"


def report_for(spec: PhantomSpec) -> Report:
    """The report of a phantom; a function of the specification alone."""
    rng = np.random.default_rng(spec.report_seed)
    pick = lambda options: str(options[rng.integers(len(options))])  # noqa: E731
    found, short = [], []
    for finding in spec.findings:
        if finding.label == "Pleural effusion":
            assert finding.volume_ml
            size = (
                "small" if finding.volume_ml < 300 else ("moderate" if finding.volume_ml < 700 else "large")
            )
            found.append(
                pick(
                    [
                        f"There is a {size} pleural effusion on the {finding.side}.",
                        f"A {size} {finding.side} pleural effusion is seen.",
                    ]
                )
            )
            short.append(f"{size.capitalize()} {finding.side} pleural effusion.")
        elif finding.label == "Consolidation":
            found.append(
                pick(
                    [
                        f"There is a consolidation of about {finding.size_mm:.0f} mm in the {finding.lobe} with air bronchograms.",
                        f"A {finding.size_mm:.0f} mm consolidation with air bronchograms is seen in the {finding.lobe}.",
                    ]
                )
            )
            short.append(f"Consolidation in the {finding.lobe}.")
        elif finding.label == "Lung nodule":
            found.append(
                pick(
                    [
                        f"There is a {finding.kind} nodule of {finding.size_mm:.0f} mm in the {finding.lobe}.",
                        f"A {finding.size_mm:.0f} mm {finding.kind} nodule is seen in the {finding.lobe}.",
                    ]
                )
            )
            short.append(f"Nodule in the {finding.lobe}.")
        elif finding.label == "Cardiomegaly":
            found.append(pick(["The heart is enlarged.", "Heart size is increased."]))
            short.append("Cardiomegaly.")
    labels = spec.labels
    normal = []
    if not labels["Pleural effusion"]:
        normal.append(pick(["No pleural effusion is seen.", "There is no pleural effusion."]))
    if not labels["Cardiomegaly"]:
        normal.append(pick(["Heart size is normal.", "The heart is of normal size."]))
    if not labels["Consolidation"]:
        normal.append(pick(["No consolidation is seen.", "There is no consolidation in the lungs."]))
    if not labels["Lung nodule"]:
        normal.append(pick(["No nodule is seen in the lungs.", "There is no lung nodule."]))
    normal.append(
        pick(["Trachea and main bronchi are open.", "The trachea and both main bronchi are patent."])
    )
    rng.shuffle(normal)
    findings = " ".join(found + normal)
    impressions = " ".join(short) or pick(
        ["Normal chest CT.", "No abnormality of the chest.", "Findings within normal limits."]
    )
    return Report(
        "",
        "Chest CT without contrast." if not spec.anatomy.contrast_hu else "Chest CT with contrast.",
        findings,
        impressions,
    )
