"""The page in a real browser: Debian's Chromium, headless, drawing in software.

``pytest tests/app/test_app_browser.py --screenshots DIR`` draws whole chests for the docs.
"""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from ctflow.data.writers import write_volume
from data_prep.phantom import make_phantom
from data_prep.phantom.sampling import sample_spec

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

WAIT_MS = 600_000
WATCH = """() => {
  const text = document.getElementById('progress-text'), began = performance.now();
  window.told = [];
  const tell = () => window.told.push([text.textContent, performance.now() - began]);
  new MutationObserver(tell).observe(text, {childList: true});
}"""
"""Keeps what the progress line says, and when."""

COUNT = re.compile(r"(\d+) of about")


@dataclass
class Session:
    """A page, what it said, and what it asked for."""

    page: Any
    address: str
    server: subprocess.Popen
    pictures: Path | None
    errors: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def until(self, condition: str) -> None:
        self.page.wait_for_function(f"() => {condition}", timeout=WAIT_MS)

    def idle(self) -> None:
        self.until("document.getElementById('progress').hidden")

    def fill(self, report: int, **values: str) -> None:
        self.page.select_option("#examples", str(report))
        for name, value in values.items():
            self.page.fill(f"#{name}", value)

    def keep(self, name: str) -> None:
        """Leave a picture for the docs, once the viewer has drawn."""
        if self.pictures:
            self.page.wait_for_timeout(30_000)
            self.page.screenshot(path=self.pictures / f"{name}.jpg", type="jpeg", quality=78)

    def canvas(self, number: int = 0) -> np.ndarray:
        canvas = self.page.locator(".stage canvas").nth(number)
        return np.asarray(Image.open(io.BytesIO(canvas.screenshot(timeout=WAIT_MS))).convert("L"), np.float32)

    def drawn(self, number: int = 0) -> np.ndarray:
        """A canvas, once it shows more than one grey."""
        until = time.monotonic() + 120
        while (picture := self.canvas(number)).std() < 8:
            assert time.monotonic() < until, "the canvas stays uniform"
            time.sleep(1)
        return picture


@pytest.fixture(scope="module")
def session(tmp_path_factory, pytestconfig, chromium) -> Iterator[Session]:
    pictures = pytestconfig.getoption("--screenshots")
    if pictures:
        pictures.mkdir(parents=True, exist_ok=True)
    log = tmp_path_factory.mktemp("app") / "log.txt"
    with log.open("w") as told:
        server = subprocess.Popen([sys.executable, "-m", "ctflow.app", "--port", "0"], stderr=told)
    try:
        until = time.monotonic() + 300
        while not (found := re.search(r"open (http://127\.0\.0\.1:\d+/)", log.read_text("utf-8"))):
            assert server.poll() is None and time.monotonic() < until, log.read_text("utf-8")
            time.sleep(0.5)
        page = chromium.new_page(viewport={"width": 1400, "height": 860}, color_scheme="light")
        page.set_default_timeout(WAIT_MS)
        session = Session(page, found.group(1), server, pictures)
        page.on("console", lambda m: session.errors.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: session.errors.append(str(error)))
        page.on("request", lambda request: session.asked.append(request.url))
        page.goto(session.address)
        session.until("!document.getElementById('generate').disabled")
        yield session
        page.close()
    finally:
        server.terminate()
        server.wait(30)


def test_slices_arrive_block_by_block(session):
    full = session.pictures is not None
    session.fill(0, seed="1", slices="" if full else "40", steps="" if full else "2")
    session.page.evaluate(WATCH)
    began = time.monotonic()
    session.page.click("#generate")
    session.until("document.getElementById('cursor').textContent.includes('HU')")
    shown = time.monotonic() - began
    session.idle()
    told = session.page.evaluate("() => window.told")
    counts = {int(found.group(1)): ms / 1000 for text, ms in reversed(told) if (found := COUNT.match(text))}
    load = os.getloadavg()[0]
    sys.stderr.write(f"slices told after seconds: {counts}; seen after {shown:.1f}; load {load:.1f}\n")
    assert len(counts) >= 2  # blocks one after the other, not all at once
    session.until("document.getElementById('facts').textContent.includes('Asked and found')")
    assert session.drawn().std() > 8
    session.keep("app-generate")


