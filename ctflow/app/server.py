"""The server's addresses: the page, its files, JSON to ask with, and one stream of events to watch by."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.templating import Jinja2Templates

import ctflow
from ctflow.app.asks import read_ask
from ctflow.app.examples import EXAMPLES
from ctflow.app.opening import ending_of
from ctflow.app.outputs import FORMATS, WINDOWS, slice_png, thumbnail_png, voxel_bytes, write_download
from ctflow.app.security import Guard
from ctflow.app.studio import Studio
from ctflow.config.app import AppConfig
from ctflow.errors import CTFlowError
from ctflow.generate import read_requests
from ctflow.text_files import read_text

JSON_BYTES, TEXT_BYTES = 2**18, 2**24
"""Most bytes of a request in JSON; of a file of reports."""

MOST_ROWS = 2000
_HERE = Path(__file__).parent
_LEAST_SECONDS, _HEARTBEAT_SECONDS = 0.1, 1.0
"""Between two events; and until the next where nothing has changed, so that times go on."""


class Board:
    """Tells every open page that something has changed; ``changed`` may be called from any thread."""

    def __init__(self) -> None:
        self._version = 0
        self._lock = threading.Lock()

    def changed(self) -> None:
        """Something has."""
        with self._lock:
            self._version += 1

    async def wait(self, seen: int, seconds: float) -> int:
        """The version, as soon as it is another than ``seen``, or after so many seconds."""
        waited = 0.0
        while self._version == seen and waited < seconds:
            await asyncio.sleep(_LEAST_SECONDS)
            waited += _LEAST_SECONDS
        return self._version


class Server:
    """Answers of one studio.

    Args:
        studio: Does the work.
        board: Is told of it.
    """

    def __init__(self, studio: Studio, board: Board) -> None:
        self.studio, self.board = studio, board
        self.templates = Jinja2Templates(_HERE / "templates")

    def routes(self) -> list[Route | Mount]:
        """All addresses."""
        volume = "/api/volumes/{volume}"
        return [
            Route("/", self.page),
            Mount("/static", StaticFiles(directory=_HERE / "static")),
            Route("/api/about", self.about),
            Route("/api/events", self.events),
            Route("/api/state", self.state),
            Route("/api/jobs", self.submit, methods=["POST"]),
            Route("/api/jobs/{job}/cancel", self.cancel, methods=["POST"]),
            Route("/api/reports", self.reports, methods=["POST"]),
            Route("/api/open", self.open, methods=["POST"]),
            Route(volume, self.volume),
            Route(volume, self.remove, methods=["DELETE"]),
            Route(volume + "/reconstruct", self.reconstruct, methods=["POST"]),
            Route(volume + "/voxels", self.voxels),
            Route(volume + "/slice.png", self.picture),
            Route(volume + "/thumbnail.png", self.thumbnail),
            Route(volume + "/download/{format}", self.download),
        ]

    async def page(self, request: Request) -> Response:
        """The page; all that changes on it comes through the other addresses."""
        values = {"version": ctflow.__version__}
        return self.templates.TemplateResponse(request, "page.html.jinja", values)

    async def about(self, request: Request) -> Response:
        """The model, its limits, examples, windows."""
        windows = {name: {"centre": c, "width": w} for name, (c, w) in WINDOWS.items()}
        fixed = {"examples": EXAMPLES, "windows": windows, "formats": list(FORMATS)}
        return JSONResponse(self.studio.about() | fixed)

    async def state(self, request: Request) -> Response:
        """Queue and library, once."""
        return JSONResponse(self._state())

    async def events(self, request: Request) -> Response:
        """Queue and library, again and again (server-sent events)."""

        async def stream() -> AsyncIterator[str]:
            seen, told = -1, ""
            while True:
                seen = await self.board.wait(seen, _HEARTBEAT_SECONDS)
                text = json.dumps(self._state())
                # A comment keeps the connection where nothing has changed.
                yield f"data: {text}\n\n" if text != told else ": still here\n\n"
                told = text

        return StreamingResponse(stream(), media_type="text/event-stream")

    async def submit(self, request: Request) -> Response:
        """Ask for a volume, for two, or for one that continues another."""
        body = await _json(request)
        model = self.studio.model
        ask = read_ask(body, model.system.config.rollout.max_slices)
        act = self.studio.continue_volume if ask.source else self.studio.generate
        job = await run_in_threadpool(act, ask)
        return JSONResponse(job.snapshot(), 202)

    async def cancel(self, request: Request) -> Response:
        """End a job."""
        job = self.studio.queue.cancel(request.path_params["job"])
        return JSONResponse(job.snapshot())

    async def reports(self, request: Request) -> Response:
        """The reports in a text file or a CSV, as rows of the form's values."""
        ending = ".csv" if request.query_params.get("kind") == "csv" else ".txt"
        path = self.studio.library.temporary(ending)
        try:
            await _save(request, path, TEXT_BYTES)
            rows, refused = await run_in_threadpool(_rows, path)
        finally:
            path.unlink(missing_ok=True)
        return JSONResponse({"rows": rows[:MOST_ROWS], "refused": refused[:20], "found": len(rows)})

    async def open(self, request: Request) -> Response:
        """Take a file that is to be opened; its name gives the ending and the title."""
        name = request.query_params.get("name", "")
        path = self.studio.library.temporary(ending_of(name))
        try:
            await _save(request, path, int(self.studio.config.upload_gb * 2**30))
            job = self.studio.open_file(path, name)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return JSONResponse(job.snapshot(), 202)

    async def volume(self, request: Request) -> Response:
        """All that is known of a volume."""
        entry = self._entry(request)
        return JSONResponse(entry.summary() | {"facts": entry.facts, "record": entry.record})

    async def remove(self, request: Request) -> Response:
        """Take a volume out of the library."""
        self.studio.library.remove(self._entry(request).id)
        self.board.changed()
        return JSONResponse({})

    async def reconstruct(self, request: Request) -> Response:
        """Ask for a volume's reconstruction by the A-VAE."""
        return JSONResponse(self.studio.reconstruct(self._entry(request).id).snapshot(), 202)

    async def voxels(self, request: Request) -> Response:
        """Slices of a volume as int16."""
        entry, minus = self._entry(request), self._minus(request)
        first, count = _number(request, "first", 0), _number(request, "count", 1)
        data = await run_in_threadpool(voxel_bytes, self.studio.library, entry.id, first, count, minus)
        return Response(data, media_type="application/octet-stream")

    async def picture(self, request: Request) -> Response:
        """One slice as a picture."""
        query = request.query_params
        plane, window = query.get("plane", "axial"), query.get("window", "lung")
        index, minus = _number(request, "index", 0), self._minus(request)
        library, entry = self.studio.library, self._entry(request)
        data = await run_in_threadpool(slice_png, library, entry.id, plane, index, window, minus)
        return Response(data, media_type="image/png")

    async def thumbnail(self, request: Request) -> Response:
        """A small picture for the list."""
        data = await run_in_threadpool(thumbnail_png, self.studio.library, self._entry(request).id)
        return Response(data, media_type="image/png")

    async def download(self, request: Request) -> Response:
        """A volume as a file."""
        entry, kind = self._entry(request), request.path_params["format"]
        path, name, media = await run_in_threadpool(write_download, self.studio.library, entry.id, kind)
        removed = BackgroundTask(path.unlink, missing_ok=True)
        return FileResponse(path, media_type=media, filename=name, background=removed)

    def _state(self) -> dict[str, Any]:
        volumes = [entry.summary() for entry in self.studio.library.list()]
        return {"queue": self.studio.queue.snapshot(), "volumes": volumes}

    def _entry(self, request: Request) -> Any:
        volume_id = request.path_params["volume"]
        if volume_id not in self.studio.library:
            raise HTTPException(404, "no such volume")
        return self.studio.library[volume_id]

    def _minus(self, request: Request) -> str:
        minus = request.query_params.get("minus", "")
        if minus and minus not in self.studio.library:
            raise HTTPException(404, "no such volume")
        return minus


