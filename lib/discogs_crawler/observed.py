"""What was noticed about records that Discogs sends: counted by place, each with an example."""

from collections.abc import Iterable
from typing import NamedTuple

from discogs_crawler import clock

# Places that are kept until they are taken: if a whole format changes there are some 70.
MOST = 200

# Characters of a place.
LONGEST = 200


class Observation(NamedTuple):
    """What was noticed in one place of the records of a kind."""

    what: str
    """unknown: the schema does not know the place; missing: nothing is there, as it should be;
    refetched: fetched again (the place is empty); changed: then it had changed"""
    path: str
    """e.g. `tracklist[].extraartists[].role`, with another type than the schema has
    `year: string`, in a dump `tracklist/track/title` or `labels/@id`"""
    records: int
    """records in which it was noticed"""
    first: int
    """epoch seconds"""
    last: int
    """epoch seconds"""
    example: int
    """the id of the first of these records"""


class Tally:
    """Observations until they are taken."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], Observation] = {}

    def note(self, what: str, path: str, record_id: int, when: float | None = None) -> None:
        """Count one record; `when` is now unless told."""
        text = "".join(letter if letter.isprintable() else "?" for letter in path[:LONGEST])
        epoch = int(clock.now() if when is None else when)
        self.add([Observation(what, text, 1, epoch, epoch, record_id)])

    def add(self, observations: Iterable[Observation]) -> None:
        """Count what was noticed elsewhere, or could not be reported."""
        for new in observations:
            key = (new.what, new.path)
            old = self._found.get(key)
            if old is not None:
                new = old._replace(
                    records=old.records + new.records,
                    first=min(old.first, new.first),
                    last=max(old.last, new.last),
                )
            if old is not None or len(self._found) < MOST:
                self._found[key] = new

    def take(self) -> list[Observation]:
        """Return what was noticed since the last call."""
        found, self._found = list(self._found.values()), {}
        return found
