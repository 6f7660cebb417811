"""Settings that limit the memory of each Git process to what the machine has.

Git's defaults are made for a developer's machine: in each process 96 MB for the bases of deltas,
256 MB for deltas, 1 GB of mapped packs, and a thread per core.
"""

import functools
import os
import resource
from collections.abc import Iterator
from pathlib import Path

MB = 1 << 20

# By setting: the divisor of the machine's memory, and the least and the most MB. More makes nothing
# faster here: with 16 MB for the bases of deltas, reading records takes at most 3 % longer than
# with 96 MB.
_SHARES = {
    "core.deltaBaseCacheLimit": (256, 4, 16),
    "core.packedGitLimit": (8, 64, 1 << 20),
    "pack.deltaCacheSize": (64, 8, 64),
    "pack.windowMemory": (64, 16, 64),
}

# Bytes of memory per thread that compresses; more threads than MAX_THREADS wait for the disk.
THREAD_B = 1 << 30
MAX_THREADS = 4

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")


@functools.cache
def configuration() -> dict[str, str]:
    """Return the settings with which each Git process is started, by name."""
    available = machine_b()
    sizes = {
        name: f"{min(max(available // MB // part, least), most)}m"
        for name, (part, least, most) in _SHARES.items()
    }
    threads = min(len(os.sched_getaffinity(0)), MAX_THREADS, max(1, available // THREAD_B))
    return sizes | {
        "core.bigFileThreshold": "16m",  # a record has at most 2 MB
        "core.packedGitWindowSize": "32m",
        "pack.threads": str(threads),
    }


def machine_b() -> int:
    """Return the bytes of memory that we may use: the machine's, or less if we are limited."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *_process_limits(), *_cgroup_limits()])


def _process_limits() -> Iterator[int]:
    for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
        soft, _ = resource.getrlimit(kind)
        if soft != resource.RLIM_INFINITY:
            yield soft


def _cgroup_limits() -> Iterator[int]:
    """Yield the limits of our control group (a container, a systemd unit) and of all above it."""
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
    except (OSError, ValueError):  # there is no limit, or it is "max"
        return