def make_app(config: AppConfig, started: Callable[[Studio], None] | None = None) -> Starlette:
    """The whole application.

    Args:
        config: Of the command.
        started: Told the studio, once it is there.
    """
    board = Board()
    studio = Studio(config, board.changed)
    if started is not None:
        started(studio)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        studio.close()

    return Starlette(
        routes=Server(studio, board).routes(),
        middleware=[Middleware(Guard, host=config.host, token=config.token)],
        exception_handlers={CTFlowError: _said, HTTPException: _told, ClientDisconnect: _gone},
        lifespan=lifespan,
    )


async def _said(request: Request, error: Exception) -> Response:
    """An error that the user can mend, in the words of the commands."""
    return JSONResponse({"error": str(error)}, 400)


async def _told(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": str(error.detail)}, error.status_code)


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=400)


async def _json(request: Request) -> Any:
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HTTPException(415, "application/json expected")
    data = b"".join([part async for part in _pieces(request, JSON_BYTES)])
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "no JSON") from error


async def _save(request: Request, path: Path, most: int) -> None:
    """Write a request's body to a file."""
    with path.open("xb") as stream:
        async for piece in _pieces(request, most):
            await run_in_threadpool(stream.write, piece)


async def _pieces(request: Request, most: int) -> AsyncIterator[bytes]:
    """A request's body, refused as soon as it says, or turns out, to be too long."""
    too_long = HTTPException(413, f"more than {most:,} bytes")
    told = request.headers.get("content-length", "0")
    if not told.isdigit() or int(told) > most:
        raise too_long
    taken = 0
    async for piece in request.stream():
        taken += len(piece)
        if taken > most:
            raise too_long
        yield piece


def _rows(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Reports of a file; the file's place on this machine stays out of what is said."""
    try:
        if path.suffix == ".txt":
            return [{"case_id": "", "report": read_text(path).strip()}], []
        rows, refused = read_requests(path)
    except CTFlowError as error:
        raise CTFlowError(str(error).replace(str(path), "the file")) from error
    return rows, [line.replace(str(path), "the file") for line in refused]


def _number(request: Request, name: str, least: int) -> int:
    text = request.query_params.get(name, "")
    if not text.isascii() or not text.isdigit() or len(text) > 9 or int(text) < least:
        raise HTTPException(400, f"{name} is a whole number from {least} on")
    return int(text)
