"""The elements and attributes that dumps are known to have, and the records that have others.

Only a sample of the records that are parsed anyway is looked at, since to look takes as long as to
hash: what is new in a dump is in many of its records.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from discogs_crawler.dumps import canonical
from discogs_crawler.observed import Observation, Tally

# The first records of a dump are all looked at, later ones one in so many: 1 % of a split.
THOROUGH = 100
STRIDE = 100

# By name: an attribute (`@id`) or an element without any content but text is None.
Elements = dict[str, Any]


def _texts(*names: str) -> Elements:
    return dict.fromkeys(names)


_ARTISTS: Elements = {"artist": _texts("id", "name", "anv", "join", "role", "tracks")}
_TRACK: Elements = {
    **_texts("position", "title", "duration"),
    "artists": _ARTISTS,
    "extraartists": _ARTISTS,
}
_TRACK["sub_tracks"] = {"track": _TRACK}
_PARTS: Elements = _texts("@name", "@catno", "@id")
_NAMES: Elements = {"name": _texts("@id")}
_IMAGES: Elements = {"image": _texts("@type", "@uri", "@uri150", "@width", "@height")}
_VIDEOS: Elements = {"video": _texts("@src", "@duration", "@embed", "title", "description")}
_GENRES: Elements = {"genres": _texts("genre"), "styles": _texts("style")}
_COMPANY = ("id", "name", "catno", "entity_type", "entity_type_name", "resource_url")

KNOWN: dict[str, Elements] = {
    "releases": {
        **_texts("@id", "@status", "title", "country", "released", "notes", "data_quality"),
        **_GENRES,
        "artists": _ARTISTS,
        "extraartists": _ARTISTS,
        "labels": {"label": _PARTS},
        "series": {"series": _PARTS},
        "companies": {"company": _texts(*_COMPANY)},
        "formats": {
            "format": {
                **_texts("@name", "@qty", "@text"),
                "descriptions": _texts("description"),
            }
        },
        "master_id": _texts("@is_main_release"),
        "tracklist": {"track": _TRACK},
        "identifiers": {"identifier": _texts("@type", "@value", "@description")},
        "images": _IMAGES,
        "videos": _VIDEOS,
    },
    "artists": {
        **_texts("id", "name", "realname", "profile", "data_quality"),
        "urls": _texts("url"),
        "namevariations": _texts("name"),
        "aliases": _NAMES,
        "members": {**_NAMES, **_texts("id")},
        "groups": _NAMES,
        "images": _IMAGES,
    },
    "labels": {
        **_texts("id", "name", "contactinfo", "profile", "data_quality"),
        "urls": _texts("url"),
        "parentLabel": _texts("@id"),
        "sublabels": {"label": _texts("@id")},
        "images": _IMAGES,
    },
    "masters": {
        **_texts("@id", "title", "year", "main_release", "notes", "data_quality"),
        **_GENRES,
        "artists": _ARTISTS,
        "images": _IMAGES,
        "videos": _VIDEOS,
    },
}

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
        """Look at some of the records; a damaged one is somebody else's concern."""
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
        """Return what was noticed, at the time when the dump was taken."""
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
            yield from _unknown(child, known[name] or {}, f"{path}{name}/")
