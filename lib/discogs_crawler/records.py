"""How records are named: kinds, ids, segments, and paths in the store.

Every commit to Git rewrites the trees from the changed file up to the root, so the path decides
what a commit costs: with at most 100 entries in any tree a commit of one record among a million
grows the repository by 7 kB; with 1,000 a directory by 35 kB; with 200,000 by 5 MB.
"""

import re

from discogs_crawler.errors import BadData

KINDS = ("releases", "artists", "labels", "masters")

# The element that holds one record in a dump.
ELEMENTS = {"releases": "release", "artists": "artist", "labels": "label", "masters": "master"}

# Ids of one segment share one bitmap in Redis, one directory in Git, and at most one branch.
SEGMENT_SIZE = 1_000_000

# 25 times the highest id of 2026: beyond this a number is damage, not an id.
MAX_ID = 999_999_999

_ID = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)
_SEGMENT = re.compile(r"[0-9]{2}|[1-9][0-9]{2}", re.ASCII)
_PATH = re.compile(
    rf"({'|'.join(KINDS)})"
    r"/([0-9]{2,3})/([0-9]{2})/([0-9]{2})/([1-9][0-9]{0,8})\.json",
    re.ASCII,
)


def parse_id(text: str) -> int:
    """The id that `text` spells in plain decimal digits; BadData for anything else."""
    if not _ID.fullmatch(text):
        raise BadData(f"not an id between 1 and {MAX_ID}: {text[:40]!r}")
    return int(text)


def segment_of(record_id: int) -> int:
    """The number of the segment of a million ids in which the id lies, from 0."""
    return record_id // SEGMENT_SIZE


def is_segment_name(text: str) -> bool:
    """Whether the folder or submodule of a segment is called that, e.g. `00`, `13` or `100`."""
    return _SEGMENT.fullmatch(text) is not None


def record_path(kind: str, record_id: int) -> str:
    """The path of a record in the store, e.g. `releases/13/99/99/13999999.json`."""
    millions, rest = divmod(record_id, SEGMENT_SIZE)
    return f"{kind}/{millions:02d}/{rest // 10_000:02d}/{rest // 100 % 100:02d}/{record_id}.json"


def parse_record_path(path: str) -> tuple[str, int] | None:
    """Kind and id of the record that belongs at `path`; None if no record belongs there."""
    match = _PATH.fullmatch(path)
    if match is None:
        return None
    kind, record_id = match[1], int(match[5])
    return (kind, record_id) if record_path(kind, record_id) == path else None
