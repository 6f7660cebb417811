"""The worker: claim ids, fetch them, settle the answers, commit, report; until told to stop.

Fetching goes on in threads while the main thread commits. Nothing is lost wherever we are killed:
an id is leased until its result is reported, in the same step, after its commit is on disk.
"""

import contextlib
import functools
import itertools
import logging
import os
import random
import socket
import time
from collections import Counter
from typing import NamedTuple

from discogs_crawler.api import cleaning
from discogs_crawler.api.client import Client
from discogs_crawler.broker.connect import (
    announce_store,
    connect,
    limiter_of,
    queue_of,
    refuse_other_store,
)
from discogs_crawler.broker.limiter import Limiter
from discogs_crawler.broker.queue import Queue
from discogs_crawler.cli.shutdown import Stop
from discogs_crawler.config import Settings
from discogs_crawler.errors import CrawlerError, UsageError
from discogs_crawler.records import segment_of
from discogs_crawler.store.layouts import (
    Store,
    open_store,
    refuse_empty,
    refuse_to_begin_anew,
)
from discogs_crawler.store.single import BRANCH
from discogs_crawler.worker import local_ledger, statusline
from discogs_crawler.worker.answer_policy import Settler
from discogs_crawler.worker.batch import Batch
from discogs_crawler.worker.circuit_breaker import CircuitBreaker
from discogs_crawler.worker.claimer import Claimer
from discogs_crawler.worker.committer import Committer
from discogs_crawler.worker.fetchers import Fetchers
from discogs_crawler.worker.lease_keeper import Leases
from discogs_crawler.worker.noticing import Noticing
from discogs_crawler.worker.patience import retry
from discogs_crawler.worker.statusline import RequestRate, StatusLine
from discogs_crawler.worker.witnesses import Witnesses

log = logging.getLogger(__name__)

# How long the main thread waits for an answer before it looks at everything else.
TICK_S = 0.2

# Stored records among which witnesses are chosen, when the API has nothing but 404s to say.
SAMPLE = 1_000

# How long nothing is leased before we take it that no worker of another branch is there: one that
# is claims again as soon as it has committed.
ABANDONED_S = 60


class CrawlTask(NamedTuple):
    """What a worker is to do."""

    kind: str
    segments: frozenset[int] | None = None
    """the segments of a million ids in which it may claim; None: all"""
    branch: str = ""
    """commit to `crawl/BRANCH`; empty: to STORE_BRANCH"""
    limit: int | None = None
    """end after as many ids"""
    until_empty: bool = False
    """end when nothing is pending, leased or delayed"""


class CrawlOutcome(NamedTuple):
    """What a worker has done."""

    counts: Counter[str]
    """fetched, stored, changed, gone, merged, dead, failed, commits"""
    empty: bool
    """it ended because the queue was empty"""


def crawl(settings: Settings, task: CrawlTask, stop: Stop) -> CrawlOutcome:
    """Work until `stop`, the limit or an empty queue; commits and gives back before it returns.

    ConfigurationError if the API refuses us, Unavailable if Redis, the disk or the remote stay
    away for an hour; what was fetched is committed even then, if that is possible.
    """
    if task.branch and not BRANCH.fullmatch(task.branch):
        raise UsageError(f"--branch is {task.branch!r}: letters, digits, _ and - only")
    parts = _assemble(settings, task, stop)
    crawler = _Crawler(settings, task, stop, parts)
    try:
        empty = crawler.run()
    except Exception:
        with contextlib.suppress(CrawlerError):
            crawler.wind_down()
        raise
    crawler.wind_down()
    return CrawlOutcome(parts.settler.counts, empty)


class _Parts(NamedTuple):
    """What a worker is made of."""

    store: Store
    queue: Queue
    limiter: Limiter
    leases: Leases
    fetchers: Fetchers
    claimer: Claimer
    batch: Batch
    breaker: CircuitBreaker
    settler: Settler
    committer: Committer
    rate: RequestRate


def _assemble(settings: Settings, task: CrawlTask, stop: Stop) -> _Parts:
    kind = task.kind
    rules = cleaning.rules_for(settings, kind)
    # What cannot be used as the ledger is refused here, too.
    refuse_to_begin_anew(settings, local_ledger.stored(settings.database))
    client = Client(settings, settings.worker_threads + 1)
    redis = connect(settings)
    store = open_store(settings, branch=task.branch or None, stop=stop)
    owner = f"{socket.gethostname()}:{os.getpid()}"
    queue, limiter = queue_of(redis, settings, kind), limiter_of(redis, settings)
    leases = Leases(queue, owner, settings.lease_s, task.segments, task.branch)
    fetchers = Fetchers(client, limiter, kind, settings.worker_threads)
    rate = RequestRate(settings.rate_window_s)
    batch, breaker = Batch(), CircuitBreaker()
    noticing = Noticing(kind, queue.observations)

    def some_stored() -> list[int]:
        """Return ids at random: a few of the records may have been deleted since."""
        found = list(itertools.islice(store.ids(kind), SAMPLE))
        random.shuffle(found)
        return found

    witnesses = Witnesses(fetchers.ask_now, fetchers.ask_if_permitted, some_stored)
    delays = settings.retry_delays
    return _Parts(
        store,
        queue,
        limiter,
        leases,
        fetchers,
        Claimer(leases, fetchers, rate, settings.worker_threads, task.limit),
        batch,
        breaker,
        Settler(kind, rules, delays, leases, limiter, batch, breaker, witnesses, noticing),
        Committer(kind, rules.name, owner, store, queue, leases, settings.database, noticing),
        rate,
    )


