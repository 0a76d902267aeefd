"""CT-RATE's tree as it lies on disk: which files are read, whose geometry counts, what a plan tells."""

from __future__ import annotations

import csv
import gzip
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from ct_rate_scans import SPACING, chest, codes, ingest_one, save_nifti

from ctflow.config.prep import IngestConfig
from ctflow.errors import ScanError
from data_prep.ct_rate.discovery import find_items
from data_prep.ct_rate.layout import sort_out, stem_of
from data_prep.ct_rate.memory import WORKER_BYTES, available_bytes, needed_bytes
from data_prep.ct_rate.noise import tissue_noise
from data_prep.ct_rate.plan import make_plan
from data_prep.ct_rate.tables import Tables
from data_prep.ct_rate.tags import ScanTags, acquisition_of, kernel_sharpness, tags_of

NAMES = ("train_1_a_1", "train_1_a_2", "train_2_a_1", "valid_1_a_1")
TREES = ("{split}_fixed", "{split}", "ts_seg/ts_total/{split}_fixed", "ts_seg/ts_lung_nodules/{split}_fixed")


def place(tree: str, name: str) -> str:
    split, number, scan, _ = name.split("_")
    folder = tree.format(split=split)
    return f"dataset/{folder}/{split}_{number}/{split}_{number}_{scan}/{name}.nii.gz"