def test_keys_change_window_plane_and_slice(session):
    page = session.page
    page.locator(".flat canvas").focus()
    before, cursor = session.drawn(), page.text_content("#cursor")
    page.keyboard.press("2")
    assert page.get_attribute("[data-window=soft]", "aria-pressed") == "true"
    page.keyboard.press("5")
    assert page.get_attribute("[data-layout=axial]", "aria-pressed") == "true"
    page.keyboard.press("ArrowUp")
    session.until(f"document.getElementById('cursor').textContent !== {cursor!r}")
    assert np.abs(session.drawn() - before).mean() > 2
    page.keyboard.press("1")
    page.keyboard.press("4")


def test_the_ruler_draws_a_line(session):
    page = session.page
    page.locator(".flat canvas").focus()
    page.keyboard.press("5")
    before = session.drawn()
    page.keyboard.press("r")
    assert page.get_attribute("#ruler", "aria-pressed") == "true"
    box = page.locator(".flat canvas").bounding_box()
    row = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * 0.4, row)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.6, row, steps=5)
    page.mouse.up()
    page.wait_for_timeout(1000)
    changed = np.abs(session.canvas() - before) > 20
    assert changed.sum() > 50 and changed.any(axis=0).sum() > 0.15 * changed.shape[1]  # as wide as the drag
    page.keyboard.press("r")
    assert page.get_attribute("#ruler", "aria-pressed") == "false"
    page.keyboard.press("4")


