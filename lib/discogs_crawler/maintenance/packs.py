"""Join the packs that commits leave, at a cost that follows what is new, not the store.

A geometric repack joins whole packs so that each is at least twice the next smaller one: an object
is written again a few times in its life. Packs that are full are left alone: joining takes 260
bytes of memory for each object, and the largest two of an unlimited series are the whole store. So
20 million records end up in 10 to 25 packs, in which Git finds an object as fast as in one.
"""

import struct
from typing import NamedTuple

from discogs_crawler.store import git_memory
from discogs_crawler.store.git import Repository

# Objects of a pack in which Git has looked for deltas already, which takes 100 us an object, ten
# times as long as copying it: what commits of a day or two leave.
SEARCHED = 100_000

# Objects of a pack that is full, at most; and bytes of the machine's memory for each, which are
# an eighth of it at twice as many.
FULL = 1_000_000
OBJECT_B = 4_000

# The header of an index, its 256 counts, and the ids.
_COUNT_AT, _COUNT = 8 + 255 * 4, struct.Struct(">I")


class Pack(NamedTuple):
    """A pack; they sort by size."""

    objects: int
    name: str


def join(repository: Repository) -> None:
    """Join all packs that are not full, few at a time."""
    full = min(FULL, git_memory.machine_b() // OBJECT_B)
    _join_smaller(repository, min(SEARCHED, full))
    _join_smaller(repository, full, "--window=0")


def _join_smaller(repository: Repository, full: int, *options: str) -> None:
    """Join packs of less than `full` objects, at most twice as many at once."""
    while True:
        joined: list[Pack] = []
        rest: list[Pack] = []
        size = 0
        for pack in find(repository):
            size += pack.objects
            (joined if pack.objects < full and size <= 2 * full else rest).append(pack)
        if len(joined) < 2:
            return
        kept = [f"--keep-pack={pack.name}" for pack in rest]
        repository.run("repack", "-d", "--geometric=2", "--quiet", *options, *kept)
        if set(joined) <= set(find(repository)):
            return


def find(repository: Repository) -> list[Pack]:
    """The packs, the smallest first."""
    found = []
    for index in (repository.path / "objects" / "pack").glob("pack-*.idx"):
        with index.open("rb") as file:
            file.seek(_COUNT_AT)
            (number,) = _COUNT.unpack(file.read(_COUNT.size))
        found.append(Pack(number, f"{index.stem}.pack"))
    return sorted(found)
