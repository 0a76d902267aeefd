"""One server on a tiny random system for all tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from app_client import Browser, browser

from ctflow.config.app import AppConfig


@pytest.fixture(scope="module")
def client(tiny_checkpoint) -> Iterator[Browser]:
    config = AppConfig(checkpoint=str(tiny_checkpoint), device="cpu", max_unknown=1.0)
    with browser(config) as client:
        client.ended("j1")
        yield client
