"""The dump site: an HTTP server with its HTML index, its CHECKSUM files, and its bad manners.

    with Site() as site:
        site.publish(20261101, {"releases": b"..."})
        ... DUMP_SITE=site.url ...

Files go out in chunks, without a length. `?prefix=data%2F2026%2F` is an index, `?download=...` a
file, and any other address is the index too, with status 200.
"""

import hashlib
import html
import re
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler
from typing import NamedTuple
from urllib.parse import parse_qs, quote, urlsplit

from tests.discogs.api import PAGE
from tests.discogs.journal import Journal, arrived
from tests.discogs.loopback import Loopback

CHUNK_B = 1 << 16

# How long the real site shuts out who asks too often.
BLOCKED_S = 3574

# What may go wrong with a file.
FAULTS = {
    "short": "half of it, in an answer that looks complete",
    "cut": "half of it, then the connection ends",
    "corrupt": "all of it, with one byte changed",
    "html": "an HTML page with status 200",
    "429": "too many requests, come back in an hour",
    "403": "a page that says no",
    "503": "a page that says not now",
    "hang": "half of it, then nothing",
}


class File(NamedTuple):
    """A published file; `modified` in epoch seconds."""

    content: bytes
    modified: float


class Site(Loopback):
    """The server and what it has. Also a context manager."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0, *, ranges: bool = False) -> None:
        """With `ranges`, Range is honoured; the real site was seen to do either."""
        self.files: dict[str, File] = {}
        self.faults: dict[str, list[str]] = {}
        self.ranges = ranges
        self.requests_allowed: int | None = None
        self.chunk_s = 0.0
        self.journal = Journal()
        super().__init__(_Handler, host, port)
        self.url += "/"

    def publish(
        self, date: int, dumps: Mapping[str, bytes], *, checksum: bool = True, modified: float = 0
    ) -> None:
        """Upload the dumps of a month, by kind, and then its CHECKSUM file."""
        modified = modified or time.time()
        for kind, content in dumps.items():
            self.files[f"discogs_{date}_{kind}.xml.gz"] = File(content, modified)
        if checksum:
            self.publish_checksum(date, modified=modified)

    def publish_checksum(self, date: int, text: str | None = None, modified: float = 0) -> None:
        """Upload the CHECKSUM file: right, or as given."""
        names = [
            name for name in self.files if name.startswith(f"discogs_{date}_") and ".xml" in name
        ]
        lines = [
            f"{hashlib.sha256(self.files[name].content).hexdigest()} {name}\n" for name in names
        ]
        content = "".join(lines) if text is None else text
        self.files[f"discogs_{date}_CHECKSUM.txt"] = File(content.encode(), modified or time.time())

    def plan(self, name: str, *faults: str) -> None:
        """Let the next requests for the file meet these faults, one each; `""` is none.

        The index is the file named `index`.
        """
        for fault in filter(None, faults):
            FAULTS[fault]
        self.faults[name] = list(faults)

    def index(self, prefix: str) -> str:
        """The page of a folder: its years, or the files of a year."""
        year = re.fullmatch(r"data/([0-9]{4})/", prefix)
        if year:
            names = sorted(name for name in self.files if name.startswith(f"discogs_{year[1]}"))
            lines = ["  " + " " * 45 + '<a href="?prefix=data%2F">../</a>']
            lines += [self._line(name, year[1]) for name in names]
        else:
            years = sorted({"2008", *(name[8:12] for name in self.files)})
            lines = [
                f'{"-":>33}              <a href="?prefix=data%2F{year}%2F">{year}/</a>'
                for year in years
            ]
        heading = "Last Modified                   Size           Name\n" + "-" * 95 + "\n"
        pre = heading + "\n".join(lines)
        return f"<!DOCTYPE html>\n<html>\n<body>\n<pre>\n{pre}\n</pre>\n</body>\n</html>\n"

    def _line(self, name: str, year: str) -> str:
        content, modified = self.files[name]
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(modified))
        size = _rounded(len(content))
        place = quote(f"data/{year}/{name}", safe="")
        return f'{when:<32}{size:<15}<a href="?download={place}">{html.escape(name)}</a>'


def _rounded(size: int) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1_000:
            return f"{size:.4g} {unit}"
        size = size / 1_000  # type: ignore[assignment]
    return f"{size:.3g} GB"


class _Handler(BaseHTTPRequestHandler):
    owner: Site
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        client, agent = self.client_address[0], self.headers.get("User-Agent", "")
        request = arrived(client, self.path, agent, token=False)
        query = parse_qs(urlsplit(self.path).query)
        name = query.get("download", ["index"])[0].rpartition("/")[2]
        fault = self._fault(name)
        self.owner.journal.note(request._replace(kind=name, fault=fault))
        if fault == "429":
            headers = {"Retry-After": str(BLOCKED_S), "Content-Type": "application/json"}
            self._send(429, [b'{"message":"Too many requests"}'], headers)
        elif fault in ("403", "503"):
            self._send_page(int(fault), PAGE.format("Not now"))
        elif fault == "html":
            self._send_page(200, PAGE.format("We will be right back"))
        elif "download" in query and name not in self.owner.files:
            self._send_page(404, PAGE.format("Not Found"))
        elif "download" in query:
            self._send_file(self.owner.files[name].content, fault)
        else:
            self._send_page(200, self.owner.index(query.get("prefix", [""])[0]), fault)

    def _fault(self, name: str) -> str:
        allowed = self.owner.requests_allowed
        if allowed is not None and len(self.owner.journal.since()) >= allowed:
            return "429"
        planned = self.owner.faults.get(name)
        return planned.pop(0) if planned else ""

    def _send_page(self, status: int, page: str, fault: str = "") -> None:
        body = page.encode()
        if fault in ("short", "cut"):
            body = body[: len(body) // 2]
        self._send(status, [body], {"Content-Type": "text/html; charset=UTF-8"})

    def _send_file(self, content: bytes, fault: str) -> None:
        if fault == "corrupt":
            middle = len(content) // 2
            content = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        start, status = 0, 200
        headers = {"Content-Type": "application/octet-stream"}
        wanted = re.fullmatch(r"bytes=([0-9]+)-", self.headers.get("Range", ""))
        if wanted and self.owner.ranges:
            start, status = int(wanted[1]), 206
            if start >= len(content):
                self._send(416, [], {"Content-Range": f"bytes */{len(content)}"})
                return
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        end = start + (len(content) - start) // 2 if fault in ("short", "cut", "hang") else None
        self._send(status, _chunks(content[start:end]), headers, fault)

    def _send(
        self,
        status: int,
        chunks: "Iterator[bytes] | list[bytes]",
        headers: Mapping[str, str],
        fault: str = "",
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for chunk in chunks:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            if self.owner.chunk_s:
                time.sleep(self.owner.chunk_s)
        if fault == "hang":
            self.owner.hang()
        if fault in ("cut", "hang"):
            self.close_connection = True
            return
        self.wfile.write(b"0\r\n\r\n")

    def version_string(self) -> str:
        return "cloudflare"

    def log_message(self, *_: object) -> None:
        """The journal is the log."""


def _chunks(content: bytes) -> Iterator[bytes]:
    for start in range(0, len(content), CHUNK_B):
        yield content[start : start + CHUNK_B]
