"""Between the ledger and Redis: results come in exactly once, due wants go out.

The ledger records a want before Redis gets it, and clears it only when it has read a result that
satisfies it. So Redis may lose everything: the next run hands out again what is unfinished.
"""

import contextlib
import logging
import operator
import sqlite3
from collections import Counter

from discogs_crawler import clock
from discogs_crawler.broker.messages import CLASSES, IMPATIENT, Result
from discogs_crawler.broker.queue import Queue
from discogs_crawler.clock import DAY_S
from discogs_crawler.errors import CrawlerError, TryLater
from discogs_crawler.ledger import drift
from discogs_crawler.ledger.database import Ledger
from discogs_crawler.ledger.rows import Row
from discogs_crawler.records import SEGMENT_SIZE
from discogs_crawler.seeding import wrong_clock
from discogs_crawler.seeding.want_rules import after_result, without_times_to_come

log = logging.getLogger(__name__)

# Results read at once: a transaction of some 20 ms.
RESULTS = 1_000

# A 404 for a record that the latest dump has is rare: some 300 a week in a copy of 19.5 million.
# More than MISSING_MOST in a week are an outage; in a small copy more than MISSING_SHARE of what is
# stored, in a tiny one more than MISSING_FEW.
MISSING_MOST = 1_000
MISSING_SHARE = 0.02
MISSING_FEW = 10
MISSING_DAYS = 7


def drain(
    ledger: Ledger, queue: Queue, *, wait: bool = False, force: bool = False
) -> dict[str, int]:
    """Read the results of the workers into the ledger, each exactly once; their numbers by outcome.

    While another process does that, or hands out wants, do nothing unless told to `wait`.
    """
    with contextlib.suppress(TryLater), ledger.handover(wait=wait):
        _read_observations(ledger, queue)
        return read_results(ledger, queue, force=force)
    return {}


def _read_observations(ledger: Ledger, queue: Queue) -> None:
    """Read what workers noticed; nothing stops if it cannot be read."""
    try:
        observations = queue.observations.take()
        if observations:
            with ledger.transaction() as connection:
                drift.record(connection, queue.kind, "api", observations)
            # If a reader is killed here they count twice.
            queue.observations.forget()
    except CrawlerError as error:
        log.info("what workers noticed stays in Redis: %s", error)


def read_results(
    ledger: Ledger, queue: Queue, *, keep: bool = False, force: bool = False
) -> dict[str, int]:
    """Do what `drain` does, for the holder of the handover; with `keep` Redis keeps the results.

    ConfigurationError if a clock must be wrong, unless `force`.
    """
    if not force:
        wrong_clock.refuse(ledger, queue.time())
    wrong_clock.correct(ledger)
    if not keep:
        _leave_older_copy(ledger, queue)
    counts: Counter[str] = Counter()
    after = "0"
    while True:
        generation, entries = queue.results(after, RESULTS)
        if not entries:
            return dict(counts)
        counts += _apply(ledger, queue.kind, generation, entries)
        after = entries[-1][0]
        # A reader that was killed here finds the same entries again, and that they are applied.
        if not keep:
            queue.forget(generation, after)


def _leave_older_copy(ledger: Ledger, queue: Queue) -> None:
    """Empty a queue that was restored from a backup, in which ids wait that are done."""
    cursor = _cursor(ledger, queue.kind)
    begun = queue.rewind(*cursor) if cursor else ""
    if begun:
        with ledger.transaction() as connection:
            _move_cursor(connection, queue.kind, begun, "0-0")
        log.warning(
            "%s: Redis was restored from an older copy, in which finished ids wait again: the "
            "queue was emptied, and seed_queue.py fills it with what is still wanted",
            queue.kind,
        )


def _cursor(ledger: Ledger, kind: str) -> tuple[str, str] | None:
    """Generation and stream id of the last result that was read."""
    query = "SELECT generation, stream_id FROM results_cursor WHERE kind = ?"
    row: tuple[str, str] | None = ledger.db.conn.execute(query, (kind,)).fetchone()
    return row


def _move_cursor(
    connection: sqlite3.Connection, kind: str, generation: str, stream_id: str
) -> None:
    connection.execute(
        "INSERT INTO results_cursor VALUES (?, ?, ?) ON CONFLICT (kind) DO UPDATE "
        "SET generation = excluded.generation, stream_id = excluded.stream_id",
        (kind, generation, stream_id),
    )


