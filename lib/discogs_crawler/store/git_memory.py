"""How much memory a Git process may take here: settings that follow what the machine has.

Git's own limits are those of a developer's machine: 96 MB for the bases of deltas and 256 MB for
deltas in each process, a window of the mapped packs of 1 GB, as many threads as there are cores.
"""

import functools
import os
import resource
from collections.abc import Iterator
from pathlib import Path

MB = 1 << 20

# By setting: the part of the memory, and at least and at most so many MB. More makes nothing here
# faster: with 16 MB for the bases of deltas records are read within 3 % of the speed with 96.
_SHARES = {
    "core.deltaBaseCacheLimit": (256, 4, 16),
    "core.packedGitLimit": (8, 64, 1 << 20),
    "pack.deltaCacheSize": (64, 8, 64),
    "pack.windowMemory": (64, 16, 64),
}

# Memory for each thread that compresses; more of them than this wait for the disk.
THREAD_B = 1 << 30
MAX_THREADS = 4

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")


@functools.cache
def configuration() -> dict[str, str]:
    """The settings that each Git process is started with."""
    available = machine_b()
    sizes = {
        name: f"{min(max(available // MB // part, least), most)}m"
        for name, (part, least, most) in _SHARES.items()
    }
    threads = min(len(os.sched_getaffinity(0)), MAX_THREADS, max(1, available // THREAD_B))
    return sizes | {
        "core.bigFileThreshold": "16m",  # a record has 2 MB at most
        "core.packedGitWindowSize": "32m",
        "pack.threads": str(threads),
    }


def machine_b() -> int:
    """Bytes of memory that we may use: the machine's, or less if something limits us."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *_process_limits(), *_cgroup_limits()])


def _process_limits() -> Iterator[int]:
    for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
        soft, _ = resource.getrlimit(kind)
        if soft != resource.RLIM_INFINITY:
            yield soft


def _cgroup_limits() -> Iterator[int]:
    """Those of a container, or of a systemd unit (MemoryMax=): ours, and all above it."""
    try:
        lines = OWN_CGROUP.read_text("ascii", "replace").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            folder = CGROUPS / controllers / path.lstrip("/")
            for place in (folder, *folder.parents):
                for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
                    yield from _number(place / name)
                if place == CGROUPS:
                    break


def _number(file: Path) -> Iterator[int]:
    try:
        yield int(file.read_text("ascii"))
    except (OSError, ValueError):  # there is none, or it is "max"
        return
