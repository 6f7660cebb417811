"""Which dump a hash file was made from, and when its snapshot was taken."""

import datetime
import re
from pathlib import Path

from discogs_crawler import clock
from discogs_crawler.cli.formatting import printable
from discogs_crawler.dumps import canonical, external_sort, hashfile
from discogs_crawler.dumps.hashfile import HashFile, Unsorted
from discogs_crawler.errors import UsageError
from discogs_crawler.files import atomic_write
from discogs_crawler.ledger.database import Ledger
from discogs_crawler.ledger.rows import DumpRow

# Memory for the lines of a file that is not sorted.
SORTING_BYTES = 128 << 20

# What is not known of a dump that somebody else split.
FOREIGN_VERDICT = "not known, split elsewhere"

_DATE_IN_NAME = re.compile(r"(?<![0-9])(20[0-9]{2})([01][0-9])([0-3][0-9])(?![0-9])")


def checked(path: Path, folder: Path) -> HashFile:
    """Check the file, or a sorted copy of it in `folder`; BadData says what is wrong."""
    try:
        return hashfile.check(path)
    except Unsorted:
        with hashfile.lines(path) as lines:
            ordered = external_sort.sort_lines(lines, hashfile.key_of, folder, SORTING_BYTES)
            copy = folder / f"{path.name}.sorted"
            with atomic_write(copy, mode=0o600) as target:
                target.writelines(ordered)
    return hashfile.check(copy)


def dump_of(
    ledger: Ledger, file: HashFile, path: Path, kind: str | None, date: str | None
) -> DumpRow:
    """The dump that `file` (given as `path`) was made from.

    One that was split elsewhere is recorded with what its name, `kind` and `date` (YYYYMMDD) say.
    """
    known = ledger.dump_of_result(file.sha256, kind)
    if known is not None:
        return known
    other = ledger.dump_of_result(file.sha256)
    if other is not None:
        raise UsageError(f"{path}: these are hashes of {other.kind} ({other.file}), not of {kind}")
    kind = kind or "releases"
    last = ledger.last_accepted(kind)
    version = last.canonical_version if last else canonical.CANONICAL_VERSION
    not_before, not_after = _snapshot(path, date)
    ledger.record_dump(
        {
            "kind": kind,
            "file": printable(path.name),
            "not_before": not_before,
            "not_after": not_after,
            "sha256": None,
            "records": file.records,
            "first_id": file.first_id,
            "last_id": file.last_id,
            "verdict": FOREIGN_VERDICT,
            "damaged": 0,
            "result_sha256": file.sha256,
            "canonical_version": version,
        }
    )
    known = ledger.dump_of_result(file.sha256, kind)
    assert known is not None
    return known


def forget(ledger: Ledger, dump: DumpRow) -> None:
    """Remove what `dump_of` recorded about a dump that was refused."""
    with ledger.transaction() as connection:
        connection.execute(
            "DELETE FROM dumps WHERE id = ? AND verdict = ? AND started IS NULL",
            (dump.id, FOREIGN_VERDICT),
        )


def _snapshot(path: Path, date: str | None) -> tuple[int, int]:
    """The instants between which it was taken: on its date, or when the file was written."""
    written = int(path.stat().st_mtime)
    found = _DATE_IN_NAME.search(path.name)
    text = date or (found and "".join(found.groups()))
    if not text:
        return written, written
    not_before = parse_date(text)
    return not_before, max(
        not_before, min(int(clock.now()), max(written, not_before + clock.DAY_S))
    )


def parse_date(text: str) -> int:
    """The epoch at which a date written as YYYYMMDD or YYYY-MM-DD begins."""
    try:
        day = datetime.date.fromisoformat(text)
    except ValueError:
        raise UsageError(f"not a date such as 20261101: {text[:40]!r}") from None
    return int(datetime.datetime.combine(day, datetime.time(), datetime.UTC).timestamp())