def test_cancel_frees_the_processor(session):
    session.fill(1, slices="90", steps="100")
    session.page.click("#generate")
    session.until("document.getElementById('progress-text').textContent.includes('step')")
    session.page.click("#cancel")
    began = time.monotonic()
    session.idle()
    seconds = time.monotonic() - began
    sys.stderr.write(f"cancelled after {seconds:.2f} s; load {os.getloadavg()[0]:.1f}\n")
    assert seconds < 10  # on a machine that may be busy; alone it is below a second

    def used() -> int:
        return sum(
            map(int, Path(f"/proc/{session.server.pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13])
        )

    before = used()
    time.sleep(2)
    assert (used() - before) / os.sysconf("SC_CLK_TCK") < 0.5


def test_two_reports_are_compared(session):
    page, full = session.page, session.pictures is not None
    if full:
        page.emulate_media(color_scheme="dark")
    session.fill(0, slices="" if full else "24", steps="" if full else "2")
    page.check("#compare")
    page.select_option("#examples-b", "1")
    page.click("#generate")
    page.wait_for_selector(".panel:nth-child(3)")
    session.idle()
    assert page.locator(".panel").count() == 3
    for number in (0, 2, 4):  # each panel's planes; the solids between them are not shown
        assert session.drawn(number).std() > 8
    page.locator(".flat canvas").first.focus()
    page.keyboard.press("ArrowUp")  # the others follow without an error
    session.keep("app-compare")
    page.uncheck("#compare")
    page.emulate_media(color_scheme="light")


def test_downloads_open_elsewhere(session, tmp_path):
    for name, ending in (
        ("NIfTI", ".nii.gz"),
        ("DICOM", ".zip"),
        ("MHA", ".mha"),
        ("JSON", ".json"),
        ("Montage", ".png"),
    ):
        with session.page.expect_download() as waiting:
            session.page.locator(".downloads a", has_text=name).first.click()
        path = tmp_path / f"x{ending}"
        waiting.value.save_as(path)
        assert waiting.value.suggested_filename.endswith(ending) and path.stat().st_size > 200
    assert nib.load(tmp_path / "x.nii.gz").shape[:2] == (128, 128)


def test_a_row_of_a_csv_is_drawn_in_candidates(session, tmp_path):
    page = session.page
    (tmp_path / "rows.csv").write_text(
        "case_id,report,seed,slices\na,Cardiomegaly.,5,16\nb,Large left pleural effusion.,7,20\n", "utf-8"
    )
    page.set_input_files("#report-file", tmp_path / "rows.csv")
    page.select_option("#rows", "1")
    assert page.input_value("#report") == "Large left pleural effusion."
    assert (page.input_value("#seed"), page.input_value("#slices")) == ("7", "20")
    page.fill("#steps", "1")
    page.fill("#candidates", "2")
    page.click("#generate")
    session.until("document.getElementById('library').textContent.includes('candidate 2 of 2')")
    session.idle()
    titles = page.locator("#library").text_content()
    assert "candidate 1 of 2" in titles and titles.count("the best") == 1
    page.fill("#candidates", "")
    page.fill("#seed", "")


def test_a_scan_is_opened_and_reconstructed(session, tmp_path):
    page = session.page
    volume = make_phantom(sample_spec(5, 1, 160, 6.0)).volume
    write_volume(tmp_path / "scan.mha", volume)
    page.set_input_files("#open-file", tmp_path / "scan.mha")
    session.until("document.getElementById('facts').textContent.includes('Opened')")
    session.idle()
    page.get_by_role("button", name="Reconstruct by the A-VAE").click()
    page.wait_for_selector(".panel:nth-child(3)")
    session.idle()
    assert session.drawn(2).std() > 8
    session.keep("app-open")


def test_a_volume_is_continued(session):
    page = session.page
    page.get_by_role("button", name="Continue from here").first.click()
    page.fill("#keep-last", "19")
    session.fill(0, slices="32", steps="2")
    page.click("#generate")
    page.wait_for_selector(".parts")
    session.idle()
    session.until("document.getElementById('facts').textContent.includes('Continued')")
    assert "0–19 kept" in page.text_content(".legend")
    page.click("#continue-off")


def test_words_of_the_user_are_not_read_as_html(session):
    evil = '<img src=x onerror="document.title=1"><b>Nodule</b> in the left lung.'
    session.page.fill("#report", evil)
    session.page.fill("#slices", "16")
    session.page.fill("#steps", "1")
    session.page.click("#generate")
    session.until("document.querySelector('blockquote')?.textContent.includes('onerror')")
    session.idle()
    assert session.page.locator("#facts img, #library b").count() == 0 and session.page.title() != "1"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_window_is_enough(session, scheme):
    page = session.page
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth")
    for name in ("#report", "#generate", "#viewer", "#library"):
        box = page.locator(name).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 391
    if scheme == "light":
        page.locator("#viewer").scroll_into_view_if_needed()
        session.keep("app-phone")
    page.set_viewport_size({"width": 1400, "height": 860})
    page.emulate_media(color_scheme="light")


def test_everything_has_a_name_and_can_be_read(session):
    """What axe-core finds, where npm can fetch it; a name for every control in any case."""
    nameless = session.page.evaluate(
        """() => [...document.querySelectorAll('button, a, input, select, textarea, canvas, progress')]
        .filter((e) => !(e.getAttribute('aria-label') || e.textContent.trim() || e.title ||
            [...(e.labels ?? [])].some((l) => l.textContent.trim()))).map((e) => e.outerHTML.slice(0, 90))"""
    )
    assert nameless == []
    axe = os.environ.get("AXE_CORE")
    if not axe:
        pytest.skip("the rest needs AXE_CORE=path/to/axe.min.js (npm pack axe-core)")
    session.page.evaluate(Path(axe).read_text("utf-8"))
    for scheme in ("light", "dark"):
        session.page.emulate_media(color_scheme=scheme)
        found = session.page.evaluate("() => axe.run({resultTypes: ['violations']})")
        assert [(v["id"], [n["html"][:120] for n in v["nodes"]]) for v in found["violations"]] == []
    session.page.emulate_media(color_scheme="light")


def test_without_webgl_there_are_pictures(session):
    page = session.page.context.browser.new_page()
    page.set_default_timeout(WAIT_MS)
    page.goto(f"{session.address}?flat")
    page.locator(".choose").first.click()
    page.wait_for_function(
        "() => [...document.querySelectorAll('.pictures img')].every((i) => i.naturalWidth > 0)"
    )
    assert page.locator(".pictures img").count() >= 3
    slider = page.locator(".pictures input").first
    before = page.locator(".pictures figcaption").first.text_content()
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator(".pictures figcaption").first.text_content() != before
    page.close()


def test_nothing_went_wrong_and_nothing_left_the_machine(session):
    assert session.errors == []
    assert {url for url in session.asked if not url.startswith((session.address, "blob:", "data:"))} == set()


def test_the_end_removes_every_file(session):
    folders = list(Path("/tmp").glob(f"ctflow-app-{session.server.pid}-*"))
    assert folders
    with urlopen(session.address + "api/state") as answer:
        assert answer.status == 200
    session.server.send_signal(signal.SIGTERM)
    session.server.wait(30)
    assert not any(folder.exists() for folder in folders)
