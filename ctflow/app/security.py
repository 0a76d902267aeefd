"""Who may talk to the server: Host, Origin and token of every request, and the headers of every answer.

A page of another site may send requests to loopback, and may make its own name point there (DNS rebinding).
So names other than loopback's are refused, and whatever a browser says comes from another site.
"""

from __future__ import annotations

import hmac
import ipaddress
import socket
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ctflow.config.app import LOOPBACK

POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
"""Content security policy: the page's own files alone; the viewer's fonts are images inside its script."""

HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_COOKIE = "ctflow_token"


class Guard:
    """Refuses what is not this page in this user's browser; an ASGI middleware around everything else.

    Args:
        app: What it guards.
        host: Address the server listens on.
        token: Secret; empty where none is asked for.
    """

    def __init__(self, app: ASGIApp, host: str, token: str) -> None:
        self.app, self.token = app, token
        self.names = {*LOOPBACK, host.lower()}
        self.open = host not in LOOPBACK
        if self.open:
            self.names.add(socket.gethostname().lower())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer in the application's stead where a request is refused."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            raise ValueError(f"no {scope['type']} here")

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        request = Request(scope)
        refusal = self._refusal(request)
        await (self.app if refusal is None else refusal)(scope, receive, answer)

    def _refusal(self, request: Request) -> Response | None:
        hosts = request.headers.getlist("host")
        if len(hosts) != 1 or not self._knows(hosts[0]):
            return _refused(421, "this name is not the server's: open the address that the server printed")
        if foreign := _foreign(request, hosts[0]):
            return _refused(403, foreign)
        if not self.token or self._has_token(request):
            return None
        if request.method == "GET" and self._equal(request.query_params.get("token", "")):
            # The secret leaves the address bar and history as soon as it is known.
            answer = RedirectResponse("/", 303)
            answer.set_cookie(_COOKIE, self.token, httponly=True, samesite="strict", path="/")
            return answer
        return _refused(401, "a token is needed: open the address with ?token=… that the server printed")

    def _knows(self, host: str) -> bool:
        """Whether a Host header names this server. An IP address passes: it points nowhere else."""
        name = _name_of(host)
        if name is None:
            return False
        return name in self.names or (self.open and _is_address(name))

    def _has_token(self, request: Request) -> bool:
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        return self._equal(request.cookies.get(_COOKIE, "")) or self._equal(bearer)

    def _equal(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self.token.encode())


def _name_of(host: str) -> str | None:
    """The name in a Host header, without its port; None where it is none."""
    try:
        parts = urlsplit(f"//{host}")
        port_is_valid = parts.port is None or parts.port >= 0
    except ValueError:
        return None
    if not port_is_valid or parts.path or parts.query or parts.fragment or "@" in host:
        return None
    return (parts.hostname or "").lower() or None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _foreign(request: Request, host: str) -> str:
    """Why a request comes from another site; empty where it does not."""
    headers: Headers = request.headers
    origin = headers.get("origin")
    if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
        return "requests from pages of other sites are refused"
    if origin is None and request.method not in ("GET", "HEAD"):
        return "a request that changes something must say its Origin"
    opened = headers.get("sec-fetch-mode") == "navigate" and request.url.path == "/"
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none") and not opened:
        return "requests from pages of other sites are refused"
    return ""


def _refused(status: int, why: str) -> Response:
    return JSONResponse({"error": why}, status)
