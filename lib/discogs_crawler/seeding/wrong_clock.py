"""Times in the ledger that are still to come: a clock was wrong when they were written.

A machine without a battery clock starts in any year. What it "fetched" a year ahead would be newer
than every dump of that year, and no later answer would count. So such times are replaced.
"""

import logging

from discogs_crawler import clock
from discogs_crawler.clock import SKEW_S
from discogs_crawler.dumps.metadata import parse_name
from discogs_crawler.errors import ConfigurationError
from discogs_crawler.ledger.database import BATCH, Ledger
from discogs_crawler.ledger.wrong_times import TIMES, latest_to_come
from discogs_crawler.records import KINDS
from discogs_crawler.seeding.want_rules import without_times_to_come

log = logging.getLogger(__name__)

_OF_ROWS = ("due", "since", "crawled", "alive", "removed", "changed")


def refuse(ledger: Ledger, redis_time: float) -> None:
    """ConfigurationError if our own clock, or that of Redis, must be wrong."""
    now = clock.now()
    ours = f"the clock of this machine says {clock.iso(now)}"
    if abs(redis_time - now) > SKEW_S:
        raise ConfigurationError(
            f"{ours}, that of Redis {clock.iso(redis_time)}: correct the wrong one"
        )
    dumps = ledger.db.execute(
        "SELECT file, not_before FROM dumps WHERE not_before > ?", [int(now + SKEW_S)]
    )
    for file, not_before in dumps:
        if parse_name(file).date == not_before:
            raise ConfigurationError(
                f"{ours}, but there is {file} already: correct the clock, or use seed_queue.py "
                "--force if it is right"
            )


def correct(ledger: Ledger) -> None:
    """Replace times that are still to come, and want again what was fetched then."""
    latest = latest_to_come(ledger)
    if not latest:
        return
    now = int(clock.now())
    records = sum(_correct_rows(ledger, kind, now) for kind in KINDS)
    with ledger.transaction() as connection:
        for table, column in TIMES:
            connection.execute(
                f"UPDATE {table} SET {column} = ? WHERE {column} > ?", (now, now + SKEW_S)
            )
        today, last_day = now // clock.DAY_S, (now + SKEW_S) // clock.DAY_S
        connection.execute(
            "INSERT INTO outcomes SELECT kind, ?, reason, outcome, sum(records) FROM outcomes "
            "WHERE day > ? GROUP BY kind, reason, outcome "
            "ON CONFLICT DO UPDATE SET records = records + excluded.records",
            (today, last_day),
        )
        connection.execute("DELETE FROM outcomes WHERE day > ?", (last_day,))
        connection.execute("DELETE FROM ages WHERE day > ? AND records = 0", (last_day,))
    log.warning(
        "%s: a clock was wrong: times up to %s, which are still to come, were replaced; records "
        "fetched or wanted then, and now wanted again: %s",
        ledger.path,
        clock.iso(latest),
        f"{records:,}",
    )


def _correct_rows(ledger: Ledger, kind: str, now: int) -> int:
    """The number of records of a kind that had such times."""
    future = " OR ".join(f"{column} > ?" for column in _OF_ROWS)
    condition = f"id > ? AND ({future}) ORDER BY id LIMIT {BATCH}"
    to_come = [now + SKEW_S] * len(_OF_ROWS)
    corrected = last = 0
    while ids := [row.id for row in ledger.select(kind, condition, last, *to_come)]:
        corrected += ledger.revise(kind, ids, lambda row: without_times_to_come(row, now))
        last = ids[-1]
    return corrected
