"""NRRD and MetaImage whose compressed voxels are damaged, short, long, elsewhere, or of another size than told."""

from __future__ import annotations

import bz2
import gzip
import os
import random
import zlib

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from ct_rate_scans import SPACING, chest, codes, ingest_one, save_nifti

HU = chest()
EXPECTED = np.where(HU <= -1024, -1000, HU)
DATA = np.ascontiguousarray(HU[:, :, ::-1]).tobytes()  # ITK's columns run from the patient's right
NRRD = (
    "NRRD0004\ntype: int16\ndimension: 3\nspace: left-posterior-superior\nsizes: 64 64 44\n"
    "space directions: (5.5,0,0) (0,5.5,0) (0,0,5)\nspace origin: (-170,-170,-300)\nendian: little\n"
    "encoding: {encoding}\n{more}"
)
META = (
    "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = {packed}\n"
    "{more}TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = -170 -170 -300\nElementSpacing = 5.5 5.5 5\n"
    "DimSize = 64 64 44\nElementType = MET_SHORT\nElementDataFile = {file}\n"
)


def only(path, tmp_path):
    ((outcome, volume),) = ingest_one(path, tmp_path)
    return outcome, volume


def written(path, head, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head.encode() + data)
    return path


def mha(tmp_path, data, told=None, name="a.mha"):
    more = "" if told is None else f"CompressedDataSize = {told}\n"
    return written(tmp_path / "in" / name, META.format(packed="True", more=more, file="LOCAL"), data)


def nrrd(tmp_path, data, encoding="gzip", more="", name="a.nrrd"):
    return written(tmp_path / "in" / name, NRRD.format(encoding=encoding, more=more) + "\n", data)


PACKED = zlib.compress(DATA)
GZIP = gzip.compress(DATA)


def test_whole_streams_are_accepted(tmp_path):
    detached = written(tmp_path / "in" / "d.mhd", META.format(packed="True", more="", file="d.zraw"), b"")
    (tmp_path / "in" / "d.zraw").write_bytes(PACKED)
    header = written(tmp_path / "in" / "n.nhdr", NRRD.format(encoding="gz", more="data file: n.raw.gz\n"), b"")
    (tmp_path / "in" / "n.raw.gz").write_bytes(GZIP)
    itk = tmp_path / "in" / "itk.mha"
    image = sitk.GetImageFromArray(HU[:, :, ::-1])
    image.SetSpacing(SPACING[::-1])
    sitk.WriteImage(image, str(itk), True)
    paths = [
        mha(tmp_path, PACKED, len(PACKED)),
        nrrd(tmp_path, GZIP),
        nrrd(tmp_path, gzip.compress(DATA[:9000]) + gzip.compress(DATA[9000:]), name="members.nrrd"),
        *(detached, header, itk),
    ]
    for path in paths:
        outcome, volume = only(path, tmp_path)
        assert outcome.status == "accepted", (path, outcome.reasons)
        np.testing.assert_array_equal(volume, EXPECTED)


def test_what_the_reader_unpacks_wrongly_is_not_believed(tmp_path):
    outcome, _ = only(mha(tmp_path, PACKED), tmp_path)  # without CompressedDataSize MetaIO stops early
    assert codes(outcome) == ["unreadable"] and "unpacks other values" in outcome.reasons[0][1]


def flipped(data, at):
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


@pytest.mark.parametrize("seed", range(4))
def test_a_flipped_bit_is_refused(tmp_path, seed):
    at = random.Random(seed).randrange(100, len(PACKED) - 4)
    for path in (mha(tmp_path, flipped(PACKED, at), len(PACKED)), nrrd(tmp_path, flipped(GZIP, at))):
        outcome, _ = only(path, tmp_path)
        assert codes(outcome)[0] in ("damaged", "truncated"), outcome.reasons
    outcome, _ = only(nrrd(tmp_path, flipped(GZIP, len(GZIP) - 6), name="checksum.nrrd"), tmp_path)
    assert codes(outcome) == ["damaged"] and outcome.status == "refused"


def sized(count):
    return DATA[:count] if count <= len(DATA) else DATA + b"\0" * (count - len(DATA))


@pytest.mark.parametrize(
    ("count", "code"), [(len(DATA) - 2, "truncated"), (9000, "truncated"), (len(DATA) + 2, "damaged")]
)
def test_sound_streams_of_another_length_are_refused(tmp_path, count, code):
    data = zlib.compress(sized(count))
    for path in (
        mha(tmp_path, data, len(data)),
        nrrd(tmp_path, gzip.compress(sized(count))),
        nrrd(tmp_path, bz2.compress(sized(count)), "bzip2", name="b.nrrd"),
    ):
        outcome, _ = only(path, tmp_path)
        assert (outcome.status, codes(outcome)) == ("refused", [code]), (path, outcome.reasons)


def test_streams_that_end_early_are_refused(tmp_path):
    for path in (
        mha(tmp_path, PACKED[:-1000], len(PACKED)),
        mha(tmp_path, PACKED[:-2], name="b.mha"),
        nrrd(tmp_path, GZIP[:-1000]),
        nrrd(tmp_path, GZIP[:-5], name="b.nrrd"),
        nrrd(tmp_path, bz2.compress(DATA)[:-1000], "bzip2", name="c.nrrd"),
        nrrd(tmp_path, b"", name="d.nrrd"),
    ):
        outcome, _ = only(path, tmp_path)
        assert (outcome.status, codes(outcome)) == ("refused", ["truncated"]), (path, outcome.reasons)


