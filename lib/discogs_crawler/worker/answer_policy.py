"""What an answer of the API means for the id that it was asked about.

The hard part is whom to blame when nothing sensible comes back: the id, which then waits longer and
longer and is dead at last, or the service, whose failure must never be an id's. So a failure is
held until an answer that makes sense vouches for the service, and ten in a row speak against it.
"""

import collections
import itertools
import logging
import random
import time
from collections.abc import Callable, Iterable, Sequence

from discogs_crawler.api import cleaning
from discogs_crawler.api.cleaning import Rules
from discogs_crawler.broker.limiter import Limiter, Reason
from discogs_crawler.broker.queue import Lease, Result
from discogs_crawler.errors import BadData, ConfigurationError
from discogs_crawler.store.layouts import Change
from discogs_crawler.worker.batch import Batch, Item
from discogs_crawler.worker.fetchers import Fetched, Fetchers
from discogs_crawler.worker.lease_keeper import Leases

log = logging.getLogger(__name__)

# Different ids in a row without a sensible answer: the service is down.
FAILURES = 10

# 404s in a row after which we ask for records that are known to exist: a service that has lost
# its database says the same of every id. Costs one request in 25 where all of them are true.
MISSING = 25
WITNESSES = 3

# Retries are spread over this share of their delay, lest they come back all at once.
JITTER = 0.2


class Judge:
    """Settles what was fetched: into the batch, back to the queue now or later."""

    def __init__(
        self,
        kind: str,
        rules: Rules,
        retry_delays: Sequence[int],
        leases: Leases,
        limiter: Limiter,
        fetchers: Fetchers,
        batch: Batch,
        stored: Callable[[], Iterable[int]],
    ) -> None:
        """`stored`: ids that the store has, to be asked for when every answer is 404."""
        self._kind, self._rules, self._retry_delays = kind, rules, retry_delays
        self._leases, self._limiter, self._fetchers = leases, limiter, fetchers
        self._batch, self._stored = batch, stored
        self._failures: dict[int, Fetched] = {}
        self._missing, self._lost, self._trusted_since = 0, False, 0.0
        self._alive: collections.deque[int] = collections.deque(maxlen=WITNESSES)
        self._down = False
        self._paused_until = 0.0
        self.counts: collections.Counter[str] = collections.Counter()

    def judge(self, fetched: Fetched) -> None:
        """Settle one answer. ConfigurationError if the API refuses us, whatever we ask."""
        answer = fetched.answer
        self.counts["fetched"] += 1
        if answer.verdict == "refused":
            raise ConfigurationError(f"the API refuses us, check DISCOGS_TOKEN: {answer.reason}")
        if answer.verdict == "too fast":
            self._pause("quota", answer.retry_after_s, answer.reason)
            self._leases.give_back([fetched.lease])
        elif answer.verdict == "blocked":
            self._pause("outage", answer.retry_after_s, answer.reason)
            self._excuse(fetched.lease)
        elif answer.verdict == "transient":
            self._fail(fetched)
        elif answer.verdict == "gone" and self._is_doubtful(fetched):
            self._excuse(fetched.lease)
        else:
            self._settle(fetched)

    def pause_left_s(self) -> float:
        """Seconds until there is sense in asking again."""
        return max(0, self._paused_until - time.monotonic())

    def blame_the_ids(self) -> None:
        """Count an attempt for each failure that we hold: the service has proved to be up."""
        for fetched in self._failures.values():
            self._blame(fetched)
        self._failures.clear()

    def excuse_the_ids(self) -> None:
        """Let go of the failures that we hold without counting an attempt."""
        for fetched in self._failures.values():
            self._excuse(fetched.lease)
        self._failures.clear()

    def _settle(self, fetched: Fetched) -> None:
        """A sensible answer: it counts, and it shows that the service works."""
        lease, answer = fetched.lease, fetched.answer
        if self._down:
            log.warning("the API answers again")
            self._down = False
        if answer.document is not None:
            try:
                data = cleaning.clean(answer.document, self._rules)
            except BadData as error:
                reason = f"HTTP 200 with a record that cannot be stored: {error}"
                self._fail(fetched._replace(answer=answer._replace(reason=reason)))
                return
            self._alive.append(lease.id)
            self._has_its_records()
            result = self._result(fetched, "stored")
            self._batch.add(Item(lease, result, Change(lease.id, data)))
        else:
            # Only a 404 that was asked for to confirm an earlier one removes what is stored.
            change = Change(lease.id, None) if lease.reason == "confirm" else None
            result = self._result(fetched, answer.verdict)
            self._batch.add(Item(lease, result._replace(successor=answer.successor), change))
        self.blame_the_ids()

    def _is_doubtful(self, fetched: Fetched) -> bool:
        """Whether a 404 says nothing, for the API says the same of records that it has."""
        self._missing += 1
        if self._missing > MISSING:
            if self._has_lost_everything():
                self._lost = True
                self._service_is_down(f"the API has lost what it had: {fetched.answer.reason}")
            else:
                self._has_its_records()
        return self._lost or fetched.asked < self._trusted_since

    def _has_lost_everything(self) -> bool:
        candidates = itertools.chain(list(self._alive), self._stored())
        witnesses = list(itertools.islice(dict.fromkeys(candidates), WITNESSES))
        answers = map(self._fetchers.ask_now, witnesses)
        # A failure says nothing of the 404s, and comes up by itself if it lasts.
        return bool(witnesses) and all(a is not None and a.verdict == "gone" for a in answers)

    def _has_its_records(self) -> None:
        """A 404 may be believed, unless it was asked for while the API had lost everything."""
        self._missing = 0
        if self._lost:
            self._lost = False
            self._trusted_since = time.monotonic()

    def _fail(self, fetched: Fetched) -> None:
        self.counts["failed"] += 1
        log.info("%s %d: %s", self._kind, fetched.lease.id, fetched.answer.reason)
        if self._down:
            self._excuse(fetched.lease)
            if fetched.probe == "outage":
                self._service_is_down(fetched.answer.reason)
            return
        self._failures[fetched.lease.id] = fetched
        if len(self._failures) >= FAILURES:
            self._service_is_down(f"{FAILURES} ids in a row, the last: {fetched.answer.reason}")

    def _service_is_down(self, why: str) -> None:
        self._down = True
        self._pause("outage", None, why)
        self.excuse_the_ids()

    def _pause(self, why: Reason, least_s: float | None, reason: str) -> None:
        seconds = self._limiter.pause(why, least_s or 0)
        log.warning("no requests for %.0f s: %s", seconds, reason)
        if why == "outage":
            self._paused_until = time.monotonic() + seconds

    def _excuse(self, lease: Lease) -> None:
        """Another time, and as if it had never been asked for; others first."""
        seconds = self.pause_left_s() * (1 + random.uniform(0, JITTER))
        self._leases.delay(lease, seconds, count_attempt=False)

    def _blame(self, fetched: Fetched) -> None:
        lease = fetched.lease
        if lease.attempts < len(self._retry_delays):
            seconds = self._retry_delays[lease.attempts] * (1 + random.uniform(0, JITTER))
            self._leases.delay(lease, seconds, count_attempt=True)
            return
        log.warning("%s %d is given up: %s", self._kind, lease.id, fetched.answer.reason)
        result = self._result(fetched, "dead")._replace(failure=fetched.answer.reason)
        self._batch.add(Item(lease, result, None))

    def _result(self, fetched: Fetched, outcome: str) -> Result:
        self.counts[outcome] += 1
        lease = fetched.lease
        return Result(lease.id, lease.reason, outcome, fetched.answer.status, fetched.sent)
