"""The elements and attributes that dumps are known to have, and the records that have others.

Of the records that are parsed anyway only a sample is examined, because that takes as long as
hashing: what is new in a dump is in many of its records.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from lxml import etree

from discogs_crawler.dumps import canonical
from discogs_crawler.dumps.dump_json import FULLEST
from discogs_crawler.observed import Observation, Tally

# The first records of a dump are all examined, then one in STRIDE: 1 % of a split's time.
THOROUGH = 100
STRIDE = 100

# By name: attributes (`@id`), which hold nothing, and elements with what they hold.
Elements = dict[str, Any]


def _held(element: etree._Element) -> Elements:
    attributes: Elements = {f"@{name}": {} for name in element.attrib}
    return attributes | {child.tag: _held(child) for child in element}


KNOWN = {kind: _held(etree.fromstring(text)) for kind, text in FULLEST.items()}

# Tracks of tracks may have tracks.
_TRACK = KNOWN["releases"]["tracklist"]["track"]
_TRACK["sub_tracks"]["track"] = _TRACK

# What every record has, in dumps of all years.
ALWAYS = {
    "releases": ("artists", "data_quality", "formats", "genres", "labels", "title", "tracklist"),
    "artists": ("data_quality", "id", "name"),
    "labels": ("data_quality", "id", "name"),
    "masters": ("artists", "data_quality", "genres", "main_release", "title", "year"),
}


class ElementWatch:
    """Notices what is new or missing in the records of a dump."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._tally = Tally()
        self._passed = 0

    def look_at_some(self, ids: Sequence[int], records: Sequence[bytes]) -> None:
        """Examine some of the records; damaged ones are reported elsewhere."""
        for record_id, record in zip(ids, records, strict=True):
            self._passed += 1
            if self._passed <= THOROUGH or self._passed % STRIDE == 0:
                self._look_at(record_id, record)

    def _look_at(self, record_id: int, record: bytes) -> None:
        try:
            element = canonical.parse(record, self._kind)
        except canonical.Malformed:
            return
        here = {child.tag for child in element}
        odd = {("missing", name) for name in ALWAYS[self._kind] if name not in here}
        odd |= {("unknown", path) for path in _unknown(element, KNOWN[self._kind], "")}
        for what, path in odd:
            self._tally.note(what, path, record_id)

    def observations(self, taken: int) -> list[Observation]:
        """Return what was noticed, dated when the dump was taken."""
        return [seen._replace(first=taken, last=taken) for seen in self._tally.take()]


def _unknown(element: Any, known: Elements, path: str) -> Iterator[str]:
    """The paths below an element that are not known, without what is below them."""
    for name in element.attrib:
        if f"@{name}" not in known:
            yield f"{path}@{name}"
    for child in element:
        name = child.tag
        if name not in known:
            yield path + name
        elif child.attrib or len(child):
            yield from _unknown(child, known[name], f"{path}{name}/")
