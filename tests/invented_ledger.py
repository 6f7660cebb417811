"""A ledger of any size that looks like one in the midst of the first crawl, made within SQLite.

Deterministic: the same size and instant give the same rows.
"""

import json
import random
from datetime import UTC, datetime
from pathlib import Path

from discogs_crawler.clock import DAY_S
from discogs_crawler.ledger import database
from discogs_crawler.records import SEGMENT_SIZE

# Share of the ids that the crawl has reached, from the lowest on.
REACHED = 0.62

OUTCOMES = ("changed", "unchanged", "gone", "removed", "merged", "dead")

_ROWS = f"""
WITH RECURSIVE numbers (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM numbers WHERE i < :rows),
ids AS (SELECT i, i * 2 - (i * 7919 / 13) % 2 AS id, (i * 2654435761 / 64) % 1000 AS die,
    i < :rows * {REACHED} OR i > :rows * 0.985 AS reached FROM numbers)
INSERT INTO {{kind}}
    (id, hash, dump, due, reason, since, crawled, status, alive, changed, misses, failure)
SELECT id, zeroblob(20), iif(die = 999, NULL, 1),
    CASE WHEN NOT reached OR die < 3 THEN :now - 86400 WHEN die < 20 THEN :now + 86400 * 3 END,
    CASE WHEN NOT reached THEN 'backfill' WHEN die < 3 THEN 'changed' WHEN die < 20 THEN 'new' END,
    CASE WHEN NOT reached OR die < 20 THEN :now - 86400 * 20 END,
    iif(reached AND die >= 3, seen, NULL),
    CASE WHEN NOT reached OR die < 3 THEN NULL WHEN die < 14 THEN 404 WHEN die < 16 THEN 503
        ELSE 200 END,
    iif(reached AND die >= 16, seen, NULL), iif(reached AND die >= 16, seen, NULL),
    iif(reached AND die BETWEEN 3 AND 13, 1, 0),
    CASE WHEN reached AND die = 14 THEN 'HTTP 503 five times' WHEN reached AND die = 15
        AND i % 9 = 0 THEN 'no answer within 30 s' END
FROM (SELECT *, :now - 3600 - CAST(86400 * 150 *
    iif(i > :rows * 0.985, 0.1, 1 - 1.0 * i / (:rows * {REACHED})) * (die % 97 + 3) / 100
    AS INTEGER) AS seen FROM ids)
"""

_COUNTS = f"""
INSERT INTO counts SELECT '{{kind}}', id / {SEGMENT_SIZE}, dump IS NOT NULL, state,
    ifnull(reason, ''), count(*) FROM {{kind}} GROUP BY 1, 2, 3, 4, 5
"""
_AGES = """
INSERT INTO ages SELECT '{kind}', alive / 86400, count(*) FROM {kind}
    WHERE state = 'stored' GROUP BY 2
"""


def invent(path: Path, rows: int, now: int, kind: str = "releases") -> None:
    """Make the ledger at `path` with so many rows of `kind`, and a history that ends at `now`."""
    with database.open(path) as opened, opened.transaction() as connection:
        triggers = connection.execute(
            "SELECT name, sql FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = ?", (kind,)
        ).fetchall()
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute(_ROWS.format(kind=kind), {"rows": rows, "now": now})
        connection.execute(_COUNTS.format(kind=kind))
        connection.execute(_AGES.format(kind=kind))
        for _, sql in triggers:
            connection.execute(sql)
        _invent_history(opened, rows, now, kind)


def _invent_history(opened: database.Ledger, rows: int, now: int, kind: str) -> None:
    chance = random.Random(rows)
    for age in range(150):
        total = 84_000 + chance.randrange(2_300) if age else 84_000 * (now % DAY_S) // DAY_S
        if 60 < age < 63:
            total //= 5  # the machine was down
        parts = [0.93, 0.055, 0.008, 0.0005, 0.0002, 0.0003]
        for outcome, part in zip(OUTCOMES, parts, strict=True):
            reason = "changed" if outcome == "unchanged" else "backfill"
            values = (kind, now // DAY_S - age, reason, outcome, int(total * part))
            opened.db.execute("INSERT INTO outcomes VALUES (?, ?, ?, ?, ?)", values)
    for month in range(5, -1, -1):
        taken = now - (month * 30 + 9) * DAY_S
        name = f"discogs_{datetime.fromtimestamp(taken, UTC):%Y%m%d}_{kind}.xml.gz"
        opened.db["dumps"].insert(
            {
                "kind": kind,
                "file": name,
                "not_before": taken - DAY_S,
                "not_after": taken,
                "size": rows * 580,
                "records": rows - month * rows // 250,
                "verdict": "whole",
                "damaged": 0,
                "canonical_version": 1,
                "recorded": taken + DAY_S // 2,
                "accepted": taken + DAY_S // 2,
                "added": rows if month == 5 else rows // 250 + chance.randrange(rows // 900 + 1),
                "changed": 0 if month == 5 else rows // 120 + chance.randrange(rows // 400 + 1),
                "retired": 0 if month == 5 else rows // 3000 + chance.randrange(rows // 4000 + 1),
            }
        )
    long_ago, day = now - 100 * DAY_S, now // DAY_S
    for source, what, path, records in (
        ("api", "missing", "tracklist[].extraartists[].role", 12),
        ("api", "unknown", "labels[].country", rows // 3),
        ("dump", "unknown", "tracklist/track/isrc", 212),
    ):
        place = (kind, source, what, path, long_ago, now - 3_600, records, 249504)
        opened.db.execute("INSERT INTO drift VALUES (?, ?, ?, ?, ?, ?, ?, ?)", place)
    for field, records in (("", 4_000), ("community", 3), ("notes", 41)):
        opened.db.execute("INSERT INTO churn VALUES (?, ?, ?, ?)", (kind, day, field, records))
    runs = (
        ("maintain_store", "all", 4 * 3_600, 70, 0, {}),
        ("seed_queue", kind, 3 * 3_600, 25, 0, {"changed": rows // 300, "new": rows // 60}),
    )
    opened.db.execute(
        "INSERT INTO runs (script, kind, started, ended, exit_code, counts) "
        "VALUES ('seed_queue', ?, ?, ?, 0, '{}')",
        (kind, now - 150 * DAY_S, now - 150 * DAY_S + 110),
    )
    for script, of, age, took, code, counts in runs:
        opened.db.execute(
            "INSERT INTO runs (script, kind, started, ended, exit_code, counts) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            (script, of, now - age, now - age + took, code, json.dumps(counts)),
        )
    for name, age, into in (
        ("search-index", 900, (0, None)),
        ("weekly-report", 5 * DAY_S, (1_234, "/srv/www/discogs")),
    ):
        opened.db.execute(
            "INSERT INTO consumers"
            " (name, repository, kind, revision, exported, records, sequence, folder)"
            " VALUES (?, '/srv/discogs/store/discogs.git', ?, ?, ?, ?, ?, ?)",
            (name, kind, f"{age:040x}", now - age, rows // 2, *into),
        )
