"""What workers noticed, on its way to the ledger: `{PREFIX}:KIND:noticed`, a hash.

A field is a property, what was noticed, and where: `records unknown artists[].new`. If it is lost,
only these counts are; they are approximate: those of a worker or reader that is killed may be
missing, or count twice.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import redis

from discogs_crawler.broker.redis_errors import explained
from discogs_crawler.observed import Observation

# Fields of the hash, four a place: with more, what is noticed is not worth keeping.
MOST_FIELDS = 4_000


class Observations:
    """What was noticed about one kind of record."""

    def __init__(self, client: redis.Redis, base: str) -> None:
        self._client = client
        self._key, self._taken = f"{base}:noticed", f"{base}:noticed:taken"

    def add(self, observations: Iterable[Observation]) -> None:
        """Count what was noticed with what is there."""
        with explained(self._client):
            size: Any = self._client.hlen(self._key)
            if size > MOST_FIELDS:
                return
            pipeline = self._client.pipeline()
            for seen in observations:
                place = f"{seen.what} {seen.path}"
                pipeline.hincrby(self._key, f"records {place}", seen.records)
                pipeline.hsetnx(self._key, f"first {place}", seen.first)
                pipeline.hset(self._key, f"last {place}", seen.last)
                pipeline.hsetnx(self._key, f"example {place}", seen.example)
            pipeline.execute()

    def take(self) -> list[Observation]:
        """Return what is there, set aside for the only reader until it calls `forget`."""
        with explained(self._client):
            if not self._client.exists(self._taken):
                if not self._client.exists(self._key):
                    return []
                self._client.rename(self._key, self._taken)
            fields: Any = self._client.hgetall(self._taken)
            return list(_observations(fields))

    def forget(self) -> None:
        """Drop what `take` returned: the ledger has it."""
        with explained(self._client):
            self._client.delete(self._taken)


def _observations(fields: dict[bytes, bytes]) -> Iterator[Observation]:
    """Parse the fields; those that are not ours are skipped."""
    texts = {name.decode("utf-8", "replace"): value for name, value in fields.items()}
    for name in texts:
        words = name.split(" ", 2)
        if words[0] != "records" or len(words) < 3:
            continue
        _, what, path = words
        with contextlib.suppress(KeyError, ValueError):
            numbers = (
                int(texts[f"{each} {what} {path}"])
                for each in ("records", "first", "last", "example")
            )
            yield Observation(what, path, *numbers)
