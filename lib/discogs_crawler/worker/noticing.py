"""What a worker notices: fields that are new or missing, and fields that change at every fetch.

It never stops the worker: what cannot be compared or reported is left out.
"""

import logging
import random
from collections.abc import Iterator
from typing import Any

from discogs_crawler.api import schema_paths
from discogs_crawler.broker.messages import UNPROMPTED, Result
from discogs_crawler.broker.observations import Observations
from discogs_crawler.errors import CrawlerError
from discogs_crawler.observed import Tally
from discogs_crawler.records import record_path
from discogs_crawler.store import objects
from discogs_crawler.store.layouts import Store
from discogs_crawler.store.remote import is_partial
from discogs_crawler.store.single import FROM_DUMP
from discogs_crawler.worker.batch import Done

log = logging.getLogger(__name__)

# The first answers are all compared with the schema, of the rest one in ONE_IN: it takes 90 us of
# the 2,600 that a worker needs for a real one.
FIRST, ONE_IN = 1_000, 2

# Records of a commit that are compared with what was stored before: 1 % of a worker's time.
COMPARED = 10


class Noticing:
    """What one worker has noticed since it reported."""

    def __init__(self, kind: str, observations: Observations) -> None:
        self._kind, self._observations = kind, observations
        self._shape = schema_paths.shape_of(kind)
        self._tally = Tally()
        self._answers = 0

    def look_at(self, record_id: int, document: dict[str, Any]) -> None:
        """Compare an answer, as it came, with the schema; of many some."""
        self._answers += 1
        if self._answers > FIRST and self._answers % ONE_IN:
            return
        for what, path in schema_paths.differences(document, self._shape):
            self._tally.note(what, path, record_id)

    def compare(self, store: Store, done: Done) -> None:
        """Compare some of the records that were fetched again with those stored before."""
        again = [
            result
            for result in done.results
            if result.outcome == "stored" and result.reason in UNPROMPTED
        ]
        some = random.sample(again, min(len(again), COMPARED))
        changed = [result for result in some if result.changed]
        try:
            if changed and any(is_partial(part.repository) for part in store.parts()):
                return  # to read a record means to download it
            pairs = list(_versions(store, self._kind, changed))
        except CrawlerError as error:
            log.info("what has changed in refetched records is unknown: %s", error)
            return
        for result in some:
            if not result.changed:
                self._tally.note("refetched", "", result.id)
        for record_id, before, after in pairs:
            self._tally.note("refetched", "", record_id)
            for field in differing_fields(before, after):
                self._tally.note("changed", field, record_id)

    def report(self) -> None:
        """Hand what was noticed to Redis, from where the ledger gets it."""
        noticed = self._tally.take()
        if not noticed:
            return
        try:
            self._observations.add(noticed)
        except CrawlerError as error:
            log.info("what was noticed is reported later: %s", error)
            self._tally.add(noticed)


def _versions(store: Store, kind: str, results: list[Result]) -> Iterator[tuple[int, bytes, bytes]]:
    """Id, old and new version of the records that an answer was stored of before.

    One that was imported has fewer fields than any answer.
    """
    for part in store.parts():
        paths = {result.id: record_path(kind, result.id) for result in results}
        mine = [result for result in results if paths[result.id].startswith(part.prefix)]
        names = [
            f"{result.commit}{before}:{paths[result.id].removeprefix(part.prefix)}"
            for result in mine
            for before in ("~1", "")
        ]
        blobs = list(objects.contents(part.repository.path, names))
        for result, old, new in zip(mine, blobs[::2], blobs[1::2], strict=True):
            if old and new and not old.startswith(FROM_DUMP):
                yield result.id, old, new


def differing_fields(before: bytes, after: bytes) -> list[str]:
    """Return the top-level fields that both of two stored records have, with other values.

    One that only one of them has is new or gone, which happens once; the schema notices that.
    """
    old, new = _fields(before), _fields(after)
    names = sorted(name for name in old.keys() & new.keys() if old[name] != new[name])
    return [name.decode("utf-8", "replace") for name in names]


def _fields(record: bytes) -> dict[bytes, bytes]:
    """Names and spelled values of the fields: each begins a line, two spaces from the margin."""
    body = record.removeprefix(b"{").removesuffix(b"\n}\n")
    pairs = (line.partition(b'":') for line in body.split(b'\n  "'))
    return {name: value.removesuffix(b",") for name, _, value in pairs}
