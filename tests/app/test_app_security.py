"""What the server refuses, and what every answer says."""

from __future__ import annotations

import pytest
from app_client import ADDRESS, browser

from ctflow.app.security import HEADERS
from ctflow.config.app import AppConfig
from ctflow.errors import ConfigError

TOKEN = "sixteen-letters-and-more"


@pytest.mark.parametrize(
    "path", ["/", "/static/app.js", "/api/state", "/api/nothing", "/static/../server.py"]
)
def test_every_answer_has_the_headers(client, path):
    answer = client.get(path)
    for name, value in HEADERS.items():
        assert answer.headers[name] == value
    assert answer.headers["cache-control"]


def test_the_policy_allows_no_inline_script_style_or_other_site(client):
    policy = client.get("/").headers["content-security-policy"]
    assert "unsafe" not in policy and "http" not in policy and "*" not in policy
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    page = client.get("/").text
    assert "style=" not in page and "<style" not in page and "onclick" not in page
    assert page.count("<script") == page.count("<script src=")


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8042", "127.0.0.1.evil.example", "a@127.0.0.1", "0x7f.1", "", "[::1"],
)
@pytest.mark.parametrize("path", ["/", "/api/state", "/static/app.js"])
def test_a_name_that_was_made_to_point_here_is_refused(client, host, path):
    assert client.get(path, headers={"Host": host}).status_code == 421


@pytest.mark.parametrize("host", ["localhost:9000", "127.0.0.1", "LOCALHOST", "[::1]:8042"])
def test_loopback_is_known_under_its_names_and_any_port(client, host):
    assert client.get("/api/state", headers={"Host": host, "Origin": f"http://{host}"}).status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:9999", "file://", ""])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_pages_of_other_sites_are_refused(client, origin, method):
    answer = client.request(method, "/api/jobs", headers={"Origin": origin})
    assert answer.status_code == 403


def test_a_change_without_an_origin_is_refused(client):
    del client.headers["Origin"]
    try:
        assert client.get("/api/state").status_code == 200
        assert client.post("/api/jobs", json={}).status_code == 403
        assert client.delete("/api/volumes/v1").status_code == 403
    finally:
        client.headers["Origin"] = ADDRESS


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_what_other_sites_embed_is_refused_and_a_link_is_not(client, site):
    asked = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors"}
    assert client.get("/api/state", headers=asked).status_code == 403
    assert client.get("/static/app.js", headers=asked).status_code == 403
    opened = asked | {"Sec-Fetch-Mode": "navigate"}
    assert client.get("/", headers=opened).status_code == 200
    assert client.get("/api/state", headers=opened).status_code == 403


def test_another_host_needs_a_token():
    with pytest.raises(ValueError, match="token"):
        AppConfig(host="0.0.0.0")
    with pytest.raises(ValueError, match="16"):
        AppConfig(host="0.0.0.0", token="short")
    assert AppConfig(host="0.0.0.0", token=TOKEN).token == TOKEN


def test_the_command_says_so(tmp_path):
    from ctflow.app.__main__ import main

    with pytest.raises(ConfigError, match="token"):
        main(["--host", "0.0.0.0"])


@pytest.fixture(scope="module")
def guarded(tiny_checkpoint):
    config = AppConfig(checkpoint=str(tiny_checkpoint), device="cpu", host="0.0.0.0", token=TOKEN)
    with browser(config, "http://192.168.1.5:8042") as client:
        yield client


@pytest.mark.parametrize("path", ["/", "/static/app.js", "/api/state", "/api/volumes/v1/voxels"])
def test_without_the_token_nothing_is_given(guarded, path):
    guarded.cookies.clear()
    assert guarded.get(path).status_code == 401
    assert guarded.get(path, params={"token": TOKEN[:-1]}).status_code == 401
    strange = "ctflow_token=é".encode("latin-1")
    assert guarded.get(path, headers={b"Cookie": strange}).status_code == 401
    assert guarded.post("/api/jobs", json={}, params={"token": TOKEN}).status_code == 401


def test_the_token_is_shown_once_and_kept_in_a_cookie(guarded):
    guarded.cookies.clear()
    answer = guarded.get("/", params={"token": TOKEN}, follow_redirects=False)
    assert answer.status_code == 303 and answer.headers["location"] == "/"
    assert {"HttpOnly", "SameSite=strict"} <= set(answer.headers["set-cookie"].split("; "))
    assert guarded.get("/").status_code == 200  # by its cookie
    guarded.cookies.clear()
    assert guarded.get("/api/state", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_an_open_server_is_known_by_address_and_not_by_a_strange_name(guarded):
    signed = {"Authorization": f"Bearer {TOKEN}", "Origin": "http://evil.example", "Host": "evil.example"}
    assert guarded.get("/", headers=signed).status_code == 421
