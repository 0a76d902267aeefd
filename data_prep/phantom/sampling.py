"""Random phantoms: a function of (seed, index) alone."""

from __future__ import annotations

import numpy as np

from data_prep.phantom.sampling_findings import sample_findings
from data_prep.phantom.spec import Acquisition, Anatomy, PhantomSpec

_SLICE_SPACINGS = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0)
_SLICE_WEIGHTS = (0.03, 0.05, 0.12, 0.2, 0.2, 0.2, 0.12, 0.08)


def sample_spec(seed: int, index: int, size: int = 128, slice_spacing: float | None = None) -> PhantomSpec:
    """Draw one phantom.

    Args:
        seed: Data set seed.
        index: Number within the data set; the result depends on (seed, index) alone.
        size: Rows and columns of the scan.
        slice_spacing: Fixed spacing of the slices in mm; None draws 1 to 5 mm.

    Returns:
        The specification of patient, scan and findings.
    """
    rng = np.random.default_rng([seed, index, 11])
    anatomy = _sample_anatomy(rng)
    age = int(np.random.default_rng([seed, index, 13]).integers(22, 92))
    acquisition = _sample_acquisition(np.random.default_rng([seed, index, 14]), anatomy, size, slice_spacing)
    findings = sample_findings(np.random.default_rng([seed, index, 12]), anatomy, age)
    return PhantomSpec(seed, index, age, anatomy, acquisition, findings, int(rng.integers(2**31)))


def _sample_anatomy(rng: np.random.Generator) -> Anatomy:
    sex = "female" if rng.random() < 0.45 else "male"
    size = (0.94 if sex == "female" else 1.03) * rng.normal(1.0, 0.045)
    breath = rng.uniform(-1.0, 1.0)  # −1 expiration … +1 full inspiration
    fat = float(np.clip(rng.gamma(3.4, 3.8), 3.5, 36.0)) * (1.15 if sex == "female" else 1.0)
    return Anatomy(
        seed=int(rng.integers(2**31)),
        sex=sex,
        half_width=float(136 * size * rng.normal(1.0, 0.025)),
        half_depth=float(94 * size * (1 + 0.04 * breath) * rng.normal(1.0, 0.04)),
        apex_z=float(102 * size * rng.normal(1.0, 0.05)),
        dome_z=float(-(104 + 17 * breath) * size * rng.normal(1.0, 0.04)),
        dome_drop=float(rng.uniform(1.0, 12.0)),
        fat=fat,
        muscle=float(rng.uniform(11.0, 20.0) * (0.9 if sex == "female" else 1.1)),
        cardiothoracic_ratio=float(rng.uniform(0.40, 0.475)),
        heart_shift=float(rng.normal(0.0, 4.0)),
        heart_tilt=float(rng.uniform(0.35, 0.75)),
        kyphosis=float(rng.uniform(4.0, 15.0)),
        scoliosis=float(rng.normal(0.0, 3.0)),
        aorta_radius=float(rng.uniform(11.0, 15.0)),
        trachea_radius=float(rng.uniform(7.5, 10.0) * size),
        lung_hu=float(-832 - 32 * breath + rng.normal(0.0, 14.0)),
        contrast_hu=float(rng.uniform(90, 190)) if rng.random() < 0.3 else 0.0,
        bone_hu=float(rng.uniform(120, 260)),
        breast=float(rng.uniform(32, 62)) if sex == "female" else 0.0,
        rib_pitch=float(rng.uniform(23.5, 28.5) * size),
        rib_slope=float(rng.uniform(60.0, 95.0)),
        fissure=float(rng.normal(0.0, 6.0)),
        table=float(rng.uniform(2.0, 12.0)),
        stomach_gas=float(rng.uniform(0.1, 0.8)),
    )


def _sample_acquisition(
    rng: np.random.Generator, anatomy: Anatomy, size: int, slice_spacing: float | None
) -> Acquisition:
    sulcus = anatomy.dome_z - anatomy.dome_drop - 55
    top, bottom = anatomy.apex_z + rng.uniform(8, 40), sulcus - rng.uniform(5, 55)
    cut = rng.random()
    if cut < 0.05:
        top = anatomy.apex_z - rng.uniform(5, 30)
    elif cut < 0.10:
        bottom = sulcus + rng.uniform(15, 45)
    spacing = slice_spacing or float(rng.choice(_SLICE_SPACINGS, p=_SLICE_WEIGHTS))
    extent = float(top - bottom)
    # CT-RATE-like scans have 48 to 300 slices.
    while slice_spacing is None and not 48 <= int(extent / spacing) + 1 <= 300:
        spacing = (
            5.0
            if extent / spacing > 250 and spacing > 4
            else (spacing + 0.25 if extent / spacing > 250 else spacing - 0.25)
        )
    body = 2 * (anatomy.half_width + anatomy.muscle + anatomy.fat) + 10
    return Acquisition(
        size=size,
        field_of_view=float(np.clip(body * rng.uniform(1.0, 1.14), 300, 480)),
        slice_spacing=spacing,
        top_z=float(top),
        bottom_z=float(bottom),
        center_x=float(rng.normal(0.0, 4.0)),
        center_y=float(rng.normal(6.0, 4.0)),
        noise_hu=float(rng.uniform(5.0, 20.0)),
        sharpness=float(rng.random()),
        seed=int(rng.integers(2**31)),
    )
