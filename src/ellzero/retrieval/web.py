"""A search page on this machine: HTTP around a ``SearchService``.

Lives here: ``SearchServer``, its bounds and its headers. Does not live here: answers (``service``), the page's look
(``page/``).

It reads and never writes: GET and HEAD alone are answered. A service on the loopback interface answers only requests
that name it (``Host``), so that no page of another site can reach it by a name of its own. At most ``connections``
requests are open and ``workers`` searches run at a time; more are told to come back. It has no encryption and no
passwords: whoever can reach its address can search.
"""

from __future__ import annotations

import ipaddress
import json
import socket
import sys
import threading
from html import escape
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, urlsplit

from ellzero.errors import InputError, check_integer
from ellzero.retrieval.service import SearchService

__all__ = ["SearchServer"]

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
                               "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}  # fmt: skip
REQUEST_LINE = 8192
PATIENCE = 5.0
"""Seconds that a search waits for its turn."""
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class SearchServer(ThreadingHTTPServer):
    """The page at ``/``, and JSON at ``/api/search?q=...&k=...`` and ``/api/about``.

    Parameters
    ----------
    service : what answers. host, port : where to listen; port 0 takes a free one, ``address`` says which.
    workers : searches at a time. connections : requests at a time. timeout_seconds : for a request to arrive.

    Raises
    ------
    InputError : an address that cannot be listened on.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(
        self,
        service: SearchService,
        host: str = "127.0.0.1",
        port: int = 8808,
        *,
        workers: int = 2,
        connections: int = 32,
        timeout_seconds: float = 10.0,
    ):
        check_integer("port", port, at_least=0, at_most=65535)
        self.service, self.timeout_seconds = service, timeout_seconds
        self.turns = threading.BoundedSemaphore(check_integer("workers", workers, at_least=1))
        self.places = threading.BoundedSemaphore(check_integer("connections", connections, at_least=1))
        self.assets = _assets(service)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise InputError(f"host: cannot listen on {host}, port {port} ({error.strerror or error})") from error
        self.loopback = ipaddress.ip_address(self.server_address[0]).is_loopback

    @property
    def address(self) -> str:
        """Where the page is."""
        host, port = self.server_address[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/"

    def server_bind(self) -> None:
        """Bind without asking for the machine's name, which can take seconds."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = self.server_address[:2]

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for the request if there is a place, else a short answer."""
        if self.places.acquire(blocking=False):
            try:
                super().process_request(request, client_address)
            except BaseException:
                self.places.release()
                raise
            return
        try:
            request.settimeout(0.05)
            request.recv(REQUEST_LINE)  # what is left unread would make the client miss the answer
            request.sendall(BUSY)
        except OSError:
            pass
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """One request, whose place is given back."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error of ours."""
        error = sys.exception()
        if not isinstance(error, OSError):
            print(f"ellzero: a request failed ({type(error).__name__}: {error})", file=sys.stderr)


def _assets(service: SearchService) -> dict[str, tuple[str, bytes]]:
    page = files("ellzero.retrieval") / "page"
    html = (page / "search.html").read_text(encoding="utf-8")
    told = service.about()
    for name in ("name", "most_characters", "most_hits"):
        html = html.replace(f"{{{name}}}", escape(str(told[name])))
    html = html.replace("{documents}", f"{told['documents']:,}").replace("{terms}", f"{told['terms']:,}")
    return {
        "/": ("text/html; charset=utf-8", html.encode()),
        "/search.css": ("text/css; charset=utf-8", (page / "search.css").read_bytes()),
        "/search.js": ("text/javascript; charset=utf-8", (page / "search.js").read_bytes()),
    }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: SearchServer

    def setup(self) -> None:
        self.timeout = self.server.timeout_seconds
        super().setup()

    def version_string(self) -> str:
        return "ellzero"

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.close_connection = True
        if len(self.path) > REQUEST_LINE:
            return self._say(414, f"the address has {len(self.path)} characters, want at most {REQUEST_LINE}")
        if self.server.loopback and not self._named():
            return self._say(421, "this service answers to its own address alone")
        try:
            target = urlsplit(self.path)
        except ValueError as error:
            return self._say(400, f"the address is none ({error})")
        if target.path in self.server.assets:
            return self._send(200, *self.server.assets[target.path])
        if target.path == "/api/about":
            return self._json(200, self.server.service.about())
        if target.path == "/api/search":
            return self._search(target.query)
        return self._say(404, "there is no such page")

    do_HEAD = do_GET

    def _refuse(self) -> None:
        self.close_connection = True
        self._say(405, "want GET or HEAD", {"Allow": "GET, HEAD"})

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _refuse

    def _named(self) -> bool:
        try:
            name = urlsplit(f"//{self.headers.get('Host', '')}").hostname or ""
            return name == "localhost" or ipaddress.ip_address(name).is_loopback
        except ValueError:
            return False

    def _search(self, query: str) -> None:
        try:
            given = parse_qs(query, keep_blank_values=True, max_num_fields=8, errors="strict")
            text, k = given.get("q", [""])[-1], given.get("k", ["10"])[-1]
            if not text.strip():
                raise InputError("q: got nothing, want a text")
            if not (k.isascii() and k.isdecimal() and len(k) < 10):
                raise InputError(f"k: got {k[:20]!r}, want a whole number")
            if not self.server.turns.acquire(timeout=PATIENCE):
                return self._say(503, "too many searches at a time", {"Retry-After": "1"})
            try:
                answer = self.server.service.answer(text.strip(), int(k))
            finally:
                self.server.turns.release()
        except ValueError as error:  # InputError is one
            return self._say(400, str(error))
        except Exception as error:
            print(f"ellzero: a search failed ({type(error).__name__}: {error})", file=sys.stderr)
            return self._say(500, "the search failed; the service's own output says why")
        return self._json(200, answer)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base class refuses is told in our form."""
        self.close_connection = True
        self._say(code, message or explain or HTTPStatus(code).phrase)

    def _say(self, code: int, message: str, headers: dict[str, str] | None = None) -> None:
        self._json(code, {"error": message}, headers)

    def _json(self, code: int, value: Any, headers: dict[str, str] | None = None) -> None:
        self._send(code, "application/json; charset=utf-8", json.dumps(value, allow_nan=False).encode(), headers)

    def _send(self, code: int, kind: str, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        told = {**HEADERS, "Content-Type": kind, "Content-Length": str(len(content)), "Connection": "close"}
        for name, value in {**told, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
