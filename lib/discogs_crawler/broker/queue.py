"""The queue: which ids to fetch next, who is fetching which, and the results.

Every id that was pushed is in exactly one place: pending, leased, delayed, or reported (its
result waits in the stream for the ledger). `queue.lua` lists the keys and moves ids between them,
each call in one atomic step, so that a process may die between any two of them.

19 million pending ids in bitmaps take 5 MB and load in a second; a set of them takes 1.1 GB.
"""

import itertools
import secrets
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import redis

from discogs_crawler import clock
from discogs_crawler.broker.messages import (
    CLASSES,
    MAX_EPOCH_S,
    OUTCOMES,
    Delayed,
    Held,
    Lease,
    Result,
)
from discogs_crawler.broker.observations import Observations
from discogs_crawler.broker.redis_errors import explained
from discogs_crawler.errors import BadData
from discogs_crawler.records import MAX_ID, SEGMENT_SIZE

# Version of the table of keys in queue.lua.
LAYOUT = 1

# Lua takes some 8,000 arguments at once; a lease is two, a result ten.
MAX_CLAIM = 500

# Leases of one id that lapse in a row: from the first number on it comes back at a time of its own,
# after the second it is a dead letter. An id that is merely unlucky is answered long before.
SUSPICIOUS_LAPSES = 3
FATAL_LAPSES = 10

# Bitmaps of segments that a push holds before it sends them: 8 MB.
_MAX_BLOCKS = 64

_LUA = Path(__file__).with_suffix(".lua").read_text(encoding="ascii")


