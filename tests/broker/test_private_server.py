"""The private Redis server, and what a user reads when Redis cannot serve."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis

from discogs_crawler import config
from discogs_crawler.broker import private_server, redis_errors
from discogs_crawler.broker.connect import connect
from discogs_crawler.broker.messages import Result
from discogs_crawler.broker.queue import Queue
from discogs_crawler.config import Settings
from discogs_crawler.errors import ConfigurationError, Unavailable


def settings_of(state: Path, **environ: str) -> Settings:
    return config.load(environ={"ENV_FILE": os.devnull, "STATE_DIR": str(state), **environ})


@pytest.fixture
def private(tmp_path: Path) -> Iterator[Settings]:
    settings = settings_of(tmp_path / "state")
    yield settings
    private_server.stop(settings)


@pytest.fixture
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_errors, "PATIENCE_S", 0.2)
    monkeypatch.setattr(redis_errors, "LOADING_PATIENCE_S", 0.2)


def process_of(settings: Settings) -> int:
    return int((settings.state_dir / "redis" / "redis.pid").read_text())


def append_only_file(settings: Settings) -> Path:
    """`appendonly.aof`; since Redis 7 `appendonlydir/appendonly.aof.1.incr.aof`."""
    [file] = (settings.state_dir / "redis").rglob("*.aof")
    return file


def queue_of(client: redis.Redis) -> Queue:
    return Queue(client, "releases", prefix="discogs", lease_s=600)


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# The private server ------------------------------------------------------------------------------


def test_scripts_that_start_at_the_same_instant_share_one_server(private: Settings) -> None:
    script = (
        "import sys\n"
        "from discogs_crawler import config\n"
        "from discogs_crawler.broker.connect import connect\n"
        "client = connect(config.load())\n"
        "print(client.info('server')['run_id'])"
    )
    environment = os.environ | {"ENV_FILE": os.devnull, "STATE_DIR": str(private.state_dir)}

    def start(_: int) -> str:
        command = [sys.executable, "-c", script]
        return subprocess.run(command, env=environment, capture_output=True, text=True).stdout

    with ThreadPoolExecutor(6) as pool:
        servers = list(pool.map(start, range(6)))
    assert re.fullmatch(r"[0-9a-f]{40}\n", servers[0])
    assert len(set(servers)) == 1
    assert connect(private).info("server")["run_id"] == servers[0].strip()


def test_only_its_user_can_reach_the_socket(private: Settings) -> None:
    connect(private)
    folder = private.state_dir / "redis"
    assert private.state_dir.stat().st_mode & 0o077 == 0
    assert folder.stat().st_mode & 0o077 == 0
    assert (folder / "redis.sock").stat().st_mode & 0o077 == 0
    assert connect(private).config_get("port") == {"port": "0"}


def test_ids_survive_a_stop_and_a_kill(private: Settings) -> None:
    queue = queue_of(connect(private))
    queue.push("new", [1, 2, 3])
    assert private_server.stop(private)
    assert queue.depths()["new"] == 3
    queue.claim("me", 1)
    os.kill(process_of(private), signal.SIGKILL)
    assert queue.depths()["new"] == 2
    assert [held.id for held in queue.leased()] == [1]


def test_stopping_what_does_not_run_is_told(private: Settings) -> None:
    assert not private_server.stop(private)
    connect(private)
    assert private_server.stop(private)
    assert not private_server.stop(private)


def test_a_stale_socket_and_a_stale_process_id_do_not_matter(private: Settings) -> None:
    folder = private.state_dir / "redis"
    folder.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(folder / "redis.sock"))
    (folder / "redis.pid").write_text(f"{os.getpid()}\n")
    assert connect(private).ping()
    assert process_of(private) != os.getpid()


def test_a_state_folder_with_a_long_name_works(tmp_path: Path) -> None:
    settings = settings_of(tmp_path / ("n" * 120))
    try:
        assert connect(settings).set("a", 1)
        assert (settings.state_dir / "redis" / "redis.sock").is_socket()
    finally:
        assert private_server.stop(settings)


def test_a_state_folder_that_was_moved_gets_no_second_server(
    private: Settings, tmp_path: Path
) -> None:
    """A worker that still runs would claim from its empty queue."""
    client = connect(private)
    new_place = tmp_path / "moved"
    private.state_dir.rename(new_place)
    try:
        client.connection_pool.disconnect()
        with pytest.raises(ConfigurationError, match=rf"{private.state_dir} is not there any more"):
            client.ping()
        assert not private.state_dir.exists()
    finally:
        assert private_server.stop(settings_of(new_place))


def test_the_end_of_the_file_may_be_cut_anywhere_without_losing_an_id(private: Settings) -> None:
    queue = queue_of(connect(private))
    queue.push("new", range(1, 20))
    private_server.stop(private)
    file = append_only_file(private)
    pushed = file.stat().st_size
    queue.claim("me", 10)
    private_server.stop(private)
    whole = file.read_bytes()
    for cut in range(pushed, len(whole), (len(whole) - pushed) // 8):
        file.write_bytes(whole[:cut])
        held, pending = len(queue.leased()), queue.depths()["new"]
        assert (held, pending) in ((0, 19), (10, 9))
        private_server.stop(private)


Damage = Callable[[Path], object]


def zeros(first: int, last: int) -> Damage:
    """Overwrite a part of a file."""

    def damage(file: Path) -> None:
        data = bytearray(file.read_bytes())
        data[first:last] = bytes(last - first)
        file.write_bytes(data)

    return damage


def cut_to(size: int) -> Damage:
    return lambda file: os.truncate(file, size)


@pytest.mark.parametrize(
    ("pattern", "damage", "reason"),
    [
        ("*.aof", zeros(0, 9), "Bad file format reading the append only file"),
        ("*.manifest", cut_to(0), "Found an empty AOF manifest"),
        ("*.base.rdb", Path.unlink, "Unable to obtain the AOF file .*No such file"),
        ("*.base.rdb", cut_to(300), "Internal error in RDB"),
        # It crashes, and has a long report of it.
        ("*.base.rdb", zeros(50, 400), "RDB has duplicated key"),
    ],
)
def test_damaged_data_are_named_and_how_to_do_without_them(
    private: Settings, pattern: str, damage: Damage, reason: str
) -> None:
    client = connect(private)
    for number in range(100):
        client.rpush(f"list{number}", *range(20))
    client.bgrewriteaof()
    wait_until(lambda: not client.info("persistence")["aof_rewrite_in_progress"])
    queue_of(client).push("new", range(1, 2_000, 3))
    private_server.stop(private)
    files = sorted((private.state_dir / "redis").rglob(pattern))
    if not files:
        pytest.skip("this server has no such file")
    damage(files[-1])
    with pytest.raises(Unavailable, match=rf"did not start: {reason}.*redis\.log.* run seed_queue"):
        connect(private)


def test_data_that_cannot_be_read_are_not_called_damaged(
    private: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were of root, after one run with sudo; without them the results of workers are lost."""
    server, line = tmp_path / "server", "can't open the AOF manifest file: Permission denied"
    server.write_text(f'#!/bin/sh\necho "1:M 28 Nov # {line}" > redis.log\n')
    server.chmod(0o700)
    monkeypatch.setattr(private_server, "find_server", lambda: server)
    with pytest.raises(Unavailable, match=rf"{line} \(see \S+/redis\.log\)$"):
        connect(private)


