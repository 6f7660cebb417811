"""Parse what the dump site lists: the HTML index of a year, and the CHECKSUM file of a month.

Both are read leniently, line by line: what cannot be parsed is skipped.
"""

import calendar
import re
import time
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import unquote

from discogs_crawler.errors import BadData
from discogs_crawler.records import KINDS

CHECKSUM = "CHECKSUM"

_UNITS_B = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}

_NAME = re.compile(
    rf"discogs_((?:19|20)[0-9]{{6}})_(?:({'|'.join(KINDS)})\.xml\.gz|({CHECKSUM})\.txt)", re.ASCII
)
_LINK = re.compile(r'href="[^"]*[?&]download=([^"&]{1,500})"', re.ASCII)
_TIME = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2})", re.ASCII)
_SIZE = re.compile(r"\s([0-9]{1,7}(?:\.[0-9]{1,6})?)\s?([kKMGT]?i?B)\b", re.ASCII)
# Characters before a link that may say its size and time.
_BEFORE = 200
_CHECK = re.compile(r"([0-9a-fA-F]{64})\s+\*?(\S+)", re.ASCII)


class Listed(NamedTuple):
    """A file on the dump site."""

    name: str
    place: str
    """What `?download=` wants: the name with its folders."""
    date: int
    """YYYYMMDD, from the name."""
    kind: str
    """One of the kinds, or CHECKSUM."""
    modified: int | None
    """When it was uploaded, epoch seconds; None if the page does not say."""
    size: int
    """Bytes, rounded to two or three digits; 0 if the page does not say."""


def parse_index(page: str) -> list[Listed]:
    """The dumps and CHECKSUM files that the index names, each once, in the order of the page."""
    found: dict[str, Listed] = {}
    for line in page.splitlines():
        for link in _LINK.finditer(line):
            place = unquote(link[1])
            match = _NAME.fullmatch(place.rpartition("/")[2])
            if match:
                before = line[max(0, link.start() - _BEFORE) : link.start()]
                kind = match[2] or CHECKSUM
                listed = Listed(match[0], place, int(match[1]), kind, _time(before), _size(before))
                found.setdefault(listed.name, listed)
    return list(found.values())


def parse_checksums(text: str) -> dict[str, bytes]:
    """SHA-256 (32 bytes) by file name; BadData if a file has two."""
    found: dict[str, bytes] = {}
    for line in text.splitlines():
        match = _CHECK.fullmatch(line.strip())
        if match:
            digest = bytes.fromhex(match[1])
            if found.setdefault(match[2], digest) != digest:
                raise BadData(f"two different checksums for {match[2][:80]!r}")
    return found


def dates_of(listed: Iterable[Listed], kind: str) -> list[int]:
    """Dates of the complete months that have a dump of the kind, newest first.

    The CHECKSUM file is uploaded last: a month without one is not complete yet.
    """
    complete = {file.date for file in listed if file.kind == CHECKSUM}
    return sorted({f.date for f in listed if f.kind == kind and f.date in complete}, reverse=True)


def _time(text: str) -> int | None:
    match = _TIME.search(text)
    try:
        return calendar.timegm(time.strptime(match[1], "%Y-%m-%d %H:%M:%S")) if match else None
    except ValueError:
        return None


def _size(text: str) -> int:
    match = _SIZE.search(text)
    return int(float(match[1]) * _UNITS_B[match[2].upper().replace("I", "")]) if match else 0