@pytest.mark.parametrize("wrong", [-1000, -1, 1, 10**6])
def test_a_compressed_size_that_lies_is_refused(tmp_path, wrong):
    outcome, _ = only(mha(tmp_path, PACKED + b"\0" * 10, len(PACKED) + wrong), tmp_path)
    assert outcome.status == "refused" and "CompressedDataSize" in outcome.reasons[0][1]


def test_bzip2_that_this_reader_has_not_is_told(tmp_path):
    outcome, _ = only(nrrd(tmp_path, bz2.compress(DATA), "bzip2"), tmp_path)
    assert outcome.status == "refused" and "bzip2" in outcome.reasons[0][1]


@pytest.mark.parametrize("name", ["../secret.raw", "/etc/hostname", "sub/../../secret.raw"])
def test_detached_voxels_outside_the_source_are_not_read(tmp_path, name):
    (tmp_path / "secret.raw").write_bytes(DATA)
    (tmp_path / "in" / "sub").mkdir(parents=True)
    head = META.format(packed="False", more="", file=name)
    for path in (
        written(tmp_path / "in" / "a.mhd", head, b""),
        written(tmp_path / "in" / "b.nhdr", NRRD.format(encoding="raw", more=f"data file: {name}\n"), b""),
        written(tmp_path / "in" / "l.mhd", META.format(packed="False", more="", file="LIST") + name + "\n", b""),
    ):
        assert codes(only(path, tmp_path)[0]) == ["outside_source"]
    inside = written(tmp_path / "in" / "sub" / "c.mhd", head.replace(name, "../voxels.raw"), b"")
    (tmp_path / "in" / "voxels.raw").write_bytes(DATA)
    results = ingest_one(tmp_path / "in", tmp_path)
    assert {o.key: o.status for o, _ in results}["sub/c.mhd"] == "accepted" and inside.exists()


def test_detached_voxels_in_a_pipe_are_not_opened(tmp_path):
    path = written(tmp_path / "in" / "a.mhd", META.format(packed="False", more="", file="p.raw"), b"")
    os.mkfifo(tmp_path / "in" / "p.raw")
    assert codes(only(path, tmp_path)[0]) == ["unreadable"]


# NIfTI headers


@pytest.mark.parametrize("size", [50, 1000, 3_000_000])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_header_extensions_are_skipped(tmp_path, size, kind):
    path = save_nifti(tmp_path / "in" / "a.nii.gz", HU)
    plain = nib.load(path)
    image = kind(np.asanyarray(plain.dataobj), plain.affine)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * size))
    nib.save(image, path)
    outcome, volume = only(path, tmp_path)
    assert outcome.status == "accepted", outcome.reasons
    np.testing.assert_array_equal(volume, EXPECTED)


def patched(path, **fields):
    data = bytearray(path.read_bytes())
    header = nib.Nifti1Header(bytes(data[:348]))
    for name, value in fields.items():
        header[name] = value
    data[:348] = header.binaryblock
    path.write_bytes(bytes(data))
    return path


@pytest.mark.parametrize("slope", [(np.nan, np.nan), (0, 0), (0, -1024), (1, np.nan), (np.inf, 0)])
def test_a_slope_that_is_none_leaves_values_alone(tmp_path, slope):
    path = patched(save_nifti(tmp_path / "in" / "a.nii", HU), scl_slope=slope[0], scl_inter=slope[1])
    outcome, volume = only(path, tmp_path)
    assert outcome.status == "accepted", outcome.reasons
    np.testing.assert_array_equal(volume, EXPECTED)


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_an_unusable_sform_beside_a_good_qform(tmp_path, value):
    path = save_nifti(tmp_path / "in" / "a.nii", HU)
    path = patched(path, srow_x=[value] * 4, srow_y=[value] * 4, srow_z=[value] * 4)
    outcome, volume = only(path, tmp_path)
    assert codes(outcome) == ["header_conflict"] and "sform unusable" in outcome.reasons[0][1]
    np.testing.assert_array_equal(volume, EXPECTED)


def test_a_quaternion_off_by_rounding(tmp_path):
    path = save_nifti(tmp_path / "in" / "a.nii", HU)
    path = patched(path, sform_code=0, quatern_b=0, quatern_c=0, quatern_d=1.00001)
    outcome, volume = only(path, tmp_path)
    assert outcome.status == "accepted", outcome.reasons
    np.testing.assert_array_equal(volume, EXPECTED)
    outcome, _ = only(patched(path, quatern_d=1.5), tmp_path)
    assert codes(outcome) == ["no_geometry"]


def test_a_sheared_sform_is_not_replaced_by_the_qform(tmp_path):
    path = save_nifti(tmp_path / "in" / "a.nii", HU)
    outcome, _ = only(patched(path, srow_y=[0, -5.5, 1.0, 0]), tmp_path)
    assert codes(outcome) == ["gantry_tilt"]


@pytest.mark.parametrize(("pack", "name"), [(bz2.compress, "bzip2"), (lambda d: b"PK\x03\x04" + d, "zip")])
def test_a_nifti_packed_otherwise_is_named(tmp_path, pack, name):
    path = save_nifti(tmp_path / "in" / "a.nii", HU)
    path.write_bytes(pack(path.read_bytes()))
    outcome, _ = only(path, tmp_path)
    assert codes(outcome) == ["packed"] and name in outcome.reasons[0][1]
