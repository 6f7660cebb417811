"""Where every id of a queue is, from the raw keys, so that tests need not believe the queue."""

from collections import Counter
from typing import NamedTuple

import redis

from discogs_crawler.records import SEGMENT_SIZE

# The bits that are set: bitmaps of tests are empty but for a few, and 125 kB long.
_BITS = """
local bits, bit = {}, redis.call('BITPOS', KEYS[1], 1)
while bit >= 0 do
    local byte = math.floor(bit / 8)
    for one = bit, byte * 8 + 7 do
        if redis.call('GETBIT', KEYS[1], one) == 1 then bits[#bits + 1] = one end
    end
    bit = redis.call('BITPOS', KEYS[1], 1, byte + 1)
end
return bits
"""


class Places(NamedTuple):
    """All that the keys of one queue hold."""

    pending: dict[int, str]
    """id -> class"""
    leased: dict[int, tuple[str, str]]
    """id -> class, owner"""
    delayed: dict[int, str]
    """id -> class"""
    reported: list[int]
    """ids in the stream, in its order"""
    known: set[int]
    attempts: dict[int, int]
    lapses: dict[int, int]
    branches: dict[int, str]
    frozen: set[int]


def places(client: redis.Redis, base: str) -> Places:
    """Read a queue whole; AssertionError if an id is in two places or in none, or a count is wrong.

    `base` is the start of its keys, e.g. `{discogs}:releases`.
    """
    with client.pipeline() as pipeline:
        pipeline.keys(f"{base.replace('[', '?')}:*")
        names = sorted(name.decode().removeprefix(base + ":") for name in pipeline.execute()[0])
        bitmaps = [name for name in names if name.rpartition(":")[2].isdigit()]
        counts = sorted({name.rpartition(":")[0] for name in bitmaps})
        for name in bitmaps:
            pipeline.eval(_BITS, 1, f"{base}:{name}")
        for name in counts:
            pipeline.hgetall(f"{base}:{name}")
        pipeline.zrange(f"{base}:leased", 0, -1)
        pipeline.hgetall(f"{base}:leases")
        pipeline.hgetall(f"{base}:holders")
        pipeline.zrange(f"{base}:delayed", 0, -1)
        pipeline.xrange(f"{base}:results")
        pipeline.hgetall(f"{base}:attempts")
        pipeline.hgetall(f"{base}:lapses")
        pipeline.hgetall(f"{base}:branches")
        pipeline.smembers(f"{base}:frozen")
        answers = iter(pipeline.execute())
    ids = {name: _ids_of(name, next(answers)) for name in bitmaps}
    for hash_name in counts:
        counted = {f"{hash_name}:{seg.decode()}": int(n) for seg, n in next(answers).items()}
        held = {name: len(ids[name]) for name in bitmaps if name.rpartition(":")[0] == hash_name}
        assert counted == held, f"{hash_name} counts {counted}, its bitmaps hold {held}"
    leased, leases, holders, delayed, results, attempts, lapses, branches, frozen = answers
    assert {*leased} == {*leases}
    owners = {int(name): tuple(text.decode().split(" ", 2)[1:]) for name, text in leases.items()}
    held_by = Counter(f"{i // SEGMENT_SIZE} {owner}" for i, (_, owner) in owners.items())
    assert held_by == {name.decode(): int(number) for name, number in holders.items()}
    waiting = [member.decode().split(" ") for member in delayed]
    pending = [
        (record_id, name.split(":")[1])
        for name in bitmaps
        if name.startswith("pending:")
        for record_id in ids[name]
    ]
    found = Places(
        dict(pending),
        {record_id: (reason, owner) for record_id, (reason, owner) in owners.items()},
        {int(record_id): reason for record_id, reason in waiting},
        [int(fields[b"id"]) for _, fields in results],
        {i for name in bitmaps if name.startswith("known:") for i in ids[name]},
        {int(name): int(number) for name, number in attempts.items()},
        {int(name): int(number) for name, number in lapses.items()},
        {int(segment): name.decode() for segment, name in branches.items()},
        {int(segment) for segment in frozen},
    )
    everywhere = [i for i, _ in pending] + [*owners] + [*found.delayed] + found.reported
    assert len(waiting) == len(found.delayed)
    twice = [record_id for record_id, number in Counter(everywhere).items() if number > 1]
    assert not twice, f"in two places: {twice}"
    assert found.known == set(everywhere), f"known != placed: {found.known ^ set(everywhere)}"
    strange = [name for name in names if name.startswith("scratch")]
    assert not strange, f"left behind: {strange}"
    return found


def _ids_of(name: str, bits: list[int]) -> list[int]:
    first = int(name.rpartition(":")[2]) * SEGMENT_SIZE
    return [first + bit for bit in bits]
