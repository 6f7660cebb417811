"""The API: a real HTTP server on loopback that answers and counts as Discogs does.

    with Api(world, Quota(window_s=1)) as api:
        ... DISCOGS_API=api.url ...
        api.journal.asked("releases")

Everything can be changed while it runs, in process or over HTTP, under `/-/` (see control.py).
"""

import gzip
import json
import re
import socket
import struct
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

from tests.discogs import control
from tests.discogs.faults import Faults
from tests.discogs.journal import Journal, Request, arrived
from tests.discogs.loopback import Loopback
from tests.discogs.quota import Counted, Quota
from tests.discogs.world import KINDS, World

GONE = {
    "releases": "That release does not exist or may have been deleted.",
    "masters": "That master release does not exist or may have been deleted.",
    "artists": "Artist not found.",
    "labels": "Label not found",
}
TOO_FAST = "You are making requests too quickly."
PAGE = "<!DOCTYPE html>\n<html><head><title>{0}</title></head><body><h1>{0}</h1></body></html>\n"
FLOOD_B = 17 << 20

_RECORD = re.compile(rf"/({'|'.join(KINDS)})/([0-9]+)")

_FAILURES: dict[str, tuple[int, str]] = {
    "429": (429, TOO_FAST),
    "500": (500, "An internal server error occurred. (Support code: 5)"),
    "502": (502, "The Discogs API is undergoing maintenance. We'll be back in a moment."),
    "401": (401, "Invalid consumer token. Please register an app before making requests."),
    "403-json": (403, "You don't have permission to access this resource."),
}
_PAGES = {
    "503-html": (503, "Service Unavailable"),
    "520-html": (520, "Web server is returning an unknown error"),
    "403-html": (403, "Just a moment..."),
    "404-html": (404, "Not Found"),
    "html": (200, "We will be right back"),
}


