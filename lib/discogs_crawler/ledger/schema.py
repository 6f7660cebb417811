"""The tables and views of the ledger, as migrations; `sqlite3 crawler.db .schema` explains them.

SQLite keeps the comments inside a CREATE statement, so they are written for its readers. A ledger
from an older version gets the migrations that it lacks; one from a newer version is refused.
"""

import sqlite_utils
from sqlite_utils import Migrations

from discogs_crawler.ledger import consumers, drift
from discogs_crawler.records import KINDS, SEGMENT_SIZE

MIGRATIONS = Migrations("crawler_for_discogs")

_ABOUT_THE_CRAWLER = """
CREATE TABLE dumps (  -- dumps that were split into a hash file
    id INTEGER PRIMARY KEY,       -- in the order of splitting
    kind TEXT NOT NULL,           -- releases, artists, labels or masters
    file TEXT NOT NULL,           -- name of the dump
    not_before INTEGER NOT NULL,  -- epoch: its snapshot was taken then or later ...
    not_after INTEGER NOT NULL,   -- ... and by then
    size INTEGER,                 -- bytes of the dump
    sha256 BLOB,                  -- of the dump; NULL: only its hashes are known
    records INTEGER NOT NULL,     -- records in it
    first_id INTEGER,             -- lowest id in it
    last_id INTEGER,              -- highest id in it
    verdict TEXT NOT NULL,        -- 'whole', or what is wrong with it
    damaged INTEGER NOT NULL,     -- damaged records in it
    result_sha256 BLOB,           -- of the hash file; NULL: none was written
    book_sha256 BLOB,             -- of the hash cache; NULL: none was kept
    canonical_version INTEGER NOT NULL,  -- the rules by which its records were hashed
    recorded INTEGER NOT NULL,    -- epoch when it was split
    started INTEGER,              -- epoch when seeding with it began; NULL: never
    accepted INTEGER,             -- epoch when its hashes became those of the ledger; NULL: not yet
    added INTEGER,                -- records in it that the dump before did not have
    changed INTEGER,              -- records with another hash than in the dump before
    retired INTEGER               -- records of the dump before that it does not have
) STRICT;
CREATE INDEX dumps_by_result ON dumps (result_sha256);
CREATE TABLE runs (  -- runs of scripts that write here
    id INTEGER PRIMARY KEY,       -- in the order of starting
    script TEXT NOT NULL,         -- seed_queue or maintain_store
    kind TEXT NOT NULL,           -- releases, artists, labels, masters or all
    started INTEGER NOT NULL,     -- epoch seconds
    ended INTEGER,                -- epoch seconds; NULL: it runs, or was killed
    exit_code INTEGER,            -- 0 done, 1 partly done, 64 and above: see the README
    counts TEXT NOT NULL          -- what it did, JSON
) STRICT;
CREATE TABLE results_cursor (  -- how far the results of the workers have been read from Redis
    kind TEXT PRIMARY KEY,        -- releases, artists, labels or masters
    generation TEXT NOT NULL,     -- the life of the Redis data: changes when they are lost
    stream_id TEXT NOT NULL       -- last result that was applied here
) STRICT, WITHOUT ROWID;
CREATE TABLE counts (  -- the number of records in each state; kept by triggers
    kind TEXT NOT NULL,           -- releases, artists, labels or masters
    segment INTEGER NOT NULL,     -- id / 1000000
    in_dump INTEGER NOT NULL,     -- 1: the latest dump has them
    state TEXT NOT NULL,          -- stored, gone, dead or unfetched, as in the kind's table
    reason TEXT NOT NULL,         -- why they are wanted; '': they are not
    records INTEGER NOT NULL,     -- the number of them
    PRIMARY KEY (kind, segment, in_dump, state, reason)
) STRICT, WITHOUT ROWID;
CREATE TABLE ages (  -- the number of stored records last seen alive on each day; kept by triggers
    kind TEXT NOT NULL,           -- releases, artists, labels or masters
    day INTEGER NOT NULL,         -- days since 1970-01-01, UTC
    records INTEGER NOT NULL,     -- the number of them
    PRIMARY KEY (kind, day)
) STRICT, WITHOUT ROWID;
CREATE TABLE outcomes (  -- the outcomes of the requests of a day
    kind TEXT NOT NULL,           -- releases, artists, labels or masters
    day INTEGER NOT NULL,         -- days since 1970-01-01, UTC, when the request was sent
    reason TEXT NOT NULL,         -- the class in which the id was queued
    outcome TEXT NOT NULL,        -- changed, unchanged, gone, removed, merged or dead
    records INTEGER NOT NULL,     -- the number of them
    PRIMARY KEY (kind, day, reason, outcome)
) STRICT, WITHOUT ROWID;
"""

_STORE_REVISIONS = """
CREATE TABLE store_revisions (  -- what the store must have; if not, it is an older copy
    kind TEXT PRIMARY KEY,        -- releases, artists, labels or masters
    revision TEXT NOT NULL        -- commit of the last result that was applied here
) STRICT, WITHOUT ROWID;
"""

