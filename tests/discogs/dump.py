"""Write a dump of an invented world, of any size, in the format of any era.

Example: a dump of 290,000 releases (1 GB of XML) and the one a month later:

    python -m tests.discogs.dump --records 290000 discogs_20261001_releases.xml.gz
    python -m tests.discogs.dump --records 290000 --month 2 discogs_20261101_releases.xml.gz

The world of `--records N --month M` is the one that `python -m tests.discogs` shows with the same
two options.
"""

import argparse
import functools
import multiprocessing
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from isal import igzip

from tests.discogs import elements, invent
from tests.discogs.world import KINDS, State, World, invented

# Records that are made at once: 300 kB of XML. A dump of many such slices is made on all cores.
SLICE = 100
SLICES_FOR_ONE_CORE = 100

Numbered = tuple[int, State]


def records(world: World, kind: str, era: str = elements.TODAY) -> Iterator[str]:
    """The records of a dump in ascending order of id, each with the line feed after it."""
    return (_record(kind, era, item) for item in sorted(world.alive[kind].items()))


def _record(kind: str, era: str, item: Numbered) -> str:
    record_id, state = item
    facts = invent.facts(kind, record_id, state.version)
    shown = kind in ("releases", "masters")
    videos = invent.videos(kind, record_id, state.edition) if shown else []
    return elements.serialise(elements.record(kind, facts, videos), elements.ERAS[era])


def _block(kind: str, era: str, items: list[Numbered]) -> bytes:
    return "".join(_record(kind, era, item) for item in items).encode()


def blocks(world: World, kind: str, era: str = elements.TODAY) -> Iterator[bytes]:
    """The bytes of a dump, uncompressed."""
    yield f"<{kind}>\n".encode()
    items = sorted(world.alive[kind].items())
    slices = [items[start : start + SLICE] for start in range(0, len(items), SLICE)]
    make = functools.partial(_block, kind, era)
    if len(slices) <= SLICES_FOR_ONE_CORE:
        yield from map(make, slices)
    else:
        with multiprocessing.get_context("spawn").Pool() as pool:
            yield from pool.imap(make, slices, chunksize=4)
    yield f"</{kind}>\n".encode()


def write(target: Path, world: World, kind: str, era: str = elements.TODAY) -> None:
    """Write the dump to `target`, compressed if its name ends in `.gz`; same world, same bytes."""
    if target.suffix != ".gz":
        with target.open("wb") as plain:
            plain.writelines(blocks(world, kind, era))
        return
    with target.open("wb") as file:
        with igzip.IGzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) as compressed:
            for block in blocks(world, kind, era):
                compressed.write(block)


def compressed(world: World, kind: str, era: str = elements.TODAY) -> bytes:
    """A dump as the bytes of its file, for small ones."""
    return igzip.compress(b"".join(blocks(world, kind, era)), 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m tests.discogs.dump",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("target", type=Path, help="the file; compressed if it ends in .gz")
    parser.add_argument("--records", type=int, default=1_000, metavar="N")
    parser.add_argument("--month", type=int, default=1, metavar="M", help="months that went by [1]")
    parser.add_argument("--kind", choices=KINDS, help="[what the file's name says, else releases]")
    parser.add_argument("--era", choices=elements.ERAS, default=elements.TODAY)
    flags = parser.parse_args()
    named = re.search("|".join(KINDS), flags.target.name)
    kind = flags.kind or (named[0] if named else "releases")
    if flags.records < 1:
        sys.exit("dump: --records must be at least 1")
    write(flags.target, invented(flags.records, [kind], flags.month), kind, flags.era)


if __name__ == "__main__":
    main()
