"""Join the packs that commits leave, at a cost that follows what is new, not the store.

Whole packs are joined so that each is at least twice the next smaller one: an object is written
again a few times in its life. Packs that are full are left alone: the largest two of an unlimited
series are the whole store. So 20 million records end up in 10 to 25 packs, in which Git finds an
object as fast as in one. `git repack --geometric` does the same, but walks all trees of the store
to learn the names of what it joins: a second and 60 MB for each million records, every night.
"""

import array
import itertools
import logging
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from discogs_crawler import files
from discogs_crawler.cli import formatting
from discogs_crawler.errors import BadData
from discogs_crawler.store import git_memory, git_process, objects
from discogs_crawler.store.git import Repository

log = logging.getLogger(__name__)

# Objects of a pack in which Git has looked for deltas already, which takes 100 us an object, ten
# times as long as copying it: what commits of a day or two leave.
SEARCHED = 100_000

# Objects of a pack that is full, at most; and bytes of the machine's memory for each, which are
# an eighth of it at twice as many.
FULL = 1_000_000
OBJECT_B = 4_000

# What packs that are joined may have of the free disk, at most: for that long they are there twice,
# and what did not fit would stay behind for a day.
ROOM_SHARE = 0.5

# A repository may be configured to split packs: joining would give the same ones again.
_ONE_PACK = (("pack.packSizeLimit", "0"),)

# An index: a header, 256 counts, names, checksums, places in the pack (from _FAR on in a table of
# their own), two hashes.
_COUNT_B, _HEAD_B = 4, 8 + 256 * 4
_NAME_B, _CRC_B, _PLACE_B, _TRAILER_B = 20, 4, 4, 40
_FAR = 1 << 31


class Pack(NamedTuple):
    """A pack; they sort by size."""

    objects: int
    file: Path
    """its index"""


