"""Which disks are nearly full, told before anything fails."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from discogs_crawler.cli.formatting import share, size
from discogs_crawler.config import Settings

# A disk is nearly full with less than this part of it free, or less than this many bytes: what a
# few days of crawling and the next copy of the ledger take. Of a small disk at most a tenth.
LEAST_SHARE = 0.01
LEAST_B = 1_000_000_000
SMALL_SHARE = 0.1


class Disk(NamedTuple):
    """A disk that we write to."""

    path: str
    """the first of our places that is on it"""
    holds: str
    """what we keep there"""
    free_bytes: int
    """that we may write"""
    size_bytes: int
    """of the whole disk"""

    @property
    def nearly_full(self) -> bool:
        """Whether somebody should make room now."""
        least = max(LEAST_SHARE * self.size_bytes, min(LEAST_B, SMALL_SHARE * self.size_bytes))
        return self.free_bytes < least


def disks(settings: Settings) -> list[Disk]:
    """The disks of store, ledger, dumps and state, each once."""
    places = {
        "store": settings.store,
        "ledger": settings.database,
        "dumps": settings.dump_dir,
        "state": settings.state_dir,
    }
    found: dict[int, Disk] = {}
    for name, place in places.items():
        with contextlib.suppress(OSError):
            path = _nearest(place)
            known = found.get(path.stat().st_dev)
            room = os.statvfs(path)
            free, whole = room.f_bavail * room.f_frsize, room.f_blocks * room.f_frsize
            disk = known or Disk(str(path), name, free, whole)
            found[path.stat().st_dev] = disk._replace(
                holds=f"{disk.holds}, {name}" if known else name
            )
    return list(found.values())


def _nearest(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def shortages(found: list[Disk]) -> Iterator[str]:
    """A line for each disk that is nearly full."""
    for disk in found:
        if disk.nearly_full:
            yield (
                f"the disk of {disk.path} ({disk.holds}) is nearly full: "
                f"{size(disk.free_bytes)} of {size(disk.size_bytes)} free "
                f"({share(disk.free_bytes / disk.size_bytes)}); make room before runs fail"
            )
