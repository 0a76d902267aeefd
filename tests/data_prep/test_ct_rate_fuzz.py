"""Any file ends in accepted, flagged, refused or ignored: never a traceback, never a hang."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from ct_rate_scans import chest, save_dicom, save_enhanced, save_nifti

from data_prep.ct_rate.command import main
from data_prep.ct_rate.reasons import FLAGS, IGNORED, REFUSALS

HOW = ("random", "flip_header", "flip_anywhere", "cut", "zeros", "swap", "grow", "repeat")
ENDINGS = (".nii.gz", ".nii", ".mha", ".nrrd", ".dcm", "", ".mhd", ".nhdr", ".bin")


def originals(folder: Path) -> list[Path]:
    """One small file of each format."""
    folder.mkdir()
    hu = chest((24, 32, 32))
    paths = [
        save_nifti(folder / "a.nii.gz", hu, (8.0, 11.0, 11.0)),
        save_nifti(folder / "b.nii", hu, (8.0, 11.0, 11.0)),
    ]
    for name in ("c.mha", "d.nrrd", "e.nhdr"):
        image = sitk.GetImageFromArray(hu)
        image.SetSpacing((11.0, 11.0, 8.0))
        sitk.WriteImage(image, str(folder / name), useCompression=name != "c.mha")
        paths.append(folder / name)
    paths.append(save_dicom(folder / "dicom", hu[:1], (8.0, 11.0, 11.0))[0])
    paths.append(save_enhanced(folder / "f.dcm", hu, (8.0, 11.0, 11.0)))
    return paths


def damage(data: bytes, how: str, rng: np.random.Generator) -> bytes:
    """Bytes of a damaged copy."""
    if how == "random":
        return rng.bytes(int(rng.integers(0, 5000)))
    changed = bytearray(data)
    place = int(rng.integers(0, len(data)))
    if how.startswith("flip"):
        limit = min(len(data), 700 if how == "flip_header" else len(data))
        for _ in range(int(rng.integers(1, 30))):
            changed[int(rng.integers(0, limit))] ^= 1 << int(rng.integers(0, 8))
    elif how == "cut":
        del changed[place:]
    elif how == "zeros":
        changed[place : place + 500] = bytes(min(500, len(data) - place))
    elif how == "swap":
        middle = len(data) // 2
        changed = changed[middle:] + changed[:middle]
    elif how == "grow":
        changed[place:place] = rng.bytes(300)
    else:
        changed = changed + changed
    return bytes(changed)


def fuzz(tmp_path: Path, count: int, sources: list[Path], timeout: float) -> dict:
    rng = np.random.default_rng(7)
    folder = tmp_path / "in"
    for number in range(count):
        source = sources[number % len(sources)]
        how = HOW[(number // len(sources)) % len(HOW)]
        ending = "".join(source.suffixes) if how != "random" else ENDINGS[number % len(ENDINGS)]
        path = folder / f"{number:03d}" / f"{how}{ending}"
        path.parent.mkdir(parents=True)
        path.write_bytes(damage(source.read_bytes(), how, rng))
    status = main(
        [
            *("--source", str(folder), "--output", str(tmp_path / "out"), "resolution=32", "z_spacing=8.0"),
            *("workers=1", "progress=false", f"timeout={timeout}", "memory_gb=4"),
        ]
    )
    assert status in (0, 1, 2)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    told = summary["accepted"] + summary["flagged"] + summary["refused"] + summary["ignored"]
    assert told >= count  # a copy of a file may hold two things; none is forgotten
    assert set(summary["refused_by_reason"]) <= set(REFUSALS) and set(summary["flagged_by_reason"]) <= set(
        FLAGS
    )
    with (tmp_path / "out" / "quarantine.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    codes = {"refused": REFUSALS, "flagged": FLAGS, "ignored": IGNORED}
    assert all(row["reason"] in codes[row["status"]] and row["detail"] for row in rows)
    return summary


def test_twenty_damaged_files(tmp_path):
    summary = fuzz(tmp_path, 24, originals(tmp_path / "good"), 60.0)
    assert summary["refused"] >= 8
    assert "timeout" not in summary["refused_by_reason"] and "crashed" not in summary["refused_by_reason"]


@pytest.mark.slow
def test_three_hundred_damaged_files(tmp_path, shared_dir):
    real = shared_dir / "real_ct"
    sources = [
        *originals(tmp_path / "good"),
        real / "ct_right_hemithorax_aniso.mha",
        real / "reject_mr_4d.nii.gz",
        next((real / "dicom_chest_siemens_8mm").glob("*.dcm")),
        real / "awkward_ct_oblique_uint8_nohu_head.nii.gz",
    ]
    summary = fuzz(tmp_path, 300, sources, 120.0)
    assert summary["refused"] >= 150
    assert "timeout" not in summary["refused_by_reason"]
