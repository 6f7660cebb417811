"""Let the n-th call to Redis, HTTP, Git or SQLite fail, counted over all processes of a run.

`install` patches the libraries in this process only, so it belongs into a child that was forked for
one script. What fails is what fails in life: a connection that is cut before or after the command
was sent, a disk error, a program that cannot be started; or the process, or the Git that it has
just started, is gone on the spot.
"""

import fcntl
import functools
import os
import signal
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis
import urllib3

MODES = ("error", "crash before", "crash after", "Git killed")


class Counter:
    """A count of calls in a file, which processes share."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def reset(self) -> None:
        self._path.write_text("0")

    def total(self) -> int:
        return int(self._path.read_text() or 0)

    def next(self) -> int:
        """One more; the new count."""
        handle = os.open(self._path, os.O_RDWR)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            count = int(os.read(handle, 20) or 0) + 1
            os.pwrite(handle, str(count).encode(), 0)
            return count
        finally:
            os.close(handle)


def install(counter: Counter, nth: int, mode: str) -> None:
    """Make the `nth` call of all fail, once, in the given mode."""

    def failing(error: Callable[[], Exception], counts: Callable[..., bool] = lambda *a: True):  # type: ignore[no-untyped-def]
        def decorate(method: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(method)
            def call(*args: Any, **kwargs: Any) -> Any:
                if not counts(*args) or counter.next() != nth:
                    return method(*args, **kwargs)
                if mode == "Git killed" and counts is _is_git:
                    method(*args, **kwargs)
                    args[0].kill()
                    return None
                if mode in ("error", "Git killed"):
                    raise error()
                if mode == "crash after":
                    method(*args, **kwargs)
                os.kill(os.getpid(), signal.SIGKILL)
                raise AssertionError("still alive")

            return call

        return decorate

    lost = failing(lambda: redis.ConnectionError("cut by the test"))
    connection = redis.connection.AbstractConnection
    connection.send_packed_command = lost(connection.send_packed_command)  # type: ignore[method-assign]
    cut = failing(lambda: urllib3.exceptions.ProtocolError("cut by the test"))
    urllib3.HTTPConnectionPool.urlopen = cut(urllib3.HTTPConnectionPool.urlopen)  # type: ignore[method-assign]
    unstartable = failing(lambda: OSError(12, "no memory, says the test"), _is_git)
    subprocess.Popen.__init__ = unstartable(subprocess.Popen.__init__)  # type: ignore[method-assign]
    broken = failing(_disk_error)

    class FailingConnection(sqlite3.Connection):
        execute = broken(sqlite3.Connection.execute)
        executemany = broken(sqlite3.Connection.executemany)
        commit = broken(sqlite3.Connection.commit)

    real_connect = sqlite3.connect
    sqlite3.connect = functools.partial(real_connect, factory=FailingConnection)  # type: ignore[assignment]


def _disk_error() -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("disk I/O error, says the test")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR
    return error


def _is_git(process: object, arguments: object, *rest: object) -> bool:
    first = arguments[0] if isinstance(arguments, list | tuple) and arguments else arguments
    return str(first).rpartition("/")[2] == "git"
