"""End all processes that we have started, and theirs, when we end, even by a signal."""

import contextlib
import os
import signal
import time
from collections import defaultdict
from pathlib import Path

# The time that they get to end when asked: Git removes its locks.
KINDLY_S = 1

LOOK_S = 0.01


def end() -> None:
    """End all processes that descend from this one, kindly if they let us.

    Usually there are none. Without a /proc nothing is done.
    """
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return
    # A process whose parent has ended is no longer found as our descendant.
    family = set(_living())
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)
        deadline = time.monotonic() + KINDLY_S
        while family and time.monotonic() < deadline:
            time.sleep(LOOK_S)
            family = {process for process in family if _parent(process) is not None}
            family.update(_living())


def _living() -> list[int]:
    """The descendants of this process that have not ended."""
    children: defaultdict[int, list[int]] = defaultdict(list)
    for folder in Path("/proc").glob("[0-9]*"):
        process = int(folder.name)
        parent = _parent(process)
        if parent is not None:
            children[parent].append(process)
    found = children[os.getpid()]
    for process in found:
        found += children[process]
    return found


def _parent(process: int) -> int | None:
    """The parent of a process, None if that has ended."""
    try:
        told = Path(f"/proc/{process}/stat").read_text(errors="replace")
    except OSError:
        return None
    state, parent = told.rpartition(")")[2].split()[:2]
    return None if state in "ZX" else int(parent)
