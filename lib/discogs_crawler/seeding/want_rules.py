"""Why an id is wanted, and what answers the want: the rules, free of any database.

A row says what the latest dump and the last answer said of an id, and what is wanted of it: `due`
(when), `reason` (which class) and `since`: only a request sent at or after that instant satisfies
the want. So a want survives every answer that is too old for it, and no change is forgotten.
"""

from typing import NamedTuple

from discogs_crawler.broker.messages import CLASSES, Result
from discogs_crawler.clock import DAY_S, SKEW_S
from discogs_crawler.ledger.rows import Row

# Classes that ask again although the id was fetched within the cooldown.
IMPATIENT = ("manual", "confirm", "discovered")

# A stored record that answers 404 is asked once more after this before it is removed.
CONFIRM_AFTER_S = DAY_S

# A number that is not in use is asked again 7 and 30 days after the first time: drafts appear late.
REPROBE_AFTER_S = (7 * DAY_S, 23 * DAY_S)

# An id that no attempt could fetch is tried again after this.
DEAD_AGAIN_S = 30 * DAY_S

# When something happened: these are never later than now.
_TIMES = ("since", "crawled", "alive", "removed", "changed")

_RANK = {reason: rank for rank, reason in enumerate(CLASSES)}


class Dump(NamedTuple):
    """What the rules need to know of the dump that is compared."""

    id: int
    not_before: int
    not_after: int


def want(row: Row, reason: str, due: int, since: int) -> Row:
    """The row, wanted for `reason` too: the higher class, the earlier due and the later since.

    A record of the first import that was never fetched stays in its class: 226 days of work, in
    the midst of which its changes are not urgent.
    """
    if row.reason is None or row.due is None or row.since is None:
        return row._replace(reason=reason, due=due, since=since)
    keep = _RANK[row.reason] <= _RANK[reason] or (
        row.reason == "backfill" and reason in ("changed", "new", "retired")
    )
    return row._replace(
        reason=row.reason if keep else reason,
        due=min(row.due, due),
        since=max(row.since, since),
    )


def after_dump(
    row: Row, digest: bytes | None, dump: Dump, now: int, cooldown_s: float, *, adopt: bool = False
) -> Row:
    """The row after a dump that has the id with this hash, or not at all (None).

    With `adopt`, another hash alone is no reason to ask.
    """
    if digest is None:
        return _after_absence(row, dump, now, cooldown_s)
    reason = None
    if row.hash is None and row.crawled is None and row.reason in (None, *IMPATIENT):
        reason = "new"
    elif row.hash != digest:
        reason = None if adopt else "changed"
    if row.misses and reason is None:
        reason = "changed"
    row = row._replace(hash=digest, dump=row.dump if row.hash == digest and row.dump else dump.id)
    if reason is None or (row.crawled is not None and row.crawled > dump.not_after):
        return row
    return want(row, reason, _cooled(row, now, cooldown_s), min(dump.not_after + 1, now))


def _after_absence(row: Row, dump: Dump, now: int, cooldown_s: float) -> Row:
    row = row._replace(dump=None)
    if row.misses or (row.crawled is None and row.hash is None):
        return row
    if row.alive is not None and row.alive >= dump.not_before:
        return row
    return want(row, "retired", _cooled(row, now, cooldown_s), min(dump.not_before, now))


def _cooled(row: Row, now: int, cooldown_s: float) -> int:
    """The first instant at which the cooldown allows another request."""
    return max(now, 0 if row.crawled is None else row.crawled + int(cooldown_s))


def believed(row: Row, now: int) -> Row:
    """The row without times that are still to come: a clock was wrong when they were written.

    It is not known when such an answer came, so its id is wanted again.
    """
    limit = now + SKEW_S
    future = {name for name in _TIMES if (getattr(row, name) or 0) > limit}
    if row.due is not None and row.due > limit:
        waits = row.failure is not None or row.crawled is not None
        if future or not waits or row.due > limit + DEAD_AGAIN_S:
            future.add("due")
    if not future:
        return row
    row = Row(**(row._asdict() | dict.fromkeys(future, now)))
    if "crawled" in future:
        row = row._replace(crawled=None)
        if row.reason is None:
            row = want(row, "refresh", now, now)
    if "due" in future and row.reason == "confirm":
        row = row._replace(due=now + CONFIRM_AFTER_S)
    return row


def after_result(row: Row, result: Result, now: int) -> Row:
    """The row after an answer that a worker reported, or after the last failed attempt."""
    fetched = result.fetched or now
    if result.outcome == "dead":
        row = row._replace(status=result.status, failure=result.failure or "unknown")
        return want(
            row._replace(due=None),
            row.reason or result.reason,
            fetched + DEAD_AGAIN_S,
            row.since or fetched,
        )
    if row.crawled is not None and fetched < row.crawled:
        return row
    row = row._replace(crawled=fetched, status=result.status, failure=None)
    if result.outcome == "stored":
        row = row._replace(alive=fetched, misses=0, removed=None, successor=None)
        if result.changed:
            row = row._replace(changed=fetched)
        return _satisfied(row, result.reason, fetched)
    return _after_absent_answer(row, result, fetched)


def _after_absent_answer(row: Row, result: Result, fetched: int) -> Row:
    asked_again = result.reason == "confirm"
    due = row.due if row.reason == "confirm" else None
    row = row._replace(misses=row.misses + 1, successor=result.successor or None)
    was_stored = row.stored
    if was_stored and asked_again:
        row = row._replace(removed=fetched)
    row = _satisfied(row, result.reason, fetched)
    if row.reason == "manual":
        return row
    if was_stored and not asked_again:
        return row._replace(
            reason="confirm",
            due=due or fetched + CONFIRM_AFTER_S,
            since=max(row.since or 0, fetched + 1),
        )
    unused = row.hash is None and row.alive is None
    if unused and result.reason == "discovered" and row.misses <= len(REPROBE_AFTER_S):
        return want(row, "discovered", fetched + REPROBE_AFTER_S[row.misses - 1], fetched + 1)
    return row


def _satisfied(row: Row, asked: str, fetched: int) -> Row:
    """The row without its want, if the answer to a request of class `asked` is new enough."""
    if row.since is None:
        return row
    if fetched >= row.since:
        return row._replace(due=None, reason=None, since=None)
    if row.reason == asked and asked in IMPATIENT:
        # That has been answered; what is left is a dump that is newer than the answer.
        return row._replace(reason="changed")
    return row
