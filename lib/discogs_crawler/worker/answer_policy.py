"""What an answer of the API means for the id: `decide`, then `Settler`."""

import enum
import logging
import random
from collections import Counter
from collections.abc import Sequence

from discogs_crawler.api import cleaning
from discogs_crawler.api.cleaning import Rules
from discogs_crawler.api.client import Answer
from discogs_crawler.broker.limiter import Limiter, Reason
from discogs_crawler.broker.messages import Lease, Result
from discogs_crawler.errors import BadData, ConfigurationError
from discogs_crawler.store.layouts import Edit
from discogs_crawler.worker.batch import Batch, Item
from discogs_crawler.worker.circuit_breaker import FAILURES, CircuitBreaker
from discogs_crawler.worker.fetchers import Fetched
from discogs_crawler.worker.lease_keeper import Leases
from discogs_crawler.worker.noticing import Noticing
from discogs_crawler.worker.witnesses import Witnesses

log = logging.getLogger(__name__)

# Retries are spread over this share of their delay, so that they do not come back all at once.
JITTER = 0.2


class Action(enum.Enum):
    """What is to be done with an id."""

    SETTLE = "it has its answer, which goes into the batch"
    HOLD = "count an attempt, if the service turns out to work"
    SUSPECT = "hold it, and find out at once whether the service works"
    POSTPONE = "ask again later, without counting an attempt"
    GIVE_BACK = "ask again as soon as the quota allows"
    TRIP = "postpone everything: the service is at fault"
    REFUSE = "end: the API refuses us, whatever we ask"


def decide(fetched: Fetched, breaker: CircuitBreaker, witnesses: Witnesses) -> Action:
    """Return what is to be done with the id that was asked about.

    | outcome                 | breaker closed, suspicious | paused    |
    |-------------------------|----------------------------|-----------|
    | record, merged          | SETTLE                     | SETTLE    |
    | gone, confirmed         | SETTLE                     | SETTLE    |
    | gone, asked too early   | POSTPONE                   | POSTPONE  |
    | gone, like all witnesses| TRIP                       | TRIP      |
    | transient               | HOLD                       | POSTPONE  |
    | forbidden               | SUSPECT                    | POSTPONE  |
    | blocked                 | TRIP                       | TRIP      |
    | too fast                | GIVE_BACK                  | GIVE_BACK |
    | refused                 | REFUSE                     | REFUSE    |
    """
    match fetched.answer.outcome:
        case "record" | "merged":
            return Action.SETTLE
        case "gone":
            if witnesses.confirm_missing(fetched.asked):
                return Action.SETTLE
            return Action.TRIP if witnesses.all_missing else Action.POSTPONE
        case "transient":
            return Action.POSTPONE if breaker.pause_left_s() else Action.HOLD
        case "forbidden":
            return Action.POSTPONE if breaker.pause_left_s() else Action.SUSPECT
        case "blocked":
            return Action.TRIP
        case "too fast":
            return Action.GIVE_BACK
        case "refused":
            return Action.REFUSE