_KIND = """
CREATE TABLE {kind} (  -- one row for every id that a dump or the API has shown, or that is wanted
    id INTEGER PRIMARY KEY,       -- as at Discogs
    hash BLOB,                    -- SHA-1 of the content in the latest dump that has it; NULL: none
    dump INTEGER,                 -- dumps.id that brought this hash; NULL: not in the latest dump
    due INTEGER,                  -- epoch from which it is to be fetched; NULL: nothing is wanted
    reason TEXT,                  -- why: manual, confirm, discovered, changed, new, retired, ...
    since INTEGER,                -- only a request sent at or after this epoch satisfies the want
    crawled INTEGER,              -- epoch of the last request that was answered
    status INTEGER,               -- HTTP status of the last answer; 0: none came
    alive INTEGER,                -- epoch of the last request answered with the record
    removed INTEGER,              -- epoch when its record was removed from the store; NULL: not
    changed INTEGER,              -- epoch of the last request that brought something new
    misses INTEGER NOT NULL DEFAULT 0,  -- answers in a row that it does not exist
    failure TEXT,                 -- why no attempt gave an answer: a dead letter; NULL: it is none
    successor INTEGER,            -- id that it was merged into, if known
    state TEXT GENERATED ALWAYS AS (CASE  -- what we have of it
        WHEN alive IS NOT NULL AND removed IS NULL THEN 'stored'
        WHEN misses > 0 THEN 'gone'
        WHEN failure IS NOT NULL THEN 'dead'
        ELSE 'unfetched' END) VIRTUAL
) STRICT;
CREATE INDEX {kind}_wanted ON {kind} (reason, id, due) WHERE reason <> 'backfill';
CREATE INDEX {kind}_not_in_dump ON {kind} (id) WHERE dump IS NULL;
CREATE INDEX {kind}_missed ON {kind} (id) WHERE misses > 0;
CREATE INDEX {kind}_failed ON {kind} (id) WHERE failure IS NOT NULL;
CREATE TRIGGER {kind}_counted AFTER INSERT ON {kind}
    -- The first crawl counts its millions of rows itself, a batch at a time.
    WHEN new.reason IS NOT 'backfill' BEGIN
    INSERT INTO counts VALUES ('{kind}', new.id / {segment}, new.dump IS NOT NULL, new.state,
        ifnull(new.reason, ''), 1) ON CONFLICT DO UPDATE SET records = records + 1;
    INSERT INTO ages SELECT '{kind}', new.alive / 86400, 1 WHERE new.state = 'stored'
        ON CONFLICT DO UPDATE SET records = records + 1;
END;
CREATE TRIGGER {kind}_recounted AFTER UPDATE ON {kind}
    WHEN (old.dump IS NULL) <> (new.dump IS NULL) OR old.state <> new.state
        OR old.reason IS NOT new.reason BEGIN
    UPDATE counts SET records = records - 1 WHERE kind = '{kind}' AND segment = old.id / {segment}
        AND in_dump = (old.dump IS NOT NULL) AND state = old.state
        AND reason = ifnull(old.reason, '');
    INSERT INTO counts VALUES ('{kind}', new.id / {segment}, new.dump IS NOT NULL, new.state,
        ifnull(new.reason, ''), 1) ON CONFLICT DO UPDATE SET records = records + 1;
END;
CREATE TRIGGER {kind}_aged AFTER UPDATE ON {kind}
    WHEN old.state <> new.state OR old.alive IS NOT new.alive BEGIN
    UPDATE ages SET records = records - 1
        WHERE old.state = 'stored' AND kind = '{kind}' AND day = old.alive / 86400;
    INSERT INTO ages SELECT '{kind}', new.alive / 86400, 1 WHERE new.state = 'stored'
        ON CONFLICT DO UPDATE SET records = records + 1;
END;
"""

_VIEWS = """
CREATE VIEW outcomes_daily AS  -- What were the outcomes of our requests, day by day?
    SELECT date(day * 86400, 'unixepoch') AS day, kind, outcome, sum(records) AS records
    FROM outcomes GROUP BY outcomes.day, kind, outcome;
CREATE VIEW waiting AS  -- What is wanted, why, and when is the next of it due?
    WITH next AS (SELECT kind, reason, min(due) AS due FROM wants GROUP BY kind, reason)
    SELECT counts.kind, counts.reason, sum(records) AS records, next.due AS next_due
    FROM counts LEFT JOIN next USING (kind, reason)
    WHERE counts.reason <> '' AND records > 0 GROUP BY counts.kind, counts.reason;
CREATE VIEW freshness AS  -- How long ago did we last see what we have?
    WITH today AS (SELECT strftime('%s', 'now') / 86400 AS today), running AS (
        SELECT kind, today - day AS days, sum(records) OVER (PARTITION BY kind) AS total,
            sum(records) OVER (PARTITION BY kind ORDER BY day DESC) AS upto
        FROM ages, today WHERE records > 0)
    SELECT kind, max(total) AS stored, min(days) AS newest_days,
        min(CASE WHEN upto * 2 >= total THEN days END) AS median_days,
        min(CASE WHEN upto * 10 >= total * 9 THEN days END) AS p90_days,
        max(days) AS oldest_days
    FROM running GROUP BY kind;
"""

