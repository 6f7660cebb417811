"""The client of Discogs's API: one request, one Answer that says what it means.

Nothing is retried or followed here. The token goes to the configured host alone, over TLS or to
this machine itself: redirects are never followed, and plain http to any other host is refused.
"""

import http.client
import ipaddress
import re
import ssl
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    DecodeError,
    HTTPError,
    IncompleteRead,
    NameResolutionError,
    NewConnectionError,
    ReadTimeoutError,
)

from discogs_crawler import paced_http
from discogs_crawler.api import exact_json
from discogs_crawler.cli.formatting import printable
from discogs_crawler.config import Settings
from discogs_crawler.errors import BadData, ConfigurationError
from discogs_crawler.records import ELEMENTS, MAX_ID

# The largest real answer seen has 0.4 MB; more than this is not a record.
BODY_LIMIT = 4 * 2**20

# Discogs's tokens have 40 letters; a much shorter one stands in many a record by chance.
SHORTEST_TOKEN = 12

# Shares of the rate window, so that a request is over before its permit lapses (two windows):
# of 60 s they make 10 s to connect, 60 s for a whole answer, and 30 s of silence at its end.
CONNECT_SHARE = 1 / 6
READ_SHARE = 1 / 2
ANSWER_SHARE = 1

# Characters of a reason.
REASON_LIMIT = 250

ACCEPT = "application/vnd.discogs.v2.discogs+json"

# What every record of a kind has had since there are captures of them.
_REQUIRED = {"releases": "title", "artists": "name", "labels": "name", "masters": "title"}

AnswerOutcome = Literal[
    "record", "gone", "merged", "transient", "too fast", "blocked", "forbidden", "refused"
]


class Answer(NamedTuple):
    """What the API said about one id.

    `record`: here it is. `gone`: no such record (404). `merged`: it is `successor` now.
    `transient`: no meaningful answer, ask again later. `too fast`, `blocked`: 429, or 403
    from a firewall. `forbidden`: 403 from the API, for this record or for all. `refused`: the
    token is not accepted, and asking again will not help.
    """

    outcome: AnswerOutcome
    status: int = 0
    """HTTP status; 0 if there was none."""
    reason: str = ""
    """One line for the log and the ledger, of every outcome but `record`."""
    document: dict[str, Any] | None = None
    successor: int = 0
    limit: int | None = None
    """Requests allowed in a window, as the answer's headers say; None where they do not."""
    remaining: int | None = None
    retry_after_s: float | None = None
    arrived: bool = True
    """Whether an answer came at all, so that we know when the request was counted."""