def _apply(
    ledger: Ledger, kind: str, generation: str, entries: list[tuple[str, Result]]
) -> Counter[str]:
    """Apply the results after the cursor, and move it, in one transaction."""
    now = int(clock.now())
    outcomes: Counter[tuple[int, str, str]] = Counter()
    with ledger.transaction() as connection:
        cursor = _cursor(ledger, kind)
        last = _order(cursor[1]) if cursor and cursor[0] == generation else (0, 0)
        results = [result for stream_id, result in entries if _order(stream_id) > last]
        if not results:
            return Counter()
        rows = ledger.rows(kind, (result.id for result in results))
        import_failed = ledger.import_failed(kind)
        for result in results:
            before = rows[result.id]
            after = after_result(before, result, now, import_failed=import_failed)
            rows[result.id] = after = without_times_to_come(after, now)
            day = min(result.fetched or now, now) // DAY_S
            outcomes[day, result.reason, _outcome(result, before, after)] += 1
        ledger.save(kind, rows.values())
        connection.executemany(
            "INSERT INTO outcomes VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT DO UPDATE SET records = records + excluded.records",
            [(kind, *key, number) for key, number in outcomes.items()],
        )
        _move_cursor(connection, kind, generation, entries[-1][0])
        ledger.note_revision(kind, [result.commit for result in results])
    counts: Counter[str] = Counter()
    for (_, _, outcome), number in outcomes.items():
        counts[outcome] += number
    return counts


def _outcome(result: Result, before: Row, after: Row) -> str:
    if result.outcome == "stored":
        return "changed" if result.changed else "unchanged"
    if after.removed is not None and before.removed is None:
        return "removed"
    return result.outcome


def _order(stream_id: str) -> tuple[int, int]:
    """The sort key of stream ids: `1788250656123-0` is milliseconds and a number."""
    milliseconds, _, number = stream_id.partition("-")
    return int(milliseconds), int(number or 0)


def push(
    ledger: Ledger,
    queue: Queue,
    cooldown_s: float,
    *,
    force: bool = False,
    dry_run: bool = False,
) -> tuple[dict[str, int], int]:
    """Hand to Redis all due wants that it does not know, or knows in a lower class.

    For the holder of the handover. With `dry_run` they are only counted. Returns the numbers newly
    queued, by class, and the number of confirmations that were withheld because so many records
    are missing at once that it must be an outage.
    """
    queued: Counter[str] = Counter()
    withheld = 0 if force else confirmations_to_withhold(ledger, queue.kind)
    for reason, segment in _wanted_segments(ledger, queue.kind):
        ids = due_ids(ledger, queue.kind, reason, segment, cooldown_s, in_dump=not withheld)
        if dry_run:
            queued[reason] += queue.count(reason, ids)
        elif reason == "manual":
            queued[reason] += queue.promote(ids)
        else:
            queued[reason] += queue.push(reason, ids)
    return {reason: number for reason, number in queued.items() if number}, withheld


def _wanted_segments(ledger: Ledger, kind: str) -> list[tuple[str, int]]:
    """Classes, highest first, and the segments in which ids are wanted for that reason."""
    found = ledger.db.execute(
        "SELECT DISTINCT reason, segment FROM counts "
        "WHERE kind = ? AND reason <> '' AND records > 0",
        [kind],
    )
    return sorted(found.fetchall(), key=lambda row: (CLASSES.index(row[0]), row[1]))


def due_ids(
    ledger: Ledger, kind: str, reason: str, segment: int, cooldown_s: float, *, in_dump: bool = True
) -> list[int]:
    """Ids of a segment that may be fetched now for this reason, ascending.

    Without `in_dump`, of confirmations only those of ids that the latest dump lacks too.
    """
    now = int(clock.now())
    patient = "" if reason in IMPATIENT else " AND ifnull(crawled, 0) <= :cooled"
    certain = " AND dump IS NULL" if reason == "confirm" and not in_dump else ""
    # SQLite takes the index of all other wants only if told in the words of its condition.
    indexed = " AND reason <> 'backfill'" if reason != "backfill" else ""
    cursor = ledger.db.conn.execute(
        f"SELECT id FROM {kind} WHERE reason = :reason AND due <= :now "
        f"AND id BETWEEN :first AND :last{indexed}{patient}{certain} ORDER BY id",
        {
            "reason": reason,
            "now": now,
            "cooled": now - int(cooldown_s),
            "first": segment * SEGMENT_SIZE,
            "last": (segment + 1) * SEGMENT_SIZE - 1,
        },
    )
    return list(map(operator.itemgetter(0), cursor))


def confirmations_to_withhold(ledger: Ledger, kind: str) -> int:
    """The number of confirmations that wait, if so many records are missing that it is an outage.

    Missing are records that the latest dump has and that answered 404 after they were stored: those
    that wait for their confirmation, and those that were removed in the last week.
    """
    waiting = ledger.count("kind = ? AND reason = 'confirm' AND in_dump", kind)
    (removed,) = ledger.db.execute(
        f"SELECT count(*) FROM {kind} WHERE misses > 0 AND removed > ? AND dump IS NOT NULL",
        [int(clock.now()) - MISSING_DAYS * DAY_S],
    ).fetchone()
    stored = ledger.count("kind = ? AND state IN ('stored', 'imported')", kind)
    return waiting if waiting + removed > _most_missing(stored) else 0


def _most_missing(stored: int) -> float:
    """The highest number of missing records that is not an outage if so many are stored."""
    in_small_copy = max(MISSING_FEW, MISSING_SHARE * stored)
    return min(MISSING_MOST, in_small_copy)
