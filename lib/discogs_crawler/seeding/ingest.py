"""Taking in a dump: compare its hashes with what the ledger has, and want what differs.

Both are streamed in id order and touch only the rows that differ. The last accepted file of hashes
is kept beside the ledger for that: two sorted files of 20 million lines are compared in seconds,
the same out of SQLite takes a minute, and is what happens when the file is missing or damaged.

It can be killed anywhere and run again. Rows are judged by what they say, so one that was done is
left alone; and until the dump is accepted the next run compares with the same file as this one.
"""

import bisect
import itertools
import logging
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

from discogs_crawler import clock
from discogs_crawler.cli import progress
from discogs_crawler.dumps import hashfile
from discogs_crawler.dumps.hashfile import Difference, HashFile
from discogs_crawler.errors import BadData
from discogs_crawler.files import atomic_write
from discogs_crawler.ledger.database import BATCH, NAMELESS, Ledger
from discogs_crawler.ledger.rows import DumpRow, Row
from discogs_crawler.records import SEGMENT_SIZE
from discogs_crawler.seeding import want_rules

log = logging.getLogger(__name__)

T = TypeVar("T")

# A dump with fewer records than this share of the last one's is taken for truncated.
FEWEST_SHARE = 0.98

# More records than this share of the last dump's that are no longer there: something is wrong.
RETIRED_SHARE = 0.02

# More than this share of the common records with another hash: Discogs writes them differently.
CHANGED_SHARE = 0.5


class Comparison(NamedTuple):
    """How a dump differs from what the ledger has."""

    before: int
    after: int
    added: int
    changed: int
    retired: int


def take_in(
    ledger: Ledger,
    new: HashFile,
    dump: DumpRow,
    cooldown_s: float,
    *,
    adopt: bool = False,
    force: bool = False,
) -> dict[str, int]:
    """Make `dump`, whose hashes are in `new`, the one that the ledger has; what differed.

    BadData, and nothing is changed, if so much differs that it cannot be true, unless `adopt` or
    `force`.
    """
    last = ledger.last_accepted(dump.kind)
    if last is None:
        mark_started(ledger, dump)
        import_first(ledger, new, dump, adopt=adopt)
        comparison = Comparison(0, new.records, new.records, 0, 0)
    elif last.id == dump.id:
        _keep(ledger, new, dump.kind)
        return {}
    else:
        if not adopt:
            _refuse_other_rules(last, dump)
        adopt = adopt or _same_dump(last, dump)
        accepted = _accepted_file(ledger, last, dump)
        with _baseline(ledger, dump.kind, accepted) as old:
            comparison = _compare(old, new)
        if not force:
            _guard(comparison, last, dump, adopt)
        mark_started(ledger, dump)
        with _baseline(ledger, dump.kind, accepted) as old, hashfile.opened(new) as lines:
            _apply(ledger, dump, hashfile.differences(old, lines), cooldown_s, adopt)
        _look_again(ledger, dump, cooldown_s)
    accept(ledger, new, dump, comparison)
    return {"added": comparison.added, "changed": comparison.changed, "retired": comparison.retired}


def want_differences(
    ledger: Ledger, old: HashFile, new: HashFile, dump: DumpRow, cooldown_s: float
) -> None:
    """Want what differs between two files, although the ledger knows the new one already."""
    facts = want_rules.Dump(dump.id, dump.not_before, dump.not_after)
    now = int(clock.now())
    with hashfile.opened(old) as before, hashfile.opened(new) as after:
        for batch in _batches(hashfile.differences(before, after)):
            with ledger.transaction():
                rows = ledger.rows(dump.kind, (difference.id for difference in batch))
                ledger.save(
                    dump.kind,
                    [
                        want_rules.after_dump(
                            rows[d.id]._replace(hash=d.old), d.new, facts, now, cooldown_s
                        )
                        for d in batch
                    ],
                )


def _same_dump(last: DumpRow, dump: DumpRow) -> bool:
    """The same dump, hashed again by other rules: that no record has changed is certain."""
    return last.sha256 is not None and last.sha256 == dump.sha256


