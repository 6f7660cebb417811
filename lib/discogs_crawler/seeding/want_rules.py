"""Why an id is wanted, and what satisfies the want: the rules, without any database.

A row says what the latest dump and the last answer said about an id, and what is wanted: `due`
(when), `reason` (which class) and `since`: only a request sent at or after that instant satisfies
the want. So a want survives every answer that is too old for it, and no change is forgotten.

The first three columns say what is wanted after a dump that has the id with the `same` hash or
with an `other` one, or `lacks` it; the rest after an answer: a `record`, a `404` (to a request of
the class `discovered`, of `confirm`, or of any other), or `none`, not even in the last attempt. In
a cell, `-` is nothing, and `same` the class of the request.

    id         same     other    lacks    record  404      discovered  confirm  none
    unseen     new      new      -        -       -        discovered  -        same
    listed     -        changed  retired  -       -        -           -        same
    stored     -        changed  retired  -       confirm  confirm     -        same
    fresh      -        -        -        -       confirm  confirm     -        same
    missing    changed  changed  -        -       confirm  confirm     -        same
    removed    changed  changed  -        -       -        -           -        same
    unused     changed  changed  -        -       -        discovered  -        same

An id is `unseen` by dumps and API, `listed` in a dump alone, `stored` since before the dump,
`fresh` if answered after it was taken, `missing` if stored but 404 since then, `removed` after the
404 to a `confirm`, and `unused` if 404 is all that was ever known of it. While an import has not
ended well, a 404 for what is `listed` is confirmed, too: it may be stored. With `adopt`, `other` is
taken as `same`; a number is `discovered` again twice; `manual`, newer than a 404, stays.

A want that was there before is joined with the new one (`want`), and after an answer:

    the want                                   arose before the request  after it
    manual, confirm, discovered: as requested  is satisfied              becomes changed
    any other                                  is satisfied              stays as it is
"""

from discogs_crawler.broker.messages import CLASSES, IMPATIENT, Result
from discogs_crawler.clock import DAY_S, SKEW_S
from discogs_crawler.ledger.rows import DumpRow, Row

# A stored record that answers 404 is requested once more after this before it is removed.
CONFIRM_AFTER_S = DAY_S

# An unused number is requested again 7 and 30 days after the first time: drafts appear late.
REPROBE_AFTER_S = (7 * DAY_S, 23 * DAY_S)

# An id that no attempt could fetch is tried again after this.
DEAD_AGAIN_S = 30 * DAY_S

# When something happened: these are never later than now.
_TIMES = ("since", "crawled", "alive", "removed", "changed")

_RANK = {reason: rank for rank, reason in enumerate(CLASSES)}


