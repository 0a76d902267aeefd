"""``ctflow app``: the browser."""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence

from ctflow.config import Flag, parse_command, run_command
from ctflow.config.app import LOOPBACK, AppConfig
from ctflow.errors import CTFlowError

log = logging.getLogger("ctflow")

DESCRIPTION = """Reports become chest CTs in the browser, slice by slice; on this machine alone, unless --host
says otherwise. Ctrl-C ends the server and removes its volumes: download what you want to keep."""

FLAGS = [
    Flag(
        "--checkpoint",
        "checkpoint",
        {"help": "checkpoint folder, run:NAME or latest; default: the embedded one"},
    ),
    Flag("--port", "port", {"type": int, "help": "port to listen on; 0: a free one"}),
    Flag("--host", "host", {"help": "address to listen on; other machines' reach needs --token"}),
    Flag("--token", "token", {"help": "secret that a browser shows once, 16 characters or more"}),
]


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C.

    Raises:
        CTFlowError: An address that cannot be listened on.
    """
    config = parse_command(AppConfig, "ctflow app", DESCRIPTION, FLAGS, argv).config
    listener = _listen(config.host, config.port)
    log.info("starting …")
    import uvicorn  # with the server and torch, seconds: after the arguments

    from ctflow.app.server import make_app

    app = make_app(config)
    host = f"[{config.host}]" if ":" in config.host else config.host
    shown = f"http://{host}:{listener.getsockname()[1]}/"
    log.info("open %s%s", shown, f"?token={config.token}" if config.token else "")
    if config.host not in LOOPBACK:
        log.warning("other machines can reach this server, and what they send is not encrypted")
    # Open pages hold a connection each: the server does not wait for them to be closed.
    options = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=1,
    )
    uvicorn.Server(options).run(sockets=[listener])
    return 0


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise CTFlowError(
            f"{host}:{port} cannot be listened on: {error.strerror or error}",
            "a free port of an address of this machine",
            "another --port, or stop what uses it",
        ) from None


if __name__ == "__main__":
    run_command(main)
