"""Whatever the API sends: an Answer that claims no more than was said, and the next is right."""

import contextlib
import gzip
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discogs_crawler import config
from discogs_crawler.api import Answer, Client
from discogs_crawler.records import MAX_ID
from tests.fuzz.damage import damaged, is_one_line

TOKEN = "kzQmXvWpLrTsYb"
# Seconds in the rate window; a request has all of it for its body, half for each silence.
WINDOW_S = 2
PATIENCE_S = 10

RECORD = (
    b'{"id": 5, "title": "T", "resource_url": "https://api.discogs.com/releases/5",'
    b' "labels": [{"id": 7, "name": "n"}], "message": "x"}'
)
QUOTA = b"X-Discogs-Ratelimit: 60\r\nX-Discogs-Ratelimit-Remaining: 59\r\n"
PACKED = gzip.compress(RECORD, mtime=0)


def reply(status: bytes, body: bytes, headers: bytes = QUOTA) -> bytes:
    return b"HTTP/1.1 %s\r\n%sContent-Length: %d\r\n\r\n%s" % (status, headers, len(body), body)


NEXT = reply(b"200 OK", RECORD, b"Connection: close\r\n")
REPLIES = (
    reply(b"200 OK", RECORD),
    reply(b"200 OK", PACKED, QUOTA + b"Content-Encoding: gzip\r\n"),
    b"HTTP/1.1 200 OK\r\n%sTransfer-Encoding: chunked\r\n\r\n9\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n"
    % (QUOTA, RECORD[:9], len(RECORD) - 9, RECORD[9:]),
    reply(b"301 Moved Permanently", b"", b"Location: https://www.discogs.com/release/7-T?a=b\r\n"),
    reply(b"404 Not Found", b'{"message": "Release not found."}'),
    reply(b"404 Not Found", b"<html>no</html>"),
    reply(b"429 Too Many Requests", b'{"message": "slow"}', b"Retry-After: 30\r\n"),
    reply(b"403 Forbidden", b"<html>blocked</html>", b"Retry-After: 30\r\n"),
    reply(b"401 Unauthorized", b'{"message": "no"}'),
    reply(b"502 Bad Gateway", b""),
)
HTTP_TOKENS = (
    *(b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 ", b"HTTP/1.0 ", b"204", b"301", b"404", b"200"),
    *(b"Transfer-Encoding: chunked\r\n", b"Content-Length: 99\r\n", b"Content-Length: -1\r\n"),
    *(b"Content-Encoding: gzip\r\n", b"Content-Encoding: deflate, gzip\r\n", b"ffffffffffff\r\n"),
    *(b"Content-Encoding: br\r\n", b"Content-Encoding: zstd\r\n", b"X: " + b"y" * 70_000 + b"\r\n"),
    *(
        b"X: y\r\n" * 200,
        b"\r\n ",
        b"//[x",
        b"/masters/8",
        b"/releases/8",
        b"/releases/5",
        b"#",
        b"?",
    ),
    *(QUOTA, b"Retry-After: 5\r\n", b"Location: /releases/8\r\n", TOKEN.encode(), b"\r\n\r\n"),
)
BODIES = (RECORD, b'{"message": "Release not found."}', b"<html>no</html>")
BODY_TOKENS = (
    *(
        b'"id": 6,',
        b'"id": "5\\n",',
        b'"id": "\\ud800",',
        b'"title": null,',
        b"[" * 3_000,
        b"/labels/",
    ),
    *(b"\\n", b"\\u001b[31m", b"\\ud800", b"\\u0000", b"NaN", b"null", b"5.0", b"{", b"}", b'"'),
    *(b"[" * 300 + b"]" * 300, TOKEN.encode()),
)
STATUSES = (b"200 OK", b"200 OK", b"404 Not Found", b"403 Forbidden", b"429 X", b"500 X", b"301 X")

Tell = Callable[[bytes], Answer]


@pytest.fixture(scope="module")
def tell() -> Iterator[Tell]:
    """The answer of a client that asked for release 5 and was sent given bytes."""
    said = [b""]
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=speak, args=(server, said), daemon=True).start()
        client = client_of(server.getsockname()[1])

        def ask(new: bytes) -> Answer:
            said[0] = new
            return client.fetch("releases", 5)

        yield ask
        client.close()


def speak(server: socket.socket, said: list[bytes]) -> None:
    """Send what is in `said` to whoever asks, then hang up."""
    with contextlib.suppress(OSError):
        while True:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(65_536)
                connection.sendall(said[0])


def client_of(port: int) -> Client:
    environment = {
        "ENV_FILE": "/dev/null",
        "STATE_DIR": "/nonexistent",
        "DISCOGS_API": f"http://127.0.0.1:{port}",
        "DISCOGS_TOKEN": TOKEN,
        "RATE_WINDOW_S": str(WINDOW_S),
    }
    return Client(config.load(environ=environment))


@given(said=damaged(REPLIES, HTTP_TOKENS))
def test_a_reply_means_no_more_than_it_says(tell: Tell, said: bytes) -> None:
    check(tell, said)


@given(status=st.sampled_from(STATUSES), body=damaged(BODIES, BODY_TOKENS))
def test_a_body_means_no_more_than_it_says(tell: Tell, status: bytes, body: bytes) -> None:
    check(tell, reply(status, body))


def check(tell: Tell, said: bytes) -> None:
    started = time.monotonic()
    answer = tell(said)
    assert time.monotonic() - started < PATIENCE_S
    assert_sound(answer)
    if answer.status:
        assert b" %d" % answer.status in said
    if answer.successor:
        assert b"%d" % answer.successor in said
    # A connection that is being closed just now may be used once more, in vain.
    following = tell(NEXT)
    if not following.arrived:
        following = tell(NEXT)
    assert following.verdict == "record", following.reason


def assert_sound(answer: Answer) -> None:
    statuses = {
        "record": (200,),
        "gone": (404,),
        "merged": (301, 302, 303, 307, 308),
        "too fast": (429,),
        "blocked": (403,),
        "refused": (401, 403),
    }
    assert answer.status in statuses.get(answer.verdict, (answer.status,))
    assert TOKEN not in answer.reason
    assert (answer.document is not None) == (answer.verdict == "record") == (not answer.reason)
    if answer.document is not None:
        assert answer.document["id"] == "5"
        assert isinstance(answer.document["title"], str)
    else:
        assert is_one_line(answer.reason)
        assert len(answer.reason) < 300
    assert (answer.verdict == "merged") == (0 < answer.successor <= MAX_ID)
    assert answer.successor != 5
    assert (answer.limit is None) == (answer.remaining is None)
    if answer.limit is not None and answer.remaining is not None:
        assert 0 <= answer.remaining <= answer.limit
        assert answer.limit > 0
    assert answer.retry_after_s is None or 0 <= answer.retry_after_s < 10**6
