"""Threads that request one id after the other, as fast as the quota allows."""

import collections
import logging
import queue
import threading
from collections.abc import Callable, Iterable
from typing import NamedTuple

from discogs_crawler.api.client import Answer, Client
from discogs_crawler.broker.limiter import Limiter, Permit, Sense
from discogs_crawler.broker.messages import Lease
from discogs_crawler.errors import CrawlerError, Unavailable

log = logging.getLogger(__name__)

# How long a thread waits for work or a permit before it looks whether it should end.
LOOK_S = 0.2

# Pause before Redis is asked again: its client has already waited for its return.
REDIS_PAUSE_S = 5

SENSE: dict[str, Sense] = {
    "record": "good",
    "gone": "good",
    "merged": "good",
    "transient": "poor",
    "forbidden": "poor",
    "too fast": "bad",
    "blocked": "bad",
    "refused": "bad",
}


class Fetched(NamedTuple):
    """An answer, its lease, and when the request was sent."""

    lease: Lease
    answer: Answer
    sent: int
    """epoch seconds by Redis's clock"""
    asked: float
    """the same by `time.monotonic()`"""


class Fetchers:
    """Threads that take leases from `ask` and hand their answers to `answers`."""

    def __init__(self, client: Client, limiter: Limiter, kind: str, threads: int) -> None:
        self._client, self._limiter, self._kind = client, limiter, kind
        self._patience_s = 2 * limiter.window_s
        self._waiting: collections.deque[Lease] = collections.deque()
        self._work = threading.Semaphore(0)
        # A SimpleQueue waits for ever when a signal, or a stop and its end, outlasts its timeout.
        self._answers: queue.Queue[Fetched | BaseException] = queue.Queue()
        self._ending = threading.Event()
        self.under_way = 0
        """leases that were asked for and neither answered to the caller nor taken back"""
        self._threads = [
            threading.Thread(target=self._run, name=f"fetcher-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def __len__(self) -> int:
        """The number of leases that wait for their request."""
        return len(self._waiting)

    def ask(self, leases: Iterable[Lease]) -> None:
        for lease in leases:
            self.under_way += 1
            self._waiting.append(lease)
            self._work.release()

    def take_back(self) -> list[Lease]:
        """The leases for which no request has been sent yet."""
        taken = []
        while self._waiting:
            try:
                taken.append(self._waiting.popleft())
            except IndexError:
                break
        self.under_way -= len(taken)
        return taken

    def answers(self, wait_s: float) -> list[Fetched]:
        """What has come since the last call; waits up to `wait_s` seconds for the first."""
        found: list[Fetched] = []
        try:
            while True:
                item = self._answers.get(not found, wait_s)
                if isinstance(item, BaseException):
                    raise item
                self.under_way -= 1
                found.append(item)
        except queue.Empty:
            return found

    def end(self) -> list[Fetched]:
        """Send no more requests, wait for those under way; the answers not yet fetched."""
        self._ending.set()
        for thread in self._threads:
            thread.join()
        return self.answers(0)

    def ask_now(self, record_id: int) -> Answer | None:
        """Ask for one id from the caller's thread; None if there is no permit for it in time."""
        permit = self._limiter.lend(self._patience_s)
        return None if permit is None else self._request(permit, record_id)

    def ask_if_permitted(self, choose: Callable[[], int]) -> tuple[int, Answer] | None:
        """Ask for the id that `choose` returns if there is a permit now; that id and its answer."""
        permit = self._limiter.lend(LOOK_S)
        if permit is None:
            return None
        record_id = choose()
        return record_id, self._request(permit, record_id)

    def _run(self) -> None:
        while not self._ending.is_set():
            if not self._work.acquire(timeout=LOOK_S):
                continue
            try:
                self._serve_one()
            except Unavailable as error:
                log.debug("no quota is known now: %s", error)
                self._work.release()
                self._ending.wait(REDIS_PAUSE_S)
            except BaseException as error:
                self._answers.put(error)
                return

    def _serve_one(self) -> None:
        """Wait for a permit, and only then take a lease: until then it can be taken back."""
        permit = None
        while permit is None and self._waiting and not self._ending.is_set():
            permit = self._limiter.lend(LOOK_S)
        if permit is None:
            return
        if self._ending.is_set() or not self._limiter.usable(permit):
            self._limiter.unused(permit)
            self._work.release()
            return
        try:
            lease = self._waiting.popleft()
        except IndexError:
            self._limiter.unused(permit)
            return
        answer = self._request(permit, lease.id)
        sent = int(permit.lent_at)
        self._answers.put(Fetched(lease, answer, sent, permit.asked))

    def _request(self, permit: Permit, record_id: int) -> Answer:
        answer = self._client.fetch(self._kind, record_id)
        log.debug("%s %d: %s", self._kind, record_id, answer.reason or "200")
        try:
            if answer.arrived:
                sense = SENSE[answer.outcome]
                self._limiter.answered(permit, answer.limit, answer.remaining, sense)
            else:
                self._limiter.lost(permit)
        except CrawlerError as error:
            # The permit then comes back two windows after it was lent: late, never early.
            log.debug("a permit is not returned: %s", error)
        return answer