class Client:
    """A pool of connections to the API, which threads can share."""

    def __init__(self, settings: Settings, connections: int = 1) -> None:
        """ConfigurationError if the token would travel in the clear."""
        self._base = check_address(settings)
        self._headers = {
            "User-Agent": settings.discogs_user_agent,
            "Accept": ACCEPT,
            "Accept-Encoding": "gzip",
        }
        self._token = settings.discogs_token.reveal() if settings.discogs_token else ""
        if self._token:
            if not re.fullmatch(r"[!-~]+", self._token):
                raise ConfigurationError("DISCOGS_TOKEN has characters that no token has")
            self._headers["Authorization"] = f"Discogs token={self._token}"
        window_s = settings.rate_window_s
        manager = urllib3.PoolManager(
            maxsize=connections,
            retries=False,
            timeout=urllib3.Timeout(connect=window_s * CONNECT_SHARE, read=window_s * READ_SHARE),
        )
        manager.pool_classes_by_scheme = paced_http.pools(window_s * ANSWER_SHARE)
        self._pool = manager.connection_from_url(settings.discogs_api)

    def fetch(self, kind: str, record_id: int) -> Answer:
        """Ask for one record; every failure is an Answer."""
        return self._ask(
            f"/{kind}/{record_id}",
            lambda status, headers, body: _read(status, headers, body, kind, record_id),
        )

    def greet(self) -> Answer:
        """Ask for the API's front page: whether it is reachable and accepts us."""
        return self._ask("/", _read_welcome)

    def close(self) -> None:
        self._pool.close()

    def _ask(self, path: str, read: Callable[[int, Mapping[str, str], bytes], Answer]) -> Answer:
        try:
            response, body = self._get(path)
            answer = _with_quota(read(response.status, response.headers, body), response.headers)
        except _Unusable as error:
            answer = _with_quota(Answer("transient", error.status, str(error)), error.headers)
        except HTTPError as error:
            answer = Answer("transient", reason=_in_one_line(error), arrived=False)
        reason = answer.reason.replace(self._token, "***") if self._token else answer.reason
        return answer._replace(reason=printable(" ".join(reason.split()))[:REASON_LIMIT])

    def _get(self, path: str) -> tuple[urllib3.BaseHTTPResponse, bytes]:
        response = self._pool.request(
            "GET", self._base + path, headers=self._headers, redirect=False, preload_content=False
        )
        try:
            body = self._read_body(response)
        except BaseException:
            # What is left in the connection would be taken for the next answer.
            response.close()
            raise
        finally:
            response.release_conn()
        return response, body

    def _read_body(self, response: urllib3.BaseHTTPResponse) -> bytes:
        if response.status < 200:
            raise _Unusable(response, "the answer still to come")
        body = bytearray()
        try:
            while piece := response.read1(2**16, decode_content=True):
                body += piece
                if len(body) > BODY_LIMIT:
                    raise _Unusable(response, f"a body of more than {BODY_LIMIT >> 20} MB")
        except (HTTPError, OSError) as error:
            raise _Unusable(response, _in_one_line(error)) from error
        is_long = len(self._token) >= SHORTEST_TOKEN
        if is_long and response.status == 200 and self._token.encode() in body:
            raise _Unusable(response, "our token in it, which is not to be stored")
        return bytes(body)


class _Unusable(Exception):
    """A status and headers came, and a body that cannot be used."""

    def __init__(self, response: urllib3.BaseHTTPResponse, why: str) -> None:
        super().__init__(f"HTTP {response.status} with {why}")
        self.status = response.status
        self.headers = response.headers


def check_address(settings: Settings) -> str:
    """The path part of DISCOGS_API; ConfigurationError if the token would travel in the clear."""
    try:
        urllib3.util.parse_url(settings.discogs_api)
        parts = urlsplit(settings.discogs_api)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigurationError(f"DISCOGS_API is {settings.discogs_api!r}: {error}") from error
    if not host or parts.username or parts.query or parts.fragment:
        raise ConfigurationError(
            "DISCOGS_API must be a scheme, a host and no more than a port and a path"
        )
    if settings.discogs_token and parts.scheme != "https" and not _is_loopback(host):
        raise ConfigurationError(
            f"DISCOGS_API is http://{host}: the token would travel in the clear; use https://"
        )
    return parts.path.rstrip("/")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _read(
    status: int, headers: Mapping[str, str], body: bytes, kind: str, record_id: int
) -> Answer:
    if status == 200:
        return _read_record(body, kind, record_id)
    if status in (301, 302, 303, 307, 308):
        return _read_redirect(status, headers.get("Location", ""), kind, record_id)
    return _read_failure(status, headers, body)


def _read_welcome(status: int, headers: Mapping[str, str], body: bytes) -> Answer:
    document = _object(body)
    if status == 200 and document is not None:
        return Answer("record", status, document=document)
    return _read_failure(status, headers, body)


def _read_record(body: bytes, kind: str, record_id: int) -> Answer:
    try:
        document = exact_json.loads(body)
    except BadData as error:
        return Answer("transient", 200, f"HTTP 200 with {_looks_like(body)}: {error}")
    wrong = _what_is_wrong(document, kind, record_id)
    if wrong:
        return Answer("transient", 200, f"HTTP 200 with {wrong}")
    return Answer("record", 200, document=document)


