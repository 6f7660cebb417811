"""A dump: its name, and what is known about it once it has been read."""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from discogs_crawler import clock
from discogs_crawler.errors import BadData
from discogs_crawler.records import KINDS

# The name for a dump that is read from standard input.
STDIN = "-"

WHOLE = "whole"

_NAME = re.compile(r"discogs_([0-9]{8})_([a-z]+)(?:[._].*)?", re.ASCII)


class DumpFacts(NamedTuple):
    """What the ledger keeps of a dump.

    `file` is its name without folder. The snapshot was taken at or after `not_before` (the date in
    the name, else the modification time) and at or before `not_after` (the modification time, which
    is the time of upload if the dump was downloaded); epoch seconds. `size` and `sha256` (32 bytes)
    are those of the file as it is, compressed or not. `verdict` is "whole", or "damaged: " and
    why; `damaged` counts damaged records in a dump that is whole. `result_sha256` is that of the
    hash file, `hash_cache_sha256` that of the hash cache; None if there is none.
    `canonical_version` is the version of the hash rules; 0: raw bytes were hashed.
    """

    file: str
    kind: str
    not_before: int
    not_after: int
    size: int
    sha256: bytes
    records: int
    verdict: str
    damaged: int
    result_sha256: bytes | None
    first_id: int
    last_id: int
    canonical_version: int
    hash_cache_sha256: bytes | None = None

    def as_row(self) -> dict[str, object]:
        """The columns of the ledger's table `dumps`."""
        row = self._asdict()
        row["book_sha256"] = row.pop("hash_cache_sha256")
        return row


class Damage(BadData):
    """The dump as a whole cannot be trusted; `offset` is a byte of the uncompressed XML."""

    def __init__(self, reason: str, offset: int | None = None, record_id: int = 0) -> None:
        where = f"record {record_id}, " if record_id else ""
        where += f"byte {offset}: " if offset is not None else ""
        super().__init__(where + reason)


class Name(NamedTuple):
    """What the name of a dump says: its kind, and its date as epoch seconds of midnight UTC."""

    kind: str | None
    date: int | None


def parse_name(file: str) -> Name:
    """Kind and date in `discogs_YYYYMMDD_KIND.xml.gz`; None for what it does not say."""
    match = _NAME.fullmatch(file)
    if match is None:
        return Name(None, None)
    try:
        date = datetime.strptime(match[1], "%Y%m%d").replace(tzinfo=UTC)
    except ValueError:
        return Name(None, None)
    return Name(match[2] if match[2] in KINDS else None, int(date.timestamp()))


def snapshot_time(path: Path | None) -> tuple[int, int]:
    """`not_before` and `not_after` of the dump at `path`; None is standard input, read now."""
    modified = int(clock.now() if path is None else path.stat().st_mtime)
    named = None if path is None else parse_name(path.name).date
    not_before = modified if named is None else named
    return not_before, max(not_before, modified)
