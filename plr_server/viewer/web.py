"""Shows a server to browsers: a few files, a stream of events, and the page as one file to keep.

Used by the command line. On loopback only, and only for requests that name this machine as their host, so that no other
site reaches it through a browser. It answers GET alone, changes nothing, and its page asks nobody else for anything.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import socketserver
import sys
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, urlsplit

from plr_client.errors import ConfigError, MissingDependency
from plr_server.viewer.collect import Collector
from plr_server.viewer.measures import SORT_KEYS

HOST = "127.0.0.1"
HOSTS = (HOST, "localhost", "[::1]")  # at any port: an ssh -L has its own
KEEP_ALIVE_S = 15.0  # a stream says something at least so often, and so finds out that its page is gone
PARENT_S = 1.0  # how often to look whether the parent is still there
ROWS = 50
LEVEL = r"-?\d{1,18}"  # an id
STATIC = {
    "viewer.css": "text/css",
    "uPlot.min.css": "text/css",
    "viewer.js": "text/javascript",
    "uPlot.iife.min.js": "text/javascript",
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

Source = Collector | Mapping[str, Any]


class Pages(ThreadingHTTPServer):
    """The HTTP server.

    Args:
        source: a collector, for a live page; or the document of a finished run.
        port: 0 takes a free one.

    Attributes:
        url: of the page.

    Raises:
        ConfigError: the port is taken, or may not be used.
    """

    daemon_threads = True

    def __init__(self, source: Source, port: int) -> None:
        self.source = source
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as exc:
            raise ConfigError("port", "a free one, 0 to 65535 (0 takes any that is free)", f"{port} ({exc})") from exc
        self.url = f"http://{HOST}:{self.server_address[1]}/"

    def server_bind(self) -> None:
        """Binds without asking a name server who this is, as the base class would."""
        socketserver.TCPServer.server_bind(self)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of a page that was closed."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


def serve_pages(source: Source, port: int, *, ready: Callable[[str], None], parent_pid: int | None = None) -> None:
    """Serves pages until SIGINT or SIGTERM. Call it from the main thread.

    Args:
        source: as for `Pages`.
        port: as for `Pages`.
        ready: called with the page's URL once browsers can connect.
        parent_pid: stop also when this process is no longer the parent.

    Raises:
        ConfigError: as `Pages`.
    """
    stop = threading.Event()
    with Pages(source, port) as pages:
        handlers = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
        threading.Thread(target=pages.serve_forever, daemon=True).start()
        ready(pages.url)
        while not stop.wait(PARENT_S) and parent_pid in {None, os.getppid()}:
            pass
        pages.shutdown()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def whole_page(document: Mapping[str, Any]) -> str:
    """Returns the page as one HTML file that shows a document and needs nothing else."""
    page = _page(document)
    for name in STATIC:
        text = _static(name).decode()
        if name.endswith(".css"):
            page = page.replace(f'<link rel="stylesheet" href="static/{name}">', f"<style>\n{text}</style>")
        else:
            page = page.replace(f'<script src="static/{name}"></script>', f"<script>\n{text}</script>")
    return page


def _page(document: Mapping[str, Any] | None) -> str:
    """Returns the page; with a document it shows that one, without it asks for the stream."""
    page = _static("index.html").decode()
    if document is None:
        return page
    saved = json.dumps(document).replace("<", "\\u003c")  # nothing in it may end the script element
    empty = '<script id="saved" type="application/json">'
    return page.replace(empty, empty + saved)


def _static(name: str) -> bytes:
    return (files("plr_server.viewer") / "static" / name).read_bytes()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds that a connection may be silent
    server: Pages

    def do_GET(self) -> None:
        if re.sub(r":\d+$", "", self.headers.get("Host", "")) not in HOSTS:
            self._refuse(HTTPStatus.FORBIDDEN, f"Host: expected one of {', '.join(HOSTS)}")
            return
        url = urlsplit(self.path)
        asked = {name: values[-1] for name, values in parse_qs(url.query).items()}
        source = self.server.source
        live, saved = (source, None) if isinstance(source, Collector) else (None, source)
        name = url.path.removeprefix("/static/")
        if url.path == "/":
            self._send("text/html", _page(saved).encode())
        elif url.path != name and name in STATIC:
            self._send(STATIC[name], _static(name))
        elif url.path == "/save":
            document = source.document() if isinstance(source, Collector) else source
            self._send("text/html", whole_page(document).encode(), attachment="curriculum.html")
        elif live and url.path == "/events":
            self._stream(live, asked.get("curriculum"))
        elif live and url.path == "/levels":
            self._levels(live, asked)
        elif live and url.path in ("/level", "/picture"):
            self._level(live, url.path, asked)
        elif live and url.path == "/metrics":
            self._metrics(live)
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such page")

    def _stream(self, live: Collector, selected: str | None) -> None:
        """Sends a document, then a tick for everything new; another document where the history was thinned."""
        self.close_connection = True
        self._head(HTTPStatus.OK, {"Content-Type": "text/event-stream", "Connection": "close"})
        version, shown = -1, None
        while True:
            version = live.wait(version, KEEP_ALIVE_S)
            said, event = live.tick(selected), "tick"
            if selected not in said["curricula"]:
                selected = next(iter(said["curricula"]), None)
            if _shape(said, selected) != shown:
                said, event = live.document(selected), "document"
                shown = _shape(said, selected)
            self.wfile.write(f"event: {event}\ndata: {json.dumps(said | {'selected': selected})}\n\n".encode())

    def _levels(self, live: Collector, asked: Mapping[str, str]) -> None:
        sort, find = asked.get("sort", "weight"), asked.get("find", "")
        if sort not in SORT_KEYS or not (find in ("", "-") or re.fullmatch(LEVEL, find)):
            self._refuse(HTTPStatus.BAD_REQUEST, f"sort: expected one of {', '.join(SORT_KEYS)}; find: an id")
            return
        descending = asked.get("descending") == "1"
        rows = live.rows(
            asked.get("curriculum", ""),
            sort,
            descending=descending,
            limit=ROWS,
            find=int(find) if find.strip("-") else None,
        )
        self._send("application/json", json.dumps(rows).encode())

    def _level(self, live: Collector, path: str, asked: Mapping[str, str]) -> None:
        name, level = asked.get("curriculum", ""), asked.get("level", "")
        if not re.fullmatch(LEVEL, level):
            self._refuse(HTTPStatus.BAD_REQUEST, "level: expected an id")
        elif path == "/level":
            self._send("application/json", json.dumps(live.level(name, int(level))).encode())
        elif (png := live.picture(name, int(level))) is not None:
            self._head(HTTPStatus.OK, {"Content-Type": "image/png", "Content-Length": str(len(png))})
            self.wfile.write(png)
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there is no picture of it")

    def _metrics(self, live: Collector) -> None:
        try:
            from plr_server.viewer.metrics import CONTENT_TYPE, exposition  # noqa: PLC0415  optional
        except MissingDependency as missing:
            self._refuse(HTTPStatus.NOT_IMPLEMENTED, str(missing))
            return
        self._send(CONTENT_TYPE, exposition(live.tick(None), live.timings()))

    def _send(self, kind: str, body: bytes, *, attachment: str | None = None) -> None:
        headers = {"Content-Type": f"{kind}; charset=utf-8"}
        if attachment is not None:
            headers["Content-Disposition"] = f'attachment; filename="{attachment}"'
        if "gzip" in self.headers.get("Accept-Encoding", ""):
            body = gzip.compress(body, 6)
            headers["Content-Encoding"] = "gzip"
        self._head(HTTPStatus.OK, {**headers, "Content-Length": str(len(body))})
        self.wfile.write(body)

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        self._head(status, {"Content-Type": "text/plain; charset=utf-8", "Content-Length": str(len(why))})
        self.wfile.write(why.encode())

    def _head(self, status: HTTPStatus, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**HEADERS, **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  its name in the base class
        """Says nothing: a terminal beside a training run has better things to show."""


def _shape(said: Mapping[str, Any], selected: str | None) -> Any:
    """Returns what a page cannot follow from ticks: which curricula there are, and how the history is thinned."""
    history = said["curricula"].get(selected, {}).get("history", {})
    return selected, list(said["curricula"]), history.get("stride")
