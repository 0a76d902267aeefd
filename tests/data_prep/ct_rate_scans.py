"""Small scans for the tests of the ingest: a chest that a radiologist's eye and the screening both accept."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import nibabel as nib
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

from ctflow.config.prep import IngestConfig
from data_prep.ct_rate.discovery import Item, find_items
from data_prep.ct_rate.prepare import Job, Outcome, prepare
from data_prep.ct_rate.tables import CsvRow

SPACING = (5.0, 5.5, 5.5)
SHAPE = (44, 64, 64)


def chest(shape=SHAPE, seed=0) -> np.ndarray:
    """Int16 HU [S,P,R]: lungs, spine behind, heart to the left, liver at the bottom on the right."""
    rng = np.random.default_rng(seed)
    s, p, r = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    hu = np.full(shape, -1000.0)
    body = (p / 0.72) ** 2 + (r / 0.9) ** 2 < 1
    hu[body] = -100
    hu[(p / 0.64) ** 2 + (r / 0.82) ** 2 < 1] = 45
    for side in (-1, 1):  # columns run from the patient's left to the right
        lung = ((p / 0.5) ** 2 + ((r - side * 0.4) / 0.3) ** 2 + (s / 0.8) ** 2) < 1
        hu[lung] = -850
    hu[((p + 0.15) / 0.3) ** 2 + ((r + 0.12) / 0.3) ** 2 + ((s + 0.2) / 0.4) ** 2 < 1] = 40
    hu[(s < -0.35) & (r > 0.05) & (((p / 0.5) ** 2 + ((r - 0.4) / 0.35) ** 2) < 1)] = 60
    hu[((p - 0.5) ** 2 + r**2) < 0.012] = 500
    return np.rint(hu + rng.normal(0, 12, shape)).clip(-1024, 3000).astype(np.int16)


def save_nifti(
    path: Path, hu, spacing=SPACING, axes="LPS", slope=None, inter=None, affine=None, codes=(1, 1), unit="mm"
) -> Path:
    """[S,P,R] values in any axis order; the affine says which."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if affine is None:
        spr = nib.orientations.axcodes2ornt(("S", "P", "R"))
        turn = nib.orientations.ornt_transform(spr, nib.orientations.axcodes2ornt(tuple(axes)))
        base = np.array(
            [[0, 0, spacing[2], -90.0], [0, -spacing[1], 0, 120.0], [spacing[0], 0, 0, -300.0], [0, 0, 0, 1]]
        )
        affine = base @ nib.orientations.inv_ornt_aff(turn, hu.shape)
        hu = nib.orientations.apply_orientation(hu, turn)
    image = nib.Nifti1Image(hu, affine)
    image.set_qform(affine, codes[0])
    image.set_sform(affine, codes[1])
    image.header.set_xyzt_units(unit)
    if slope is not None:
        image.header.set_slope_inter(slope, inter)
        raw = image.header  # nibabel drops the slope when it writes arrays; put it into the bytes
        raw["scl_slope"], raw["scl_inter"] = slope, inter
    nib.save(image, path)
    if slope is not None:
        _patch_slope(path, slope, inter)
    return path


def _patch_slope(path: Path, slope: float, inter: float) -> None:
    import gzip

    opened = gzip.open if path.name.endswith(".gz") else open
    with opened(path, "rb") as stream:
        data = bytearray(stream.read())
    data[112:120] = np.array([slope, inter], "<f4").tobytes()
    with opened(path, "wb") as stream:
        stream.write(bytes(data))


def save_dicom(
    folder: Path, hu, spacing=SPACING, series=1, modality="CT", skip=(), tilt=0.0, **tags
) -> list[Path]:
    """[S,P,R] HU as one file per slice; ``tags`` overwrite."""
    folder.mkdir(parents=True, exist_ok=True)
    uid = generate_uid(entropy_srcs=[str(folder), str(series)])
    paths = []
    for k in range(hu.shape[0]):
        if k in skip:
            continue
        z = -300.0 + k * spacing[0]
        data = _slice(hu[k], spacing, modality, uid, series, k)
        data.ImagePositionPatient = [
            90.0 - spacing[2] * (hu.shape[2] - 1),
            -120.0 + z * np.tan(np.radians(tilt)),
            z,
        ]
        for name, value in tags.items():
            setattr(data, name, value)
        paths.append(folder / f"s{series}_{k:03d}.dcm")
        data.save_as(paths[-1], enforce_file_format=True)
    return paths


