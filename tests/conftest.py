"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Before torch is imported: tests of equal losses compare processes, and sums round by the number of threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


def pytest_addoption(parser):
    """``--screenshots DIR``: where the browser's test leaves its pictures."""
    parser.addoption("--screenshots", type=Path, help="folder for the pictures of the browser's test")


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The checkout the tests run in."""
    return ROOT


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of real scans beside the checkout; absent in a user's clone."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the real scans at {SHARED}, which are not part of the repository")
    return SHARED


@pytest.fixture(scope="session")
def parity_dir(tmp_path_factory) -> Path:
    """A folder with all recorded numbers of the published networks; see ``tests/fixtures/README.md``."""
    from parity import unpack

    return unpack(tmp_path_factory.mktemp("parity") / "fixtures")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    """A whole checkpoint folder of random weights: 32 px slices, 4×4 latents."""
    from tiny_system import save_tiny_system  # imports the networks, which most test files do without

    return save_tiny_system(tmp_path_factory.mktemp("tiny") / "system")


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """Debian's Chromium, headless, drawing in software."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs a Chromium, e.g. `apt-get install chromium`")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs `pip install playwright`")
    flags = ["--enable-unsafe-swiftshader", "--use-angle=swiftshader", "--no-sandbox"]
    with playwright.sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=program, args=flags)
        yield browser
        browser.close()
