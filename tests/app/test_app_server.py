"""The server's answers: jobs, events, voxels, files, limits, on a tiny random system."""

from __future__ import annotations

import gzip
import io
import json
import threading

import nibabel as nib
import numpy as np
import pytest
from app_client import REPORT
from PIL import Image

from ctflow.app import server
from ctflow.app.jobs import MOST_WAITING
from ctflow.pipeline import CTFlow, GenerationRequest
from ctflow.seeding import SINGLE_REPORT_CASE

FEW = {"seed": 3, "slices": 20, "steps": 1}


def made(client, *reports: str, **more) -> list[dict]:
    """The volumes of a job that was asked for and has ended."""
    answer = client.post_json("/api/jobs", FEW | {"reports": list(reports or (REPORT,))} | more)
    assert answer.status_code == 202, answer.text
    job = client.ended(answer.json()["id"])
    assert job["state"] == "done", job
    return [client.get(f"/api/volumes/{volume}").json() for volume in job["volumes"]]


def voxels(client, volume: str, first: int = 0, count: int = 1000, **more) -> np.ndarray:
    query = {"first": first, "count": count} | more
    answer = client.get(f"/api/volumes/{volume}/voxels", params=query)
    assert answer.status_code == 200, answer.text
    return np.frombuffer(answer.content, "<i2").reshape(-1, 32, 32)


def test_the_page_and_what_it_needs(client):
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html") and "Generate" in page.text
    for path in ("app.js", "viewer.js", "style.css", "niivue.umd.js", "niivue.LICENSE.txt"):
        assert client.get(f"/static/{path}").status_code == 200
    about = client.get("/api/about").json()
    assert about["ready"] and about["side"] == 32 and about["steps"] == 1 and about["most_slices"] == 64
    assert about["z_spacing_range"] is None  # this system takes no spacing
    assert about["windows"]["lung"] == {"centre": -600.0, "width": 1500.0}


def test_a_report_becomes_the_volume_of_the_command(client, tiny_checkpoint):
    (volume,) = made(client)
    assert volume["state"] == "whole" and volume["done"] == 20 and volume["seed"] == 3
    model = CTFlow.from_pretrained(tiny_checkpoint, "cpu")
    request = GenerationRequest(REPORT, SINGLE_REPORT_CASE, 3, 20)
    expected = model.generate_many([request])[0].volume
    found = voxels(client, volume["id"])
    # Columns to the patient's right and rows to the front: how NIfTI's RAS order lies on disk.
    np.testing.assert_allclose(found[:, ::-1], expected.hu, atol=1.0)
    assert volume["record"]["request"]["report"] == REPORT
    assert volume["record"]["checkpoint_sha256"] == model.fingerprint
    assert len(volume["facts"]["seams"]["ratios"]) == 19 and volume["facts"]["seams"]["boundaries"] == [15]
    assert volume["facts"]["score"]["name"] == "clip_phantom"
    assert "verdicts" in volume["facts"]["findings"] or "error" in volume["facts"]["findings"]


def test_slices_come_block_by_block_and_are_never_taken_back(client):
    """The stream's own words: progress rises, voxels stay as they were told first."""
    seen: list[tuple[int, np.ndarray]] = []
    events: list[dict] = []
    real = client.studio.work._finish
    reached = threading.Event()

    def finish(*arguments):
        reached.set()
        real(*arguments)

    before = len(client.state()["volumes"])
    append = client.studio.library.append

    def recorded(volume, hu):
        append(volume, hu)
        state = client.studio.queue.snapshot()[-1]
        events.append(state)
        seen.append((client.studio.library[volume].done, client.studio.library.voxels(volume).copy()))

    client.studio.library.append = recorded
    client.studio.work._finish = finish
    try:
        (volume,) = made(client, slices=40)
    finally:
        client.studio.library.append, client.studio.work._finish = append, real
    assert reached.is_set() and len(client.state()["volumes"]) == before + 1
    assert [done for done, _ in seen] == [16, 32, 40]
    whole = client.studio.library.voxels(volume["id"])
    assert all(np.array_equal(part, whole[:done]) for done, part in seen)
    assert all(event["state"] == "running" and event["expected"] == 40 for event in events)