def join(repository: Repository, *, trusted: bool = True) -> None:
    """Join all packs that are neither full nor kept (`.keep`), few at a time.

    What somebody else has committed is not `trusted`: its trees may never end, so they are not read
    to find what resembles each other.

    In a partial clone those that the remote has sent (`.promisor`) stay apart from its own: only
    what they name may be missing.
    """
    _pack_loose(repository, trusted=trusted)
    for index in (repository.path / "objects" / "pack").glob("multi-pack-index*"):
        index.unlink()  # it would name packs that are gone
    full = min(FULL, git_memory.machine_b() // OBJECT_B)
    for limit, is_new in ((min(SEARCHED, full), trusted), (full, False)):
        for sent in (False, True):
            while len(due := _due(_joinable(repository, sent=sent), limit)) > 1:
                if not _has_room(repository, due):
                    break
                _join(repository, due, is_new=is_new)


def _joinable(repository: Repository, *, sent: bool) -> list[Pack]:
    unkept = (pack for pack in find(repository) if not pack.file.with_suffix(".keep").exists())
    return [pack for pack in unkept if pack.file.with_suffix(".promisor").exists() == sent]


def _has_room(repository: Repository, due: Sequence[Pack]) -> bool:
    needed = sum(pack.file.with_suffix(".pack").stat().st_size for pack in due)
    free = shutil.disk_usage(repository.path).free
    if needed <= ROOM_SHARE * free:
        return True
    log.warning(
        "%s: %d packs of %s are not joined: %s free; make room for twice their size",
        *(repository.path, len(due), formatting.size(needed), formatting.size(free)),
    )
    return False


def _pack_loose(repository: Repository, *, trusted: bool) -> None:
    """Make a pack of single objects, which merges write."""
    loose = (repository.path / "objects").glob("[0-9a-f][0-9a-f]/" + "[0-9a-f]" * 38)
    if names := [path.parent.name + path.name for path in loose]:
        _write(repository, names, _paths(repository, names) if trusted else {})
        repository.run("prune-packed", "--quiet")


def _due(found: Sequence[Pack], full: int) -> list[Pack]:
    """Those that are to be joined now: all up to where each is twice the next smaller one."""
    small = [pack for pack in found if pack.objects < full]
    wrong = [n for n in range(1, len(small)) if small[n].objects < 2 * small[n - 1].objects]
    due: list[Pack] = []
    size = 0
    for number, pack in enumerate(small):
        is_in_order = number > max(wrong, default=0) and pack.objects >= 2 * size
        if not wrong or is_in_order or size + pack.objects > 2 * full:
            break
        due.append(pack)
        size += pack.objects
    return due


def _join(repository: Repository, due: Sequence[Pack], *, is_new: bool) -> None:
    """Write one pack of what is in those, and remove them."""
    by_age = sorted(due, key=lambda pack: pack.file.stat().st_mtime)
    names = itertools.chain.from_iterable(map(_contents, by_age))
    sent = due[0].file.with_suffix(".promisor").exists()
    if is_new:
        listed = list(names)
        made = _write(repository, listed, _paths(repository, listed), sent=sent)
    else:
        made = _write(repository, names, {}, "--window=0", sent=sent)
    for pack in due:
        if pack.file != made:
            _remove(pack)


def _remove(pack: Pack) -> None:
    for extra in (".rev", ".bitmap", ".mtimes", ".promisor"):
        pack.file.with_suffix(extra).unlink(missing_ok=True)
    # To Git an index without a pack is nothing, and small; a pack without one would stay as well.
    pack.file.with_suffix(".pack").unlink()
    pack.file.unlink()


def _write(
    repository: Repository,
    names: Iterable[str],
    paths: Mapping[str, str],
    *options: str,
    sent: bool = False,
) -> Path:
    """Write a pack of these objects, each once; return its index."""
    lines = (f"{name} {paths.get(name, '')}\n".encode() for name in names)
    folder = repository.path / "objects" / "pack"
    command = ("pack-objects", "--quiet", "--delta-base-offset", *options, str(folder / "pack"))
    done = git_process.feed(repository.path, *command, pieces=lines, settings=_ONE_PACK)
    if done.returncode:
        raise git_process.failure(repository.path, command, done.returncode, done.stderr)
    [name] = done.stdout.decode().split()
    made = folder / f"pack-{name}.idx"
    if sent:
        made.with_suffix(".promisor").touch()
    # Git syncs files, not their names: those of the old packs may be gone before this one is there.
    files.fsync_folder(folder)
    return made


def _contents(pack: Pack) -> Iterator[str]:
    """The objects in the order in which they lie in the pack: neighbours stay neighbours."""
    with pack.file.open("rb") as file:
        file.seek(_HEAD_B)
        names = file.read(pack.objects * _NAME_B)
        file.seek(pack.objects * _CRC_B, os.SEEK_CUR)
        places = _big_endian("I", file.read(pack.objects * _PLACE_B))
        far = _big_endian("Q", file.read()[:-_TRAILER_B])
    order = sorted(
        range(pack.objects),
        key=lambda n: places[n] if places[n] < _FAR else far[places[n] - _FAR],
    )
    for number in order:
        yield names[number * _NAME_B : (number + 1) * _NAME_B].hex()


def _big_endian(code: str, data: bytes) -> "array.array[int]":
    values = array.array(code, data)
    if sys.byteorder == "little":
        values.byteswap()
    return values


def _paths(repository: Repository, names: Sequence[str]) -> dict[str, str]:
    """Where commits among these objects put the others: versions of a file resemble each other."""
    command = ("cat-file", "--batch-check=%(objecttype) %(objectname)")
    types = repository.run(*command, stdin="".join(f"{name}\n" for name in names).encode())
    kinds = (line.split(" ") for line in types.decode().splitlines())
    # A commit whose parents a shallow clone lacks seems to have brought the whole store.
    shallow = repository.path / "shallow"
    cut = set(shallow.read_text().split()) if shallow.exists() else set()
    commits = [name for kind, name in kinds if kind == "commit" and name not in cut]
    wanted = set(names)
    found = objects.introduced(repository.path, commits)
    return {name: path for name, path in found if name in wanted}


def find(repository: Repository) -> list[Pack]:
    """The packs, the smallest first. BadData if an index is cut off."""
    found = []
    for index in (repository.path / "objects" / "pack").glob("pack-*.idx"):
        pack = index.with_suffix(".pack")
        if not pack.exists():  # killed between the two, or somebody is putting them back
            continue
        with index.open("rb") as file:
            number = int.from_bytes(file.read(_HEAD_B)[-_COUNT_B:], "big")
        entries_b = number * (_NAME_B + _CRC_B + _PLACE_B)
        if index.stat().st_size < _HEAD_B + entries_b + _TRAILER_B:
            raise BadData(f"{index}: it is cut off; to make it again: git index-pack {pack}")
        found.append(Pack(number, index))
    return sorted(found)
