"""One item, from its files to int16 HU on the grid, or to the reason why not: what a worker runs."""

from __future__ import annotations

import hashlib
import time
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctflow.config.prep import IngestConfig
from ctflow.files import describe_stranger, replaced
from ctflow.orientation import orientation_doubt
from data_prep.ct_rate.dicom_reader import read_dicom_series
from data_prep.ct_rate.dicom_series import sort_folder
from data_prep.ct_rate.discovery import Item
from data_prep.ct_rate.geometry import (
    OBLIQUE_DEGREES,
    Grid,
    Spacing,
    check_spacing,
    field_in_image,
    obliqueness,
    resample,
    straighten,
    to_patient_axes,
    trim_blank,
)
from data_prep.ct_rate.hounsfield import Rescale, decide_rescale, is_coarse
from data_prep.ct_rate.itk_reader import read_itk_scan
from data_prep.ct_rate.label_maps import is_label_map, is_label_map_file
from data_prep.ct_rate.likeness import coarse_picture
from data_prep.ct_rate.memory import worker_bytes
from data_prep.ct_rate.naming import case_id_of, patient_and_split
from data_prep.ct_rate.nifti_reader import read_nifti_scan
from data_prep.ct_rate.noise import tissue_noise
from data_prep.ct_rate.reasons import ScanExcluded, ScanRefused, printable
from data_prep.ct_rate.scan import MIN_SLICES, RawScan, check_affine, check_memory
from data_prep.ct_rate.screening import screen
from data_prep.ct_rate.survey import TRUTH
from data_prep.ct_rate.tables import CsvRow
from data_prep.ct_rate.tags import acquisition_of, with_geometry

ACCEPTED, FLAGGED, REFUSED, IGNORED, EXPANDED = "accepted", "flagged", "refused", "ignored", "expanded"
EXCLUDED = "excluded"
_BLANK_ROW = CsvRow()


@dataclass(frozen=True)
class Job:
    """The input of a worker.

    Attributes:
        item: The files.
        row: What the CSVs say of it.
        config: Settings of the run.
        staging: Where the prepared volume goes, ``.npy``.
        expects_report: Whether there are report CSVs at all.
    """

    item: Item
    row: CsvRow
    config: IngestConfig
    staging: str
    expects_report: bool = False