_OF_ALL_KINDS = {
    # Everything wanted except the first crawl (its millions are in `waiting`).
    "wants": (
        "What is wanted, except the first crawl, and when is it due?",
        "id, reason, due, since, crawled",
        "reason <> 'backfill'",
    ),
    "gone": (
        "Which records does the API no longer have, or never had?",
        "id, state, misses, crawled, status, alive, removed, successor",
        "misses > 0",
    ),
    "dead": (
        "Which ids failed in every attempt, why, and when are they tried again?",
        "id, failure, status, due, crawled, state",
        "failure IS NOT NULL",
    ),
}


@MIGRATIONS()
def create_tables_about_the_crawler(db: sqlite_utils.Database) -> None:
    db.executescript(_ABOUT_THE_CRAWLER)


@MIGRATIONS()
def create_a_table_for_each_kind(db: sqlite_utils.Database) -> None:
    for kind in KINDS:
        db.executescript(_KIND.format(kind=kind, segment=SEGMENT_SIZE))


@MIGRATIONS()
def create_views(db: sqlite_utils.Database) -> None:
    for name, (question, columns, condition) in _OF_ALL_KINDS.items():
        selects = "\n    UNION ALL ".join(
            f"SELECT '{kind}' AS kind, {columns} FROM {kind} WHERE {condition}" for kind in KINDS
        )
        db.execute(f"CREATE VIEW {name} AS  -- {question}\n    {selects}")
    for kind in KINDS:
        db.execute(
            f"CREATE VIEW stale_{kind} AS  -- Of which {kind} do we have an old version?\n"
            f"    SELECT id, reason, since, crawled, due FROM {kind}\n"
            "    WHERE reason <> 'backfill' AND reason IN ('confirm', 'changed', 'retired')\n"
            "        AND state = 'stored'"
        )
    db.executescript(_VIEWS)


@MIGRATIONS()
def create_consumers(db: sqlite_utils.Database) -> None:
    consumers.create_tables(db)


@MIGRATIONS()
def number_exported_files(db: sqlite_utils.Database) -> None:
    consumers.create_tables(db)


# SQLite's own way to add a column loses its comment; this, too, changes only the schema's text.
_IMPORTED = (
    (
        "dumps",
        "    retired INTEGER               -- records of the dump before that it does not have\n",
        "    retired INTEGER,              -- records of the dump before that it does not have\n"
        "    imported INTEGER              -- epoch when its records had been imported; NULL: no\n",
    ),
    ("runs", "seed_queue or maintain_store", "seed_queue, import_dump or maintain_store"),
    ("counts", "-- stored, gone,", "-- stored, imported, gone,"),
    *(
        (
            kind,
            "    state TEXT GENERATED",
            "    imported INTEGER,             -- dumps.id of what is stored; NULL: not of a dump\n"
            "    state TEXT GENERATED",
        )
        for kind in KINDS
    ),
    *(
        (
            kind,
            "        WHEN misses > 0",
            "        WHEN imported IS NOT NULL THEN 'imported'\n        WHEN misses > 0",
        )
        for kind in KINDS
    ),
)

_PROGRESS = """
CREATE VIEW progress AS  -- How much of the latest dump do we have, by kind?
    SELECT kind,
        sum(records * in_dump) AS in_dump,
        sum(records * (state = 'stored')) AS stored,
        sum(records * (state = 'stored' AND in_dump)) AS stored_in_dump,
        round(100.0 * sum(records * (state = 'stored' AND in_dump))
            / nullif(sum(records * in_dump), 0), 2) AS percent,
        sum(records * (state = 'imported')) AS imported,
        round(100.0 * sum(records * (state IN ('stored', 'imported') AND in_dump))
            / nullif(sum(records * in_dump), 0), 2) AS percent_with_imported,
        sum(records * (state = 'unfetched')) AS unfetched,
        sum(records * (state = 'gone')) AS gone,
        sum(records * (state = 'dead')) AS dead,
        sum(records * (reason <> '')) AS wanted
    FROM counts GROUP BY kind
"""


@MIGRATIONS()
def know_imported_records(db: sqlite_utils.Database) -> None:
    version = db.execute("PRAGMA schema_version").fetchone()[0]
    db.execute("PRAGMA writable_schema = ON")
    for name, old, new in _IMPORTED:
        db.execute(
            "UPDATE sqlite_master SET sql = replace(sql, ?, ?) WHERE type = 'table' AND name = ?",
            (old, new, name),
        )
    db.execute(f"PRAGMA schema_version = {version + 1}")
    db.execute("PRAGMA writable_schema = RESET")
    db.execute("DROP VIEW IF EXISTS progress")  # of a version that knew no imports
    db.execute(_PROGRESS)


@MIGRATIONS()
def remember_what_the_store_must_have(db: sqlite_utils.Database) -> None:
    db.executescript(_STORE_REVISIONS)


@MIGRATIONS()
def notice_drift_and_churn(db: sqlite_utils.Database) -> None:
    drift.create_tables(db)
