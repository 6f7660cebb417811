"""The place that each consumer of the store has reached, in SQLite.

On the crawler's machine the tables are part of the ledger; anywhere else they are a small file
beside a clone. A place moves in one transaction, from the revision that the export began at,
or not at all; so an export that was cut short is repeated, never skipped.

Nothing here imports sqlite-utils: it takes longer to load (0.17 s) than an export to run.
"""

import contextlib
import difflib
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from discogs_crawler import clock, sqlite_errors
from discogs_crawler.errors import BadData, CrawlerError, TryLater, Unavailable, UsageError

if TYPE_CHECKING:
    import sqlite_utils

# How long to wait for another process's transaction; ours take milliseconds.
BUSY_S = 30

# The end of the name of such a file.
BESIDE_A_CLONE = ".consumers.db"

TABLES = (
    """
    CREATE TABLE IF NOT EXISTS consumers (
        name TEXT PRIMARY KEY, -- what it is called in export_changes.py --consumer
        repository TEXT NOT NULL, -- where it reads: a folder, or a URL without its password
        kind TEXT NOT NULL, -- what it gets: releases, artists, labels, masters or all
        revision TEXT, -- the commit (hexadecimal) that it has everything up to; NULL: nothing yet
        exported INTEGER, -- when it got there (epoch seconds); NULL: never
        records INTEGER NOT NULL DEFAULT 0, -- changes that it has got so far, deletions included
        sequence INTEGER NOT NULL DEFAULT 0, -- number of its last file (--into); 0: it gets none
        folder TEXT -- where its files are (--into)
    ) STRICT
    """,
    """
    CREATE TABLE IF NOT EXISTS consumers_history (
        id INTEGER PRIMARY KEY, -- in the order of what happened
        consumer TEXT NOT NULL, -- consumers.name
        event TEXT NOT NULL, -- new, export, reset, forget, baseline (a file of all
                             -- records), or move (the same records are in another revision)
        began TEXT, -- its revision before; NULL: nothing yet
        revision TEXT, -- its revision after; NULL: nothing yet
        time INTEGER NOT NULL, -- when (epoch seconds)
        records INTEGER NOT NULL, -- changes that were exported, deletions included
        sequence INTEGER, -- number of the file with these changes (--into)
        size INTEGER, -- bytes in that file
        sha256 BLOB -- SHA-256 of that file
    ) STRICT
    """,
)

# Columns that databases made by earlier versions lack.
_LATER = {
    "consumers": ("sequence INTEGER NOT NULL DEFAULT 0", "folder TEXT"),
    "consumers_history": ("sequence INTEGER", "size INTEGER", "sha256 BLOB"),
}

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)


class Consumer(NamedTuple):
    """A row of `consumers`."""

    name: str
    repository: str
    kind: str
    revision: str | None = None
    exported: int | None = None
    records: int = 0
    sequence: int = 0
    folder: str | None = None


class ExportedFile(NamedTuple):
    """A file of `export_changes.py --into`, as `consumers_history` has it."""

    sequence: int
    began: str | None
    """the revision from which it leads; None: from nothing, so that it has all records"""
    revision: str
    """the revision to which it leads"""
    time: int
    """epoch seconds"""
    records: int
    """changes in it, deletions included"""
    size: int
    """bytes in it"""
    sha256: bytes
    """32 bytes"""


def create_tables(db: "sqlite_utils.Database | sqlite3.Connection") -> None:
    """Create `consumers` and `consumers_history`, or the columns of theirs that are missing."""
    for statement in TABLES:
        db.execute(statement)
    for table, columns in _LATER.items():
        known = _columns(db, table)
        for column in columns:
            if column.split()[0] not in known:
                db.execute(f"ALTER TABLE {table} ADD COLUMN {column}")


def _columns(db: "sqlite_utils.Database | sqlite3.Connection", table: str) -> set[str]:
    return {row[0] for row in db.execute(f"SELECT name FROM pragma_table_info('{table}')")}