@dataclass
class Outcome:
    """The outcome of an item; plain values, for the pipe and the journal.

    Attributes:
        key: The item's.
        fingerprint: The item's, with the CSVs' words.
        status: ``accepted``, ``flagged``, ``refused``, ``excluded``, ``ignored`` or ``expanded``.
        reasons: ``[code, detail]`` pairs: why refused, excluded or flagged.
        case_id: The case.
        patient_id: Its patient.
        split: ``train`` or ``valid``.
        spacing: Millimetres of the prepared volume.
        slices: Its slices.
        report: Its report.
        labels: Its labels.
        source_sha256: Hash of its files.
        voxels_sha256: Hash of the prepared voxels.
        coarse: Coarse picture of the prepared volume, which tells copies and reconstructions.
        truth_path: Ground truth beside it.
        acquisition: Scan, reconstruction and scanner: the fields of ``Acquisition``.
        facts: Decisions and findings of the ingest, for the record.
        items: Series found in a folder (``expanded``).
        told: Key, status, code and detail of what goes no further in a folder (``expanded``).
        seconds: Time it took.
    """

    key: str
    fingerprint: str
    status: str = ACCEPTED
    reasons: list[list[str]] = field(default_factory=list)
    case_id: str = ""
    patient_id: str = ""
    split: str = ""
    spacing: list[float] = field(default_factory=list)
    slices: int = 0
    report: str = ""
    labels: dict[str, int] = field(default_factory=dict)
    source_sha256: str = ""
    voxels_sha256: str = ""
    coarse: list[int] = field(default_factory=list)
    truth_path: str | None = None
    acquisition: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    items: list[dict[str, Any]] = field(default_factory=list)
    told: list[list[str]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def usable(self) -> bool:
        """Whether there is a volume."""
        return self.status in (ACCEPTED, FLAGGED)


class StagingError(OSError):
    """The output's disk does not take a prepared volume: it ends the run."""


def prepare(job: Job) -> Outcome:
    """Read, check and resample one item; the volume is left in ``job.staging``.

    Nothing a file holds gets out of here as an exception: libraries raise whatever they like on damaged
    bytes, so the boundary is wide on purpose, and what they said becomes the refusal's detail.

    Raises:
        StagingError: The volume cannot be left in ``job.staging``: a full disk says nothing about the file.
    """
    started = time.perf_counter()
    outcome = Outcome(job.item.key, outcome_fingerprint(job.item, job.row), case_id=case_id_of(job.item.key))
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            if job.item.kind == "folder":
                _sort(job.item, outcome)
            else:
                _prepare_volume(job, outcome)
    except ScanExcluded as exclusion:
        outcome.status, outcome.reasons = EXCLUDED, [[exclusion.code, exclusion.detail]]
    except ScanRefused as refusal:
        outcome.status, outcome.reasons = REFUSED, refusal.reasons
    except MemoryError:
        detail = f"needs more than memory_gb={job.config.memory_gb:g}"
        outcome.status, outcome.reasons = REFUSED, [["too_large", detail]]
    except StagingError:
        raise
    except OSError as error:
        code = "not_read" if error.errno else "unreadable"  # the system's word, or a library's
        outcome.status, outcome.reasons = REFUSED, [[code, f"{type(error).__name__}: {error}"]]
    except Exception as error:
        detail = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        outcome.status, outcome.reasons = REFUSED, [["unreadable", detail]]
    if outcome.reasons and outcome.reasons[0][0] in ("unreadable", "truncated"):
        outcome.reasons = _told_by_content(Path(job.item.files[0])) or outcome.reasons
    outcome.reasons = [[code, printable(detail)] for code, detail in outcome.reasons]
    outcome.seconds = round(time.perf_counter() - started, 3)
    return outcome


def _told_by_content(path: Path) -> list[list[str]]:
    """The reason where an unreadable file is of another kind altogether: a pointer, a web page, empty."""
    try:
        stranger = describe_stranger(path)
    except OSError:
        return []
    return [["not_an_image", f"the file {stranger}"]] if stranger else []


def outcome_fingerprint(item: Item, row: CsvRow) -> str:
    """Equal as long as neither the files nor what the CSVs say of them change."""
    if row == _BLANK_ROW:
        return item.fingerprint
    return f"{item.fingerprint}-{hashlib.sha256(row.fingerprint().encode()).hexdigest()[:8]}"


def _sort(item: Item, outcome: Outcome) -> None:
    items, told = sort_folder(item)
    outcome.status, outcome.case_id = EXPANDED, ""
    outcome.items = [asdict(found) for found in items]
    outcome.told = [list(entry) for entry in told]


def _prepare_volume(job: Job, outcome: Outcome) -> None:
    if job.row.doubts:
        raise ScanRefused("ambiguous_row", "; ".join(job.row.doubts))
    scan = read_item(job.item, Path(job.config.source), worker_bytes(job.config.memory_gb))
    scan = with_geometry(scan, job.row.spacing, job.row.tags)
    check_affine(scan.affine)
    flags = list(scan.flags)
    rescale, facts = decide_rescale(scan.stored, (scan.slope, scan.intercept), job.row.rescale)
    if rescale.conflict:
        flags.append(["rescale_conflict", f"slope {scan.slope:g}, intercept {scan.intercept:g} left out"])
    if is_coarse(facts):
        flags.append(["coarse_intensities", f"{facts['distinct_values']} distinct values"])
    if facts["not_finite_share"] > 0:
        flags.append(["not_finite_filled", f"{facts['not_finite_share']:.2g} of the voxels"])
    if facts["clipped_voxels"]:
        flags.append(["clipped_values", f"{facts['clipped_voxels']} voxels"])
    view, spacing, used, geometry = _place(scan, rescale, worker_bytes(job.config.memory_gb))
    view, blank = trim_blank(view)
    if blank and geometry["oblique_degrees"] <= OBLIQUE_DEGREES:  # straightening makes some of its own
        flags.append(["blank_ends", f"{blank} slices"])
    if view.shape[0] < MIN_SLICES:
        raise ScanRefused(
            "too_few_slices", f"{view.shape[0]} slices that are not blank, {MIN_SLICES} or more expected"
        )
    spacing, origin = _true_spacing(spacing, job.row.spacing, view.shape, flags)
    grid = Grid(job.config.resolution, job.config.z_spacing, job.config.field_of_view, job.config.max_slices)
    hu, prepared = resample(view, spacing, used, grid)
    rows, columns = field_in_image(view.shape[1:], spacing[1:], prepared[1], grid.resolution)
    body, body_flags = screen(hu[:, rows, columns], prepared, view.shape[0] * spacing[0])
    flags += body_flags
    if job.row.unclear:
        flags.append(["unclear_value", "; ".join(job.row.unclear)])
    if doubt := orientation_doubt(hu[:, rows, columns], prepared):
        flags.append(["orientation_doubt", doubt])
    if job.expects_report and job.row.report is None:
        flags.append(["no_report", "no line in the report CSVs"])
    patient = job.row.patient_id or scan.patient_id
    outcome.patient_id, outcome.split = patient_and_split(job.item.key, outcome.case_id, patient, job.config)
    outcome.status, outcome.reasons = _status(flags, job.config), flags
    outcome.spacing, outcome.slices = [round(s, 6) for s in prepared], hu.shape[0]
    outcome.report, outcome.labels = job.row.report or "", job.row.labels
    outcome.source_sha256, outcome.truth_path = _sha256(job.item.files), _truth(job.item)
    outcome.voxels_sha256 = hashlib.sha256(hu.data).hexdigest()
    outcome.acquisition = asdict(
        acquisition_of(
            outcome.case_id,
            job.row.tags.kernel or scan.facts.get("ConvolutionKernel", ""),
            job.row.tags.manufacturer or scan.facts.get("Manufacturer", ""),
            tissue_noise(view, used),
        )
    )
    outcome.coarse = coarse_picture(hu, prepared[0])
    outcome.facts = {
        "source": job.item.key,
        "format": scan.format,
        "rescale": {k: v for k, v in asdict(rescale).items() if k != "conflict"},
        **geometry,
        "native_shape": list(view.shape),
        "native_spacing": [round(s, 6) for s in spacing],
        "spacing_from": origin,
        **facts,
        **scan.facts,
        **body,
    }
    if outcome.status == ACCEPTED or (outcome.status == FLAGGED and job.config.keep_flagged):
        _stage(hu, Path(job.staging))


def _status(flags: list[list[str]], config: IngestConfig) -> str:
    """Accepted, flagged, or excluded: what shows no chest is trained on only where that is asked for."""
    if not config.keep_no_chest and any(code == "not_chest" for code, _ in flags):
        return EXCLUDED
    return FLAGGED if flags else ACCEPTED


def read_item(item: Item, source: Path, memory_bytes: float) -> RawScan:
    """Read an item that is one volume.

    Args:
        item: A ``nifti``, ``itk`` or ``series`` item.
        source: File or folder it was found under.
        memory_bytes: What reading may use.

    Raises:
        ScanRefused: See ``reasons``.
        ScanExcluded: A label map under the name of a volume.
    """
    path = Path(item.files[0])
    if item.shared_name and item.kind == "nifti" and is_label_map_file(path):
        raise ScanExcluded("label_map", "few different whole numbers under the name of another file")
    if item.kind == "nifti":
        return read_nifti_scan(path, memory_bytes)
    if item.kind == "itk":
        root = source.parent if source.is_file() else source
        scan = read_itk_scan(path, root, memory_bytes)
        if item.shared_name and is_label_map(scan.stored):
            raise ScanExcluded("label_map", "few different whole numbers under the name of another file")
        return scan
    return read_dicom_series([Path(f) for f in item.files], memory_bytes)


def _place(
    scan: RawScan, rescale: Rescale, memory_bytes: float
) -> tuple[NDArray[Any], Spacing, Rescale, dict[str, Any]]:
    """Axes S,P,R; oblique volumes are resampled first, and are HU from then on."""
    angle = obliqueness(scan.affine)
    stored, affine, used = scan.stored, scan.affine, rescale
    if angle > OBLIQUE_DEGREES:
        check_memory(stored.shape, 8, memory_bytes)  # float32 HU, and their straight copy
        stored, affine = straighten(scan.stored, scan.affine, rescale)
        used = Rescale(1.0, 0.0, "stored")
    view, spacing, _ = to_patient_axes(stored, affine)
    axes = to_patient_axes(scan.stored[:1, :1, :1], scan.affine)[2]
    return view, spacing, used, {"stored_axes": axes, "oblique_degrees": round(angle, 2)}


def _true_spacing(
    header: Spacing, csv: Spacing | None, shape: tuple[int, ...], flags: list[list[str]]
) -> tuple[Spacing, str]:
    """The CSV's spacing where the header's differs by more than 1 %, unless only the header's is possible."""
    wrong = check_spacing(header, shape)
    if csv is not None and max(abs(c / h - 1) for c, h in zip(csv, header, strict=True)) > 0.01:
        wrong_csv = check_spacing(csv, shape)
        if wrong_csv is None:
            return csv, f"csv (header: {' x '.join(f'{s:g}' for s in header)})"
        if wrong is None:
            flags.append(["spacing_conflict", f"CSV: {wrong_csv}; the header's was taken"])
            return header, "header"
    if wrong is not None:
        raise ScanRefused("implausible_spacing", wrong)
    return header, "header"


def _sha256(files: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for name in files:
        with Path(name).open("rb") as stream:
            while block := stream.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def _truth(item: Item) -> str | None:
    path = Path(item.files[0])
    truth = path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + TRUTH)
    return printable(str(truth.resolve())) if item.kind == "nifti" and truth.is_file() else None


def _stage(hu: NDArray[np.int16], path: Path) -> None:
    try:
        # Not ``np.save``: it loses the system's word for what went wrong.
        with replaced(path) as temporary, temporary.open("wb") as stream:
            np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(hu))
            stream.write(hu.data)
    except OSError as error:
        raise StagingError(error.errno, error.strerror, str(path)) from error