class Settler:
    """Carries out what was decided: into the batch, or back to the queue now or later."""

    def __init__(
        self,
        kind: str,
        rules: Rules,
        retry_delays: Sequence[int],
        leases: Leases,
        limiter: Limiter,
        batch: Batch,
        breaker: CircuitBreaker,
        witnesses: Witnesses,
        noticing: Noticing,
    ) -> None:
        self._kind, self._rules, self._retry_delays = kind, rules, retry_delays
        self._leases, self._limiter, self._batch = leases, limiter, batch
        self._breaker, self._witnesses = breaker, witnesses
        self._noticing = noticing
        self._forbidden: set[int] = set()
        """witnesses that were answered 403"""
        self.counts: Counter[str] = Counter()
        """by outcome; also fetched and failed"""

    def settle(self, fetched: Fetched) -> None:
        """Settle one answer. ConfigurationError if the API refuses us, whatever we ask."""
        self.counts["fetched"] += 1
        fetched, data = self._cleaned(fetched)
        lease, answer = fetched.lease, fetched.answer
        if answer.outcome in ("transient", "forbidden"):
            self.counts["failed"] += 1
            log.info("%s %d: %s", self._kind, lease.id, answer.reason)
        action = decide(fetched, self._breaker, self._witnesses)
        if action is Action.REFUSE:
            raise _refusal(answer)
        if action is Action.GIVE_BACK:
            self._pause("quota", answer.retry_after_s, answer.reason)
            self._leases.give_back([lease])
        elif action is Action.POSTPONE:
            self._postpone(lease)
        elif action is Action.TRIP:
            self._trip(answer)
            self._postpone(lease)
        elif action is Action.SETTLE:
            self._add(fetched, data)
        else:
            self._breaker.hold(fetched)
            if action is Action.SUSPECT:
                self._breaker.suspect()

    def ask_a_witness(self) -> None:
        """Let a witness tell who is at fault, the service or the ids; nothing without a permit."""
        failing = {fetched.lease.id for fetched in self._breaker.held()} | self._forbidden
        testimony = self._witnesses.testify(failing)
        if testimony is None:
            return
        witness, answer = testimony
        match answer.outcome:
            case "record" | "gone" | "merged" if not self._witnesses.all_missing:
                self._works()
            case "too fast":
                self._pause("quota", answer.retry_after_s, answer.reason)
            case "forbidden" if not self._forbidden:
                self._forbidden.add(witness)  # it may be as bad as the id: the next one tells
            case "refused" | "forbidden":
                raise _refusal(answer)
            case _:
                self._trip(answer)

    def blame_the_ids(self) -> None:
        """Count an attempt for each failure that is held: the service has proved to be up."""
        for fetched in self._breaker.held():
            self._blame(fetched)
        self._breaker.release()

    def excuse_the_ids(self) -> None:
        """Postpone the ids whose failures are held, without counting an attempt."""
        for fetched in self._breaker.held():
            self._postpone(fetched.lease)
        self._breaker.release()

    def _cleaned(self, fetched: Fetched) -> tuple[Fetched, bytes | None]:
        """The bytes to store, if it is a record; one that cannot be stored is a failure."""
        answer = fetched.answer
        if answer.document is None:
            return fetched, None
        try:
            data = cleaning.clean(answer.document, self._rules)
        except BadData as error:
            reason = f"HTTP {answer.status} with a record that cannot be stored: {error}"
            failed = answer._replace(outcome="transient", document=None, reason=reason)
            return fetched._replace(answer=failed), None
        self._witnesses.saw_record(fetched.lease.id)
        self._noticing.look_at(fetched.lease.id, answer.document)
        return fetched, data

    def _add(self, fetched: Fetched, data: bytes | None) -> None:
        """Add a sensible answer to the batch; it also shows that the service works."""
        lease, answer = fetched.lease, fetched.answer
        change = None
        # Only a 404 that was asked for to confirm an earlier one removes what is stored.
        if data is not None or lease.reason == "confirm":
            change = Edit(lease.id, data)
        outcome = answer.outcome if data is None else "stored"
        result = self._result(fetched, outcome)._replace(successor=answer.successor)
        self._batch.add(Item(lease, result, change))
        self._works()

    def _works(self) -> None:
        """The service has shown that it works."""
        self._forbidden.clear()
        if self._breaker.close():
            log.warning("the API answers again")
        self.blame_the_ids()

    def _trip(self, answer: Answer) -> None:
        failed, reason = len(self._breaker.held()), answer.reason
        if failed >= FAILURES:
            reason = f"{failed} ids in a row, then another: {reason}"
        if self._witnesses.all_missing:
            reason = f"the API answers 404 for records that exist: {reason}"
        self._breaker.trip(self._pause("outage", answer.retry_after_s, reason))
        self.excuse_the_ids()

    def _pause(self, why: Reason, least_s: float | None, reason: str) -> float:
        seconds = self._limiter.pause(why, least_s or 0)
        log.warning("no requests for %.0f s: %s", seconds, reason)
        return seconds

    def _postpone(self, lease: Lease) -> None:
        """Delay the id until the pause is over, without counting an attempt."""
        seconds = self._breaker.pause_left_s() * (1 + random.uniform(0, JITTER))
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


def _refusal(answer: Answer) -> ConfigurationError:
    return ConfigurationError(f"the API refuses us, check DISCOGS_TOKEN: {answer.reason}")
