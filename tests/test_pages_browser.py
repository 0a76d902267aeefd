"""A page with volumes in a real browser, opened from disk."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ctflow.data.nifti import small_nifti
from ctflow.pages import Page
from data_prep.phantom import make_phantom
from data_prep.phantom.sampling import sample_spec

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_volumes_are_drawn_beside_each_other(chromium, tmp_path):
    volume = make_phantom(sample_spec(5, 1, 96, 6.0)).volume
    page = Page("Volumes")
    for number in range(2):
        shifted = replace(volume, hu=volume.hu + 200)
        page.volumes({"generated": small_nifti(shifted), "real": small_nifti(volume)}, f"pair {number}")
    page.save(tmp_path / "page.html")

    errors, asked = [], []
    shown = chromium.new_page(viewport={"width": 1200, "height": 900})
    shown.set_default_timeout(120_000)
    shown.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    shown.on("pageerror", lambda error: errors.append(str(error)))
    shown.on("request", lambda request: asked.append(request.url))
    shown.goto((tmp_path / "page.html").as_uri())
    assert shown.locator("canvas").count() == 0  # nothing is drawn before it is opened
    for number in (0, 1):
        shown.locator("summary").nth(number).click()
        shown.wait_for_function(
            "() => document.querySelector('[open] output')?.textContent.match(/HU|Click/)"
        )
        shown.wait_for_timeout(3000)
        canvases = shown.locator("[open] canvas")
        assert canvases.count() == 2
        generated, real = (
            np.asarray(Image.open(io.BytesIO(canvases.nth(i).screenshot())).convert("L"), np.float32)
            for i in (0, 1)
        )
        assert real.std() > 8 and generated.mean() > real.mean() + 2
        canvases.nth(0).click(position={"x": 100, "y": 100})
        shown.wait_for_function("() => document.querySelector('[open] output').textContent.includes('HU')")
        shown.get_by_role("button", name="bone").first.click()
        shown.locator("summary").nth(number).click()
        assert shown.locator("canvas").count() == 0
    assert errors == [] and all(url.startswith(("file:", "data:", "blob:")) for url in asked)
    shown.close()