def test_events_tell_queue_and_library(client):
    # A stream never ends, and the test client waits for the end: so the generator alone is asked.
    import asyncio

    async def first_two() -> list[str]:
        handler = server.Server(client.studio, server.Board())
        response = await handler.events(None)
        body = response.body_iterator
        return [await anext(body), await anext(body)]

    first, second = asyncio.run(first_two())
    assert first.startswith("data: ") and first.endswith("\n\n")
    state = json.loads(first.removeprefix("data: "))
    assert {"queue", "volumes"} == set(state) and state["volumes"][0]["title"]
    assert second.startswith(": ")  # nothing has changed


def test_two_reports_grow_side_by_side_from_equal_noise(client):
    first, second = made(client, REPORT, REPORT)
    assert first["pair"] == second["id"] and second["pair"] == first["id"]
    np.testing.assert_allclose(voxels(client, first["id"]), voxels(client, second["id"]), atol=1.0)
    first, second = made(client, REPORT, "The heart is enlarged.")
    difference = voxels(client, second["id"], minus=first["id"])
    expected = voxels(client, second["id"]) - voxels(client, first["id"])
    np.testing.assert_array_equal(difference, expected)
    assert np.abs(difference).max() > 1


def test_a_volume_is_continued_from_its_slices(client):
    (source,) = made(client, slices=40)
    (volume,) = made(client, "The heart is enlarged.", slices=36, source=source["id"], keep=[4, 23])
    assert volume["kind"] == "continued" and volume["kept"] == 20 and volume["done"] == 36
    assert volume["record"]["given_slices"] == 20
    assert volume["record"]["continued"] == {"volume": source["id"], "first": 4, "last": 23}
    assert volume["facts"]["seams"]["boundaries"][0] == 19
    model = client.studio.model
    kept = client.studio.library.voxels(source["id"])[4:24].astype(np.float32)
    np.testing.assert_allclose(
        client.studio.library.voxels(volume["id"])[:20],
        model.generator().decode(model.encode(kept)),
        atol=1.5,
    )


def test_of_candidates_all_are_shown_and_one_is_the_best(client, tiny_checkpoint):
    volumes = made(client, candidates=2)
    assert [v["done"] for v in volumes] == [20, 20] and {v["state"] for v in volumes} == {"whole"}
    assert sorted("the best" in v["title"] for v in volumes) == [False, True]
    assert [v["record"]["request"]["noise_id"] for v in volumes] == ["report", "report/candidate2"]
    assert all(v["facts"]["score"] for v in volumes)
    (alone,) = made(client)
    np.testing.assert_allclose(voxels(client, volumes[0]["id"]), voxels(client, alone["id"]), atol=1.0)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"keep": [0, 40]}, "at most slice"),
        ({"keep": [9, 3]}, "rising"),
        ({"keep": [0, 19], "slices": 20}, "fewer"),
        ({"source": "v999"}, "no such volume"),
        ({"source": "../../etc/passwd"}, "no such volume"),
    ],
)
def test_what_cannot_be_continued_is_said(client, more, words):
    (source,) = made(client)
    body = FEW | {"reports": [REPORT], "slices": 40, "source": source["id"], "keep": [0, 15]} | more
    answer = client.post_json("/api/jobs", body)
    assert answer.status_code == 400 and words in answer.json()["error"]


def test_cancel_ends_the_running_job_and_the_waiting_one(client, monkeypatch):
    go_on = threading.Event()
    generate = client.studio.model.generate_many

    def slow(*arguments):
        go_on.wait(30)
        return generate(*arguments)

    monkeypatch.setattr(client.studio.model, "generate_many", slow)
    before = [entry["id"] for entry in client.state()["volumes"]]
    running, waiting = (
        client.post_json("/api/jobs", FEW | {"reports": [REPORT], "slices": 64}).json()["id"]
        for _ in range(2)
    )
    assert client.job(waiting)["state"] == "waiting"
    assert client.post_json(f"/api/jobs/{waiting}/cancel").json()["state"] == "cancelled"
    client.post_json(f"/api/jobs/{running}/cancel")
    go_on.set()
    assert client.ended(running, 5)["state"] == "cancelled"
    assert [
        entry["id"] for entry in client.state()["volumes"]
    ] == before  # nothing was drawn: nothing is kept
    assert client.post_json("/api/jobs/j999/cancel").status_code == 400