def check_name(name: str) -> str:
    """The name, if it can be that of a consumer; UsageError otherwise."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"--consumer {name[:80]!r}: a name has 1 to 64 letters, digits and . _ -, "
            "and begins with a letter or a digit"
        )
    return name


@contextlib.contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """The database of consumers at `path`, with its tables.

    BadData if it is damaged, Unavailable for what else SQLite reports.
    """
    with _reported(path):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
        with contextlib.closing(connection):
            sqlite_errors.use_wal(connection, BUSY_S)
            connection.execute("PRAGMA synchronous = FULL")
            if not has_tables(connection):
                with _transaction(connection):
                    create_tables(connection)
            yield connection


def has_tables(connection: sqlite3.Connection) -> bool:
    """Whether the tables are those of this version."""
    return all(
        {column.split()[0] for column in columns} <= _columns(connection, table)
        for table, columns in _LATER.items()
    )


@contextlib.contextmanager
def _reported(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        if sqlite_errors.is_damage(error):
            raise _damaged(path, error) from error
        raise Unavailable(f"{path}: {error}; no consumer's place was changed") from error
    except OSError as error:
        if error.filename is None:
            raise
        raise Unavailable(f"{error.filename}: {error.strerror}") from error


def _damaged(path: Path, error: sqlite3.Error) -> CrawlerError:
    if not path.name.endswith(BESIDE_A_CLONE):
        return sqlite_errors.meaning(error, path) or BadData(f"{path}: {error}")
    return BadData(f"{path}: it is damaged ({error}): move it away; its consumers start over")


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        yield


def everyone(connection: sqlite3.Connection) -> list[Consumer]:
    """All consumers, by name."""
    rows = connection.execute(f"SELECT {', '.join(Consumer._fields)} FROM consumers ORDER BY name")
    return [Consumer(*row) for row in rows]


def find(connection: sqlite3.Connection, name: str) -> Consumer | None:
    """The consumer of that name; None if there is none."""
    return next((consumer for consumer in everyone(connection) if consumer.name == name), None)


def get(connection: sqlite3.Connection, name: str) -> Consumer:
    """The consumer of that name; UsageError if there is none."""
    consumer = find(connection, name)
    if consumer is None:
        names = [known.name for known in everyone(connection)]
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {close[0]}?" if close else "; --list shows all"
        raise UsageError(f"there is no consumer {name!r}{hint}")
    return consumer


def beginning(connection: sqlite3.Connection, name: str) -> str | None:
    """The revision at which the consumer of that name began; None: the start."""
    row = connection.execute(
        "SELECT revision FROM consumers_history WHERE consumer = ? AND event = 'new'"
        " ORDER BY id DESC",
        (name,),
    ).fetchone()
    return row[0] if row else None


def add(connection: sqlite3.Connection, consumer: Consumer) -> None:
    """Remember a new consumer and where it begins."""
    marks = ", ".join("?" * len(consumer))
    with _transaction(connection):
        connection.execute(f"INSERT INTO consumers VALUES ({marks})", consumer)
        _note(connection, consumer.name, "new", None, consumer.revision)


def move(
    connection: sqlite3.Connection,
    consumer: Consumer,
    event: str,
    revision: str | None,
    records: int = 0,
) -> None:
    """Move the consumer from its revision to `revision`, after it has got `records` changes.

    TryLater if it has been moved by somebody else in the meantime.
    """
    # Readers of the files see by the gap, a number without a file, that they have to start over.
    gap = event == "reset" and consumer.sequence > 0
    moved = consumer._replace(
        revision=revision,
        exported=int(clock.now()) if event == "export" else consumer.exported,
        records=consumer.records + records,
        sequence=consumer.sequence + gap,
    )
    with _transaction(connection):
        _update(connection, consumer, moved)
        _note(connection, consumer.name, event, consumer.revision, revision, records)


def _update(connection: sqlite3.Connection, consumer: Consumer, moved: Consumer) -> None:
    """Write the new row; TryLater if the old one has changed in the meantime."""
    done = connection.execute(
        f"UPDATE consumers SET {', '.join(f'{column} = ?' for column in Consumer._fields)}"
        " WHERE name = ? AND revision IS ? AND sequence = ?",
        (*moved, consumer.name, consumer.revision, consumer.sequence),
    )
    if done.rowcount != 1:
        raise TryLater(f"consumer {consumer.name} was moved by another process; run it again")


def publish(
    connection: sqlite3.Connection, consumer: Consumer, files: Sequence[ExportedFile]
) -> None:
    """Move the consumer to where its new files lead: one of changes, perhaps one of all records.

    TryLater if it has been moved by somebody else in the meantime.
    """
    changes = files[0]
    moved = consumer._replace(
        revision=changes.revision,
        exported=int(clock.now()),
        records=consumer.records + changes.records,
        sequence=changes.sequence,
    )
    with _transaction(connection):
        _update(connection, consumer, moved)
        _note_file(connection, consumer.name, "export", changes)
        for baseline in files[1:]:
            _note_file(connection, consumer.name, "baseline", baseline)


def relocate(
    connection: sqlite3.Connection,
    consumer: Consumer,
    moved: Consumer,
    files: Sequence[ExportedFile] = (),
) -> None:
    """Note that its files are in another folder, or further on than was known here."""
    with _transaction(connection):
        _update(connection, consumer, moved)
        for file in files:
            _note_file(connection, consumer.name, "export", file)


def files_of(connection: sqlite3.Connection, name: str) -> dict[int, ExportedFile]:
    """The consumer's files of changes since it was last reset, by their numbers."""
    return {file.sequence: file for file in _files(connection, name, "event = 'export'")}