def want(row: Row, reason: str, due: int, since: int) -> Row:
    """The row, wanted for `reason` too: the higher class, the earlier due and the later since.

    A record of the first crawl that was never fetched stays in its class: 226 days of work, in
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
    row: Row,
    digest: bytes | None,
    dump: DumpRow,
    now: int,
    cooldown_s: float,
    *,
    adopt: bool = False,
) -> Row:
    """The row after a dump that has the id with this hash, or not at all (None).

    With `adopt`, another hash alone is no reason to ask.
    """
    if digest is None:
        reason, since = _reason_if_absent(row, dump), dump.not_before
        row = row._replace(dump=None)
    else:
        reason, since = _reason_if_present(row, digest, dump, adopt), dump.not_after + 1
        has_it_from = row.dump if row.hash == digest else None
        row = row._replace(hash=digest, dump=has_it_from or dump.id)
    if reason is None:
        return row
    return want(row, reason, _cooled(row, now, cooldown_s), min(since, now))


def _reason_if_present(row: Row, digest: bytes, dump: DumpRow, adopt: bool) -> str | None:
    if row.crawled is not None and row.crawled > dump.not_after:
        return None
    if _is_unseen(row) and row.reason in (None, *IMPATIENT):
        return "new"
    if _is_missing(row):
        return "changed"
    return None if row.hash == digest or adopt else "changed"


def _reason_if_absent(row: Row, dump: DumpRow) -> str | None:
    was_alive_later = row.alive is not None and row.alive >= dump.not_before
    return None if _is_unseen(row) or _is_missing(row) or was_alive_later else "retired"


def _is_unseen(row: Row) -> bool:
    """Neither a dump nor the API has ever shown it."""
    return row.hash is None and row.crawled is None


def _is_missing(row: Row) -> bool:
    """The last answer was that it does not exist."""
    return row.misses > 0


def _is_unused(row: Row) -> bool:
    """A number that no dump had, and the API never: it may be a draft."""
    return row.hash is None and row.alive is None


def _cooled(row: Row, now: int, cooldown_s: float) -> int:
    """The first instant at which the cooldown allows another request."""
    return max(now, 0 if row.crawled is None else row.crawled + int(cooldown_s))


def without_times_to_come(row: Row, now: int) -> Row:
    """The row without times in the future: a clock was wrong when they were written.

    When such an answer came is not known, so its id is wanted again.
    """
    limit = now + SKEW_S
    future = {name for name in _TIMES if (getattr(row, name) or 0) > limit}
    if row.due is not None and row.due > limit:
        # Nothing but a cooldown or a dead letter puts a want off, by a month at most.
        is_put_off = row.crawled is not None or row.failure is not None
        if future or not is_put_off or row.due > limit + DEAD_AGAIN_S:
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


def after_result(row: Row, result: Result, now: int, *, import_failed: bool = False) -> Row:
    """The row after an answer that a worker reported, or after the last failed attempt.

    With `import_failed`, Git may have records from dumps that the ledger does not know of.
    """
    fetched = result.fetched or now
    if result.outcome == "dead":
        is_wanted_since = row.since is not None and row.since > fetched
        return row._replace(
            status=result.status,
            failure=result.failure or "unknown",
            reason=row.reason or result.reason,
            due=row.due if is_wanted_since else fetched + DEAD_AGAIN_S,
            since=row.since or fetched,
        )
    if row.crawled is not None and row.crawled > fetched:
        return row
    row = row._replace(crawled=fetched, status=result.status, failure=None)
    if result.outcome == "stored":
        changed = fetched if result.changed else row.changed
        row = row._replace(alive=fetched, misses=0, removed=None, successor=None, changed=changed)
        row = row._replace(imported=None)
        return _satisfied(row, result.reason, fetched)
    return _after_404(row, result, fetched, import_failed)


def _after_404(row: Row, result: Result, fetched: int, import_failed: bool) -> Row:
    was_stored = row.stored
    is_listed = row.hash is not None and row.alive is None and not row.misses
    is_confirmed = was_stored and result.reason == "confirm"
    planned = row.due if row.reason == "confirm" else None
    row = row._replace(
        misses=row.misses + 1,
        successor=result.successor or None,
        removed=fetched if is_confirmed else row.removed,
        imported=None if is_confirmed else row.imported,
    )
    row = _satisfied(row, result.reason, fetched)
    if row.reason == "manual" or is_confirmed:
        return row
    if was_stored or (import_failed and is_listed and result.reason != "confirm"):
        return row._replace(
            reason="confirm",
            due=planned or fetched + CONFIRM_AFTER_S,
            since=max(row.since or 0, fetched + 1),
        )
    is_probe = result.reason == "discovered" and _is_unused(row)
    if is_probe and row.misses <= len(REPROBE_AFTER_S):
        return want(row, "discovered", fetched + REPROBE_AFTER_S[row.misses - 1], fetched + 1)
    return row


def _satisfied(row: Row, asked: str, fetched: int) -> Row:
    """The row without its want, if the answer to a request of class `asked` is new enough."""
    if row.since is None:
        return row
    if fetched >= row.since:
        return row._replace(due=None, reason=None, since=None)
    if row.reason == asked and asked in IMPATIENT:
        # The request has been answered; what remains is a dump that is newer than the answer.
        return row._replace(reason="changed")
    return row
