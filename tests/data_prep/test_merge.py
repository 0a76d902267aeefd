"""``data_prep.merge``: names, bytes, going on after a kill, sets that do not belong together."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest

from ctflow.data import LatentHeader, LatentRecord, LatentShards, LatentShardWriter
from ctflow.data.records import Acquisition
from ctflow.data.verify import verify_folder
from ctflow.errors import CTFlowError, ShardError
from ctflow.whitening import Whitening
from data_prep import merge

AIR = np.zeros((2, 3, 3), np.float32)
HEADER = LatentHeader("avae", "text", Whitening([1.0, 1.0], [0.5, 0.25]), AIR, AIR, (-1000.0, 1000.0))


def write(folder, patients, seed, header=HEADER, split="train"):
    """Two scans of each patient, a shard of three cases at most."""
    rng = np.random.default_rng(seed)
    writer = LatentShardWriter(folder / split, header)
    cases = [(patient, scan) for patient in range(patients) for scan in "ab"]
    for first in range(0, len(cases), 3):
        writer.begin(f"shard-{first:05d}.h5")
        for patient, scan in cases[first : first + 3]:
            mean = rng.normal(size=(5 + patient, 2, 3, 3)).astype(np.float16)
            text = rng.normal(size=(4, 5)).astype(np.float16)
            case = LatentRecord(
                f"{split}_{patient}_{scan}_1", f"{split}_{patient}", mean, mean, (4.0, 2.0, 2.0), text,
                np.ones(4, bool), text[0].astype(np.float32), split=split,
                acquisition=Acquisition(scan=f"{split}_{patient}_{scan}" if scan == "a" else ""),
            )  # fmt: skip
            writer.append(case)
        writer.finish()
    return folder


@pytest.fixture
def sets(tmp_path):
    first, second = (write(tmp_path / name, 2 + seed, seed) for seed, name in enumerate(("one", "two")))
    write(first, 1, 7, split="valid")
    return [f"first={first}", f"second={second}"], (first, second), tmp_path / "both"


def run(arguments, output):
    return merge.main([*arguments, "--output", str(output)])


def test_every_case_is_there_under_its_sets_name(sets):
    arguments, folders, output = sets
    assert run(arguments, output) == 0
    merged = LatentShards(output / "train")
    assert not verify_folder(output / "train") and merged.header.whitening == HEADER.whitening
    place = 0
    for name, folder in zip(("first", "second"), folders, strict=True):
        source = LatentShards(folder / "train")
        for index in range(len(source)):
            was, now = source.record(index), merged.record(place)
            assert (now.case_id, now.patient_id) == (f"{name}-{was.case_id}", f"{name}-{was.patient_id}")
            assert now.acquisition.scan == (f"{name}-{was.acquisition.scan}" if was.acquisition.scan else "")
            for field in ("mean", "logvar", "text", "pooled"):
                np.testing.assert_array_equal(getattr(now, field), getattr(was, field))
            place += 1
    assert place == len(merged) == 10
    assert len({case.patient_id for case in merged.cases}) == 5
    assert len(LatentShards(output / "valid")) == 2  # the first set alone has that split


def test_a_killed_run_goes_on_and_writes_the_same(sets, tmp_path, monkeypatch):
    arguments, _, output = sets
    run(arguments, tmp_path / "whole")
    append, calls = LatentShardWriter.append, []

    def killed(writer, record):
        calls.append(record.case_id)
        if len(calls) == 6:
            raise KeyboardInterrupt
        append(writer, record)

    with monkeypatch.context() as patch:
        patch.setattr(LatentShardWriter, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            run(arguments, output)
    assert not list((output / "train").glob("*.partial"))
    before = {path: path.stat().st_mtime_ns for path in (output / "train").glob("*.h5")}
    assert before
    assert run(arguments, output) == 0
    for path in sorted((tmp_path / "whole").rglob("*.h5")):
        again = output / path.relative_to(tmp_path / "whole")
        assert again.read_bytes() == path.read_bytes()
        assert before.get(again, again.stat().st_mtime_ns) == again.stat().st_mtime_ns


def test_another_output_is_refused(sets):
    arguments, (first, _), output = sets
    run(arguments, output)
    with pytest.raises(ShardError, match="was made from"):
        run(reversed(arguments), output)
    shutil.rmtree(first / "train")
    write(first, 2, 9)
    with pytest.raises(ShardError, match="was made from"):
        run(arguments, output)


def test_sets_of_other_encoders_are_refused(sets, tmp_path):
    arguments, _, output = sets
    for field in ("avae_fingerprint", "text_fingerprint"):
        other = write(tmp_path / field, 1, 3, replace(HEADER, **{field: "another"}))
        with pytest.raises(ShardError, match=f"{field} another"):
            run([*arguments, f"third={other}"], output)
    assert not output.exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["first={one}"], "1 set"),
        (["{one}", "b={two}"], "the set"),
        (["a b={one}", "b={two}"], "the set 'a b="),
        (["a={one}", "a={two}"], "comes twice"),
        (["a={one}", "b={one}"], "comes twice"),
        (["a={one}", "output={two}"], "--output"),
        (["a={one}", "b={none}"], "no latent shards in"),
        (["a={one}", "b={two}/train"], "others in no such folder"),
    ],
)
def test_bad_sets_are_told(sets, tmp_path, arguments, told):
    places = {"one": tmp_path / "one", "two": tmp_path / "two", "none": tmp_path / "none"}
    with pytest.raises(CTFlowError) as error:
        run([argument.format(**places) for argument in arguments], tmp_path / "both")
    assert told in str(error.value)