def baseline_of(connection: sqlite3.Connection, name: str) -> tuple[ExportedFile, bool] | None:
    """Its newest file of all records since it was last reset, and whether it is one of changes."""
    condition = "(event = 'baseline' OR event = 'export' AND began IS NULL)"
    found = _files(connection, name, condition)
    if not found:
        return None
    changes = files_of(connection, name).get(found[-1].sequence)
    return found[-1], changes == found[-1]


def last_number(connection: sqlite3.Connection, name: str) -> int:
    """The highest number of a file that a consumer of that name ever got; 0: none."""
    (number,) = connection.execute(
        "SELECT ifnull(max(sequence), 0) FROM consumers_history WHERE consumer = ?", (name,)
    ).fetchone()
    return int(number)


def has_published(connection: sqlite3.Connection, name: str, file: ExportedFile) -> bool:
    """Whether a consumer of that name once got this file."""
    found = connection.execute(
        "SELECT 1 FROM consumers_history WHERE consumer = ? AND sequence = ? AND sha256 = ?",
        (name, file.sequence, file.sha256),
    )
    return found.fetchone() is not None


def _files(connection: sqlite3.Connection, name: str, condition: str) -> list[ExportedFile]:
    rows = connection.execute(
        f"SELECT {', '.join(ExportedFile._fields)} FROM consumers_history"
        f" WHERE consumer = ? AND sequence IS NOT NULL AND {condition} AND id > ("
        "   SELECT ifnull(max(id), 0) FROM consumers_history"
        "   WHERE consumer = ? AND event IN ('new', 'reset', 'forget')"
        ") ORDER BY id",
        (name, name),
    )
    return [ExportedFile(*row) for row in rows]


def forget(connection: sqlite3.Connection, consumer: Consumer) -> None:
    """Forget the consumer; its history stays."""
    with _transaction(connection):
        connection.execute("DELETE FROM consumers WHERE name = ?", (consumer.name,))
        _note(connection, consumer.name, "forget", consumer.revision, consumer.revision)


def move_all(connection: sqlite3.Connection, revisions: Mapping[str, str]) -> int:
    """Give every consumer at a key of `revisions` the revision there, with the same records in it.

    For a store whose history was rewritten. Returns the number of consumers moved.
    """
    affected = [known for known in everyone(connection) if known.revision in revisions]
    for consumer in affected:
        move(connection, consumer, "move", revisions[str(consumer.revision)])
    return len(affected)


def _note_file(connection: sqlite3.Connection, name: str, event: str, file: ExportedFile) -> None:
    connection.execute(
        "INSERT INTO consumers_history"
        " (consumer, event, sequence, began, revision, time, records, size, sha256)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (name, event, *file),
    )


def _note(
    connection: sqlite3.Connection,
    name: str,
    event: str,
    began: str | None,
    revision: str | None,
    records: int = 0,
) -> None:
    connection.execute(
        "INSERT INTO consumers_history (consumer, event, began, revision, time, records)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        (name, event, began, revision, int(clock.now()), records),
    )