class Queue:
    """The queue of one kind of record, shared by everyone who uses the same Redis and prefix.

    Every method raises what `redis_errors.explained` says when Redis cannot do it.
    """

    def __init__(self, client: redis.Redis, kind: str, *, prefix: str, lease_s: int) -> None:
        self.kind = kind
        self._client = client
        self._base = f"{{{prefix}}}:{kind}"
        self.observations = Observations(client, self._base)
        self._lease_s = lease_s
        self._script = client.register_script(_LUA)
        self._segment = ""  # where we claimed last
        self._call("check")

    def push(self, reason: str, ids: Iterable[int]) -> int:
        """Queue those of `ids` that are not in the queue, or wait in a lower class; their number.

        Those that are leased, delayed or reported, or wait in a higher class, stay as they are. Any
        order; repeated ids count once. BadData for one beyond 1..MAX_ID, which may leave earlier
        ones queued.
        """
        if reason not in CLASSES:
            raise BadData(f"no such class: {reason!r}")
        return sum(int(self._call("push", reason, *block)) for block in _blocks(ids))

    def count(self, reason: str, ids: Iterable[int]) -> int:
        """The number of `ids` that a push would queue."""
        return sum(int(self._call("count", reason, *block)) for block in _blocks(ids))

    def promote(self, ids: Iterable[int]) -> int:
        """Queue `ids` in the highest class, also those that are delayed.

        The number moved there by this call: not those already there, leased or reported.
        """
        return sum(int(self._call("promote", *block)) for block in _blocks(ids))

    def claim(
        self,
        owner: str,
        count: int,
        segments: Collection[int] | None = None,
        branch: str = "",
    ) -> list[Lease]:
        """Lease up to `count` ids, ascending, of one segment and of the highest class with any.

        Fewer than `count` does not mean that no more are pending; none does. `owner` tells humans
        and other workers who it is (`host:process`). Prefers a segment in which nobody else has
        leases, then the one of the last claim. Lapsed leases and delays that are over are pending
        again first; an id whose leases lapsed FATAL_LAPSES times is reported as dead. With
        `branch`, the segment belongs to that branch until `release_segments`.
        """
        number = min(count, MAX_CLAIM)
        where = [] if segments is None else sorted(set(segments))
        if number < 1 or (segments is not None and not where):
            return []
        answer = self._call(
            "claim",
            owner,
            secrets.token_hex(8),
            number,
            branch,
            self._segment,
            *where,
        )
        if not answer:
            return []
        with explained(self._client):
            token, reason, segment, ids, attempts = answer
            self._segment = segment.decode()
            return [
                Lease(int(record_id), reason.decode(), int(failed or 0), token.decode())
                for record_id, failed in zip(ids, attempts, strict=True)
            ]

    def renew(self, leases: Iterable[Lease]) -> set[int]:
        """Extend the leases by `lease_s` from now; the ids which are still ours."""
        return self._each("renew", map(_claimed, leases))

    def give_back(self, leases: Iterable[Lease]) -> int:
        """Make the ids of our leases pending at once; the number of those still ours."""
        return len(self._each("give_back", map(_claimed, leases)))

    def complete(self, pairs: Iterable[tuple[Lease, Result]]) -> set[int]:
        """End the leases and report the results in the same step; the ids that were accepted.

        An id whose lease has lapsed is not: somebody else fetches it, or will.
        """
        rows: list[tuple[str | int, ...]] = []
        for lease, result in pairs:
            if lease.id != result.id:
                raise ValueError(f"lease of {lease.id}, result of {result.id}")
            rows.append((lease.token, *_fields(result)))
        return self._each("complete", rows)

    def delay(self, lease: Lease, seconds: float, *, count_attempt: bool) -> bool:
        """Make the id pending again in `seconds`; False if the lease was no longer ours."""
        return bool(self._call("delay", *_claimed(lease), seconds, int(count_attempt)))

    def results(self, after: str, count: int) -> tuple[str, list[tuple[str, Result]]]:
        """The generation, and up to `count` unread results after stream id `after` ("0": all).

        Another generation than last time means that Redis has started over, and that `after` must
        be "0": stream ids of one generation say nothing about another.
        """
        generation, entries = self._call("results", after, count)
        with explained(self._client):
            return generation.decode(), [(name.decode(), _result(flat)) for name, flat in entries]

    def forget(self, generation: str, up_to: str) -> int:
        """Drop the results up to a stream id, because the ledger has them; their number.

        Their ids may be pushed again. Nothing happens in another generation. Harmless when
        repeated: after a crash between the ledger's transaction and this call, call it again.
        """
        forgotten = 0
        while read := int(self._call("forget", generation, up_to)):
            forgotten += read
        return forgotten

    def rewind(self, generation: str, stream_id: str) -> str:
        """Start over if Redis was restored from a copy that is older than this result.

        The generation that begins, "" if it is no older copy.

        The ledger has read that result, so finished ids wait in such a copy once more. What is in
        the queue is dropped, leases too, except results that the ledger has not read.
        """
        return str(self._call("rewind", generation, stream_id).decode())

    def freeze_segments(self, branch: str) -> set[int]:
        """Let nobody claim in the segments of `branch` in which nothing is leased; these.

        What was done there is on the branch by now, so: freeze, read its tip and merge it, then
        `release_segments`. A segment in which its workers are busy stays theirs until a later
        round.
        """
        return {int(segment) for segment in self._call("freeze", branch)}

    def release_segments(self, branch: str, *, merged: bool = True) -> set[int]:
        """Let everybody claim again in the frozen segments of `branch`; which those are.

        If it could not be merged they stay the branch's own.
        """
        return {int(segment) for segment in self._call("release", branch, int(merged))}

    def branches(self) -> dict[int, str]:
        """The branch that owns a segment, of those that are owned."""
        with explained(self._client):
            rows: Any = self._client.hgetall(f"{self._base}:branches")
            return {int(segment): name.decode() for segment, name in rows.items()}

    def pending(self) -> dict[str, dict[int, int]]:
        """The number of pending ids, by class and segment."""
        with explained(self._client):
            pipeline = self._client.pipeline()
            for reason in CLASSES:
                pipeline.hgetall(f"{self._base}:pending:{reason}")
            answers = pipeline.execute()
            return {
                reason: {int(segment): int(number) for segment, number in sorted(rows.items())}
                for reason, rows in zip(CLASSES, answers, strict=True)
            }

    def depths(self) -> dict[str, int]:
        """The number of pending ids, by class."""
        return {reason: sum(rows.values()) for reason, rows in self.pending().items()}

    def leased(self) -> list[Held]:
        """All leases by id, also those that have lapsed since the last claim."""
        with explained(self._client):
            pipeline = self._client.pipeline()
            pipeline.zrange(f"{self._base}:leased", 0, -1, withscores=True)
            pipeline.hgetall(f"{self._base}:leases")
            lapses, texts = pipeline.execute()
            held = []
            for name, epoch in lapses:
                _, reason, owner = texts[name].decode().split(" ", 2)
                held.append(Held(int(name), owner, _class(reason), epoch))
            return sorted(held)

    def delayed(self) -> list[Delayed]:
        """All delayed ids by id, also those whose delay has ended since the last claim."""
        with explained(self._client):
            pipeline = self._client.pipeline()
            pipeline.zrange(f"{self._base}:delayed", 0, -1, withscores=True)
            pipeline.hgetall(f"{self._base}:attempts")
            due, attempts = pipeline.execute()
            waiting = []
            for member, epoch in due:
                name, reason = member.split(b" ", 1)
                tried = int(attempts.get(name, 0))
                waiting.append(Delayed(int(name), _class(reason.decode()), tried, epoch))
            return sorted(waiting)

    def time(self) -> float:
        """Epoch seconds by Redis's clock."""
        with explained(self._client):
            seconds, microseconds = self._client.time()
        return float(seconds + microseconds / 1e6 + clock.OFFSET_S)

    def unread(self) -> int:
        """The number of results that the ledger has not read yet."""
        with explained(self._client):
            return int(self._client.xlen(f"{self._base}:results"))

    def store(self) -> str:
        """Which store the ledger of this queue expects results to be in; "" if nobody said so."""
        with explained(self._client):
            text: Any = self._client.hget(f"{self._base}:about", "store")
            return text.decode() if text else ""

    def set_store(self, text: str) -> None:
        """Tell all workers which store the ledger expects."""
        with explained(self._client):
            self._client.hset(f"{self._base}:about", "store", text)

    def _each(self, command: str, rows: Iterable[tuple[str | int, ...]]) -> set[int]:
        """Call with all rows, MAX_CLAIM at once; the ids that it answers."""
        accepted: set[int] = set()
        left = iter(rows)
        while flat := list(itertools.chain(*itertools.islice(left, MAX_CLAIM))):
            accepted.update(map(int, self._call(command, *flat)))
        return accepted

    def _call(self, command: str, *args: Any) -> Any:
        """One step of queue.lua."""
        with explained(self._client):
            always = (clock.OFFSET_S, secrets.token_hex(8), LAYOUT, " ".join(CLASSES))
            lapsing = (self._lease_s, SUSPICIOUS_LAPSES, FATAL_LAPSES)
            return self._script(keys=[self._base], args=[command, *always, *lapsing, *args])


