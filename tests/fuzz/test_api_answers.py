"""Whatever the API sends: an Answer that claims no more than was said, and the next is right."""

import gzip
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discogs_crawler.api.client import Answer
from discogs_crawler.records import MAX_ID
from tests.fuzz.answers import QUOTA, RECORD, STATUSES, TOKEN, Tell, listener, reply
from tests.fuzz.damage import damaged, is_one_line

PATIENCE_S = 10

PACKED = gzip.compress(RECORD, mtime=0)


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
    *(b"X: y\r\n" * 200, b"\r\n ", b"//[x", b"#", b"?"),
    *(b"/masters/8", b"/releases/8", b"/releases/5"),
    *(QUOTA, b"Retry-After: 5\r\n", b"Location: /releases/8\r\n", TOKEN.encode(), b"\r\n\r\n"),
)
BODIES = (RECORD, b'{"message": "Release not found."}', b"<html>no</html>")
BODY_TOKENS = (
    *(b'"id": 6,', b'"id": "5\\n",', b'"id": "\\ud800",', b'"title": null,', b"/labels/"),
    *(b"\\n", b"\\u001b[31m", b"\\ud800", b"\\u0000", b"NaN", b"null", b"5.0", b"{", b"}", b'"'),
    *(b"[" * 3_000, b"[" * 300 + b"]" * 300, TOKEN.encode()),
)


@pytest.fixture(scope="module")
def tell() -> Iterator[Tell]:
    with listener() as tell:
        yield tell


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
        assert b"%d" % answer.status in said
    if answer.successor:
        assert b"%d" % answer.successor in said
    # A connection that is being closed just now may be used once more, in vain.
    following = tell(NEXT)
    if not following.arrived:
        following = tell(NEXT)
    assert following.outcome == "record", following.reason


def assert_sound(answer: Answer) -> None:
    statuses = {
        "record": (200,),
        "gone": (404,),
        "merged": (301, 302, 303, 307, 308),
        "too fast": (429,),
        "blocked": (403,),
        "refused": (401,),
        "forbidden": (403,),
    }
    assert answer.status in statuses.get(answer.outcome, (answer.status,))
    assert TOKEN not in answer.reason
    assert (answer.document is not None) == (answer.outcome == "record") == (not answer.reason)
    if answer.document is not None:
        assert answer.document["id"] == "5"
        assert isinstance(answer.document["title"], str)
    else:
        assert is_one_line(answer.reason)
        assert len(answer.reason) < 300
    assert (answer.outcome == "merged") == (0 < answer.successor <= MAX_ID)
    assert answer.successor != 5
    assert (answer.limit is None) == (answer.remaining is None)
    if answer.limit is not None and answer.remaining is not None:
        assert 0 <= answer.remaining <= answer.limit
        assert answer.limit > 0
    assert answer.retry_after_s is None or 0 <= answer.retry_after_s < 10**6
