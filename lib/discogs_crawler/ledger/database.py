"""The ledger: what is known about every id, what is wanted, and which dumps were accepted.

One SQLite file in WAL mode, so that others can read while we write. Transactions are short and
take the write lock at once; a second writer waits for the first. `schema` explains the tables.
"""

import contextlib
import itertools
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import sqlite_utils

from discogs_crawler import clock, ledger_here, locks, sqlite_errors
from discogs_crawler.errors import (
    EXIT_BUG,
    EXIT_PARTLY,
    EXIT_TRY_LATER,
    ConfigurationError,
    CrawlerError,
    Unavailable,
)
from discogs_crawler.ledger.rows import DumpRow, Row, Run
from discogs_crawler.ledger.schema import MIGRATIONS

T = TypeVar("T")

# How long to wait for another writer; the longest transaction takes a second or two.
BUSY_S = 120

# Pages kept in memory: the differences of a month are applied in id order and need few.
CACHE_KIB = 65_536

# The name of a dump that came from standard input: when it was taken is not known.
NAMELESS = "-"

# Days without maintain_store.py before somebody is told. Git fails at 65,530 packs: in 45 days at a
# commit a minute.
NEGLECT_DAYS = 3

# Rows written in one transaction: a fifth of a second, so that nobody waits long for us.
BATCH = 20_000


class NoLedgerYet(ConfigurationError):
    """There is no ledger."""


_COLUMNS = ", ".join(Row._fields)
_SAVE = (
    f"INSERT INTO {{kind}} ({_COLUMNS}) VALUES ({', '.join('?' * len(Row._fields))}) "
    "ON CONFLICT (id) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in Row._fields if name != "id")
)


# After a kind in `store_revisions`: what imports have committed, which workers commit beside.
IMPORTED = " imported"


