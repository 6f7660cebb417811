"""Files that are there whole or not at all, and room in pipes."""

import contextlib
import errno
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO, cast

# What a process may ask for on Linux; by default a pipe has a sixteenth.
PIPE_B = 1 << 20


@contextlib.contextmanager
def atomic_write(target: Path, mode: int = 0o644) -> Iterator[BinaryIO]:
    """Open a temporary file beside `target`; after the block fsync it and rename it to `target`.

    An exception in the block, SIGKILL or a full disk leaves `target` as it was. A temporary file
    that was left behind is named `.NAME.XXXXXXXX.tmp`. A link stays one: where it leads is written.
    OSError if there is a pipe or a device, which a file must not replace.
    """
    if target.exists() and not (target.is_file() or target.is_dir()):
        raise OSError(errno.EINVAL, "it is not a regular file", str(target))
    target = Path(os.path.realpath(target))
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield cast(BinaryIO, file)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        Path(name).rename(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    fsync_folder(target.parent)


def fsync_folder(folder: Path) -> None:
    """Make renames and new files in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def widen(*pipes: IO[bytes]) -> None:
    """Give each PIPE_B of room, so that neither side waits for the other's turn.

    A user with very many pipes gets no more room, and needs none.
    """
    with contextlib.suppress(AttributeError, OSError):
        for pipe in pipes:
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_B)