def test_one_thing_at_a_time_and_a_queue_that_has_an_end(client, monkeypatch):
    go_on = threading.Event()
    running = []

    def slow(*_):
        running.append(1)
        assert len(running) == 1
        go_on.wait(30)
        running.clear()
        raise ValueError("enough")

    monkeypatch.setattr(client.studio.model, "generate_many", slow)
    answers = [client.post_json("/api/jobs", FEW | {"reports": [REPORT]}) for _ in range(MOST_WAITING + 2)]
    assert answers[-1].status_code == 400 and "waiting" in answers[-1].json()["error"]
    for answer in answers[1:-1]:
        client.post_json(f"/api/jobs/{answer.json()['id']}/cancel")
    first = answers[0].json()["id"]
    go_on.set()
    assert client.ended(first)["message"] == "ValueError: enough"  # and the server goes on
    monkeypatch.undo()
    made(client)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ([], "JSON object"),
        ({}, "reports"),
        ({"reports": [" "]}, "empty"),
        ({"reports": ["a"] * 3}, "two reports"),
        ({"reports": ["a" * 20_001]}, "20000"),
        ({"reports": [1]}, "empty"),
        ({"reports": ["a"], "slices": 65}, "1 to 64"),
        ({"reports": ["a"], "slices": 0}, "1 to 64"),
        ({"reports": ["a"], "steps": 1.5}, "whole number"),
        ({"reports": ["a"], "steps": 10_000}, "1 to 500"),
        ({"reports": ["a"], "seed": -1}, "0 to"),
        ({"reports": ["a"], "seed": True}, "whole number"),
        ({"reports": ["a"], "guidance": "3"}, "not a number"),
        ({"reports": ["a"], "z_spacing": 1e9}, "0.05 to 20"),
        ({"reports": ["a"], "z_spacing": 2.0}, "trained at"),
        ({"reports": ["a"], "candidates": 9}, "1 to 8"),
        ({"reports": ["a", "b"], "candidates": 2}, "comparison"),
        ({"reports": ["a"], "output": "/etc/x"}, "unknown keys"),
        ({"reports": ["a"], "keep": [1]}, "kept slices"),
    ],
)
def test_what_cannot_be_generated_is_said(client, body, words):
    answer = client.post_json("/api/jobs", body)
    assert answer.status_code == 400 and words in answer.json()["error"]


def test_a_report_in_another_language_is_refused(client, monkeypatch):
    monkeypatch.setattr(client.studio.config, "max_unknown", 0.5)
    answer = client.post_json("/api/jobs", {"reports": ["Akciğerlerde belirgin bir bulgu yoktur."]})
    assert answer.status_code == 400 and "unknown" in answer.json()["error"]


def test_bodies_have_a_kind_and_a_limit(client, monkeypatch):
    assert client.post("/api/jobs", content="{}").status_code == 415
    assert (
        client.post("/api/jobs", content="{", headers={"Content-Type": "application/json"}).status_code == 400
    )
    deep = {"Content-Type": "application/json"}
    assert client.post("/api/jobs", content="[" * 100_000, headers=deep).status_code == 400
    monkeypatch.setattr(server, "JSON_BYTES", 10)
    assert client.post_json("/api/jobs", {"reports": [REPORT]}).status_code == 413
    pieces = (b"{" for _ in range(20))  # a body that does not say its length
    assert client.post("/api/jobs", content=pieces, headers=deep).status_code == 413