def _what_is_wrong(document: Any, kind: str, record_id: int) -> str:
    """Why this is not the record that was asked for; empty if it is."""
    if not isinstance(document, dict):
        return "JSON that is not an object"
    found = document.get("id")
    if not isinstance(found, exact_json.Number) or found != str(record_id):
        return f"the id {str(found)[:20]}, not {record_id}"
    if not isinstance(document.get(_REQUIRED[kind]), str):
        return f"an object that has no {_REQUIRED[kind]}: not one of the {kind}"
    # Artists and labels look alike; their addresses do not.
    address = document.get("resource_url")
    place = isinstance(address, str) and re.search(r"/(releases|artists|labels|masters)/", address)
    if place and place[1] != kind:
        return f"one of the {place[1]}, not of the {kind}"
    return ""


def _read_redirect(status: int, location: str, kind: str, record_id: int) -> Answer:
    try:
        path = urlsplit(location).path
    except ValueError:
        path = ""
    match = re.search(rf"/(?:{kind}|{ELEMENTS[kind]})/([1-9][0-9]{{0,8}})(?:-[^/]*)?/?$", path)
    if match and int(match[1]) != record_id and int(match[1]) <= MAX_ID:
        return Answer("merged", status, f"merged into {match[1]}", successor=int(match[1]))
    return Answer("transient", status, f"HTTP {status} to {location!r}")


def _read_failure(status: int, headers: Mapping[str, str], body: bytes) -> Answer:
    document = _object(body)
    message = document.get("message") if document else None
    said = f": {message}" if isinstance(message, str) else f" with {_looks_like(body)}"
    reason = f"HTTP {status}{said}"
    if status == 429:
        return Answer("too fast", status, reason, retry_after_s=_retry_after(headers))
    if status == 404 and document is not None:
        return Answer("gone", status, reason)
    if status == 401:
        return Answer("refused", status, reason)
    if status == 403 and document is not None:
        return Answer("forbidden", status, reason)
    if status == 403:
        return Answer("blocked", status, reason, retry_after_s=_retry_after(headers))
    return Answer("transient", status, reason)


def _object(body: bytes) -> dict[str, Any] | None:
    try:
        value = exact_json.loads(body)
    except BadData:
        return None
    return value if isinstance(value, dict) else None


def _looks_like(body: bytes) -> str:
    start = body[:200].strip().lower()
    if not start:
        return "an empty body"
    if start.startswith(b"<"):
        return "an HTML page"
    return f"a body of {len(body)} bytes"


def _retry_after(headers: Mapping[str, str]) -> float | None:
    digits = re.fullmatch(r"[ \t]*([0-9]{1,6})[ \t]*", headers.get("Retry-After", ""), re.ASCII)
    return float(digits[1]) if digits else None


def _with_quota(answer: Answer, headers: Mapping[str, str]) -> Answer:
    """The answer with what its headers say of the quota, if they say it in plain numbers."""
    limit = _count(headers.get("X-Discogs-Ratelimit"))
    remaining = _count(headers.get("X-Discogs-Ratelimit-Remaining"))
    if not limit or remaining is None or remaining > limit:
        return answer
    return answer._replace(limit=limit, remaining=remaining)


def _count(text: str | None) -> int | None:
    digits = re.fullmatch(r"[ \t]*([0-9]{1,5})[ \t]*", text or "", re.ASCII)
    return int(digits[1]) if digits else None


def _in_one_line(error: BaseException) -> str:
    """What happened to the connection, for a log; never the headers that were sent."""
    if isinstance(error, NameResolutionError):
        return "no address found for the host's name"
    if isinstance(error, ConnectTimeoutError) and not isinstance(error, NewConnectionError):
        return "no connection in time"
    if isinstance(error, ReadTimeoutError):
        return "no answer in time"
    if isinstance(error, IncompleteRead | http.client.IncompleteRead):
        return "a body that was cut off"
    if isinstance(error, DecodeError):
        return "a body that is not the gzip it claims to be"
    inner = next((part for part in error.args if isinstance(part, BaseException)), error.__cause__)
    if inner is not None:
        return _in_one_line(inner)
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {getattr(error, 'verify_message', '') or error.reason}"
    if isinstance(error, OSError) and error.strerror:
        return f"no connection: {error.strerror}"
    return f"a broken connection: {error}"
