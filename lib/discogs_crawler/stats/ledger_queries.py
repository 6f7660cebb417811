"""Figures from the ledger, out of the small tables beside its millions of rows.

Every function takes the connection of a ledger that was opened read-only and reads a few hundred
rows; only wants of the last month and dead letters are counted one by one, through their indexes.
"""

import json
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from discogs_crawler.broker.messages import IMPATIENT
from discogs_crawler.clock import DAY_S
from discogs_crawler.stats.snapshot import (
    Ages,
    AnswerRate,
    ConsumerStats,
    Coverage,
    DayStats,
    DumpStats,
    FailureStats,
    RunStats,
    SegmentStats,
)

# Days of outcomes that are shown: a quarter, and what fits a plot.
DAYS = 90

# Causes of dead letters that are listed; a cause beyond these is rare or has an id in it.
CAUSES = 20

_COVERAGE = """
    sum(records * in_dump),
    sum(records * (state = 'stored')),
    sum(records * (state = 'stored' AND in_dump)),
    sum(records * (state = 'imported')),
    sum(records * (state IN ('unfetched', 'dead') AND in_dump)),
    sum(records * (state = 'gone')),
    sum(records * (state = 'dead')),
    sum(records * (reason <> ''))
"""


def kinds(connection: sqlite3.Connection) -> list[str]:
    """The kinds of which the ledger knows any id or dump."""
    rows = connection.execute(
        "SELECT kind FROM counts WHERE records > 0 UNION SELECT kind FROM dumps"
    )
    return [kind for (kind,) in rows]


def coverage(connection: sqlite3.Connection, kind: str) -> Coverage:
    """How much of the kind is stored."""
    sql = f"SELECT {_COVERAGE} FROM counts WHERE kind = ?"
    return Coverage(*(number or 0 for number in connection.execute(sql, (kind,)).fetchone()))


def segments(connection: sqlite3.Connection, kind: str) -> list[SegmentStats]:
    """How much of each segment is stored, in ascending order."""
    rows = connection.execute(
        f"SELECT segment, {_COVERAGE} FROM counts WHERE kind = ? GROUP BY segment "
        "HAVING sum(records) > 0 ORDER BY segment",
        (kind,),
    )
    return [SegmentStats(number, Coverage(*numbers)) for number, *numbers in rows]


def ages(connection: sqlite3.Connection, kind: str, now: float) -> Ages:
    """How old the stored records are; what was seen today is 0 days old."""
    rows = connection.execute(
        "SELECT max(? - day, 0), sum(records) FROM ages WHERE kind = ? AND records > 0 "
        "GROUP BY 1 ORDER BY 1",
        (int(now) // DAY_S, kind),
    )
    days = dict(rows)
    return Ages(_age_of(days, 0.5), _age_of(days, 0.9), days)


def _age_of(days: dict[int, int], share: float) -> int | None:
    """The age in seconds that `share` of the records do not exceed; None without records."""
    left = share * sum(days.values())
    for day, records in sorted(days.items()):
        left -= records
        if left <= 0 < records:
            return day * DAY_S
    return None


def wanted(connection: sqlite3.Connection, kind: str) -> dict[str, int]:
    """The numbers of ids wanted, by reason."""
    rows = connection.execute(
        "SELECT reason, sum(records) FROM counts WHERE kind = ? AND reason <> '' GROUP BY reason",
        (kind,),
    )
    return dict(rows)


def later(connection: sqlite3.Connection, kind: str, now: float) -> dict[str, int]:
    """The numbers of wanted ids that are not due yet, by reason.

    Of the first crawl only dead letters wait, because it is due from its first day on.
    """
    rows = connection.execute(
        f"SELECT reason, count(*) FROM {kind} WHERE reason <> 'backfill' AND due > :now "
        "GROUP BY reason "
        f"UNION ALL SELECT 'backfill', count(*) FROM {kind} "
        "WHERE failure IS NOT NULL AND reason = 'backfill' AND due > :now",
        {"now": int(now)},
    )
    return dict(rows)


def dead(connection: sqlite3.Connection, kind: str) -> list[FailureStats]:
    """Dead letters by cause, the most frequent first."""
    rows = connection.execute(
        f"SELECT failure, count(*), min(id), min(due) FROM {kind} WHERE failure IS NOT NULL "
        "GROUP BY failure ORDER BY count(*) DESC, failure LIMIT ?",
        (CAUSES,),
    )
    return [FailureStats(*row) for row in rows]


def outcomes(connection: sqlite3.Connection, kind: str, now: float) -> list[DayStats]:
    """The outcomes of the requests of the last days, from the first day with any."""
    today = int(now) // DAY_S
    rows = connection.execute(
        "SELECT day, outcome, sum(records) FROM outcomes WHERE kind = ? AND day > ? "
        "GROUP BY day, outcome",
        (kind, today - DAYS),
    )
    days: dict[int, dict[str, int]] = {}
    for day, outcome, records in rows:
        days.setdefault(day, {})[outcome] = records
    if not days:
        return []
    return [_outcomes(day, days.get(day, {})) for day in range(min(days), max(today, *days) + 1)]


def _outcomes(day: int, counts: dict[str, int]) -> DayStats:
    date = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=day)
    numbers = {name: counts.get(name, 0) for name in DayStats._fields[1:]}
    return DayStats(day=f"{date:%Y-%m-%d}", **numbers)


