"""Whatever the headers say of the quota: never more than was allowed, never stopped for ever."""

import itertools
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from discogs_crawler import clock
from discogs_crawler.api.client import Answer
from discogs_crawler.broker.limiter import Limiter, Permit
from discogs_crawler.worker.fetchers import SENSE
from tests.fuzz.answers import QUOTA, RECORD, STATUSES, Tell, listener, reply
from tests.fuzz.damage import damaged

WINDOW_S = 60.0
START = 2_000_000_000.0
LIMIT = 60

# Without a word from the API; see limiter.lua.
UNKNOWN_LIMIT = 25
# The longest pause that an API may ask for, and what is lost in front of it.
PATIENCE_WINDOWS = 125

SEEDS = (
    QUOTA,
    QUOTA.replace(b"59", b"2") + b"X-Discogs-Ratelimit-Used: 58\r\n",
    b"X-Discogs-Ratelimit: 25\r\nX-Discogs-Ratelimit-Remaining: 0\r\nRetry-After: 30\r\n",
    b"Retry-After: Wed, 21 Oct 2026 07:28:00 GMT\r\nDate: Wed, 21 Oct 2026 07:27:00 GMT\r\n",
    b"Content-Type: application/json\r\nContent-Encoding: identity\r\nConnection: close\r\n",
)
TOKENS = (
    *(b"X-Discogs-Ratelimit: ", b"X-Discogs-Ratelimit-Remaining: ", b"Retry-After: ", b"Date: "),
    *(b"0\r\n", b"1\r\n", b"2\r\n", b"61\r\n", b"99999\r\n", b"999999\r\n", b"100000\r\n"),
    *(
        b"-1\r\n",
        b"+5\r\n",
        b"6e1\r\n",
        b"0x3c\r\n",
        b"60, 60\r\n",
        b"Thu, 01 Jan 1970 00:00:00 GMT",
    ),
    *(b"Content-Length: 5\r\n", b"Content-Range: bytes 0-1/2\r\n", b"Content-Type: text/html\r\n"),
)
COUNT = re.compile(rb"[0-9]{1,5}")

identities = itertools.count()


@pytest.fixture(scope="module")
def tell() -> Iterator[Tell]:
    with listener() as tell:
        yield tell


@pytest.fixture(scope="module")
def client(redis_socket: Path) -> Iterator[redis.Redis]:
    offset = clock.OFFSET_S
    with redis.Redis(unix_socket_path=str(redis_socket)) as client:
        yield client
    clock.OFFSET_S = offset


@given(headers=damaged(SEEDS, TOKENS), status=st.sampled_from(STATUSES))
def test_headers_mean_no_more_than_they_say(tell: Tell, headers: bytes, status: bytes) -> None:
    answer = tell(reply(status, RECORD, headers))
    counts = {int(found) for found in COUNT.findall(headers)}
    if answer.limit is not None and answer.remaining is not None:
        assert 0 <= answer.remaining <= answer.limit
        assert answer.limit > 0
        assert {answer.limit, answer.remaining} <= counts
    if answer.retry_after_s is not None:
        assert b"%d" % answer.retry_after_s in headers
    # A connection that is being closed just now may be used once more, in vain.
    if answer.arrived and headers in SEEDS and headers.startswith(b"X-Discogs"):
        assert answer.limit is not None


class Flow:
    """A worker in virtual time that sends whenever it may."""

    def __init__(self, client: redis.Redis, cap: int | None) -> None:
        self.limiter = Limiter(
            client, f"fuzz{next(identities)}", prefix="fuzz", window_s=WINDOW_S, limit=cap
        )
        self.cap = cap
        self.told = 0
        self.sent: list[float] = []
        self.travel(START)

    def travel(self, now: float) -> None:
        self.now = now
        clock.OFFSET_S = now - time.time()

    def lend(self, growth: float = 2) -> Permit:
        """Wait for a permit, by steps that grow; it must come, and there must be room for it."""
        deadline, step = self.now + PATIENCE_WINDOWS * WINDOW_S, WINDOW_S / 200
        while (permit := self.limiter.lend(0)) is None:
            assert self.now < deadline, "stopped for ever"
            self.travel(self.now + step)
            step = min(growth * step, WINDOW_S)
        # Virtual time goes on a little while we calculate.
        recent = sum(at > self.now - WINDOW_S + 1 for at in self.sent)
        assert recent < min(self.told or UNKNOWN_LIMIT, self.cap or 10**6)
        self.sent.append(self.now)
        return permit

    def receive(self, permit: Permit, answer: Answer) -> None:
        """What a worker does with an answer."""
        if not answer.arrived:
            self.limiter.lost(permit)
            return
        self.told = answer.limit or self.told
        self.limiter.answered(permit, answer.limit, answer.remaining, SENSE[answer.outcome])
        if answer.outcome in ("too fast", "blocked"):
            why = "quota" if answer.outcome == "too fast" else "outage"
            pause = self.limiter.pause(why, answer.retry_after_s or 0)
            assert 0 < pause <= PATIENCE_WINDOWS * WINDOW_S

    def send_honestly(self, growth: float = 2) -> None:
        """One request to an API that counts as the real one does."""
        permit = self.lend(growth)
        used = sum(at > self.now - WINDOW_S for at in self.sent)
        remaining = max(0, LIMIT - used)
        self.receive(permit, Answer("record", 200, limit=LIMIT, remaining=remaining))


said = st.builds(reply, st.sampled_from(STATUSES), st.just(RECORD), damaged(SEEDS, TOKENS))


@settings(max_examples=max(10, settings().max_examples // 4))
@given(storm=st.lists(said, min_size=1, max_size=12), cap=st.sampled_from((None, None, 5)))
def test_no_headers_drive_us_over_the_limit_or_stop_us_for_ever(
    tell: Tell, client: redis.Redis, storm: list[bytes], cap: int | None
) -> None:
    flow = Flow(client, cap)
    refused = 0
    for reply_of_the_moment in storm:
        answer = tell(reply_of_the_moment)
        refused += answer.outcome == "too fast"
        flow.receive(flow.lend(), answer)
    for _ in range(2):
        flow.send_honestly()
        flow.travel(flow.now + 2 * WINDOW_S)
    until, before = flow.now + WINDOW_S, len(flow.sent)
    while flow.now < until:
        flow.send_honestly(growth=1)
    allowed = min(LIMIT - refused, cap or LIMIT)
    assert len(flow.sent) - before >= 0.9 * allowed
