"""Take in a dump: compare its hashes with those of the ledger, and want what differs.

Both are streamed in id order, and only rows that differ are touched. The last accepted hash file
is kept beside the ledger for that: comparing two sorted files of 20 million lines takes seconds,
the same out of SQLite, which is done when the file is missing or damaged, a minute.

It can be killed anywhere and run again. The rules look only at the rows, so a row that was done is
not changed again; and until the dump is accepted every run compares with the same file.
"""

import logging
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from discogs_crawler import clock
from discogs_crawler.cli import progress
from discogs_crawler.dumps import hashfile
from discogs_crawler.dumps.hashfile import Difference, HashFile
from discogs_crawler.files import atomic_write
from discogs_crawler.ledger import database
from discogs_crawler.ledger.database import Ledger, batches
from discogs_crawler.ledger.rows import DumpRow, Row
from discogs_crawler.records import SEGMENT_SIZE
from discogs_crawler.seeding import dump_guard
from discogs_crawler.seeding.dump_guard import Comparison
from discogs_crawler.seeding.want_rules import after_dump

log = logging.getLogger(__name__)


def take_in(
    ledger: Ledger,
    new: HashFile,
    dump: DumpRow,
    cooldown_s: float,
    *,
    adopt: bool = False,
    force: bool = False,
) -> dict[str, int]:
    """Make `dump`, whose hashes are in `new`, the one that the ledger has; return what differed.

    BadData, and nothing is changed, if implausibly much differs, unless `adopt` or `force`.
    """
    last = ledger.last_accepted(dump.kind)
    if last is not None and last.id == dump.id and not ledger.half_done(dump.kind):
        _keep(ledger, new, dump.kind)
        return {}
    if last is None:
        found = Comparison(0, new.records, new.records, 0, 0)
        mark_started(ledger, dump)
        import_first(ledger, new, dump, adopt=adopt)
    else:
        if not adopt:
            dump_guard.refuse_other_rules(last, dump)
        adopt = adopt or dump_guard.is_same_dump(last, dump)
        accepted = _accepted_file(ledger, last, dump)
        with _baseline(ledger, dump.kind, accepted) as old:
            found = _compare(old, new)
        if not force:
            dump_guard.refuse_unlikely(found, last, dump, adopt=adopt)
        mark_started(ledger, dump)
        with _baseline(ledger, dump.kind, accepted) as old, hashfile.opened(new) as lines:
            _judge(ledger, dump, hashfile.differences(old, lines), cooldown_s, adopt=adopt)
        _look_again(ledger, dump, cooldown_s)
    accept(ledger, new, dump, found)
    return {"added": found.added, "changed": found.changed, "retired": found.retired}


def want_differences(
    ledger: Ledger, old: HashFile, new: HashFile, dump: DumpRow, cooldown_s: float
) -> None:
    """Want what differs between two files, although the ledger knows the new one already."""
    with hashfile.opened(old) as before, hashfile.opened(new) as after:
        differences = hashfile.differences(before, after)
        _judge(ledger, dump, differences, cooldown_s, believe_old=True)


def _accepted_file(ledger: Ledger, last: DumpRow, dump: DumpRow) -> Path | None:
    """The last accepted hash file, if it is whole and no seeding was begun since."""
    path = accepted_path(ledger, last.kind, last.result_sha256)
    others = [half for half in ledger.half_done(last.kind) if half != dump.id]
    if not others and hashfile.sha256_of(path) == last.result_sha256:
        return path
    log.info("%s cannot be used: comparing with the ledger itself, which takes longer", path)
    return None


@contextmanager
def _baseline(ledger: Ledger, kind: str, accepted: Path | None) -> Iterator[Iterable[bytes]]:
    """The lines of the last accepted hash file, or the same out of the ledger."""
    if accepted is None:
        yield _lines_of_ledger(ledger, kind)
    else:
        with hashfile.lines(accepted) as lines:
            yield lines


def _lines_of_ledger(ledger: Ledger, kind: str) -> Iterator[bytes]:
    after = 0
    while True:
        rows = ledger.db.conn.execute(
            f"SELECT id, hash FROM {kind} WHERE id > ? AND dump IS NOT NULL ORDER BY id LIMIT ?",
            (after, database.BATCH),
        ).fetchall()
        if not rows:
            return
        after = rows[-1][0]
        yield from (hashfile.line_of(record_id, digest) for record_id, digest in rows)


def _compare(old: Iterable[bytes], new: HashFile) -> Comparison:
    with hashfile.opened(new) as lines:
        found = Counter((d.old is None, d.new is None) for d in hashfile.differences(old, lines))
    added, changed, retired = found[True, False], found[False, False], found[False, True]
    return Comparison(new.records - added + retired, new.records, added, changed, retired)