def rate(connection: sqlite3.Connection, kind: str, now: float, unread: int) -> AnswerRate:
    """How fast answers have come since yesterday began, or since the ledger did.

    `unread` answers are on their way to the ledger.
    """
    yesterday = int(now) // DAY_S - 1
    (answers,) = connection.execute(
        "SELECT ifnull(sum(records), 0) FROM outcomes WHERE kind = ? AND day >= ?",
        (kind, yesterday),
    ).fetchone()
    answers += unread
    (began,) = connection.execute("SELECT min(started) FROM runs").fetchone()
    since = min(max(yesterday * DAY_S, began or 0), int(now))
    # Within the first minutes a handful of answers says little about a day.
    seconds = max(now - since, 60)
    return AnswerRate(answers, since, answers / seconds * DAY_S, assumed=answers == 0)


def arriving(connection: sqlite3.Connection, kind: str, now: float) -> dict[str, float]:
    """The numbers of ids that join each class in a day, by the dumps and a month of answers.

    The first dump is no measure: all that it brings is the first crawl.
    """
    dumps = connection.execute(
        "SELECT not_after, added, changed, retired FROM dumps "
        "WHERE kind = ? AND accepted IS NOT NULL ORDER BY not_after DESC LIMIT 4",
        (kind,),
    ).fetchall()
    days = (dumps[0][0] - dumps[-1][0]) / DAY_S if dumps else 0
    daily = {"new": 0.0, "changed": 0.0, "retired": 0.0}
    if days >= 1:
        for column, reason in enumerate(("new", "changed", "retired"), 1):
            daily[reason] = sum(row[column] or 0 for row in dumps[:-1]) / days
    month = connection.execute(
        "SELECT reason, sum(records) / 30.0 FROM outcomes WHERE kind = ? AND day > ? "
        "GROUP BY reason",
        (kind, int(now) // DAY_S - 30),
    )
    return daily | {reason: number for reason, number in month if reason in IMPATIENT}


def dumps(connection: sqlite3.Connection, kind: str) -> list[DumpStats]:
    """The dumps that were split, newest first."""
    rows = connection.execute(
        "SELECT file, not_after, records, verdict, damaged, accepted, added, changed, retired "
        "FROM dumps WHERE kind = ? ORDER BY not_after DESC, id DESC",
        (kind,),
    )
    return [DumpStats(*row) for row in rows]


def runs(connection: sqlite3.Connection) -> list[RunStats]:
    """The last run of each script for each kind, the newest first."""
    rows = connection.execute(
        "SELECT script, kind, started, ended, exit_code, counts FROM runs "
        "WHERE id IN (SELECT max(id) FROM runs GROUP BY script, kind) ORDER BY id DESC"
    )
    return [RunStats._make((*row[:5], json.loads(row[5]))) for row in rows]


def consumers(
    connection: sqlite3.Connection, behind: Callable[[str, str | None], int | None]
) -> list[ConsumerStats]:
    """All consumers by name; `behind` returns the number of commits after a revision."""
    rows = connection.execute(
        "SELECT name, repository, kind, revision, exported, records, sequence, folder"
        " FROM consumers ORDER BY name"
    )
    return [ConsumerStats._make((*row, behind(row[1], row[3]))) for row in rows]
