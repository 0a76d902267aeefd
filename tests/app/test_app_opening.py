"""Files opened through the server: the reader's process, the library, reconstruction, and what is refused."""

from __future__ import annotations

import io
import os
import threading
import zipfile

import numpy as np
import pytest

from ctflow.app import opening
from ctflow.app.opening import title_of
from ctflow.data.writers import write_volume
from ctflow.types import HUVolume
from data_prep.phantom import make_phantom
from data_prep.phantom.sampling import sample_spec


@pytest.fixture(scope="module")
def chest() -> HUVolume:
    volume = make_phantom(sample_spec(3, 1, 64, 8.0)).volume
    # Below, the readers see padding.
    return HUVolume(np.rint(volume.hu).clip(-1000).astype(np.float32), volume.spacing)


def sent(client, name: str, data: bytes):
    return client.post("/api/open", params={"name": name}, content=data)


def left_over(client) -> list[str]:
    return [path.name for path in client.studio.library.folder.iterdir() if not path.name.endswith(".hu")]


def test_a_scan_is_opened_reconstructed_and_downloaded(client, chest, tmp_path):
    write_volume(tmp_path / "x.nii.gz", chest)
    name = "../../<b>my scan</b>.nii.gz"
    answer = sent(client, name, (tmp_path / "x.nii.gz").read_bytes())
    assert answer.status_code == 202 and answer.json()["title"] == "open b>.nii.gz"
    job = client.ended(answer.json()["id"], 120)
    assert job["state"] == "done", job
    (volume,) = job["volumes"]
    entry = client.get(f"/api/volumes/{volume}").json()
    assert entry["kind"] == "opened" and entry["side"] == 64 and entry["done"] == len(chest.hu)
    np.testing.assert_array_equal(client.studio.library.voxels(volume), chest.hu)
    assert entry["facts"]["findings"]["lung_ml"]["right"] > 300
    grid = client.get(f"/api/volumes/{entry['grid']}").json()
    assert grid["side"] == 32 and grid["spacing"][0] == pytest.approx(4.0) and grid["source"] == volume
    assert left_over(client) == []

    assert client.post_json(f"/api/volumes/{volume}/reconstruct").status_code == 400  # another grid
    job = client.ended(client.post_json(f"/api/volumes/{grid['id']}/reconstruct").json()["id"])
    assert job["state"] == "done", job
    twin = client.get(f"/api/volumes/{job['volumes'][0]}").json()
    assert twin["kind"] == "reconstruction" and twin["pair"] == grid["id"] and twin["done"] == grid["done"]
    model = client.studio.model
    slices = client.studio.library.voxels(grid["id"]).astype(np.float32)
    expected = model.generator().decode(model.encode(slices))
    np.testing.assert_allclose(client.studio.library.voxels(twin["id"]), expected, atol=1.5)

    packed = client.get(f"/api/volumes/{volume}/download/dicom").content
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        assert len(archive.namelist()) == len(chest.hu)
    again = client.ended(sent(client, "b.zip", packed).json()["id"], 120)
    assert again["state"] == "done", again
    np.testing.assert_array_equal(client.studio.library.voxels(again["volumes"][0]), chest.hu)
    assert client.get(f"/api/volumes/{volume}/download/mha").content.startswith(b"ObjectType")


def test_what_is_no_scan_is_said_and_leaves_nothing(client):
    volumes = client.state()["volumes"]
    job = client.ended(sent(client, "a.nii.gz", b"nothing").json()["id"], 120)
    assert job["state"] == "failed" and job["message"]
    assert str(client.studio.library.folder) not in job["message"] and "Traceback" not in job["message"]
    assert client.state()["volumes"] == volumes and left_over(client) == []


@pytest.mark.parametrize("name", ["", "a", "a.exe", "a.nii.gz.exe", ".zip/../x", "a.pkl", "a.dcm"])
def test_other_endings_are_refused_unread(client, name):
    assert sent(client, name, b"x").status_code == 400 and left_over(client) == []


def test_a_file_has_a_largest_size(client, monkeypatch):
    monkeypatch.setattr(client.studio.config, "upload_gb", 100 / 2**30)
    assert sent(client, "a.nii.gz", bytes(101)).status_code == 413
    pieces = (bytes(60) for _ in range(2))  # a body that does not say its length
    assert client.post("/api/open", params={"name": "a.nii.gz"}, content=pieces).status_code == 413
    assert left_over(client) == []


def test_reading_is_ended_by_cancel_and_by_the_clock(client, monkeypatch, tmp_path):
    (tmp_path / "endless_reader.py").write_text("while True: pass\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(opening, "_READER", "endless_reader")
    monkeypatch.setattr(client.studio.config, "open_minutes", 0.005)
    job = client.ended(sent(client, "a.nii.gz", b"x").json()["id"], 20)
    assert job["state"] == "failed" and "too long" in job["message"]
    monkeypatch.setattr(client.studio.config, "open_minutes", 5.0)
    job_id = sent(client, "a.nii.gz", b"x").json()["id"]
    client.post_json(f"/api/jobs/{job_id}/cancel")
    assert client.ended(job_id, 5)["state"] == "cancelled"
    assert left_over(client) == []


def test_a_file_that_waits_is_removed_when_it_is_cancelled(client, monkeypatch):
    go_on = threading.Event()
    client.studio.queue.submit("test", "wait", lambda _: go_on.wait(30))
    job_id = sent(client, "a.nii.gz", b"x").json()["id"]
    assert len(left_over(client)) == 1
    client.post_json(f"/api/jobs/{job_id}/cancel")
    assert left_over(client) == []
    go_on.set()


def test_titles_are_names_that_can_be_shown():
    assert title_of("C:\\scans\\a.nii") == "a.nii" and title_of("../a/b.zip") == "b.zip"
    assert title_of("a\n\x1b[31m.nii") == "a??[31m.nii" and len(title_of("x" * 500)) == 80