class Ledger:
    """An open ledger. Use it as a context manager, or call `close`."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self.db = sqlite_utils.Database(connection)
        self.rehearsing = False

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self.db.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing of what the block writes; within another transaction a part of that."""
        if self.db.conn.in_transaction:
            with self.db.atomic():
                yield self.db.conn
            return
        try:
            with self.db.conn:
                self.db.conn.execute("BEGIN IMMEDIATE")
                yield self.db.conn
        except sqlite3.Error as error:
            if sqlite_errors.disk_fails(error):
                raise Unavailable(f"{self.path}: nothing was written: {error}") from error
            raise

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """Read one state of the ledger during the block, whatever others write meanwhile."""
        self.db.conn.execute("BEGIN")
        try:
            yield
        finally:
            self.db.conn.rollback()

    @contextlib.contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Undo at the end of the block all that it wrote; until then `rehearsing` says so."""
        self.db.conn.execute("BEGIN IMMEDIATE")
        self.rehearsing = True
        try:
            yield
        finally:
            self.rehearsing = False
            self.db.conn.rollback()

    def handover(self, *, wait: bool = True) -> contextlib.AbstractContextManager[object]:
        """Keep others from handing wants to Redis or reading results from it during the block.

        A want that was read here, while somebody else clears it and its id leaves Redis's hands,
        would be queued once more for nothing. TryLater without `wait` if others do that now.
        """
        lock = self.path.with_name(self.path.name + ".handover.lock")
        return locks.exclusive(lock, "a handover to Redis", wait=wait)

    @contextlib.contextmanager
    def run(self, script: str, kind: str) -> Iterator[Run]:
        """Keep a row in `runs` about the block, which fills in the Run that it gets."""
        run = Run({})
        with self.transaction() as connection:
            run_id = connection.execute(
                "INSERT INTO runs (script, kind, started, counts) VALUES (?, ?, ?, '{}')",
                (script, kind, int(clock.now())),
            ).lastrowid
        code = EXIT_BUG
        try:
            yield run
            code = run.exit_code
        except CrawlerError as error:
            code = error.exit_code
            raise
        except KeyboardInterrupt:
            code = EXIT_PARTLY
            raise
        finally:
            with self.transaction() as connection:
                connection.execute(
                    "UPDATE runs SET ended = ?, exit_code = ?, counts = ? WHERE id = ?",
                    (int(clock.now()), code, json.dumps(run.counts), run_id),
                )

    def import_failed(self, kind: str) -> bool:
        """Whether an import was ever killed or ended early, or is under way.

        It may have committed records before it could note them.
        """
        query = (
            "SELECT EXISTS (SELECT 1 FROM runs "
            "WHERE script = 'import_dump' AND kind = ? AND exit_code IS NOT 0 "
            f"AND exit_code IS NOT {EXIT_TRY_LATER})"
        )
        return bool(self.db.execute(query, (kind,)).fetchone()[0])

    def neglect(self) -> str:
        """What is wrong if the nightly job has not ended well for days; "" if nothing is.

        On a machine that is always off at that hour the job itself can say nothing.
        """
        (since,) = self.db.execute(
            "SELECT coalesce((SELECT max(ended) FROM runs WHERE script = 'maintain_store' "
            "AND exit_code = 0), (SELECT started FROM runs ORDER BY id LIMIT 1))"
        ).fetchone()
        days = int(clock.now() - since) // clock.DAY_S if since and self.stored() else 0
        if days < NEGLECT_DAYS:
            return ""
        return (
            f"maintain_store.py has not ended well for {days} days: if it says why, see its mail; "
            "if it does not run, the ledger has no new backup, and Git gets slow and fails in the "
            "end: let it run daily, when this machine is on"
        )

    def record_dump(self, facts: Mapping[str, Any]) -> None:
        """Remember the columns of a dump that was split; splitting it again replaces them.

        A dump from standard input has no name and no date: those that are known stay.
        """
        values = {**facts, "recorded": int(clock.now())}
        with self.transaction() as connection:
            found = connection.execute(
                "SELECT id, file FROM dumps WHERE kind = :kind AND sha256 IS :sha256 "
                "AND result_sha256 IS :result_sha256",
                facts,
            ).fetchone()
            if found is None:
                self.db.table("dumps").insert(values)
                return
            if facts["file"] == NAMELESS and found[1] != NAMELESS:
                for name in ("file", "not_before", "not_after"):
                    del values[name]
            self.db.table("dumps").update(found[0], values)

    def dump_of_result(self, sha256: bytes, kind: str | None = None) -> DumpRow | None:
        """The dump whose hash file has this SHA-256; of several the latest with a name."""
        return self._dump(
            "result_sha256 = ? AND kind = ifnull(?, kind) "
            "ORDER BY file = ?, not_before DESC, id DESC",
            (sha256, kind, NAMELESS),
        )

    def dump_of_file(self, sha256: bytes) -> DumpRow | None:
        """The dump with this SHA-256, if it was split before and is whole."""
        return self._dump("sha256 = ? AND verdict = 'whole' ORDER BY id DESC", (sha256,))

    def hash_cache_of(self, kind: str, canonical_version: int) -> bytes | None:
        """SHA-256 of the hash cache that was kept last; None if there is none by these rules."""
        row = self.db.execute(
            "SELECT book_sha256 FROM dumps WHERE kind = ? AND canonical_version = ? "
            "AND book_sha256 IS NOT NULL ORDER BY recorded DESC, id DESC",
            (kind, canonical_version),
        ).fetchone()
        return None if row is None else row[0]

    def knows_something(self) -> bool:
        """Whether any id was ever in it."""
        return ledger_here.knows_something(self.db.conn)

    def has_results(self) -> bool:
        """Whether any worker has reported."""
        return bool(self.db.execute("SELECT count(*) FROM results_cursor").fetchone()[0])

    def stored(self) -> int:
        """The number of records that the store should have."""
        return self.count("state IN ('stored', 'imported')")

    def count(self, condition: str, *values: object) -> int:
        """The number of ids for which a condition on the columns of `counts` holds."""
        query = f"SELECT ifnull(sum(records), 0) FROM counts WHERE {condition}"
        return int(self.db.conn.execute(query, values).fetchone()[0])

    def last_accepted(self, kind: str) -> DumpRow | None:
        """The dump whose hashes the ledger has."""
        return self._dump(
            "kind = ? AND accepted IS NOT NULL ORDER BY accepted DESC, id DESC", (kind,)
        )

    def half_done(self, kind: str) -> list[int]:
        """Dumps with which a seeding began and did not end since the last accepted one."""
        rows = self.db.execute(
            "SELECT id FROM dumps WHERE kind = ? AND started IS NOT NULL AND accepted IS NULL",
            (kind,),
        )
        return [row[0] for row in rows]

    def _dump(self, condition: str, values: Sequence[object]) -> DumpRow | None:
        columns = ", ".join(DumpRow._fields)
        row = self.db.execute(
            f"SELECT {columns} FROM dumps WHERE {condition} LIMIT 1", list(values)
        ).fetchone()
        return None if row is None else DumpRow._make(row)

    def note_revision(self, source: str, commits: Sequence[str]) -> None:
        """Remember the last of these commits, within the caller's transaction.

        `source` is the kind of the results that were in them, or with IMPORTED that of a dump.
        """
        for revision in list(filter(None, commits))[-1:]:
            self.db.conn.execute(
                "INSERT INTO store_revisions VALUES (?, ?) "
                "ON CONFLICT (kind) DO UPDATE SET revision = excluded.revision",
                (source, revision),
            )

    def revisions(self) -> list[str]:
        """Commits that the store must have, because the ledger knows what is in them."""
        return [row[0] for row in self.db.execute("SELECT revision FROM store_revisions")]

    def move_revisions(self, revision: str) -> None:
        """The store has all of them in this commit now."""
        with self.transaction() as connection:
            connection.execute("UPDATE store_revisions SET revision = ?", (revision,))

    def forget_revisions(self) -> None:
        """Forget them: what was in them is wanted again."""
        with self.transaction() as connection:
            connection.execute("DELETE FROM store_revisions")

    def rows(self, kind: str, ids: Iterable[int]) -> dict[int, Row]:
        """What is known of these ids; a fresh row for one that is not known."""
        wanted = list(ids)
        known = self.select(kind, "id IN (SELECT value FROM json_each(?))", json.dumps(wanted))
        found = {row.id: row for row in known}
        return {record_id: found.get(record_id) or Row(record_id) for record_id in wanted}

    def select(self, kind: str, condition: str, *values: object) -> Iterator[Row]:
        """The rows of a kind for which a condition in SQL holds."""
        cursor = self.db.conn.execute(f"SELECT {_COLUMNS} FROM {kind} WHERE {condition}", values)
        return map(Row._make, cursor)

    def save(self, kind: str, rows: Iterable[Row]) -> None:
        """Write rows, new or known, within the caller's transaction."""
        self.db.conn.executemany(_SAVE.format(kind=kind), rows)

    def revise(self, kind: str, ids: Iterable[int], rule: Callable[[Row], Row]) -> int:
        """Apply `rule` to the rows, in batches; return the number of rows that it changed."""
        revised = 0
        for batch in batches(ids):
            with self.transaction():
                rows = self.rows(kind, batch).values()
                changed = [after for row in rows if (after := rule(row)) != row]
                self.save(kind, changed)
            revised += len(changed)
        return revised


