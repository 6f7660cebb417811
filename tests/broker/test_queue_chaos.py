"""Processes that are killed or frozen at any moment lose no id."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from discogs_crawler.broker import private_server
from discogs_crawler.broker.messages import Result
from discogs_crawler.broker.queue import Queue
from tests.chaos import failing
from tests.chaos.queue import BASE, Chaos
from tests.queue_audit import places


@pytest.fixture
def chaos(tmp_path: Path) -> Iterator[Chaos]:
    system = Chaos(tmp_path, seed=1)
    yield system
    private_server.stop(system.settings)


def test_a_hundred_kills_of_anyone_lose_nothing(chaos: Chaos) -> None:
    table = chaos.run(100)
    assert table["lost"] == 0
    assert table["done"] > 0
    assert table["kills: server"] > 0


@pytest.mark.long
def test_two_thousand_kills_lose_nothing(chaos: Chaos) -> None:
    assert chaos.run(2_000)["lost"] == 0


def fork(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return pid


@pytest.mark.parametrize("mode", ["crash before", "crash after"])
def test_a_crash_at_any_command_leaves_each_id_in_one_place(
    redis_client: redis.Redis, redis_socket: Path, tmp_path: Path, mode: str
) -> None:
    counter = failing.Counter(tmp_path / "count")

    def live(nth: int) -> None:
        failing.install(counter, nth, mode)
        queue = Queue(
            redis.Redis(unix_socket_path=str(redis_socket)), "releases", prefix="discogs", lease_s=9
        )
        queue.push("new", [1, 2, 3, 4, 1_000_000])
        leases = queue.claim("me", 4, branch="b")
        queue.renew(leases)
        queue.complete([(leases[0], Result(1, "new", "stored"))])
        queue.delay(leases[1], 5, count_attempt=True)
        queue.give_back(leases[2:])
        queue.freeze_segments("b")
        queue.promote([2, 3, 9])
        generation, entries = queue.results("0", 9)
        queue.forget(generation, entries[-1][0])
        queue.release_segments("b")

    seen = set()
    for nth in range(1, 100):
        redis_client.flushall()
        counter.reset()
        _, status = os.waitpid(fork(lambda nth=nth: live(nth)), 0)  # type: ignore[misc]
        found = places(redis_client, BASE)
        seen.add((len(found.pending), len(found.leased), len(found.delayed), len(found.reported)))
        if not os.WIFSIGNALED(status):
            assert status == 0
            assert nth > 10
            assert len(seen) > 6
            return
    raise AssertionError("the script never ended")


def test_a_worker_that_was_frozen_past_its_lease_may_neither_complete_nor_commit(
    redis_client: redis.Redis, redis_socket: Path, tmp_path: Path
) -> None:
    queue = Queue(redis_client, "releases", prefix="discogs", lease_s=1)
    queue.push("new", [7])
    go = tmp_path / "go"

    def work() -> None:
        client = redis.Redis(unix_socket_path=str(redis_socket))
        mine = Queue(client, "releases", prefix="discogs", lease_s=1)
        leases = mine.claim("frozen", 1)
        while not go.exists():
            time.sleep(0.005)
        may_commit = mine.renew(leases)
        accepted = mine.complete([(leases[0], Result(7, "new", "stored"))])
        (tmp_path / "told").write_text(f"{may_commit or 'none'} {accepted or 'none'}")

    pid = fork(work)
    _until(lambda: bool(queue.leased()))
    os.kill(pid, signal.SIGSTOP)
    taken: list[int] = []
    _until(lambda: bool(taken.extend(x.id for x in queue.claim("other", 1)) or taken))
    go.touch()
    os.kill(pid, signal.SIGCONT)
    os.waitpid(pid, 0)
    assert (tmp_path / "told").read_text() == "none none"
    assert places(redis_client, BASE).leased == {7: ("new", "other")}


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)
