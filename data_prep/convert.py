"""``ctflow convert IN OUT``: one volume to another format, with its own HU, spacing and place.

Nothing is resampled: what a viewer shows at a point of the patient is the same before and after.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)
from numpy.typing import NDArray

from ctflow.config import Flag, parse_command, run_command
from ctflow.config.commands import ConvertConfig
from ctflow.errors import ScanError
from ctflow.formats import ENDINGS, ORIENTATIONS, VOXEL_TYPES, check_choices
from ctflow.orientation import orientation_doubt
from ctflow.outputs import check_writable
from ctflow.types import AIR_HU, HUVolume

if TYPE_CHECKING:
    from ctflow.data.placement import Affine
    from data_prep.ct_rate.discovery import Item
    from data_prep.ct_rate.scan import RawScan

log = logging.getLogger("ctflow.convert")

DESCRIPTION = f"""Write a scan or a generated volume in another format, named by the ending of OUT:
{", ".join(ENDINGS[:-1])}, or .dcm (a folder with a DICOM CT series).
HU, spacing and the place in the patient stay; identities of DICOM files are left behind."""

FLAGS = [
    Flag(
        "source",
        options={
            "type": Path,
            "metavar": "IN",
            "help": "NIfTI, NRRD or MetaImage file, DICOM file, or folder with a DICOM series",
        },
    ),
    Flag("output", options={"type": Path, "metavar": "OUT", "help": "file, or folder ending in .dcm"}),
    Flag("--dtype", "dtype", {"choices": VOXEL_TYPES, "help": "type of the voxels; default: int16"}),
    Flag(
        "--orientation",
        "orientation",
        {"choices": ORIENTATIONS, "help": "order of the voxels; default: RAS in NIfTI, LPS elsewhere"},
    ),
    Flag("--volume", options={"help": "which of several volumes under IN, as the error lists them"}),
]


@dataclass(frozen=True)
class PlacedVolume:
    """A volume as its file holds it.

    Attributes:
        volume: HU, S,P,R by the nearest axes of the patient.
        placement: Affine ``[4, 4]`` from (slice, row, column) to RAS millimetres.
        description: The header's own words; empty where it has none.
        doubts: What in the header is doubtful, in words.
    """

    volume: HUVolume
    placement: Affine
    description: str
    doubts: tuple[str, ...]

    @property
    def synthetic(self) -> bool:
        """Whether the file says of itself that it shows no patient."""
        return "synthetic" in self.description.lower()


def main(argv: Sequence[str] | None = None) -> int:
    """Convert one volume.

    Raises:
        CTFlowError: IN is not a single CT in HU, or OUT cannot be written so.
    """
    line = parse_command(ConvertConfig, "ctflow convert", DESCRIPTION, FLAGS, argv)
    config, source, output = line.config, line.flags["source"], line.flags["output"]
    check_choices(output, config.dtype, config.orientation)
    check_writable(output.parent)
    found = read_placed(source, line.flags["volume"], config.memory_gb)
    for doubt in found.doubts:
        log.warning("%s: %s", source, doubt)
    from ctflow.data.writers import write_volume  # takes a second: after the arguments

    synthetic = found.synthetic if config.synthetic is None else config.synthetic
    write_volume(
        output,
        found.volume,
        _description(found.description, synthetic),
        synthetic=synthetic,
        dtype=config.dtype,  # type: ignore[arg-type]
        orientation=config.orientation,  # type: ignore[arg-type]
        placement=found.placement,
    )
    hu, spacing = found.volume.hu, found.volume.spacing
    log.info(
        "%s: %d slices of %d x %d, %s mm, %g to %g HU%s",
        output,
        *hu.shape,
        " x ".join(f"{s:.4g}" for s in spacing),
        hu.min(),
        hu.max(),
        ", marked as synthetic" if synthetic else "",
    )
    return 0


def _description(own: str, synthetic: bool) -> str:
    if synthetic and "synthetic" not in own.lower():
        return f"synthetic: {own}" if own else "synthetic CT"
    return own


def read_placed(source: Path, name: str | None = None, memory_gb: float = 6.0) -> PlacedVolume:
    """Read the one volume that a file or folder holds, by the readers of the ingest.

    Args:
        source: File, or folder with a DICOM series.
        name: Which, where there are several.
        memory_gb: Most memory that reading takes.

    Raises:
        ScanError: Nothing there, several volumes, or what is there cannot be read as a CT in HU.
    """
    from data_prep.ct_rate.hounsfield import decide_rescale

    item = _one_item(source, name)
    with _refusals_told(item.key):
        scan = _read(item, source, memory_gb)
        no_table = (1.0, 0.0)  # there is none that could be given, so none is advised
        rescale, facts = decide_rescale(scan.stored, (scan.slope, scan.intercept), no_table)
    doubts = [f"{code.replace('_', ' ')}: {detail}" for code, detail in scan.flags]
    if rescale.conflict:
        doubts.append(
            f"slope {scan.slope:g}, intercept {scan.intercept:g} left out: the values are HU already"
        )
    hu = scan.stored.astype(np.float32) * np.float32(rescale.slope) + np.float32(rescale.intercept)
    if facts["not_finite_share"]:
        doubts.append(f"{facts['not_finite_share']:.2g} of the voxels are not numbers and became air")
        hu[~np.isfinite(hu)] = AIR_HU
    volume, placement = _in_patient_axes(hu, scan.affine)
    if doubt := orientation_doubt(volume.hu, volume.spacing):
        doubts.append(f"the anatomy lies otherwise than the header says: {doubt}")
    description = str(scan.facts.get("description") or scan.facts.get("series") or "")
    return PlacedVolume(volume, placement, description, tuple(doubts))


def _read(item: Item, source: Path, memory_gb: float) -> RawScan:
    from data_prep.ct_rate.prepare import read_item
    from data_prep.ct_rate.scan import check_affine
    from data_prep.ct_rate.tags import ScanTags, with_geometry

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scan = with_geometry(read_item(item, source, memory_gb * 2**30), None, ScanTags())
    check_affine(scan.affine)
    return scan


@contextmanager
def _refusals_told(name: str) -> Iterator[None]:
    """Refusals of readers become errors for the user; libraries raise anything on damaged bytes."""
    from data_prep.ct_rate.reasons import ScanExcluded, ScanRefused, printable

    try:
        yield
    except (ScanRefused, ScanExcluded) as refusal:
        why = refusal.detail
    except OSError as error:
        if error.errno:
            raise
        why = printable(str(error))
    except Exception as error:
        why = printable(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    else:
        return
    raise ScanError(f"{name}: {why}", "a whole CT in HU whose header says where it lies")


def _one_item(source: Path, name: str | None) -> Item:
    """The volume under ``source``; the one called ``name`` where there are several."""
    from data_prep.ct_rate.dicom_series import sort_folder
    from data_prep.ct_rate.discovery import find_items

    found = find_items(source)
    told = list(found.told)
    items = []
    for item in found.items:
        series, refused = sort_folder(item) if item.kind == "folder" else ([item], [])
        items += series
        told += [entry for entry in refused if entry[1] == "refused"]
    chosen = [item for item in items if name is None or item.key == name]
    if len(chosen) == 1:
        return chosen[0]
    if not items:
        reasons = "; ".join(f"{key}: {detail}" for key, _, _, detail in told[:5])
        raise ScanError(
            f"no volume in {source}{': ' if reasons else ''}{reasons}",
            "a NIfTI, NRRD or MetaImage file, or the slices of a DICOM CT series",
        )
    listed = ", ".join(repr(item.key) for item in items[:20])
    raise ScanError(
        f"{len(items)} volumes in {source}: {listed}{' …' if len(items) > 20 else ''}"
        + (f", none called {name!r}" if name else ""),
        "one",
        "name it by --volume",
    )


def _in_patient_axes(hu: NDArray[np.float32], affine: Affine) -> tuple[HUVolume, Affine]:
    """Axes turned to S,P,R, and the affine with them; nothing is resampled.

    Args:
        hu: ``[i, j, k]``.
        affine: RAS ``[4, 4]`` in mm.
    """
    turn = ornt_transform(io_orientation(affine), axcodes2ornt(("S", "P", "R")))
    placement = affine @ inv_ornt_aff(turn, hu.shape)
    z, y, x = (float(s) for s in np.linalg.norm(placement[:3, :3], axis=0))
    return HUVolume(apply_orientation(hu, turn), (z, y, x)), placement


if __name__ == "__main__":
    run_command(main)