# What can be wrong with a server -----------------------------------------------------------------

Start = Callable[..., int]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a server with some options, on a free port unless one is given; the port."""
    servers = []

    def call(*options: str, port: int = 0) -> int:
        port = port or _free_port()
        command = [str(private_server.find_server()), "--port", str(port), "--save", ""]
        command += ["--dir", str(tmp_path), *options]
        servers.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        wait_until(lambda: _listens(port))
        return port

    yield call
    for server in servers:
        server.kill()
        server.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def connected(tmp_path: Path, url: str) -> redis.Redis:
    return connect(settings_of(tmp_path, REDIS_URL=url))


def test_a_user_and_a_password_are_sent_and_never_shown(
    tmp_path: Path, start: Start, short_patience: None
) -> None:
    port = start("--requirepass", "secret1")
    assert connected(tmp_path, f"redis://:secret1@127.0.0.1:{port}/0").ping()
    for login in (":wrong2@", "user:wrong2@", ""):
        with pytest.raises(ConfigurationError, match="refuses the user or the password") as caught:
            connected(tmp_path, f"redis://{login}127.0.0.1:{port}/0")
        assert "wrong2" not in str(caught.value)


def test_a_server_that_is_not_there_is_waited_for_and_then_named(
    tmp_path: Path, short_patience: None
) -> None:
    with pytest.raises(Unavailable, match=r"Redis at 127\.0\.0\.1:1 does not answer: .*refused"):
        connected(tmp_path, "redis://127.0.0.1:1/0")


def test_a_malformed_address_is_refused_without_showing_it(tmp_path: Path) -> None:
    for url in ("http://x:secret1@h/", "redis://h:secret1/", "redis+sentinel://secret1/"):
        with pytest.raises(ConfigurationError, match="REDIS_URL must look like") as caught:
            connected(tmp_path, url)
        assert "secret1" not in str(caught.value)


def test_a_replica_is_refused(tmp_path: Path, start: Start) -> None:
    port = start("--replicaof", "127.0.0.1", "1")
    with pytest.raises(ConfigurationError, match="read-only replica"):
        connected(tmp_path, f"redis://127.0.0.1:{port}/0")


def test_a_server_that_becomes_a_replica_is_named(tmp_path: Path, start: Start) -> None:
    client = connected(tmp_path, f"redis://127.0.0.1:{start()}/0")
    queue = queue_of(client)
    client.replicaof("127.0.0.1", "1")
    with pytest.raises(ConfigurationError, match="read-only replica"):
        queue.push("new", [1])


def test_a_server_that_drops_keys_is_refused(tmp_path: Path, start: Start) -> None:
    port = start("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
    with pytest.raises(ConfigurationError, match="set it to noeviction"):
        connected(tmp_path, f"redis://127.0.0.1:{port}/0")


def test_a_full_server_takes_nothing_new_but_every_result(tmp_path: Path, start: Start) -> None:

    client = connected(tmp_path, f"redis://127.0.0.1:{start()}/0")
    queue = queue_of(client)
    queue.push("new", [1, 2])
    leases = queue.claim("me", 1)
    client.config_set("maxmemory", 1)
    with pytest.raises(Unavailable, match="out of memory; raise its maxmemory"):
        queue.push("new", [3])
    with pytest.raises(Unavailable, match="out of memory"):
        queue.claim("me", 1)
    assert queue.complete([(lease, Result(lease.id, "new", "gone")) for lease in leases]) == {1}
    client.config_set("maxmemory", 0)
    assert queue.depths()["new"] == 1


def test_foreign_data_under_our_keys_are_named(redis_client: redis.Redis) -> None:
    redis_client.set("{discogs}:releases:leased", "mine")
    with pytest.raises(ConfigurationError, match=r":leased is a string, not a zset.*REDIS_PREFIX"):
        queue_of(redis_client)
    assert redis_client.keys() == [b"{discogs}:releases:leased"]


def test_an_older_layout_is_named(redis_client: redis.Redis) -> None:
    redis_client.hset("{discogs}:releases:about", mapping={"layout": 0, "generation": "a"})
    with pytest.raises(ConfigurationError, match="queue of another version"):
        queue_of(redis_client)


def test_a_user_without_rights_is_told(tmp_path: Path, start: Start) -> None:
    port = start("--user", "narrow", "on", ">pw", "~*", "+ping", "+info", "+hello", "+auth")
    client = connected(tmp_path, f"redis://narrow:pw@127.0.0.1:{port}/0")
    with pytest.raises(ConfigurationError, match="does not let the user of REDIS_URL do this"):
        queue_of(client)


def test_a_restart_in_the_middle_is_waited_for(tmp_path: Path, start: Start) -> None:
    port = start("--appendonly", "yes")
    queue = queue_of(connected(tmp_path, f"redis://127.0.0.1:{port}/0"))
    queue.push("new", [1, 2])
    with redis.Redis(port=port) as other:
        other.shutdown()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(queue.claim, "me", 2)
        start("--appendonly", "yes", port=port)
        assert [lease.id for lease in waiting.result(timeout=30)] == [1, 2]


def test_a_sentinel_tells_where_the_primary_is(tmp_path: Path, start: Start) -> None:
    primary = start()
    file = tmp_path / "sentinel.conf"
    file.write_text(f"sentinel monitor music 127.0.0.1 {primary} 1\n")
    port = _free_port()
    command = [str(private_server.find_server()), str(file), "--sentinel", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as sentinel:
        try:
            wait_until(lambda: _listens(port))
            url = f"redis+sentinel://127.0.0.1:{port}/music/0"
            assert connected(tmp_path, url).set("here", 1)
            assert redis.Redis(port=primary).get("here") == b"1"
        finally:
            sentinel.kill()
