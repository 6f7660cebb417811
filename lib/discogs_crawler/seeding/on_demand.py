"""Wants that no dump causes: ids by hand, numbers not seen yet, the oldest copies, dead letters.

Each does the same when repeated.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from discogs_crawler import clock
from discogs_crawler.errors import BadData, UsageError
from discogs_crawler.ledger.database import Ledger, batches
from discogs_crawler.ledger.rows import UNKNOWN_DUMP, Row
from discogs_crawler.records import MAX_ID, parse_id
from discogs_crawler.seeding.want_rules import want

# Ids in one range given by hand: 12 days of requests. More is a typing error.
RANGE = 1_000_000

# What is not the name of a file: numbers and ranges.
_IDS = re.compile(r"[0-9,-]*[0-9][0-9,-]*", re.ASCII)


def want_ids(ledger: Ledger, kind: str, ids: Iterable[int], reason: str = "manual") -> int:
    """Want these ids at once, whatever else is known of them; the number of ids."""
    now = int(clock.now())

    def want_first(row: Row) -> Row:
        if row.reason != reason:
            return want(row, reason, now, now)
        # A second 404 counts only a day after the first.
        is_waiting = reason == "confirm" and row.failure is None
        is_next = is_waiting or (row.due is not None and row.due <= now)
        return row if is_next else want(row, reason, now, now)

    number = 0
    for batch in batches(ids):
        unique = sorted(set(batch))
        ledger.revise(kind, unique, want_first)
        number += len(unique)
    return number


def import_again(ledger: Ledger, kind: str, missing: Iterable[int], present: Iterable[int]) -> int:
    """Let the next import of the last dump look at records; the number of them.

    `missing`: the store has not what was imported; `present`: it has what nobody knows of.
    """
    number = ledger.revise(kind, missing, lambda row: row._replace(imported=None))
    number += ledger.revise(kind, present, lambda row: row._replace(imported=UNKNOWN_DUMP))
    dump = ledger.last_accepted(kind)
    if number and dump is not None:
        with ledger.transaction() as connection:
            connection.execute("UPDATE dumps SET imported = NULL WHERE id = ?", (dump.id,))
    return number


def discover(ledger: Ledger, kind: str, window: int) -> int:
    """Want the `window` numbers above the highest id ever alive; the number of new ones.

    Those requested before keep their dates. When some of them turn out to be in use the next run
    looks above those, so daily runs go on until a whole window is unused.
    """
    now = int(clock.now())
    (highest,) = ledger.db.execute(
        f"SELECT ifnull((SELECT id FROM {kind} WHERE hash IS NOT NULL OR alive IS NOT NULL "
        "ORDER BY id DESC LIMIT 1), 0)"
    ).fetchone()

    def want_unknown(row: Row) -> Row:
        is_known = row.crawled is not None or row.reason is not None
        return row if is_known else want(row, "discovered", now, now)

    return ledger.revise(kind, range(highest + 1, min(highest + window, MAX_ID) + 1), want_unknown)


def refresh(ledger: Ledger, kind: str, number: int, cooldown_s: float) -> int:
    """Want those of the `number` longest not fetched that are not wanted yet; their number.

    First come imported records, which were never fetched, but not those that the first crawl is to
    fetch.
    """
    now = int(clock.now())
    oldest = ledger.select(
        kind,
        # All of 20 million rows are read in 4 s; SQLite sorts NULL first.
        "state IN ('stored', 'imported') AND reason IS NOT 'backfill' "
        "AND ifnull(crawled, 0) <= ? ORDER BY crawled, id LIMIT ?",
        now - int(cooldown_s),
        number,
    )
    ids = [row.id for row in oldest if row.reason is None]
    return ledger.revise(kind, ids, lambda row: want(row, "refresh", now, now))


def retry_dead(ledger: Ledger, kind: str) -> int:
    """Want all dead letters at once; their number."""
    now = int(clock.now())
    ids = [row.id for row in ledger.select(kind, "failure IS NOT NULL ORDER BY id")]
    ledger.revise(kind, ids, lambda row: want(row, row.reason or "refresh", now, row.since or now))
    return len(ids)


def dead_letters(ledger: Ledger, kind: str) -> Iterator[tuple[int, str, int]]:
    """Id, why it failed, and when it is tried again (epoch seconds), by id."""
    yield from ledger.db.execute(
        f"SELECT id, failure, due FROM {kind} WHERE failure IS NOT NULL ORDER BY id"
    )


def parse_ids(words: Iterable[str], stdin: IO[str]) -> Iterator[int]:
    """The ids that `--ids` names: numbers and ranges (`5000-5010`), a file of them, or `-`.

    They are separated by blanks or commas. BadData names the file and line of what is not an id.
    """
    for word in words:
        if word == "-":
            yield from _ids_of_lines("standard input", stdin)
        elif _IDS.fullmatch(word):
            yield from _ids_of_line(word)
        else:
            try:
                with Path(word).open(encoding="utf-8", errors="replace") as file:
                    yield from _ids_of_lines(word, file)
            except OSError as error:
                raise UsageError(
                    f"--ids {word}: neither ids nor a readable file: {error.strerror}"
                ) from error


def _ids_of_lines(name: str, lines: Iterable[str]) -> Iterator[int]:
    for number, line in enumerate(lines, 1):
        try:
            yield from _ids_of_line(line)
        except BadData as error:
            raise BadData(f"{name}, line {number}: {error}") from None


def _ids_of_line(line: str) -> Iterator[int]:
    for word in line.replace(",", " ").split():
        first, dash, last = word.partition("-")
        if dash and first and last:
            yield from _ids_of_range(parse_id(first), parse_id(last))
        else:
            yield parse_id(word)


def _ids_of_range(first: int, last: int) -> range:
    if last < first:
        raise BadData(f"a range must ascend: {last}-{first}, not {first}-{last}")
    if last - first >= RANGE:
        raise BadData(f"{first}-{last}: a range has {RANGE:,} ids at most")
    return range(first, last + 1)