def _blocks(ids: Iterable[int]) -> Iterator[tuple[int, int, bytes]]:
    """The ids as bits: segment, first byte in the segment's bitmap, bytes from there."""
    bitmaps: dict[int, bytearray] = {}
    for record_id in ids:
        if not 0 < record_id <= MAX_ID:
            raise BadData(f"not an id between 1 and {MAX_ID}: {record_id}")
        segment, bit = divmod(record_id, SEGMENT_SIZE)
        bitmap = bitmaps.get(segment)
        if bitmap is None:
            if len(bitmaps) == _MAX_BLOCKS:
                yield from map(_trimmed, bitmaps.items())
                bitmaps.clear()
            bitmap = bitmaps[segment] = bytearray(SEGMENT_SIZE // 8)
        bitmap[bit >> 3] |= 128 >> (bit & 7)
    yield from map(_trimmed, bitmaps.items())


def _trimmed(item: tuple[int, bytearray]) -> tuple[int, int, bytes]:
    segment, bitmap = item
    tail = bitmap.lstrip(b"\0")
    return segment, len(bitmap) - len(tail), bytes(tail.rstrip(b"\0"))


def _claimed(lease: Lease) -> tuple[int, str]:
    return lease.id, lease.token


def _fields(result: Result) -> tuple[str | int, ...]:
    """The fields as Redis takes them: it knows no booleans."""
    return result._replace(changed=int(result.changed))  # type: ignore[arg-type]


def _result(flat: Sequence[bytes]) -> Result:
    """The result in a stream entry, which is names and values of its fields in turn.

    ValueError or KeyError if we cannot have written it.
    """
    text = {
        name.decode(): value.decode() for name, value in zip(flat[::2], flat[1::2], strict=True)
    }
    result = Result(
        id=int(text["id"]),
        reason=_class(text["reason"]),
        outcome=text["outcome"],
        status=int(text["status"]),
        fetched=int(text["fetched"]),
        changed=text["changed"] == "1",
        commit=text["commit"],
        failure=text["failure"],
        successor=int(text["successor"]),
    )
    plausible = (
        0 < result.id <= MAX_ID
        and flat[0] == b"id"
        and result.outcome in OUTCOMES
        and 0 <= result.status < 1_000
        and 0 <= result.fetched < MAX_EPOCH_S
        and 0 <= result.successor <= MAX_ID
    )
    if not plausible:
        raise ValueError(f"an impossible result: {result.id} {result.outcome}")
    return result


def _class(reason: str) -> str:
    if reason not in CLASSES:
        raise ValueError(f"no such class: {reason!r}")
    return reason
