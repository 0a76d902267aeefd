"""The measurements of a volume: plain dataclasses, millimetres, millilitres, voxels."""

from __future__ import annotations

from dataclasses import dataclass, field

SIDES = ("left", "right")
"""The patient's sides; the patient's right lies at high column indices."""

Voxel = tuple[float, float, float]
"""A position (slice, row, column) in voxels of the measured volume; fractions allowed."""


@dataclass(frozen=True)
class Body:
    """The outline of the patient.

    Attributes:
        present: A body was found.
        volume_ml: Its volume within the scan.
        width_mm: 90th percentile over slices of its left-right extent.
        depth_mm: 90th percentile over slices of its front-back extent.
    """

    present: bool
    volume_ml: float = 0.0
    width_mm: float = 0.0
    depth_mm: float = 0.0


@dataclass(frozen=True)
class Spine:
    """The column of vertebrae.

    Attributes:
        present: There is bone in the posterior midline through most of the scan.
        coverage: Share of slices in which it does.
        center: (slice, row, column) of its centre, one entry per slice of the working grid.
        mean_hu: Mean HU along the centre line.
    """

    present: bool
    coverage: float = 0.0
    center: tuple[Voxel, ...] = ()
    mean_hu: float = 0.0


@dataclass(frozen=True)
class Trachea:
    """The windpipe from the top of the scan to the carina.

    Attributes:
        present: An air column of plausible calibre was followed for at least the required length.
        path: Centres (slice, row, column) from the top downwards; the last one is the carina.
        length_mm: Its length along the slices.
        diameter_mm: Median over slices of the diameter of the disc with the lumen's area.
    """

    present: bool
    path: tuple[Voxel, ...] = ()
    length_mm: float = 0.0
    diameter_mm: float = 0.0


@dataclass(frozen=True)
class Lungs:
    """Aerated lung by side, vessels and nodules inside it included, fluid and dense consolidation not.

    Attributes:
        volume_ml: Per side, air-containing lung.
        hull_ml: Per side, the space the lung would fill: aerated lung, consolidation and pleural fluid.
        mean_hu: Per side, mean HU of the aerated lung.
        emphysema_fraction: Share of the aerated lung below -900 HU and 75 HU below its slice's median.
    """

    volume_ml: dict[str, float]
    hull_ml: dict[str, float]
    mean_hu: dict[str, float]
    emphysema_fraction: float = 0.0

    @property
    def present(self) -> dict[str, bool]:
        """Whether each side holds a lung, by the smallest aerated volume that counts as one."""
        return {side: self.volume_ml[side] >= MIN_LUNG_ML for side in SIDES}


MIN_LUNG_ML = 150.0
"""Aerated millilitres below which a side counts as without a lung."""


@dataclass(frozen=True)
class Heart:
    """The heart shadow between the lungs.

    Attributes:
        present: Soft tissue of a heart's size lies between the lungs, in front of the spine.
        width_mm: Largest transverse extent.
        thorax_width_mm: Largest inner transverse extent of the thorax.
        cardiothoracic_ratio: width_mm / thorax_width_mm.
        pericardial_fluid_ml: Water-density rim around the heart.
    """

    present: bool
    width_mm: float = 0.0
    thorax_width_mm: float = 0.0
    cardiothoracic_ratio: float = 0.0
    pericardial_fluid_ml: float = 0.0


@dataclass(frozen=True)
class Nodule:
    """A compact dense spot inside a lung that is not a vessel.

    Attributes:
        center: (slice, row, column) in voxels of the measured volume.
        center_mm: The same times the spacing.
        diameter_mm: Diameter of the sphere with the spot's volume, partial volume counted.
        side: ``left`` or ``right``.
        contrast_hu: Peak HU above the surrounding lung.
    """

    center: Voxel
    center_mm: Voxel
    diameter_mm: float
    side: str
    contrast_hu: float


@dataclass(frozen=True)
class Calcification:
    """Millilitres above the calcium threshold outside the skeleton.

    Attributes:
        aorta_ml: Near the midline, beside the spine and in the arch.
        coronary_ml: Inside the heart shadow.
    """

    aorta_ml: float = 0.0
    coronary_ml: float = 0.0


@dataclass(frozen=True)
class Measurement:
    """All that is read from one volume.

    Attributes:
        shape: (slices, rows, columns) of the measured volume.
        spacing: Its millimetres between voxel centres along the same axes.
        body: Outline of the patient.
        lungs: Aerated lung by side.
        spine: Column of vertebrae.
        ribs: Ribs counted per side where they cross the lateral chest wall.
        heart: Heart shadow.
        trachea: Windpipe.
        effusion_ml: Pleural fluid per side.
        consolidation_ml: Dense lung per side, fluid excluded.
        nodules: Found nodules, largest first.
        calcification: Calcium in vessel walls.
        metal_ml: Material above any bone's density, inside the body.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    body: Body
    lungs: Lungs
    spine: Spine
    ribs: dict[str, int]
    heart: Heart
    trachea: Trachea
    effusion_ml: dict[str, float]
    consolidation_ml: dict[str, float]
    nodules: tuple[Nodule, ...] = ()
    calcification: Calcification = field(default_factory=Calcification)
    metal_ml: float = 0.0