def test_files_of_reports(client, monkeypatch):
    table = f'case_id,report,seed\na,"{REPORT}",7\nb,,1\n../c,x,1\n'
    answer = client.post("/api/reports?kind=csv", content=table.encode()).json()
    assert answer["rows"] == [{"report": REPORT, "case_id": "a", "seed": 7}] and answer["found"] == 1
    assert len(answer["refused"]) == 2 and all("the file" in line for line in answer["refused"])
    folder = str(client.studio.library.folder)
    assert folder not in json.dumps(answer)
    text = client.post("/api/reports?kind=text", content="Verdacht auf Erguß.".encode("cp1252")).json()
    assert text["rows"][0]["report"] == "Verdacht auf Erguß."
    bad = client.post("/api/reports?kind=csv", content=b"a,b\n1,2\n")
    assert bad.status_code == 400 and folder not in bad.text and "the file" in bad.text
    monkeypatch.setattr(server, "TEXT_BYTES", 5)
    assert client.post("/api/reports?kind=text", content=b"123456").status_code == 413
    assert not list(client.studio.library.folder.glob("t*"))


def test_downloads_are_the_volume(client):
    (volume,) = made(client)
    base = f"/api/volumes/{volume['id']}/download"
    nifti = client.get(f"{base}/nifti")
    assert nifti.headers["content-disposition"].endswith(f'filename="ctflow-generated-{volume["id"]}.nii.gz"')
    image = nib.Nifti1Image.from_bytes(gzip.decompress(nifti.content))
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S") and image.shape == (32, 32, 20)
    np.testing.assert_array_equal(np.asarray(image.dataobj).T, voxels(client, volume["id"]))
    record = client.get(f"{base}/json").json()
    assert record["request"]["seed"] == 3 and record["kind"] == "generated"
    assert Image.open(io.BytesIO(client.get(f"{base}/png").content)).size[0] > 100
    assert client.get(f"{base}/exe").status_code == 400
    assert not list(client.studio.library.folder.glob("t*"))  # files are removed once they are sent


def test_pictures_for_browsers_without_a_viewer(client):
    (volume,) = made(client)
    base = f"/api/volumes/{volume['id']}"
    for plane in ("axial", "coronal", "sagittal"):
        query = {"plane": plane, "index": 3, "window": "soft"}
        image = Image.open(io.BytesIO(client.get(f"{base}/slice.png", params=query).content))
        assert image.width == 512 and image.mode == "L"
    assert Image.open(io.BytesIO(client.get(f"{base}/thumbnail.png").content)).width == 96
    for query in (
        {"plane": "axial", "index": 20},
        {"plane": "oblique", "index": 1},
        {"plane": "axial", "index": 1, "window": "x"},
        {"plane": "axial", "index": -1},
        {"plane": "axial", "index": "²"},
    ):
        assert client.get(f"{base}/slice.png", params=query).status_code == 400


@pytest.mark.parametrize("path", ["v999", "..%2Fserver", "%2e%2e", "v1%00", "<b>"])
def test_no_path_of_the_user_is_a_path_of_the_server(client, path):
    for ending in ("", "/voxels?first=0&count=1", "/slice.png?index=0", "/thumbnail.png", "/download/nifti"):
        answer = client.get(f"/api/volumes/{path}{ending}")
        assert answer.status_code == 404 and "<b>" not in answer.text


@pytest.mark.parametrize("path", ["../server.py", "..%2fserver.py", "%2e%2e/server.py", "/etc/passwd"])
def test_only_the_pages_own_files_are_given(client, path):
    assert client.get(f"/static/{path}").status_code == 404


def test_words_of_the_user_stay_words(client):
    evil = '<script>alert(1)</script> "nodule" & pleural effusion'
    (volume,) = made(client, evil)
    answer = client.get(f"/api/volumes/{volume['id']}")
    assert answer.headers["content-type"] == "application/json" and answer.json()["report"] == evil
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "<script>alert" not in client.get("/").text


def test_the_scripts_build_no_html_from_strings(repo_root):
    for path in (repo_root / "ctflow" / "app" / "static").glob("*.js"):
        if path.name != "niivue.umd.js":
            text = path.read_text("utf-8")
            for way in (
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                "new Function",
            ):
                assert way not in text, path.name


def test_a_volume_can_be_removed(client):
    (volume,) = made(client)
    file = client.studio.library._path(volume["id"])
    assert file.is_file()
    assert client.delete(f"/api/volumes/{volume['id']}").status_code == 200
    assert not file.exists() and client.get(f"/api/volumes/{volume['id']}").status_code == 404
