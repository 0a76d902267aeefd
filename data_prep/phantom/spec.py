"""The specification of a phantom: anatomy, acquisition and findings as numbers, editable before drawing."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ctflow.reports import LABELS

LOBES = {
    "right": ("right upper lobe", "right middle lobe", "right lower lobe"),
    "left": ("left upper lobe", "left lower lobe"),
}
"""Lobes by the patient's side, from above downwards."""


@dataclass(frozen=True)
class Finding:
    """One abnormality, as it is drawn and as the report tells it.

    Attributes:
        label: One of ``LABELS``.
        side: Patient's ``left`` or ``right``, ``both`` for one diffuse finding, None where it has no side.
        lobe: One of ``LOBES``, or None.
        size_mm: Diameter, thickness or length in mm, by label; None where it has none.
        volume_ml: Millilitres (pleural effusion).
        ratio: Cardiothoracic ratio (cardiomegaly).
        kind: Variety within the label, e.g. ``pacemaker``.
        seed: Random stream of its place and details.
    """

    label: str
    side: str | None = None
    lobe: str | None = None
    size_mm: float | None = None
    volume_ml: float | None = None
    ratio: float | None = None
    kind: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.label not in LABELS:
            raise ValueError(f"label {self.label!r} is none of CT-RATE's: {', '.join(LABELS)}")
        if self.side not in (None, "left", "right", "both"):
            raise ValueError(f"side must be left, right, both or None, found {self.side!r}")
        if self.lobe is not None and (self.side is None or self.lobe not in LOBES.get(self.side, ())):
            raise ValueError(f"lobe {self.lobe!r} is not a lobe of side {self.side!r}")


@dataclass(frozen=True)
class Anatomy:
    """Size and shape of one patient.

    Millimetres; z = 0 is the carina, x runs to the patient's right, y to the back.

    Attributes:
        seed: Random stream of vessels, bronchi and textures.
        sex: ``male`` or ``female`` (breasts).
        half_width: Inner half-width of the rib cage.
        half_depth: Inner half-depth of the rib cage.
        apex_z: Height of the lung apices over the carina.
        dome_z: Height of the right diaphragm's dome (negative).
        dome_drop: How much lower the left dome is.
        fat: Thickness of subcutaneous fat.
        muscle: Thickness of the muscles of the chest wall.
        cardiothoracic_ratio: Width of the heart over the width of the thorax.
        heart_shift: Heart's centre to the patient's left of the usual place (negative: to the right).
        heart_tilt: Angle of the heart's long axis to the transverse axis, radians.
        kyphosis: Curvature of the spine, mm at 100 mm from its most posterior point.
        scoliosis: Sideways amplitude of the spine.
        aorta_radius: Radius of the descending aorta.
        trachea_radius: Radius of the tracheal lumen.
        lung_hu: Mean attenuation of the lungs (rises on expiration).
        contrast_hu: Enhancement of the blood (0: none).
        bone_hu: Attenuation of cancellous bone.
        breast: Size of the breasts, mm.
        rib_pitch: Distance of neighbouring ribs.
        rib_slope: Fall of the ribs from back to front.
        fissure: Height of the oblique fissures relative to the usual one, mm.
        table: Distance of the table behind the back, mm.
        stomach_gas: Share of gas in the stomach.
    """

    seed: int
    sex: str
    half_width: float
    half_depth: float
    apex_z: float
    dome_z: float
    dome_drop: float
    fat: float
    muscle: float
    cardiothoracic_ratio: float
    heart_shift: float
    heart_tilt: float
    kyphosis: float
    scoliosis: float
    aorta_radius: float
    trachea_radius: float
    lung_hu: float
    contrast_hu: float
    bone_hu: float
    breast: float
    rib_pitch: float
    rib_slope: float
    fissure: float
    table: float
    stomach_gas: float


@dataclass(frozen=True)
class Acquisition:
    """How the patient is scanned.

    Attributes:
        size: Rows and columns.
        field_of_view: Millimetres of the square image.
        slice_spacing: Millimetres between slices.
        top_z: Height of the last slice (mm over the carina).
        bottom_z: Height of the first slice.
        center_x: Image centre in patient coordinates.
        center_y: Image centre in patient coordinates.
        noise_hu: Standard deviation of the noise.
        sharpness: 0 smooth kernel … 1 sharp kernel.
        seed: Random stream of the noise.
    """

    size: int
    field_of_view: float
    slice_spacing: float
    top_z: float
    bottom_z: float
    center_x: float
    center_y: float
    noise_hu: float
    sharpness: float
    seed: int

    @property
    def slices(self) -> int:
        """Number of slices."""
        return int((self.top_z - self.bottom_z) / self.slice_spacing) + 1

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres along (slices, rows, columns)."""
        pixel = self.field_of_view / self.size
        return (self.slice_spacing, pixel, pixel)


@dataclass(frozen=True)
class PhantomSpec:
    """All of one phantom; ``make_phantom`` draws it, ``report_for`` tells it.

    Attributes:
        seed: Data set seed.
        index: Number within the data set.
        age: Years.
        anatomy: The patient.
        acquisition: The scan.
        findings: What is abnormal.
        report_seed: Random stream of the report's wording.
        reserved: Findings taken out again, whose places stay free, so that all others stay where they were.
        topic: The one label that the report tells of (present or absent); empty: the report tells of all.
    """

    seed: int
    index: int
    age: int
    anatomy: Anatomy
    acquisition: Acquisition
    findings: tuple[Finding, ...]
    report_seed: int
    reserved: tuple[Finding, ...] = ()
    topic: str = ""

    @property
    def cardiothoracic_ratio(self) -> float:
        """Width of the heart over the width of the thorax, as drawn."""
        ratios = [f.ratio for f in self.findings if f.label == "Cardiomegaly" and f.ratio]
        return max(ratios, default=self.anatomy.cardiothoracic_ratio)

    @property
    def labels(self) -> dict[str, int]:
        """CT-RATE's labels as 0 and 1."""
        present = {finding.label for finding in self.findings}
        return {label: int(label in present) for label in LABELS}

    def with_findings(self, *findings: Finding) -> PhantomSpec:
        """The same patient, scan and noise with these findings and no others."""
        return dataclasses.replace(self, findings=tuple(findings), reserved=())

    def plus(self, *findings: Finding) -> PhantomSpec:
        """The same patient, scan and noise with further findings."""
        return dataclasses.replace(self, findings=(*self.findings, *findings))

    def without(self, label: str, side: str | None = None) -> PhantomSpec:
        """The same patient without the findings of one label (on one side): all else stays in its place."""
        gone = tuple(f for f in self.findings if f.label == label and side in (None, f.side))
        kept = tuple(f for f in self.findings if f not in gone)
        return dataclasses.replace(self, findings=kept, reserved=(*self.reserved, *gone))

    def resized(self, size: int, slice_spacing: float | None = None) -> PhantomSpec:
        """The same patient and scan range on another grid."""
        spacing = slice_spacing or self.acquisition.slice_spacing
        return dataclasses.replace(
            self, acquisition=dataclasses.replace(self.acquisition, size=size, slice_spacing=spacing)
        )