def _refuse_other_rules(last: DumpRow, dump: DumpRow) -> None:
    """BadData if the hashes cannot be compared; only the same dump leads on to newer rules."""
    ours, theirs = last.canonical_version, dump.canonical_version
    if ours == theirs or (_same_dump(last, dump) and ours < theirs):
        return
    if theirs < ours:
        way_out = f"split {_name(dump)} again{'' if theirs else ' without --raw'}"
    else:
        way_out = f"first split {_name(last)} by those rules too and seed with that"
    raise BadData(
        f"{_name(dump)} was hashed {_rules(theirs)}, but {_name(last)}, which the ledger has, "
        f"{_rules(ours)}, so all hashes differ; nothing was changed; {way_out}, or --adopt takes "
        "the hashes and asks only for added and retired records"
    )


def _name(dump: DumpRow) -> str:
    return "the dump from standard input" if dump.file == NAMELESS else dump.file


def _rules(version: int) -> str:
    return f"by rules {version}" if version else "with --raw"


def _guard(found: Comparison, last: DumpRow, dump: DumpRow, adopt: bool) -> None:
    """BadData if the dump can hardly be right."""
    problem = ""
    way_out = "--force believes it all the same"
    common = found.after - found.added
    if dump.not_before < last.not_before and dump.result_sha256 != last.result_sha256:
        problem = "it is older than that"
    elif found.after < FEWEST_SHARE * found.before:
        problem = f"it has {found.after:,} records instead of {found.before:,}"
    elif found.retired > RETIRED_SHARE * found.before:
        problem = f"it lacks {found.retired:,} of {found.before:,} records"
    elif found.changed > CHANGED_SHARE * common and not adopt:
        problem = f"{found.changed:,} of {common:,} records have another hash"
        way_out = (
            "--adopt takes the hashes and asks only for added and retired records, "
            "--force asks for all"
        )
    if problem:
        raise BadData(
            f"{dump.file} is not believed after {last.file}: {problem} (added {found.added:,}, "
            f"changed {found.changed:,}, retired {found.retired:,}); nothing was changed; {way_out}"
        )


def _accepted_file(ledger: Ledger, last: DumpRow, dump: DumpRow) -> Path | None:
    """The last accepted file of hashes, if it is whole and nothing was begun since."""
    path = accepted_path(ledger, last.kind, last.result_sha256)
    others = [half for half in ledger.half_done(last.kind) if half != dump.id]
    if not others and hashfile.sha256_of(path) == last.result_sha256:
        return path
    log.info("%s cannot be used: comparing with the ledger itself, which takes longer", path)
    return None


@contextmanager
def _baseline(ledger: Ledger, kind: str, accepted: Path | None) -> Iterator[Iterable[bytes]]:
    """The lines of the last accepted file of hashes, or the same out of the ledger."""
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
            (after, BATCH),
        ).fetchall()
        if not rows:
            return
        after = rows[-1][0]
        yield from (hashfile.line_of(record_id, digest) for record_id, digest in rows)


def _compare(old: Iterable[bytes], new: HashFile) -> Comparison:
    added = changed = retired = 0
    with hashfile.opened(new) as lines:
        for difference in hashfile.differences(old, lines):
            if difference.old is None:
                added += 1
            elif difference.new is None:
                retired += 1
            else:
                changed += 1
    return Comparison(new.records - added + retired, new.records, added, changed, retired)


def import_first(ledger: Ledger, new: HashFile, dump: DumpRow, *, adopt: bool) -> None:
    """The first dump of a kind: every record of it is new, and there are millions."""
    now = int(clock.now())
    wanted = "NULL, NULL, NULL" if adopt else f"{now}, 'backfill', {min(dump.not_after + 1, now)}"
    insert = (
        f"INSERT INTO {dump.kind} (id, hash, dump, due, reason, since) "
        f"VALUES (?, ?, {dump.id}, {wanted})"
    )
    facts = want_rules.Dump(dump.id, dump.not_before, dump.not_after)
    with progress.bar("first import", new.records, "records/s") as advance:
        for block in hashfile.blocks(new):
            with ledger.transaction() as connection:
                known = _known_within(ledger, dump.kind, block)
                fresh = block.pairs()
                if known:
                    fresh = iter([pair for pair in fresh if pair[0] not in known])
                connection.executemany(insert, fresh)
                if not adopt:
                    _count_backfill(ledger, dump.kind, [n for n in block.ids if n not in known])
                ledger.save(
                    dump.kind,
                    [
                        want_rules.after_dump(known[n], digest, facts, now, 0, adopt=adopt)
                        for n, digest in (block.pairs() if known else ())
                        if n in known and known[n].hash != digest
                    ],
                )
            advance(len(block.ids))