class Api(Loopback):
    """The server, its world, and what it has been asked. Also a context manager."""

    def __init__(
        self,
        world: World,
        quota: Quota | None = None,
        faults: Faults | None = None,
        *,
        latency_s: float = 0.0,
        jitter_s: float = 0.0,
        captures: Path | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        certificate: tuple[Path, Path] | None = None,
    ) -> None:
        """`captures` is a folder of real answers, KIND/ID.json, shown as they are.

        On host 0.0.0.0, who calls 127.0.0.2 counts as another client than who calls 127.0.0.1.
        `certificate` (its file, its key's) makes it https.
        """
        self.world = world
        self.quota = quota or Quota()
        self.faults = faults or Faults()
        self.latency_s = latency_s
        self.jitter_s = jitter_s
        self.captures = captures
        self.journal = Journal()
        self.moments = count(time.time_ns() // 1_000_000)
        self.chance = Random(1)
        self.grown: Callable[[int], dict[str, Any]] = lambda moment: {}
        """fields that Discogs adds to every record at that moment"""
        super().__init__(_Handler, host, port, certificate)

    def travel(self) -> None:
        """Take half of the time that a request and its answer are under way."""
        if self.latency_s or self.jitter_s:
            time.sleep(self.latency_s / 2 + self.chance.random() * self.jitter_s / 2)


class _Handler(BaseHTTPRequestHandler):
    owner: Api
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def do_GET(self) -> None:
        if control.handles(self.path):
            self._send(*control.get(self.owner, self.path))
            return
        self.owner.travel()
        token = self._has_token()
        client = f"{self.client_address[0]} {self.connection.getsockname()[0]}"
        agent = self.headers.get("User-Agent", "")
        request = arrived(client, self.path, agent, token=token)
        if not agent:
            self._finish(request, _html(403, "Sorry, you have been blocked"), {})
            return
        counted = self.owner.quota.count(client, token=token)
        self._answer(request, counted)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if control.handles(self.path):
            self._send(*control.post(self.owner, self.path, body))
        else:
            self._send(*_json(405, {"message": "Method POST is not allowed for this resource."}))

    def _has_token(self) -> bool:
        header = self.headers.get("Authorization", "")
        return header.startswith("Discogs token=") and len(header) > len("Discogs token=")

    def _answer(self, request: Request, counted: Counted) -> None:
        if not counted.allowed:
            self._finish(request, _json(429, {"message": TOO_FAST}), counted.headers)
            return
        path = self.path.partition("?")[0]
        match = _RECORD.fullmatch(path)
        if path == "/":
            self._finish(request, _json(200, _welcome(self.owner.world)), counted.headers)
        elif match is None:
            answer = _json(404, {"message": "The requested resource was not found."})
            self._finish(request, answer, counted.headers)
        else:
            kind, record_id = match[1], int(match[2])
            fault = self.owner.faults.next(kind, record_id)
            request = request._replace(kind=kind, id=record_id, fault=fault)
            self._answer_for_record(request, fault, counted.headers)

    def _answer_for_record(self, request: Request, fault: str, headers: dict[str, str]) -> None:
        """Send the record, or what the fault makes of it."""
        if fault in _FAILURES:
            status, message = _FAILURES[fault]
            self._finish(request, _json(status, {"message": message}), headers)
        elif fault in _PAGES:
            self._finish(request, _html(*_PAGES[fault]), {})
        elif fault == "429-empty":
            self._finish(request, (429, b"\n", {"Content-Type": "text/html"}), {})
        elif fault == "404":
            self._finish(request, _json(404, {"message": GONE[request.kind]}), headers)
        elif fault == "moved":
            place = {"Location": f"/{request.kind}/{request.id + 1}"}
            self._finish(request, (301, b"", place), headers)
        elif fault in ("reset", "hang"):
            self._say_nothing(request, fault)
        else:
            self._finish(request, *self._record(request, fault, headers))

    def _record(
        self, request: Request, fault: str, headers: dict[str, str]
    ) -> "tuple[Answer, dict[str, str]]":
        status, body, types = self._look_up(request.kind, request.id)
        if fault == "wrong-id":
            body = json.dumps(
                {"id": request.id + 1, "title": "Another", "name": "Another"}
            ).encode()
            status = 200
        elif fault == "empty":
            status, body = 200, b""
        elif fault == "cut-json":
            status, body = 200, body[: len(body) // 2]
        elif fault == "flood":
            status, body = 200, b" " * FLOOD_B
        elif fault == "odd-headers":
            headers = dict.fromkeys(headers, "many")
        elif fault == "no-headers":
            headers = {}
        return (status, body, types), headers

    def _look_up(self, kind: str, record_id: int) -> "Answer":
        if self.owner.captures:
            capture = self.owner.captures / kind / f"{record_id}.json"
            if capture.is_file():
                return 200, capture.read_bytes(), {"Content-Type": "application/json"}
        moment = next(self.owner.moments)
        document = self.owner.world.document(kind, record_id, moment)
        if document is None:
            return _json(404, {"message": GONE[kind]})
        return _json(200, document | self.owner.grown(moment))

    def _say_nothing(self, request: Request, fault: str) -> None:
        self.owner.journal.note(request)
        self.close_connection = True
        if fault == "hang":
            self.owner.hang()
            return
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.close()

    def _finish(self, request: Request, answer: "Answer", headers: Mapping[str, str]) -> None:
        """Note the request, then send: who reads the journal after an answer finds it there."""
        status, body, more = answer
        self.owner.journal.note(request._replace(status=status))
        self.owner.travel()
        self._send(status, body, {**more, **headers}, request.fault)

    def _send(self, status: int, body: bytes, headers: Mapping[str, str], fault: str = "") -> None:
        headers = {"Vary": "Accept-Encoding", "X-Discogs-Media-Type": "discogs.v2", **headers}
        if "gzip" in self.headers.get("Accept-Encoding", "") and body:
            headers["Content-Encoding"] = "gzip"
            body = b"not gzip: " + body[:100] if fault == "not-gzip" else gzip.compress(body, 1)
        headers["Content-Length"] = str(len(body))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if fault in ("cut", "hang-body"):
            body = body[: len(body) // 2]
            self.close_connection = True
        self.wfile.write(body)
        self.wfile.flush()
        if fault == "hang-body":
            self.owner.hang()

    def version_string(self) -> str:
        return "cloudflare"

    def log_message(self, *_: object) -> None:
        """The journal is the log."""


Answer = tuple[int, bytes, dict[str, str]]


def _json(status: int, document: Any) -> Answer:
    body = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    return status, body, {"Content-Type": "application/json"}


def _html(status: int, text: str) -> Answer:
    headers = {"Content-Type": "text/html; charset=UTF-8"}
    return status, PAGE.format(text).encode(), headers


def _welcome(world: World) -> dict[str, Any]:
    counts = {kind: len(world.alive[kind]) for kind in ("releases", "artists", "labels")}
    return {
        "hello": "Welcome to the Discogs API.",
        "api_version": "v2",
        "documentation_url": "http://www.discogs.com/developers/",
        "statistics": counts,
    }