def _slice(plane, spacing, modality, uid, series, k) -> Dataset:
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = CTImageStorage
    data.SOPInstanceUID = generate_uid(entropy_srcs=[uid, str(k)])
    data.SeriesInstanceUID, data.SeriesNumber, data.Modality = uid, series, modality
    data.StudyInstanceUID = data.FrameOfReferenceUID = "1.2.3"
    data.PatientID, data.InstanceNumber = "Patient7", k + 1
    data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    data.PixelSpacing = [spacing[1], spacing[2]]
    data.SliceThickness = spacing[0]
    data.Rows, data.Columns = plane.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 0
    data.RescaleSlope, data.RescaleIntercept = 1, -1024
    # DICOM's columns run from the patient's right to the left
    data.PixelData = (plane[:, ::-1].astype(np.int32) + 1024).clip(0, 65535).astype("<u2").tobytes()
    return data


def save_enhanced(path: Path, hu, spacing=SPACING) -> Path:
    """[S,P,R] HU as one enhanced CT file, frames from above downwards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = _slice(hu[0], spacing, "CT", generate_uid(), 1, 0)
    data.SOPClassUID = EnhancedCTImageStorage
    for name in (
        "ImageOrientationPatient",
        "PixelSpacing",
        "SliceThickness",
        "RescaleSlope",
        "RescaleIntercept",
    ):
        delattr(data, name)
    data.NumberOfFrames = hu.shape[0]
    shared = Dataset()
    shared.PlaneOrientationSequence = [_with(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])]
    shared.PixelMeasuresSequence = [_with(PixelSpacing=[spacing[1], spacing[2]], SliceThickness=spacing[0])]
    shared.PixelValueTransformationSequence = [
        _with(RescaleSlope=1, RescaleIntercept=-1024, RescaleType="HU")
    ]
    data.SharedFunctionalGroupsSequence = [shared]
    order = range(hu.shape[0])[::-1]
    places = [[90.0 - spacing[2] * (hu.shape[2] - 1), -120.0, -300.0 + k * spacing[0]] for k in order]
    data.PerFrameFunctionalGroupsSequence = [
        _with(PlanePositionSequence=[_with(ImagePositionPatient=place)]) for place in places
    ]
    data.PixelData = (hu[::-1, :, ::-1].astype(np.int32) + 1024).astype("<u2").tobytes()
    data.save_as(path, enforce_file_format=True)
    return path


def _with(**tags) -> Dataset:
    data = Dataset()
    for name, value in tags.items():
        setattr(data, name, value)
    return data


def ingest_one(
    path: Path, tmp_path: Path, row: CsvRow | None = None, expects_report=False, **keys
) -> list[tuple[Outcome, np.ndarray | None]]:
    """Every outcome of one file or folder, in this process, with the prepared volume where there is one."""
    config = IngestConfig(
        source=str(path), output=str(tmp_path), **{"resolution": 64, "z_spacing": None, **keys}
    )
    found = find_items(path).items
    results = []
    for number, item in enumerate(found):
        staging = tmp_path / f"staged-{number}-{len(results)}.npy"
        outcome = prepare(Job(item, row or CsvRow(), config, str(staging), expects_report))
        if outcome.status == "expanded":
            found.extend(
                Item(i["key"], i["kind"], tuple(i["files"]), i["fingerprint"]) for i in outcome.items
            )
            results += [
                (Outcome(key, "", status, [[code, detail]]), None)
                for key, status, code, detail in outcome.told
            ]
        else:
            results.append((outcome, np.load(staging) if outcome.usable and staging.is_file() else None))
    return results


def codes(outcome: Outcome) -> list[str]:
    return [code for code, _ in outcome.reasons]


def hang(job: Job) -> Outcome:
    time.sleep(3600)
    return Outcome(job.item.key, "")


def crash(job: Job) -> Outcome:
    os.kill(os.getpid(), signal.SIGSEGV)
    return Outcome(job.item.key, "")


__all__ = [
    "chest",
    "codes",
    "crash",
    "hang",
    "ingest_one",
    "save_dicom",
    "save_enhanced",
    "save_nifti",
]