def batches(items: Iterable[T]) -> Iterator[list[T]]:
    """The items in lists, each as long as one transaction should be."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, BATCH)):
        yield batch


def open(path: Path, *, read_only: bool = False) -> Ledger:
    """Open the ledger, made or brought up to date if need be.

    BadData if it is damaged or not a ledger. ConfigurationError if it cannot be written or is of a
    newer version; or, with `read_only`, if it is not there or of an older version. Unavailable if
    the disk fails.
    """
    if read_only and not path.exists():
        raise NoLedgerYet(f"{path}: there is no ledger yet; seed_queue.py makes one")
    if path.exists() and not path.is_file():
        raise ConfigurationError(f"{path}: cannot be used as the ledger: it is not a regular file")
    try:
        if not read_only:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        ledger = Ledger(path, _connect(path, read_only))
        _migrate(ledger, read_only)
    except (sqlite3.DatabaseError, OSError) as error:
        if sqlite_errors.is_damage(error) or sqlite_errors.disk_fails(error):
            raise sqlite_errors.meaning(error, path) or error from error
        raise ConfigurationError(f"{path}: cannot be used as the ledger: {error}") from error
    return ledger


def _connect(path: Path, read_only: bool) -> sqlite3.Connection:
    uri = path.absolute().as_uri() + ("?mode=ro" if read_only else "")
    connection = sqlite3.connect(uri, uri=True, timeout=BUSY_S, isolation_level=None)
    connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    if not read_only:
        sqlite_errors.use_wal(connection, BUSY_S)
    return connection


def _migrate(ledger: Ledger, read_only: bool) -> None:
    names = {migration.name for migration in MIGRATIONS.applied(ledger.db)}
    newer = names - {migration.name for migration in MIGRATIONS._migrations}
    if newer:
        raise ConfigurationError(
            f"{ledger.path}: a newer version of this program made it ({min(newer)}); "
            "upgrade this installation"
        )
    if not MIGRATIONS.pending(ledger.db):
        return
    if read_only and not names:
        raise NoLedgerYet(f"{ledger.path}: it is empty; seed_queue.py makes a ledger of it")
    if read_only:
        raise ConfigurationError(
            f"{ledger.path}: it is of an older version; run seed_queue.py once to upgrade it"
        )
    lock = ledger.path.with_name(ledger.path.name + ".upgrade.lock")
    with locks.exclusive(lock, "an upgrade of the ledger", wait=True):
        MIGRATIONS.apply(ledger.db)