def _known_within(ledger: Ledger, kind: str, block: hashfile.Block) -> dict[int, Row]:
    """Rows that are there before the first dump, or since an import that was interrupted."""
    rows = ledger.select(kind, "id BETWEEN ? AND ?", block.ids[0], block.ids[-1])
    return {row.id: row for row in rows}


def _count_backfill(ledger: Ledger, kind: str, ids: Sequence[int]) -> None:
    """Add ascending ids, newly inserted, to the table of counts."""
    start = 0
    while start < len(ids):
        segment = ids[start] // SEGMENT_SIZE
        end = bisect.bisect_left(ids, (segment + 1) * SEGMENT_SIZE, start)
        ledger.db.conn.execute(
            "INSERT INTO counts VALUES (?, ?, 1, 'unfetched', 'backfill', ?) "
            "ON CONFLICT DO UPDATE SET records = records + excluded.records",
            (kind, segment, end - start),
        )
        start = end


def _apply(
    ledger: Ledger,
    dump: DumpRow,
    differences: Iterable[Difference],
    cooldown_s: float,
    adopt: bool,
) -> None:
    facts = want_rules.Dump(dump.id, dump.not_before, dump.not_after)
    now = int(clock.now())
    for batch in _batches(differences):
        with ledger.transaction():
            rows = ledger.rows(dump.kind, (difference.id for difference in batch))
            after = [
                want_rules.after_dump(rows[d.id], d.new, facts, now, cooldown_s, adopt=adopt)
                for d in batch
            ]
            ledger.save(dump.kind, [row for row in after if row != rows[row.id]])


def _look_again(ledger: Ledger, dump: DumpRow, cooldown_s: float) -> None:
    """Judge anew what is the same in both dumps but contradicts the last answer.

    A record that the dump has and the API had not, and one that the API had and neither dump has.
    """
    facts = want_rules.Dump(dump.id, dump.not_before, dump.not_after)
    now = int(clock.now())
    conditions = (
        ("misses > 0 AND dump IS NOT NULL AND crawled <= ?", dump.not_after),
        ("dump IS NULL AND misses = 0 AND alive < ?", dump.not_before),
    )
    for condition, value in conditions:
        ids = [row.id for row in ledger.select(dump.kind, condition, value)]
        for batch in _batches(ids):
            with ledger.transaction():
                rows = ledger.rows(dump.kind, batch).values()
                ledger.save(
                    dump.kind,
                    [
                        want_rules.after_dump(
                            row, row.hash if row.dump else None, facts, now, cooldown_s
                        )
                        for row in rows
                    ],
                )


def mark_started(ledger: Ledger, dump: DumpRow) -> None:
    """Remember that rows may have this dump's hashes, until it or another one is accepted."""
    with ledger.transaction() as connection:
        connection.execute(
            "UPDATE dumps SET started = ifnull(started, ?) WHERE id = ?",
            (int(clock.now()), dump.id),
        )


def accept(ledger: Ledger, new: HashFile, dump: DumpRow, found: Comparison) -> None:
    """Keep the file beside the ledger, then say that it is the accepted one."""
    _keep(ledger, new, dump.kind)
    with ledger.transaction() as connection:
        # Later than any other, though two dumps were accepted within a second.
        connection.execute(
            "UPDATE dumps SET added = ?2, changed = ?3, retired = ?4, accepted = "
            "max(?1, (SELECT ifnull(max(accepted), 0) + 1 FROM dumps)) WHERE id = ?5",
            (int(clock.now()), found.added, found.changed, found.retired, dump.id),
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
    """Copy a file of hashes to where the next month's run finds it, unless it is there."""
    path = accepted_path(ledger, kind, new.sha256)
    if ledger.rehearsing or path.exists():
        return
    with atomic_write(path, mode=0o600) as target, hashfile.opened(new) as source:
        shutil.copyfileobj(source, target, hashfile.BLOCK_SIZE)


def accepted_path(ledger: Ledger, kind: str, sha256: bytes | None) -> Path:
    """Where the accepted file of hashes with this SHA-256 is kept."""
    name = f"{ledger.path.name}.{kind}.{(sha256 or b'').hex()[:16]}.hashes"
    return ledger.path.with_name(name)


def _batches(items: Iterable[T]) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, BATCH)):
        yield batch
