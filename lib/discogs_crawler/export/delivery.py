"""Deliver an export to standard output or to a command, and find out whether it arrived.

Both are used as `with ... as write`: the block writes, and leaving it means that everything has
arrived. If not, leaving raises, so the consumer's place does not move.
"""

import array
import contextlib
import errno
import fcntl
import os
import select
import signal
import stat
import subprocess
import termios
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from discogs_crawler.errors import PartlyDone, Unavailable

Write = Callable[[bytes], None]

# A reader that leaves bytes in the pipe for longer is slow, not gone: they are in its pipe. One
# that goes earlier without them does not have the export.
UNREAD_S = 10

# A command that was told to end may take that long.
END_S = 5


@contextlib.contextmanager
def to_stdout(handle: int = 1) -> Iterator[Write]:
    """Write to standard output; on leaving, what went to a file is on the disk.

    PartlyDone if the reader of a pipe closes it before it has read everything.
    """

    try:
        yield lambda block: _write_all(handle, block)
        _arrive(handle)
    except BrokenPipeError:
        raise PartlyDone(
            "standard output: its reader left before it had everything; not exported, run it again"
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EFBIG, errno.EBADF):
            raise
        raise Unavailable(f"standard output: {error.strerror}; not exported") from error


def _write_all(handle: int, block: bytes) -> None:
    view = memoryview(block)
    while view:
        view = view[os.write(handle, view) :]


def _arrive(handle: int) -> None:
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        os.fsync(handle)
    if stat.S_ISFIFO(mode):
        _wait_for_reader(handle)


def _wait_for_reader(handle: int) -> None:
    gone = select.poll()
    gone.register(handle, 0)
    deadline = time.monotonic() + UNREAD_S
    while time.monotonic() < deadline:
        if _unread(handle) == 0:
            return
        # It may have read the rest and gone while we asked.
        if gone.poll(2) and _unread(handle):
            raise BrokenPipeError(errno.EPIPE, "the reader has gone")


class _CutShort(Exception):
    """The command has closed its standard input."""


@contextlib.contextmanager
def to_command(line: str, variables: Mapping[str, str], lock: int) -> Iterator[Write]:
    """Give what is written to the standard input of a shell command, begun at the first byte.

    PartlyDone if it ends with anything but 0, or has not read everything. If the block fails, the
    command is told to end (SIGTERM) before it could take the part for the whole. It inherits the
    open file `lock`.
    """
    process: subprocess.Popen[bytes] | None = None

    def write(block: bytes) -> None:
        nonlocal process
        if process is None:
            process = subprocess.Popen(
                ["/bin/sh", "-c", line],
                stdin=subprocess.PIPE,
                bufsize=0,
                env=os.environ | variables,
                process_group=0,
                pass_fds=[lock],
            )
        assert process.stdin is not None
        try:
            _write_all(process.stdin.fileno(), block)
        except BrokenPipeError:
            raise _CutShort from None

    try:
        try:
            yield write
            cut_short = False
        except _CutShort:
            cut_short = True
        if process is not None:
            cut_short |= _close_and_wait(process) > 0
    except BaseException:
        if process is not None:
            _end(process)
        raise
    if process is not None:
        _judge(process.returncode, cut_short=cut_short)


def _close_and_wait(process: "subprocess.Popen[bytes]") -> int:
    """Wait for the command to end; the bytes that it has left in its pipe."""
    assert process.stdin is not None
    with contextlib.ExitStack() as stack:
        spare = None
        # Without a /proc what fits into the pipe counts as read.
        with contextlib.suppress(OSError):
            # A second reader, which is there when the command has gone. Not earlier: we would wait
            # for it when the pipe is full.
            pipe = Path(f"/proc/self/fd/{process.stdin.fileno()}")
            spare = stack.enter_context(pipe.open("rb", buffering=0))
        process.stdin.close()
        process.wait()
        return 0 if spare is None else _unread(spare.fileno())


def _judge(code: int, *, cut_short: bool) -> None:
    if code:
        ended = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        raise PartlyDone(f"the command of --exec {ended}; not exported, run it again")
    if cut_short:
        raise PartlyDone(
            "the command of --exec has not read all of its input; not exported"
            " (it can discard the rest with `cat > /dev/null`)"
        )


def _unread(handle: int) -> int:
    """Bytes in a pipe."""
    found = array.array("i", [0])
    fcntl.ioctl(handle, termios.FIONREAD, found)
    return found[0]


def _end(process: "subprocess.Popen[bytes]") -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_S)
            break
    assert process.stdin is not None
    process.stdin.close()
