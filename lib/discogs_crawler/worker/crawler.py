"""The worker: claim ids, fetch them, judge the answers, commit, report; until told to stop.

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
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from discogs_crawler.api import cleaning
from discogs_crawler.api.client import Client
from discogs_crawler.broker import private_server
from discogs_crawler.broker.limiter import Limiter
from discogs_crawler.broker.queue import Queue
from discogs_crawler.cli.shutdown import Stop
from discogs_crawler.config import Settings
from discogs_crawler.errors import EXIT_UNAVAILABLE, CrawlerError
from discogs_crawler.ledger import database
from discogs_crawler.ledger.database import Ledger
from discogs_crawler.records import segment_of
from discogs_crawler.seeding import exchange
from discogs_crawler.store.layouts import Change, Committed, open_store
from discogs_crawler.worker import statusline
from discogs_crawler.worker.answer_policy import Judge
from discogs_crawler.worker.batch import Batch, Done
from discogs_crawler.worker.fetchers import Fetchers
from discogs_crawler.worker.lease_keeper import Leases
from discogs_crawler.worker.statusline import Rate, StatusLine

log = logging.getLogger(__name__)

T = TypeVar("T")

# How long the main thread waits for an answer before it looks at everything else.
TICK_S = 0.2

# Requests' worth of time for which ids are claimed ahead: longer than a commit and a push. What
# is claimed already is fetched first, so this is also how long a manual wish may have to wait.
AHEAD_S = 20

# An empty queue is asked again after a pause that grows up to this.
IDLE_S = 5

# Stored records among which witnesses are chosen, when the API has nothing but 404s to say.
SAMPLE = 1_000

# How long a commit or Redis is tried again: a reboot, a full disk that is noticed, a remote's
# maintenance. Nothing is fetched meanwhile but what was claimed.
PATIENCE_S = 3_600
FIRST_RETRY_S = 2
LONGEST_RETRY_S = 300


class Task(NamedTuple):
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


class Outcome(NamedTuple):
    """What a worker has done."""

    counts: Counter[str]
    """fetched, stored, changed, gone, merged, dead, failed, commits"""
    empty: bool
    """it ended because the queue was empty"""


def crawl(settings: Settings, task: Task, stop: Stop) -> Outcome:
    """Work until `stop`, the limit or an empty queue; commits and gives back before it returns.

    ConfigurationError if the API refuses us, Unavailable if Redis, the disk or the remote stay
    away for PATIENCE_S; what was fetched is committed even then, if that is possible.
    """
    crawler = _Crawl(settings, task, stop)
    try:
        crawler.run()
    except CrawlerError:
        with contextlib.suppress(CrawlerError):
            crawler.wind_down()
        raise
    crawler.wind_down()
    return Outcome(crawler.counts, crawler.empty)


class _Crawl:
    def __init__(self, settings: Settings, task: Task, stop: Stop) -> None:
        self._settings, self._task, self._stop = settings, task, stop
        self._rules = cleaning.rules_for(settings, task.kind)
        client = Client(settings, settings.worker_threads + 1)
        redis = private_server.connect(settings)
        self._store = open_store(settings, branch=task.branch or None, stop=stop)
        self._ledger = _ledger_of_this_machine(settings)
        self._owner = f"{socket.gethostname()}:{os.getpid()}"
        self._queue = Queue(
            redis, task.kind, prefix=settings.redis_prefix, lease_s=settings.lease_s
        )
        self._leases = Leases(
            self._queue, self._owner, settings.lease_s, task.segments, task.branch
        )
        self._limiter = Limiter(
            redis,
            settings.rate_identity,
            prefix=settings.redis_prefix,
            window_s=settings.rate_window_s,
            limit=settings.rate_limit,
        )
        self._fetchers = Fetchers(client, self._limiter, task.kind, settings.worker_threads)
        self._batch = Batch()
        self._judge = Judge(
            task.kind,
            self._rules,
            settings.retry_delays,
            self._leases,
            self._limiter,
            self._fetchers,
            self._batch,
            self._some_stored,
        )
        self._rate = Rate(settings.rate_window_s)
        self._line = StatusLine()
        self._last_try = False
        self._claimed, self._idle_s, self._claim_again_at = 0, 0.0, 0.0
        self.counts = self._judge.counts
        self.empty = False

    def run(self) -> None:
        """Until there is a reason to end."""
        while not self._is_over():
            self._claim()
            for fetched in self._fetchers.answers(TICK_S):
                self._rate.count()
                self._patiently(functools.partial(self._judge.judge, fetched))
            if self._is_commit_due():
                self._commit()
            self._show()

    def wind_down(self) -> None:
        """Finish the requests under way, commit what is fetched, give back the rest."""
        self._last_try = True
        try:
            for fetched in self._fetchers.end():
                self._judge.judge(fetched)
            self._judge.excuse_the_ids()
        finally:
            try:
                self._commit()
            except CrawlerError:
                if len(self._batch):
                    log.warning("%d fetched ids are not stored and go back", len(self._batch))
                raise
            finally:
                given = self._leases.give_back_all()
                log.info("%d ids went back into the queue", given)
                self._line.end()
                if self._ledger:
                    self._ledger.close()

    def _is_over(self) -> bool:
        if self._stop:
            return True
        if len(self._leases) > len(self._batch):
            return False
        if self._task.limit is not None and self._claimed >= self._task.limit:
            return True
        if self._task.until_empty and self._idle_s:
            self._commit()
            self.empty = self._patiently(self._is_queue_empty)
        return self.empty

    def _is_queue_empty(self) -> bool:
        """Whether nothing is left for anybody in our segments: pending, leased or delayed."""
        wanted = self._task.segments
        left = [s for rows in self._queue.pending().values() for s, ids in rows.items() if ids]
        left += [segment_of(held.id) for held in self._queue.leased()]
        left += [segment_of(delayed.id) for delayed in self._queue.delayed()]
        return not left if wanted is None else not wanted.intersection(left)

    def _claim(self) -> None:
        """Have as many ids at hand as we can fetch until we look again."""
        if self._judge.pause_left_s():
            taken = self._fetchers.take_back()
            self._patiently(lambda: self._leases.give_back(taken))
            return
        if self._leases.take_lapsed():
            self._fetchers.ask(self._leases.ours_of(self._fetchers.take_back()))
        room = self._room()
        if room and time.monotonic() >= self._claim_again_at:
            found = self._patiently(lambda: self._leases.claim(room))
            self._claimed += len(found)
            self._fetchers.ask(found)
            self._idle_s = 0 if found else min(IDLE_S, 2 * self._idle_s or TICK_S / 2)
            self._claim_again_at = time.monotonic() + self._idle_s
        if not self._fetchers.under_way:
            # Nobody is left who could vouch for the service.
            self._patiently(self._judge.blame_the_ids)

    def _some_stored(self) -> list[int]:
        """Ids of records that we have, at random: a few of them may have been deleted since."""
        found = list(itertools.islice(self._store.ids(self._task.kind), SAMPLE))
        random.shuffle(found)
        return found

    def _room(self) -> int:
        """How many ids to claim now; a few at a time, for neighbours make small commits."""
        ahead = round(self._rate.per_minute() / 60 * AHEAD_S)
        target = max(2 * self._settings.worker_threads, ahead)
        missing = target - len(self._fetchers)
        if self._task.limit is not None:
            return max(0, min(missing, self._task.limit - self._claimed))
        return missing if missing >= target / 2 else 0

    def _is_commit_due(self) -> bool:
        if not self._batch:
            return False
        settings = self._settings
        full = len(self._batch) >= settings.commit_every
        return full or self._batch.age_s() >= settings.commit_seconds

    def _commit(self) -> None:
        """Store and report what is fetched; let the ledger know if it is here."""
        if not self._batch:
            return
        kind, leases = self._task.kind, self._batch.leases()
        trailers = {
            "Source": "api",
            "Reason": self._batch.reasons(),
            "Dump": self._dump(),
            "Cleaner": self._rules.name,
            "Worker": self._owner,
        }

        def store(changes: list[Change]) -> Committed:
            return self._store.commit(kind, changes, lambda: self._leases.renew(leases), trailers)

        done = self._patiently(lambda: self._batch.commit(store, self._leases.complete))
        self._leases.forget(done.lost)
        self._tell(done)
        self._drain()

    def _tell(self, done: Done) -> None:
        outcomes = Counter(result.outcome for result in done.results)
        self.counts["commits"] += bool(done.committed.changed)
        self.counts["changed"] += len(done.committed.changed)
        committed = done.committed
        log.info(
            "%s: %s; %d added, %d changed, %d removed%s; %.0f requests/min",
            self._task.kind,
            ", ".join(f"{number} {outcome}" for outcome, number in sorted(outcomes.items())),
            committed.added,
            committed.updated,
            committed.removed,
            f" as {committed.revision[:10]}" if committed.changed else "",
            self._rate.per_minute(),
        )
        if done.lost:
            log.warning("%d ids were no longer ours and are fetched by others", len(done.lost))

    def _drain(self) -> None:
        if self._ledger is None:
            return
        try:
            exchange.drain(self._ledger, self._queue)
        except (CrawlerError, sqlite3.OperationalError) as error:
            log.warning("results stay in Redis until the next commit: %s", error)

    def _dump(self) -> str:
        """The dump that the ledger's wants come from, if it is known here."""
        if self._ledger is None:
            return ""
        try:
            dump = self._ledger.last_accepted(self._task.kind)
        except sqlite3.OperationalError:
            return ""
        return dump.file if dump else ""

    def _show(self) -> None:
        if not self._line.due():
            return
        try:
            quota = self._limiter.status()
            waiting = sum(self._queue.depths().values()) + len(self._fetchers)
        except CrawlerError as error:
            self._line.show(str(error)[: self._line.width() - 1])
            return
        rate = self._rate.per_minute()
        self._line.show(
            statusline.line(
                self._task.kind,
                rate,
                self.counts,
                quota,
                waiting,
                self._settings.rate_window_s,
                self._line.width(),
            )
        )

    def _patiently(self, do: Callable[[], T]) -> T:
        """Do it again, with growing pauses, as long as what it needs is not available."""
        pause, given_up_at = FIRST_RETRY_S, time.monotonic() + PATIENCE_S
        is_last = False
        while True:
            try:
                return do()
            except CrawlerError as error:
                # Ctrl-C reaches git too, which a terminal starts in the same group as us: when we
                # are told to stop there is one more attempt.
                if error.exit_code != EXIT_UNAVAILABLE or is_last or self._last_try:
                    raise
                how_long = "once more" if self._stop else "for an hour"
                log.warning("%s; trying again %s", error, how_long)
                self._last_try = self._stop.wait(pause)
                is_last = time.monotonic() > given_up_at
                pause = min(2 * pause, LONGEST_RETRY_S)


def _ledger_of_this_machine(settings: Settings) -> Ledger | None:
    return database.open(settings.database) if settings.database.exists() else None
