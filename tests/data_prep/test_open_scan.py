"""Strangers' files, read in limits: formats, zips that would harm, grids."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from ctflow.data.writers import write_volume
from ctflow.errors import CTFlowError
from ctflow.types import HUVolume
from data_prep import open_scan
from data_prep.phantom import make_phantom
from data_prep.phantom.sampling import sample_spec


@pytest.fixture(scope="module")
def chest() -> HUVolume:
    volume = make_phantom(sample_spec(3, 1, 64, 10.0)).volume
    # Below, the readers see padding.
    return HUVolume(np.rint(volume.hu).clip(-1000).astype(np.float32), volume.spacing)


@pytest.fixture(autouse=True)
def no_limits(monkeypatch):
    """Limits are for a process of its own, which the tests' is not."""
    monkeypatch.setattr(open_scan, "_limit_memory", lambda _: None)


def read(path: Path, output: Path, *keys: str) -> tuple[dict, np.ndarray, np.ndarray]:
    assert open_scan.main([str(path), str(output), *keys]) == 0
    told = json.loads((output / "scan.json").read_text("utf-8"))
    arrays = [
        np.fromfile(output / f"{name}.hu", "<i2").reshape(told[name]["shape"]) for name in ("scan", "model")
    ]
    return told, arrays[0], arrays[1]


def zipped(folder: Path, path: Path, **more: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, f"some folder/{file.name}")
        for name, data in more.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mha", ".nrrd", ".zip"])
def test_every_format_gives_the_same_scan(chest, tmp_path, ending):
    path = tmp_path / f"x{ending}"
    if ending == ".zip":
        write_volume(tmp_path / "x.dcm", chest)
        side = {"__MACOSX/._slice": b"x", "some folder/.DS_Store": b"x"}
        zipped(tmp_path / "x.dcm", path, **side)
    else:
        write_volume(path, chest)
    told, scan, model = read(path, tmp_path / "out", "side=32", "z_spacing=5.0")
    np.testing.assert_array_equal(scan, chest.hu)
    np.testing.assert_allclose(told["scan"]["spacing"], chest.spacing, rtol=1e-5)
    assert model.shape[1:] == (32, 32)
    np.testing.assert_allclose(
        told["model"]["spacing"], [5.0, *(2 * s for s in chest.spacing[1:])], rtol=1e-5
    )
    assert abs(model.mean() - scan.mean()) < 20 and not told["doubts"]


def test_slices_become_square_and_spacings_stay_in_the_models_range(chest, tmp_path):
    cut = HUVolume(np.ascontiguousarray(chest.hu[:, 8:56]), chest.spacing)
    write_volume(tmp_path / "x.nii.gz", cut)
    keys = ("side=32", "z_spacing=4.0", "z_spacing_range=[3.0,12.0]")
    told, scan, _ = read(tmp_path / "x.nii.gz", tmp_path / "out", *keys)
    assert told["scan"]["shape"] == [len(chest.hu), 64, 64]
    np.testing.assert_array_equal(scan[:, 8:56], cut.hu)
    assert (scan[:, :8] == -1000).all()
    assert told["model"]["spacing"][0] == pytest.approx(10.0)  # the scan's own, which the model takes


@pytest.mark.parametrize("name", ["../../evil.dcm", "/etc/evil.dcm", "..\\evil.dcm", "a/../../b.dcm"])
def test_no_name_in_a_zip_is_a_path(chest, tmp_path, name):
    write_volume(tmp_path / "x.dcm", chest)
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number, file in enumerate(sorted((tmp_path / "x.dcm").iterdir())):
            archive.write(file, name.replace("evil", f"evil{number}"))
    before = set(tmp_path.parent.rglob("*evil*"))
    _, scan, _ = read(path, tmp_path / "deep" / "out", "side=32")
    np.testing.assert_array_equal(scan, chest.hu)
    assert set(tmp_path.parent.rglob("*evil*")) == before
    assert {p.name for p in (tmp_path / "deep").iterdir()} == {"out"}


def test_a_link_in_a_zip_is_a_file(tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        link = zipfile.ZipInfo("link.dcm")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    open_scan.unpack(path, tmp_path / "out", 1e6)
    (file,) = (tmp_path / "out").iterdir()
    assert not file.is_symlink() and file.read_text() == "/etc/passwd"


def bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(8):
            archive.writestr(f"{number}.dcm", bytes(2**20))


def lying(path: Path) -> None:
    """A bomb whose directory says that its files are small."""
    bomb(path)
    data = path.read_bytes()
    path.write_bytes(data.replace((2**20).to_bytes(4, "little"), (64).to_bytes(4, "little")))


def many(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(open_scan.MOST_FILES + 1):
            archive.writestr(f"{number}", b"")


def broken(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("0.dcm", bytes(1000))
    data = bytearray(path.read_bytes())
    data[500] = 1
    path.write_bytes(data)


def encrypted(path: Path) -> None:
    bomb(path)
    data = bytearray(path.read_bytes())
    for signature, at in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        start = 0
        while (start := data.find(signature, start)) >= 0:
            data[start + at] |= 1
            start += 4
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (bomb, "unpacked_gb"),
        (lying, "cannot be read|unpacked_gb"),
        (many, "20,000"),
        (broken, "cannot be read"),
        (encrypted, "password"),
    ],
)
def test_zips_that_would_harm_are_refused(tmp_path, make, words):
    path = tmp_path / "x.zip"
    make(path)
    with pytest.raises(CTFlowError, match=words):
        open_scan.unpack(path, tmp_path / "out", 3 * 2**20)
    written = sum(p.stat().st_size for p in (tmp_path / "out").iterdir())
    assert written <= 4 * 2**20


def test_files_that_are_no_scan_are_said(tmp_path):
    for name, data in (
        ("a.nii.gz", b"no nifti"),
        ("a.mha", b"ObjectType = Image\n"),
        ("a.nrrd", b"NRRD0004\n"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CTFlowError) as raised:
            open_scan.main([str(tmp_path / name), str(tmp_path / f"out-{name}")])
        assert str(tmp_path) not in str(raised.value) and "volume" not in raised.value.action


def test_two_series_are_said_without_a_flag_of_the_command_line(chest, tmp_path):
    for name in ("a", "b"):
        write_volume(tmp_path / f"{name}.dcm", chest)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for file in sorted(tmp_path.glob("?.dcm/*")):
            archive.write(file, f"{file.parent.name}/{file.name}")
    with pytest.raises(CTFlowError, match="2 volumes") as raised:
        open_scan.main([str(tmp_path / "x.zip"), str(tmp_path / "out")])
    assert "--volume" not in str(raised.value)
