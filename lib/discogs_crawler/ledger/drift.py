"""What Discogs sends that it did not send before: new and missing fields, and volatile ones.

Counts are approximate: what was noticed just before a crash may be missing, or counted twice.
Fields that change are counted in a sample.
"""

import sqlite3
from collections.abc import Iterable
from typing import NamedTuple

import sqlite_utils

from discogs_crawler import clock
from discogs_crawler.clock import DAY_S
from discogs_crawler.observed import Observation

# Places that are kept for a kind and a source: a format that changes as a whole has some 70.
MOST = 1_000

# What is counted over so many days tells whether a field is volatile: of fewer refetches than
# FEWEST nothing is concluded, and of a field that changes in no more than this share of them.
DAYS = 30
FEWEST = 100
SHARE = 0.5

# Days of churn that are kept.
KEPT_DAYS = 90

_TABLES = """
CREATE TABLE drift (  -- what Discogs sends that the schema does not know, and what it lacks
    kind TEXT NOT NULL,           -- releases, artists, labels or masters
    source TEXT NOT NULL,         -- api, dump (its split) or import (of a dump)
    what TEXT NOT NULL,           -- unknown: the schema lacks it; missing: these records lack it
    path TEXT NOT NULL,           -- where: a[].b in an answer, a/b or a/@b in a dump
    first_seen INTEGER NOT NULL,  -- epoch of the first such record; of a dump its date
    last_seen INTEGER NOT NULL,   -- epoch of the last such record
    records INTEGER NOT NULL,     -- their number, approximately; of a dump: in a sample
    example INTEGER NOT NULL,     -- the id of one
    PRIMARY KEY (kind, source, what, path)
) STRICT, WITHOUT ROWID;
CREATE TABLE churn (  -- what differed in records fetched again without a change in the dump
    kind TEXT NOT NULL,           -- releases, artists, labels or masters
    day INTEGER NOT NULL,         -- days since 1970-01-01, UTC
    field TEXT NOT NULL,          -- a top-level field that differed; '': the records compared
    records INTEGER NOT NULL,     -- their number, in a sample
    PRIMARY KEY (kind, day, field)
) STRICT, WITHOUT ROWID;
"""

_VIEWS = f"""
CREATE VIEW drift_dates AS  -- What is new in what Discogs sends, what is missing, and since when?
    SELECT kind, source, what, path, datetime(first_seen, 'unixepoch') AS first_seen,
        datetime(last_seen, 'unixepoch') AS last_seen, records, example
    FROM drift ORDER BY drift.first_seen DESC, kind, source, what, path;
CREATE VIEW churn_shares AS  -- In what share of the records fetched again did a field change?
    WITH recent AS (SELECT kind, field, sum(records) AS records FROM churn
        WHERE day > strftime('%s', 'now') / 86400 - {DAYS} GROUP BY kind, field)
    SELECT recent.kind, recent.field, recent.records AS changed, total.records AS refetched,
        round(100.0 * recent.records / total.records, 1) AS percent
    FROM recent JOIN recent AS total ON total.kind = recent.kind AND total.field = ''
    WHERE recent.field <> '' ORDER BY percent DESC, recent.kind, recent.field;
"""


class Drift(NamedTuple):
    """What is new, or missing, in one place of the records of a kind."""

    source: str
    """api, dump (noticed by its split) or import (of a dump)"""
    what: str
    """unknown or missing"""
    path: str
    """where"""
    records: int
    """the number of such records, approximately"""
    first_seen: int
    """when it was first noticed; in a dump: its date"""
    last_seen: int
    """when it was last noticed"""
    example: int
    """the id of such a record"""


class Churn(NamedTuple):
    """A top-level field that differs in records fetched again without a change in the dump."""

    field: str
    """its name"""
    changed: int
    """records in which it had changed"""
    refetched: int
    """records that were compared"""

    @property
    def volatile(self) -> bool:
        """It changes in most fetches."""
        return self.refetched >= FEWEST and self.changed > SHARE * self.refetched


def create_tables(db: sqlite_utils.Database) -> None:
    """Create the tables and views, in a migration of `schema`."""
    db.executescript(_TABLES + _VIEWS)


def record(
    connection: sqlite3.Connection, kind: str, source: str, observations: Iterable[Observation]
) -> None:
    """Count what was noticed, within the caller's transaction."""
    now = int(clock.now())
    query = "SELECT what, path FROM drift WHERE kind = ? AND source = ?"
    known = {*connection.execute(query, (kind, source))}
    for seen in observations:
        last = min(seen.last, now)
        if seen.what in ("refetched", "changed"):
            connection.execute(
                "INSERT INTO churn VALUES (?, ?, ?, ?) "
                "ON CONFLICT DO UPDATE SET records = records + excluded.records",
                (kind, last // DAY_S, seen.path, seen.records),
            )
        elif (place := (seen.what, seen.path)) in known or len(known) < MOST:
            known.add(place)
            first = min(seen.first, last)
            connection.execute(
                "INSERT INTO drift VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
                "first_seen = min(first_seen, excluded.first_seen), "
                "last_seen = max(last_seen, excluded.last_seen), "
                "records = records + excluded.records",
                (kind, source, *place, first, last, seen.records, seen.example),
            )
    connection.execute("DELETE FROM churn WHERE day < ?", (now // DAY_S - KEPT_DAYS,))


def forget_churn(connection: sqlite3.Connection) -> None:
    """Start to count from 0 again: other fields are stored from now on."""
    connection.execute("DELETE FROM churn")


def drifts(connection: sqlite3.Connection, kind: str) -> list[Drift]:
    """Return what is new or missing in records of a kind, the newest first."""
    columns = ", ".join(Drift._fields)
    rows = connection.execute(
        f"SELECT {columns} FROM drift WHERE kind = ? ORDER BY first_seen DESC, source, what, path",
        (kind,),
    )
    return [Drift(*row) for row in rows]


def churns(connection: sqlite3.Connection, kind: str, now: float) -> list[Churn]:
    """Return the fields that differed in refetched records of late, the most volatile first."""
    rows = connection.execute(
        "SELECT field, sum(records) FROM churn WHERE kind = ? AND day > ? GROUP BY field",
        (kind, int(now) // DAY_S - DAYS),
    )
    counts = dict(rows)
    refetched = counts.pop("", 0)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [Churn(field, changed, refetched) for field, changed in ordered]
