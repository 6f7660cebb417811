"""Seeding that is killed between any two steps and run again ends as if it had not been killed."""

import os
import shutil
import signal
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from discogs_crawler import clock
from discogs_crawler.clock import DAY_S
from discogs_crawler.dumps import hashfile
from discogs_crawler.ledger import database
from discogs_crawler.seeding import exchange
from discogs_crawler.seeding import run as seed_run
from discogs_crawler.seeding.run import Request
from tests.seeding_world import COOLDOWN_S, World, queue_of, some_contents

# Kills in the suite; with --long at every step.
KILLS = 25

_TABLES = ("releases", "counts", "ages", "outcomes", "results_cursor", "dumps")


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Time stands still and batches are small, so that a small dump takes many steps."""
    now = clock.now()
    monkeypatch.setattr(clock, "now", lambda: now + clock.OFFSET_S)
    monkeypatch.setattr(hashfile, "BLOCK_SIZE", 500)
    monkeypatch.setattr(database, "BATCH", 3)
    monkeypatch.setattr(exchange, "RESULTS", 5)
    offset = clock.OFFSET_S
    yield
    clock.OFFSET_S = offset


class Steps:
    """Counts statements of SQLite and commands of Redis, and kills this process before the n-th."""

    def __init__(self, fatal: int) -> None:
        self.fatal = fatal
        self.count = 0

    def __call__(self, *ignored: object) -> None:
        self.count += 1
        if self.count == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)


def seed_in_child(folder: Path, socket: Path, request: Request, fatal: int) -> int:
    """Run in a process of its own; the number of steps that it took, 0 if it was killed."""
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            steps = Steps(fatal)
            _seed(folder, socket, request, steps)
            os.write(writer, str(steps.count).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(process, 0)
    assert answer or os.WIFSIGNALED(status), "the child failed"
    return int(answer or 0)


def _seed(folder: Path, socket: Path, request: Request, step: Callable[..., None]) -> None:
    client = redis.Redis(unix_socket_path=str(socket))
    execute = client.execute_command

    def counted(*arguments: Any, **options: Any) -> Any:
        step()
        answer = execute(*arguments, **options)
        step()
        return answer

    client.execute_command = counted  # type: ignore[method-assign]
    with database.open(folder / "crawler.db") as ledger:
        ledger.db.conn.set_trace_callback(step)
        seed_run.seed(ledger, lambda kind: queue_of(client, kind), request, COOLDOWN_S)


def state(folder: Path, client: redis.Redis) -> dict[str, object]:
    """All that the two sides know, but for the log of runs."""
    result: dict[str, object] = {}
    with sqlite3.connect(folder / "crawler.db") as connection:
        for table in _TABLES:
            rows = connection.execute(f"SELECT * FROM {table}").fetchall()
            result[table] = sorted(map(repr, rows))
        broken = connection.execute("PRAGMA integrity_check").fetchone()
    assert broken == ("ok",)
    queue = queue_of(client)
    result["pending"] = queue.pending()
    result["unread"] = queue.unread()
    result["known"] = client.hgetall("{discogs}:releases:known")
    result["files"] = sorted(path.name for path in folder.glob("*.hashes"))
    return result


def keep(client: redis.Redis) -> dict[bytes, bytes]:
    return {key: client.dump(key) for key in client.keys("*")}


def restore(client: redis.Redis, kept: dict[bytes, bytes]) -> None:
    client.flushall()
    for key, value in kept.items():
        client.restore(key, 0, value)


def check_every_kill(
    world: World, socket: Path, request: Request, tmp_path: Path, kills: int | None
) -> None:
    """Kill at evenly spread steps, run again, and compare with the uninterrupted run."""
    client, origin = world.client, world.folder
    world.close()
    kept = keep(client)
    whole = shutil.copytree(origin, tmp_path / "whole")
    # A generation's random name is in the cursor: the same Redis data give the same one.
    steps = seed_in_child(whole, socket, request, 0)
    expected = state(whole, client)
    assert steps > 20
    stride = 1 if kills is None else max(1, steps // kills)
    for fatal in range(1, steps + 1, stride):
        restore(client, kept)
        folder = shutil.copytree(origin, tmp_path / f"killed-{fatal}")
        assert seed_in_child(folder, socket, request, fatal) == 0
        assert seed_in_child(folder, socket, request, 0) > 0
        assert state(folder, client) == expected, f"killed at step {fatal} of {steps}"
        shutil.rmtree(folder)


@pytest.fixture
def kills(request: pytest.FixtureRequest) -> int | None:
    return None if request.config.getoption("--long") else KILLS


def test_a_killed_first_import_is_finished_by_the_next_run(
    tmp_path: Path,
    redis_socket: Path,
    redis_client: redis.Redis,
    small_steps: None,
    kills: int | None,
) -> None:
    (tmp_path / "origin").mkdir()
    world = World(tmp_path / "origin", redis_client)
    world.upstream = some_contents(25)
    dump = world.dump()
    world.seed(ids=[3, 400])
    check_every_kill(world, redis_socket, Request(new=dump), tmp_path, kills)


def test_a_killed_month_is_finished_by_the_next_run(
    tmp_path: Path,
    redis_socket: Path,
    redis_client: redis.Redis,
    small_steps: None,
    kills: int | None,
) -> None:
    (tmp_path / "origin").mkdir()
    world = World(tmp_path / "origin", redis_client)
    world.upstream = some_contents(20)
    world.seed(world.dump(), discover=2)
    world.crawl_all()
    world.pass_time(10 * DAY_S)
    world.seed(refresh=7, ids=[3])
    world.crawl(count=6)
    for record_id in list(world.upstream)[::4]:
        world.upstream[record_id] += ", edited"
    del world.upstream[max(world.upstream)]
    world.upstream |= {101: "new", 103: "new"}
    dump = world.dump()
    world.pass_time(DAY_S)
    request = Request(new=dump, ids=[5, 700], discover=3, refresh=4, force=True)
    check_every_kill(world, redis_socket, request, tmp_path, kills)