def import_first(ledger: Ledger, new: HashFile, dump: DumpRow, *, adopt: bool) -> None:
    """The first dump of a kind: every record of it is new, and there are millions."""
    now = int(clock.now())
    wanted = "NULL, NULL, NULL" if adopt else f"{now}, 'backfill', {min(dump.not_after + 1, now)}"
    insert = (
        f"INSERT INTO {dump.kind} (id, hash, dump, due, reason, since) "
        f"VALUES (?, ?, {dump.id}, {wanted})"
    )
    with progress.bar("first dump", new.records, "records/s") as advance:
        for block in hashfile.blocks(new):
            fresh = dict(block.pairs())
            with ledger.transaction() as connection:
                # Wanted before the first dump, or there since a run that was interrupted.
                rows = ledger.select(dump.kind, "id BETWEEN ? AND ?", block.ids[0], block.ids[-1])
                known = [(row, fresh.pop(row.id)) for row in rows if row.id in fresh]
                connection.executemany(insert, fresh.items())
                if not adopt:
                    _count_backfill(ledger, dump.kind, fresh)
                revised = [
                    after_dump(row, digest, dump, now, 0, adopt=adopt)
                    for row, digest in known
                    if row.hash != digest
                ]
                ledger.save(dump.kind, revised)
            advance(len(block.ids))


def _count_backfill(ledger: Ledger, kind: str, ids: Iterable[int]) -> None:
    """Add ids that were newly inserted to the table of counts."""
    ledger.db.conn.executemany(
        "INSERT INTO counts VALUES (?, ?, 1, 'unfetched', 'backfill', ?) "
        "ON CONFLICT DO UPDATE SET records = records + excluded.records",
        [(kind, *found) for found in Counter(n // SEGMENT_SIZE for n in ids).items()],
    )


def _judge(
    ledger: Ledger,
    dump: DumpRow,
    differences: Iterable[Difference],
    cooldown_s: float,
    *,
    adopt: bool = False,
    believe_old: bool = False,
) -> None:
    """Give the rows the new hashes, and the wants that follow from a changed hash.

    With `believe_old` a hash has changed if it differs from the old file's, not the ledger's.
    """
    now = int(clock.now())
    for batch in batches(differences):
        with ledger.transaction():
            rows = ledger.rows(dump.kind, (difference.id for difference in batch))
            changed = []
            for record_id, old, new in batch:
                row = rows[record_id]
                before = row._replace(hash=old) if believe_old else row
                after = after_dump(before, new, dump, now, cooldown_s, adopt=adopt)
                if after != row:
                    changed.append(after)
            ledger.save(dump.kind, changed)


def _look_again(ledger: Ledger, dump: DumpRow, cooldown_s: float) -> None:
    """Apply the rules to what is the same in both dumps but contradicts the last answer.

    That is a record that the dump has and the API had not, or that only the API had.
    """
    now = int(clock.now())
    conditions = (
        ("misses > 0 AND dump IS NOT NULL AND crawled <= ?", dump.not_after),
        ("dump IS NULL AND misses = 0 AND alive < ?", dump.not_before),
    )

    def judge(row: Row) -> Row:
        return after_dump(row, row.hash if row.dump else None, dump, now, cooldown_s)

    for condition, value in conditions:
        ledger.revise(
            dump.kind, [row.id for row in ledger.select(dump.kind, condition, value)], judge
        )


def mark_started(ledger: Ledger, dump: DumpRow) -> None:
    """Remember that rows may have this dump's hashes, until it or another one is accepted.

    If it was accepted before another one was, it is to be accepted and imported once more.
    """
    with ledger.transaction() as connection:
        connection.execute(
            "UPDATE dumps SET started = ifnull(started, ?), imported = NULL, accepted = "
            "iif(accepted = (SELECT max(accepted) FROM dumps WHERE kind = ?), accepted, NULL) "
            "WHERE id = ?",
            (int(clock.now()), dump.kind, dump.id),
        )


def accept(ledger: Ledger, new: HashFile, dump: DumpRow, found: Comparison) -> None:
    """Keep the file beside the ledger, then mark the dump as accepted."""
    _keep(ledger, new, dump.kind)
    with ledger.transaction() as connection:
        # Later than any other, even if two dumps are accepted within a second.
        connection.execute(
            "UPDATE dumps SET added = ?, changed = ?, retired = ?, accepted = "
            "max(?, (SELECT ifnull(max(accepted), 0) + 1 FROM dumps)) WHERE id = ?",
            (found.added, found.changed, found.retired, int(clock.now()), dump.id),
        )
        # What was begun before and never finished has been compared with the rows themselves.
        connection.execute(
            "UPDATE dumps SET started = NULL WHERE kind = ? AND accepted IS NULL", (dump.kind,)
        )
    if not ledger.rehearsing:
        kept = accepted_path(ledger, dump.kind, new.sha256)
        for other in kept.parent.glob(f"{ledger.path.name}.{dump.kind}.*.hashes"):
            if other != kept:
                other.unlink(missing_ok=True)


def _keep(ledger: Ledger, new: HashFile, kind: str) -> None:
    """Copy a hash file to where the next month's run finds it, unless it is there."""
    path = accepted_path(ledger, kind, new.sha256)
    if ledger.rehearsing or path.exists():
        return
    with atomic_write(path, mode=0o600) as target, hashfile.opened(new) as source:
        shutil.copyfileobj(source, target, hashfile.BLOCK_SIZE)


def accepted_path(ledger: Ledger, kind: str, sha256: bytes | None) -> Path:
    """The path at which the accepted hash file with this SHA-256 is kept."""
    name = f"{ledger.path.name}.{kind}.{(sha256 or b'').hex()[:16]}.hashes"
    return ledger.path.with_name(name)