class _Crawler:
    def __init__(self, settings: Settings, task: CrawlTask, stop: Stop, parts: _Parts) -> None:
        self._settings, self._task, self._stop, self._parts = settings, task, stop, parts
        self._line = StatusLine()
        self._idle_since: float | None = None

    def run(self) -> bool:
        """Until there is a reason to end; whether that is an empty queue."""
        parts = self._parts
        retry(self._check_store, self._stop)
        while not self._stop and not self._has_reached_its_limit():
            if self._task.until_empty and self._is_all_done():
                return True
            self._claim()
            for fetched in parts.fetchers.answers(TICK_S):
                parts.rate.count()
                retry(functools.partial(parts.settler.settle, fetched), self._stop)
            if self._is_commit_due():
                retry(self._commit, self._stop)
            self._show()
        return False

    def _check_store(self) -> None:
        """ConfigurationError, before anything is fetched, if it cannot be the ledger's store."""
        store, database = self._parts.store, self._settings.database
        announce_store(self._settings, self._parts.queue)
        refuse_other_store(self._settings, self._parts.queue)
        store.top.refresh()
        refuse_empty(store, local_ledger.stored(database), database)
        local_ledger.refuse_older_copy(database, store)
        if neglect := local_ledger.neglect(database):
            log.warning("%s", neglect)

    def wind_down(self) -> None:
        """Finish the requests under way, commit what is fetched, give back the rest."""
        parts = self._parts
        with contextlib.ExitStack() as last:
            last.callback(self._line.end)
            last.callback(self._give_back)
            last.callback(self._commit_or_warn)
            for fetched in parts.fetchers.end():
                parts.settler.settle(fetched)
            parts.settler.excuse_the_ids()

    def _has_all_settled(self) -> bool:
        return len(self._parts.leases) <= len(self._parts.batch)

    def _has_reached_its_limit(self) -> bool:
        return self._has_all_settled() and self._parts.claimer.is_exhausted()

    def _is_all_done(self) -> bool:
        """Whether nothing in our segments is pending, leased or delayed, once we have committed."""
        if not (self._has_all_settled() and self._parts.claimer.found_none()):
            return False
        retry(self._commit, self._stop)
        left = retry(self._left, self._stop)
        if left:
            self._end_if_nobody_comes(left)
        return not left

    def _left(self) -> set[int]:
        """The segments, of those that we may take, in which something is left for anybody."""
        queue, wanted = self._parts.queue, self._task.segments
        left = {s for rows in queue.pending().values() for s, ids in rows.items() if ids}
        left.update(segment_of(held.id) for held in queue.leased())
        left.update(segment_of(delayed.id) for delayed in queue.delayed())
        return left if wanted is None else left.intersection(wanted)

    def _end_if_nobody_comes(self, left: set[int]) -> None:
        """Do not wait without end for workers of branches that alone may fetch what is left."""
        queue, ours = self._parts.queue, self._task.branch
        owners = retry(queue.branches, self._stop)
        branches = {owners.get(segment, ours) for segment in left}
        if ours in branches or retry(queue.leased, self._stop):
            self._idle_since = None
            return
        if self._idle_since is None:
            self._idle_since = time.monotonic()
        if time.monotonic() - self._idle_since > ABANDONED_S:
            log.warning(
                "what is left belongs to branches that nobody works on: %s: start their workers, "
                "or run maintain_store.py --merge",
                ", ".join(sorted(branches)),
            )
            self._stop.ask()

    def _claim(self) -> None:
        parts = self._parts
        if parts.breaker.is_open:
            unsent = parts.fetchers.take_back()
            retry(lambda: parts.leases.give_back(unsent), self._stop)
            if not parts.breaker.pause_left_s():
                retry(parts.settler.ask_a_witness, self._stop)
            return
        retry(parts.claimer.claim, self._stop)
        if parts.breaker.held() and not parts.fetchers.under_way:
            # No request is left whose answer could show that the service works.
            parts.breaker.suspect()

    def _is_commit_due(self) -> bool:
        batch, settings = self._parts.batch, self._settings
        if not batch:
            return False
        return len(batch) >= settings.commit_every or batch.age_s() >= settings.commit_seconds

    def _commit(self) -> None:
        """Store and report what is fetched; let the ledger know if it is here."""
        parts = self._parts
        if not parts.batch:
            return
        done = parts.committer.commit(parts.batch)
        parts.settler.counts["commits"] += bool(done.committed.changed)
        parts.settler.counts["changed"] += len(done.committed.changed)
        parts.committer.tell(done, parts.rate.per_minute())

    def _commit_or_warn(self) -> None:
        try:
            self._commit()
        except CrawlerError:
            log.warning(
                "%d fetched ids could not be stored and go back into the queue",
                len(self._parts.batch),
            )
            raise

    def _give_back(self) -> None:
        log.info("%d ids went back into the queue", self._parts.leases.give_back_all())

    def _show(self) -> None:
        if not self._line.due():
            return
        parts = self._parts
        try:
            quota = parts.limiter.status()
            waiting = sum(parts.queue.depths().values()) + len(parts.fetchers)
        except CrawlerError as error:
            self._line.show(str(error)[: self._line.width() - 1])
            return
        self._line.show(
            statusline.line(
                self._task.kind,
                parts.rate.per_minute(),
                parts.settler.counts,
                quota,
                waiting,
                self._settings.rate_window_s,
                self._line.width(),
            )
        )