def empty_tree(root: Path, trees=TREES, names=NAMES) -> Path:
    for tree in trees:
        for name in names:
            path = root / place(tree, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return root


def write_table(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def metadata(name: str, **changes: object) -> dict[str, object]:
    z, y, x = SPACING
    return {
        "VolumeName": f"{name}.nii.gz",
        "Manufacturer": "SIEMENS",
        "ConvolutionKernel": "['B70f', '3']",
        "RescaleIntercept": -1024,
        "RescaleSlope": 1,
        "XYSpacing": f"[{x}, {y}]",
        "ZSpacing": z,
        "ImageOrientationPatient": "[1.0, 0.0, 0.0, 0.0, 1.0, 0.0]",
        "ImagePositionPatient": "[-176.0, -176.0, -150.0]",
        "Rows": 64,
        "Columns": 64,
        "NumberofSlices": 44,
        **changes,
    }


def row_of(tmp_path: Path, **changes: object):
    write_table(tmp_path / "m" / "train_metadata.csv", [metadata("train_1_a_1", **changes)])
    tables = Tables(IngestConfig(), [tmp_path / "m" / "train_metadata.csv"])
    return tables.row("train_1_a_1.nii.gz", alone=False)


def kept(root: Path, **config) -> list[str]:
    return [item.key for item in find_items(root, None, IngestConfig(**config)).items]


def groups(root: Path, **config) -> dict[str, tuple[str, int]]:
    found = find_items(root, None, IngestConfig(**config)).left_out
    return {group.place: (group.code, group.count) for group in found}


def test_the_corrected_tree_is_taken_and_the_rest_left_out_in_a_line_each(tmp_path):
    root = empty_tree(tmp_path)
    assert kept(root) == [place("{split}_fixed", name) for name in NAMES]
    assert groups(root) == {
        "dataset/ts_seg/": ("label_map", 8),
        "dataset/train/": ("first_version", 3),
        "dataset/valid/": ("first_version", 1),
    }
    assert kept(root / "dataset") == [place("{split}_fixed", name)[8:] for name in NAMES]
    assert kept(root / "dataset" / "train_fixed") == [
        place("{split}_fixed", name).split("/", 2)[2] for name in NAMES[:3]
    ]


@pytest.mark.parametrize("trees", [("{split}",), ("{split}", "ts_seg/ts_total/{split}_fixed")])
def test_the_first_version_alone_is_read(tmp_path, trees):
    assert kept(empty_tree(tmp_path, trees)) == [place("{split}", name) for name in NAMES]


def test_a_split_without_correction_keeps_its_first_version(tmp_path):
    empty_tree(tmp_path, ("{split}",))
    empty_tree(tmp_path, ("{split}_fixed",), NAMES[:1])
    assert kept(tmp_path) == [place("{split}_fixed", NAMES[0]), place("{split}", NAMES[3])]
    found = find_items(tmp_path).left_out
    assert [(g.code, g.count) for g in found] == [("first_version", 3)] and "but for 2" in found[0].detail
    asked = kept(tmp_path, first_version=True)
    assert {stem_of(key) for key in asked} == {*NAMES} and place("{split}", NAMES[0]) not in asked


def test_a_flat_folder_and_a_subset_are_read(tmp_path):
    for name in NAMES[1:]:
        (tmp_path / f"{name}.nii.gz").touch()
    assert kept(tmp_path) == [f"{name}.nii.gz" for name in NAMES[1:]]


@pytest.mark.parametrize(
    ("label_map", "told"),
    [
        ("segmentations/p1/ct.nii.gz", "segmentations/"),
        ("lung_masks/ct.nii.gz", "lung_masks/"),
        ("labelsTr/ct.nii.gz", "labelsTr/"),
        ("images/ct_seg.nii.gz", "*_seg"),
        ("images/ct-label.nrrd", "*-label"),
        ("images/ct.seg.nrrd", "*.seg"),
    ],
)
def test_other_label_maps_are_known_by_place_where_a_volume_has_their_name(label_map, told):
    layout = sort_out(["images/ct.nii.gz", label_map], "data", False)
    assert layout.kept == ["images/ct.nii.gz"]
    assert [(g.place, g.code, g.count) for g in layout.left_out] == [(told, "label_map", 1)]
    assert sort_out([label_map], "data", False).kept == [label_map], "no volume of that name: it is read"
    assert sort_out(["images/ct_0000.nii.gz", "labelsTr/ct.nii.gz"], "d", False).kept == [
        "images/ct_0000.nii.gz"
    ]


def test_label_maps_elsewhere_are_known_by_their_values(tmp_path):
    hu = chest()
    labels = np.where(hu < -500, 10, np.where(hu > 200, 44, 0))
    root = tmp_path / "in"
    save_nifti(root / "a" / "case.nii.gz", hu)
    save_nifti(root / "b" / "case.nii.gz", labels.astype(np.uint8))
    save_nifti(root / "c" / "case.nii.gz", labels.astype(np.float32))
    save_nifti(root / "d" / "case.nii.gz", np.zeros_like(labels, np.uint8))
    outcomes = [outcome for outcome, _ in ingest_one(root, tmp_path)]
    assert [o.status for o in outcomes] == ["accepted", "excluded", "excluded", "excluded"]
    assert {code for o in outcomes[1:] for code in codes(o)} == {"label_map"}
    (lonely, _), *_ = ingest_one(root / "b", tmp_path)
    assert lonely.status == "refused" and codes(lonely) == ["not_hu"], "without a volume it is told"


def test_lists_exclude_their_volumes_wherever_they_lie(tmp_path):
    root = empty_tree(tmp_path / "in", ("{split}_fixed",))
    lists = tmp_path / "elsewhere" / "no_chest_train.txt"
    lists.parent.mkdir()
    lists.write_bytes(
        b"\xef\xbb\xbf# heads\r\ntrain_2_a_1.nii.gz\r\n\r\ndataset/valid/VALID_1_a_1.nii.gz\r\n"
    )
    for config in ({"exclude": [str(lists)]}, {"tables": str(lists.parent)}):
        source = find_items(root, None, IngestConfig(**config))
        assert [stem_of(item.key) for item in source.items] == ["train_1_a_1", "train_1_a_2"]
        assert {stem_of(key) for key in source.excluded} == {"train_2_a_1", "valid_1_a_1"}
        assert {*source.excluded.values()} == {"named in no_chest_train.txt"}
        assert not source.stray
    inside = root / "dataset" / "metadata" / "no_chest_train.txt"
    inside.parent.mkdir()
    lists.rename(inside)
    assert len(find_items(root).items) == 2
    beside = find_items(root / "dataset" / "train_fixed")
    assert [stem_of(item.key) for item in beside.items] == ["train_1_a_1", "train_1_a_2"], (
        "lists beside the tree"
    )
    with pytest.raises(ScanError, match="no folder at"):
        find_items(root, None, IngestConfig(tables=str(tmp_path / "nowhere")))


def blank(path: Path, hu: np.ndarray, affine=None) -> Path:
    """CT-RATE's first version: DICOM's order (columns, rows, slices), stored values, no geometry."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = hu.transpose(2, 1, 0)[::-1].astype(np.float32) + 1024
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


@pytest.mark.parametrize("affine", [None, np.diag([-1.0, -1.0, 1.0, 1.0])])
def test_the_first_version_is_placed_by_its_metadata(tmp_path, affine):
    hu = chest()
    path = blank(tmp_path / "in" / "train_1_a_1.nii.gz", hu, affine)
    (outcome, found), *_ = ingest_one(path, tmp_path, row_of(tmp_path))
    (_, right), *_ = ingest_one(save_nifti(tmp_path / "v2" / "train_1_a_1.nii.gz", hu), tmp_path)
    assert outcome.status == "accepted" and outcome.facts["geometry_from"] == "csv"
    assert outcome.facts["origin_mm_lps"] == [-176.0, -176.0, -150.0]
    np.testing.assert_array_equal(found, right)
    assert outcome.spacing == pytest.approx(SPACING)


def test_a_prone_patients_direction_is_the_metadatas(tmp_path):
    hu = chest()
    turned = hu[:, ::-1, ::-1]  # rows and columns run the other way
    path = blank(tmp_path / "in" / "train_1_a_1.nii.gz", turned)
    row = row_of(tmp_path, ImageOrientationPatient="[-1.0, 0.0, 0.0, 0.0, -1.0, 0.0]")
    (outcome, found), *_ = ingest_one(path, tmp_path, row)
    (_, right), *_ = ingest_one(save_nifti(tmp_path / "v2" / "train_1_a_1.nii.gz", hu), tmp_path)
    np.testing.assert_array_equal(found, right)
    assert outcome.status == "accepted"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"ImageOrientationPatient": ""}, "no_orientation"),
        ({"ImageOrientationPatient": "[1.0, 0.0, 0.0, 1.0, 0.0, 0.0]"}, "no_orientation"),
        ({"XYSpacing": ""}, "no_geometry"),
        ({"ZSpacing": 0.035}, "implausible_spacing"),
        ({"Columns": 44, "NumberofSlices": 64}, "no_orientation"),
    ],
)
def test_a_blank_header_is_not_guessed(tmp_path, changes, code):
    path = blank(tmp_path / "in" / "train_1_a_1.nii.gz", chest())
    (outcome, _), *_ = ingest_one(path, tmp_path, row_of(tmp_path, **changes))
    assert outcome.status == "refused" and codes(outcome) == [code]


def test_a_blank_header_without_metadata_is_refused(tmp_path):
    (outcome, _), *_ = ingest_one(blank(tmp_path / "in" / "a.nii.gz", chest() - 1024), tmp_path)
    assert codes(outcome) == ["no_orientation"]


@pytest.mark.parametrize(("axes", "words"), [("LAS", "front"), ("LPI", "bottom"), ("RPS", "left")])
def test_anatomy_against_the_header_is_flagged(tmp_path, axes, words):
    """The array lies in LPS; the header says otherwise."""
    hu = narrow_chest()
    (right, _), *_ = ingest_one(save_nifti(tmp_path / "right.nii.gz", hu), tmp_path)
    assert right.status == "accepted", right.reasons
    path = save_nifti(tmp_path / "in" / "a.nii.gz", hu)
    image = nib.load(path)
    signs = {"L": (0, -1), "R": (0, 1), "P": (1, -1), "A": (1, 1), "S": (2, 1), "I": (2, -1)}
    affine = np.zeros((4, 4))
    for column, letter in enumerate(axes):
        axis, sign = signs[letter]
        affine[axis, column] = sign * image.header.get_zooms()[column]
    affine[3, 3] = 1
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), path)
    (outcome, _), *_ = ingest_one(path, tmp_path)
    doubt = dict(outcome.reasons)["orientation_doubt"]
    assert outcome.status == "flagged" and words in doubt


def narrow_chest() -> np.ndarray:
    """The tests' chest with lungs that are narrow at the top."""
    hu = chest()
    s, p, r = np.meshgrid(*[np.linspace(-1, 1, n) for n in hu.shape], indexing="ij")
    hu[(s > 0.1) & (hu < -500) & (np.abs(r) > 0.6 - 0.35 * s) & ((p / 0.64) ** 2 + (r / 0.82) ** 2 < 1)] = 45
    return hu


def test_what_shows_no_chest_is_kept_only_where_asked(tmp_path):
    grid = np.meshgrid(*[np.linspace(-1, 1, n) for n in (44, 64, 64)], indexing="ij")
    radius = np.sqrt(sum((axis / 0.8) ** 2 for axis in grid))
    head = np.where(radius < 0.9, 35, np.where(radius < 1, 900, -1000))
    head = (head + np.random.default_rng(0).normal(0, 10, head.shape)).astype(np.int16)
    path = save_nifti(tmp_path / "in" / "head.nii.gz", head)
    (outcome, volume), *_ = ingest_one(path, tmp_path)
    assert outcome.status == "excluded" and "not_chest" in codes(outcome) and volume is None
    (asked, volume), *_ = ingest_one(path, tmp_path, keep_no_chest=True)
    assert asked.status == "flagged" and volume is not None


@pytest.mark.parametrize(
    ("kernel", "sharpness"),
    [
        *(("B30f", "soft"), ("['B70f', '3']", "sharp"), ("I50f 2", "sharp"), ("Br40d", "soft")),
        *(("B", "soft"), ("YA", "sharp"), ("L", "sharp"), ("C", "")),
        *(("STANDARD", "soft"), ("LUNG", "sharp"), ("BONEPLUS", "sharp")),
        *(("FC03", "soft"), ("FC52", "sharp"), ("", ""), ("nan", "")),
    ],
)
def test_kernels_are_soft_or_sharp(kernel, sharpness):
    assert kernel_sharpness(kernel) == sharpness


def test_scan_reconstruction_and_scanner_are_recorded(tmp_path):
    path = save_nifti(tmp_path / "in" / "train_1_a_2.nii.gz", chest())
    (outcome, _), *_ = ingest_one(path, tmp_path, row_of(tmp_path))
    noise = outcome.acquisition.pop("noise_hu")
    assert 10 < noise < 15, "the chest's noise is 12 HU"
    assert outcome.acquisition == {
        "scan": "train_1_a",
        "reconstruction": "2",
        "kernel": "B70f 3",
        "sharpness": "sharp",
        "manufacturer": "SIEMENS",
    }
    assert acquisition_of("case", "", "", None).scan == ""


def test_noise_needs_tissue():
    assert tissue_noise(np.full((40, 32, 32), -1000.0), lambda plane: plane) is None


def test_tags_of_rows_with_nothing_in_them():
    assert tags_of({}) == ScanTags()
    assert tags_of({"imageorientationpatient": "[1, 0, 0]", "manufacturer": "nan"}) == ScanTags()


def large(path: Path, shape: tuple[int, ...], dtype=np.int16) -> Path:
    """A header that tells of a large volume, and no voxels."""
    header = nib.Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    header["magic"], header["vox_offset"] = b"n+1", 352
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(header.binaryblock + bytes(4)))
    return path


def test_memory_is_told_by_the_header_alone(tmp_path):
    path = large(tmp_path / "in" / "a.nii.gz", (1024, 1024, 2062))
    (item,) = find_items(path).items
    assert needed_bytes(item) == 2 * 1024 * 1024 * 2062 + WORKER_BYTES
    (outcome, _), *_ = ingest_one(path, tmp_path, memory_gb=2)
    assert codes(outcome) == ["too_large"] and "memory_gb=7 would do" in outcome.reasons[0][1]
    (fits, _), *_ = ingest_one(path, tmp_path, memory_gb=6)
    assert codes(fits) == ["truncated"], "int16 of 2,062 slices fits into the default"
    assert 0 < available_bytes() < 2**50


@pytest.mark.parametrize("content", [b"\x1f\x8bnothing", b"not gzip at all", b"", gzip.compress(bytes(1000))])
def test_a_damaged_header_needs_no_memory(tmp_path, content):
    (tmp_path / "a.nii.gz").write_bytes(content)
    (item,) = find_items(tmp_path / "a.nii.gz").items
    assert needed_bytes(item) == WORKER_BYTES


def test_a_plan_counts_and_writes_nothing(tmp_path):
    root = empty_tree(tmp_path / "in", names=[*NAMES, "train_3_a_1", "train_4_a_1"])
    rows = [metadata(n, Rows=512, Columns=512, NumberofSlices=300, XYSpacing="[0.7, 0.7]") for n in NAMES]
    rows[1]["ConvolutionKernel"] = "B30f"
    rows.append(metadata("train_3_a_1", ZSpacing=0.035))
    write_table(root / "dataset" / "metadata" / "train_metadata.csv", rows)
    (root / "dataset" / "metadata" / "no_chest_train.txt").write_text("train_4_a_1.nii.gz\n")
    reports = [
        {"VolumeName": f"{n}.nii.gz", "Findings_EN": "x", "Impressions_EN": ""}
        for n in (*NAMES[:3], "train_9_a_1")
    ]
    write_table(root / "dataset" / "radiology_text_reports" / "train_reports.csv", reports)
    before = sorted(tmp_path.rglob("*"))
    plan = make_plan(IngestConfig(source=str(root), output=str(tmp_path / "out"), z_spacing=2.5, workers=2))
    assert sorted(tmp_path.rglob("*")) == before
    assert dict(plan.volumes) == {"train": 4, "valid": 1} and (plan.scans, plan.patients) == (4, 3 + 1)
    assert plan.left_out == {
        "label_map (dataset/ts_seg/)": 12,
        "first_version (dataset/train/)": 5,
        "first_version (dataset/valid/)": 1,
        "listed_no_chest": 1,
    }
    assert dict(plan.expected) == {"implausible_spacing": 1}
    assert dict(plan.kernels) == {"sharp": 4, "soft": 1}
    assert (plan.without_report, plan.without_file) == (2, 1)
    slices = 300 * SPACING[0] / 2.5
    assert plan.bytes == pytest.approx(4 * slices * 256**2 * 2 * 0.42, rel=0.01)
    assert plan.seconds > 0 and "documentation" in plan.rate_from


def test_a_plan_of_many_volumes_takes_seconds():
    """Sorting names out is what grows with the tree; half a million keys of CT-RATE's kind."""
    keys = [place(tree, f"train_{n}_a_{r}") for tree in TREES for n in range(5000) for r in (1, 2)]
    started = time.process_time()
    layout = sort_out(keys, "ct-rate", False)
    assert len(layout.kept) == 10_000 and sum(g.count for g in layout.left_out) == 30_000
    assert time.process_time() - started < 5


def test_reading_processes_load_no_torch():
    code = "import sys, data_prep.ct_rate.prepare; print({'torch', 'lightning', 'h5py'} & {*sys.modules})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert found.stdout.strip() == "set()"
