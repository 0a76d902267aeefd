"""A server on a tiny random system, asked in this process."""

from __future__ import annotations

import time

from starlette.testclient import TestClient

from ctflow.app.server import make_app
from ctflow.app.studio import Studio
from ctflow.config.app import AppConfig

ADDRESS = "http://127.0.0.1:8042"
REPORT = "Small right pleural effusion."


class Browser(TestClient):
    """A client that says what a browser on the page says."""

    studio: Studio

    def post_json(self, path: str, body: object = None, **more):
        return self.post(path, json={} if body is None else body, **more)

    def state(self) -> dict:
        return self.get("/api/state").json()

    def job(self, job_id: str) -> dict:
        return next(job for job in self.state()["queue"] if job["id"] == job_id)

    def ended(self, job_id: str, seconds: float = 60.0) -> dict:
        """The job, once it has ended."""
        until = time.monotonic() + seconds
        while (job := self.job(job_id))["state"] in ("waiting", "running"):
            assert time.monotonic() < until, job
            time.sleep(0.02)
        return job


def browser(config: AppConfig, address: str = ADDRESS) -> Browser:
    """A client of a fresh server, whose model is loaded."""
    kept: list[Studio] = []
    client = Browser(make_app(config, kept.append), base_url=address, headers={"Origin": address})
    (client.studio,) = kept
    return client
