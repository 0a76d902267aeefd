"""CT-RATE's tree and CSVs for phantoms; every file whole or absent."""

from __future__ import annotations

import csv
import json
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any, cast

import nibabel as nib
import numpy as np
from tqdm import tqdm

from ctflow.config.phantom import PhantomConfig
from ctflow.errors import CTFlowError, Stopped
from ctflow.files import replaced, write_text
from ctflow.types import HUVolume
from data_prep.phantom.contrast import pair_shares, sample_pair
from data_prep.phantom.render import make_phantom
from data_prep.phantom.report import report_for
from data_prep.phantom.requested import with_stated
from data_prep.phantom.sampling import sample_spec
from data_prep.phantom.spec import PhantomSpec

log = logging.getLogger("ctflow.phantom")
_MARK = "phantoms.json"
_KEPT_KEYS = (
    "seed",
    "size",
    "slice_spacing",
    "fixed_share",
    "pairs",
    "pair_labels",
    "report",
    "valid_fraction",
    "masks",
)


def volume_names(config: PhantomConfig) -> list[tuple[str, str]]:
    """(split, volume name such as ``train_1_a_1``) of every volume of a data set.

    The valid split is spread evenly and a volume's place does not depend on ``volumes``: a set can grow.
    """
    fraction = config.valid_fraction
    start = max(0.0, 1.0 - 2.0 * fraction)  # the second patient is the first of the valid split
    counts = {"train": 0, "valid": 0}
    scans = "ab" if config.pairs else "a"
    names = []
    for patient in range(config.volumes // len(scans)):
        passed = [int(np.floor(start + i * fraction + 1e-9)) for i in (patient, patient + 1)]
        split = "valid" if passed[1] > passed[0] else "train"
        counts[split] += 1
        names += [(split, f"{split}_{counts[split]}_{scan}_1") for scan in scans]
    return names


def volume_spec(config: PhantomConfig, index: int) -> PhantomSpec:
    """The specification of a data set's volume, by its number."""
    patient, scan = divmod(index, 2) if config.pairs else (index, 0)
    fixed = np.random.default_rng([config.seed, patient, 16]).random() < config.fixed_share
    spacing = config.slice_spacing if fixed else None
    if config.pairs:
        return sample_pair(config.seed, patient, config.size, spacing, config.pair_labels)[scan]
    drawn = sample_spec(config.seed, patient, config.size, spacing)
    return with_stated(drawn, config.report) if config.report else drawn


def volume_path(output: Path, split: str, name: str) -> Path:
    """Where CT-RATE keeps a volume: ``dataset/train/train_1/train_1_a/train_1_a_1.nii.gz``."""
    parts = name.split("_")
    return output / "dataset" / split / "_".join(parts[:2]) / "_".join(parts[:3]) / f"{name}.nii.gz"


def generate(config: PhantomConfig) -> int:
    """Make a data set, or what is missing of it.

    Returns:
        The number of volumes made now.

    Raises:
        CTFlowError: The folder holds a data set of other keys.
    """
    pair_shares(config.pair_labels)  # unknown labels are an error before anything is written
    output = Path(config.output)
    _check_folder(output, config)
    _sweep(output)
    names = volume_names(config)
    jobs = [
        (config, index, split, name)
        for index, (split, name) in enumerate(names)
        if not volume_path(output, split, name).is_file()
    ]
    if not jobs and _told(output) == len(names):
        return 0
    workers = min(config.workers or os.cpu_count() or 1, max(len(jobs), 1))
    bar = tqdm(total=len(names), initial=len(names) - len(jobs), desc="phantoms", unit="volume")
    if workers > 1:
        for _ in _made_by(workers, jobs):
            bar.update()
    else:
        for job in jobs:
            _make_one(job)
            bar.update()
    bar.close()
    _write_tables(output, config, names)
    return len(jobs)


def _made_by(workers: int, jobs: Sequence[tuple[PhantomConfig, int, str, str]]) -> Iterator[None]:
    """Make volumes in processes; yields after each.

    Raises:
        CTFlowError: One of the processes was killed; the pool would wait for its volume for ever.
        Stopped: After SIGTERM, when the processes have ended.
    """
    with _stopped_by_sigterm(), multiprocessing.get_context("spawn").Pool(workers) as pool:
        began = {process.pid for process in multiprocessing.active_children()}
        made = pool.imap_unordered(_make_one, jobs)
        for _ in jobs:
            while True:
                try:
                    made.next(timeout=1.0)
                    break
                except multiprocessing.TimeoutError:
                    if began - {process.pid for process in multiprocessing.active_children()}:
                        raise CTFlowError(
                            "a process that makes phantoms was killed",
                            f"memory for workers={workers}",
                            "give fewer workers; the same command goes on",
                        ) from None
            yield


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """End by an error, so that the pool ends its processes: they would find their pipe broken otherwise."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped("SIGTERM: stopped; the same command goes on", 128 + signal.SIGTERM)

    if threading.current_thread() is not threading.main_thread():  # only that one can handle signals
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _told(output: Path) -> int:
    """How many volumes the tables tell of."""
    tables = [_tables(output, split) for split in ("train", "valid")]
    if not all(path.is_file() for paths in tables for path in paths):
        return 0
    return sum(
        len(path.read_text(encoding="utf-8").splitlines()) - 1 for path in (paths[-1] for paths in tables)
    )


def _check_folder(output: Path, config: PhantomConfig) -> None:
    keys = {key: value for key, value in asdict(config).items() if key in _KEPT_KEYS}
    mark = output / _MARK
    if mark.is_file():
        before = asdict(PhantomConfig()) | json.loads(mark.read_text(encoding="utf-8"))
        changed = [f"{key}={before[key]}" for key in keys if before[key] != keys[key]]
        if changed:
            raise CTFlowError(
                f"{output} holds phantoms made with {', '.join(changed)}",
                ", ".join(f"{key}={keys[key]}" for key in keys),
                "choose another --output, or delete the folder",
            )
        return
    output.mkdir(parents=True, exist_ok=True)
    write_text(mark, json.dumps(keys, indent=1))


def _sweep(output: Path) -> None:
    """Remove what killed runs left half-written; files of living processes stay."""
    for partial in output.rglob(".*.partial.*"):
        process = partial.name.split(".")[1]
        if not (process.isdigit() and Path(f"/proc/{process}").exists()):
            partial.unlink(missing_ok=True)


def _make_one(job: tuple[PhantomConfig, int, str, str]) -> None:
    config, index, split, name = job
    path = volume_path(Path(config.output), split, name)
    spec = volume_spec(config, index)
    phantom = make_phantom(spec, masks=config.masks)
    stem = str(path).removesuffix(".nii.gz")
    truth = {"case_id": name, **phantom.truth}
    write_text(Path(stem + ".truth.json"), json.dumps(truth))
    if config.masks:
        with replaced(Path(stem + ".masks.npz")) as partial:
            np.savez_compressed(partial, **cast("dict[str, Any]", phantom.masks))
    # The volume comes last: where it lies, all that belongs to it lies too.
    with replaced(path) as partial:
        nib.save(to_nifti(phantom.volume), partial)


def to_nifti(volume: HUVolume) -> nib.Nifti1Image:
    """The volume in CT-RATE's axes (left, posterior, superior), int16 HU with slope 1."""
    sz, sy, sx = volume.spacing
    data = np.ascontiguousarray(volume.hu.astype(np.int16).transpose(2, 1, 0)[::-1])
    width, height, _ = data.shape
    affine = np.diag([-sx, -sy, sz, 1.0])
    affine[:3, 3] = [sx * (width - 1) / 2, sy * (height - 1) / 2, 0.0]
    image = nib.Nifti1Image(data, affine)
    image.header.set_slope_inter(1.0, 0.0)
    image.header.set_xyzt_units("mm")
    return image


def _write_tables(output: Path, config: PhantomConfig, names: Sequence[tuple[str, str]]) -> None:
    """Reports, metadata and labels of both splits, under CT-RATE's names of files and columns."""
    specs = [volume_spec(config, i) for i in range(len(names))]
    for split in ("train", "valid"):
        rows = [(f"{name}.nii.gz", spec) for (s, name), spec in zip(names, specs, strict=True) if s == split]
        reports, metadata, labels = _tables(output, split)
        _write_csv(reports, _report_rows(rows))
        _write_csv(metadata, [_metadata_row(name, spec) for name, spec in rows])
        _write_csv(labels, [{"VolumeName": name, **spec.labels} for name, spec in rows])


def _tables(output: Path, split: str) -> tuple[Path, Path, Path]:
    """Reports, metadata, labels; CT-RATE says ``validation`` in the first two, ``valid`` in the third."""
    root, long_name = output / "dataset", {"train": "train", "valid": "validation"}[split]
    return (
        root / "radiology_text_reports" / f"{long_name}_reports.csv",
        root / "metadata" / f"{long_name}_metadata.csv",
        root / "multi_abnormality_labels" / f"{split}_predicted_labels.csv",
    )


def _report_rows(rows: Iterable[tuple[str, PhantomSpec]]) -> list[dict[str, Any]]:
    out = []
    for name, spec in rows:
        report = report_for(spec)
        out.append(
            {
                "VolumeName": name,
                "ClinicalInformation_EN": report.clinical_information,
                "Technique_EN": report.technique,
                "Findings_EN": report.findings,
                "Impressions_EN": report.impressions,
            }
        )
    return out


def _metadata_row(name: str, spec: PhantomSpec) -> dict[str, Any]:
    z, y, x = spec.acquisition.spacing
    return {
        "VolumeName": name,
        "Manufacturer": "ctflow phantom",
        "PatientSex": "F" if spec.anatomy.sex == "female" else "M",
        "PatientAge": f"{spec.age:03d}Y",
        "ReconstructionDiameter": round(spec.acquisition.field_of_view, 3),
        "PatientPosition": "FFS",
        "RescaleIntercept": 0,
        "RescaleSlope": 1,
        "Rows": spec.acquisition.size,
        "Columns": spec.acquisition.size,
        "NumberofSlices": spec.acquisition.slices,
        "XYSpacing": f"[{x:.6f}, {y:.6f}]",
        "ZSpacing": round(z, 6),
    }


def _write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    columns = list(rows[0]) if rows else ["VolumeName"]
    with replaced(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
