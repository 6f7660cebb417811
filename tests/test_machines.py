"""Several machines: one Redis, one remote, a ledger on the first, and everything goes wrong."""

import contextlib
import itertools
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
import sqlite_utils

from discogs_crawler import config
from discogs_crawler.api import cleaning, exact_json
from discogs_crawler.broker.messages import Lease
from discogs_crawler.broker.queue import Queue
from discogs_crawler.errors import EXIT_DONE, EXIT_PARTLY, EXIT_UNAVAILABLE
from discogs_crawler.records import record_path
from tests.discogs import dump
from tests.discogs.api import Api
from tests.discogs.journal import busiest
from tests.discogs.quota import Quota
from tests.discogs.world import invented
from tests.machines import Cut, Host, processes_in, served, wait_until

WINDOW_S = 2.0
LIMIT = 40

# A commit starts some ten processes of Git: one a second, for three machines, on two busy cores.
SETTINGS = {
    "RATE_WINDOW_S": str(WINDOW_S),
    "COMMIT_EVERY": "50",
    "COMMIT_SECONDS": "1",
    "LEASE_S": "2",
    "RETRY_DELAYS": "1s,1s,1s,1s,1s,1s",
}


@pytest.fixture
def api(records: int) -> Iterator[Api]:
    quota = Quota(limit_without=LIMIT, window_s=WINDOW_S)
    with Api(invented(records), quota) as api:
        yield api


@pytest.fixture
def layout() -> str:
    return "single"


@pytest.fixture
def remote(tmp_path: Path, layout: str) -> Path:
    """The repository of all records, on a server that makes none."""
    names = {"single": ["remote.git"], "submodules": ["discogs.git", "releases/00.git"]}[layout]
    for name in names:
        folder = tmp_path / "srv" / name
        subprocess.run(["git", "init", "-q", "--bare", "-b", "main", folder], check=True)
    return folder


Machine = Callable[..., Host]


@pytest.fixture
def machine(
    tmp_path: Path, api: Api, remote: Path, layout: str, redis_socket: Path
) -> Iterator[Machine]:
    """Make a machine: `machine("first", RATE_IDENTITY="office")`."""
    path = "remote.git" if layout == "single" else ""
    with served(tmp_path / "srv") as port:

        def make(name: str, address: str = "127.0.0.1", **settings: str) -> Host:
            folder, settings = tmp_path / name, SETTINGS | {"STORE_LAYOUT": layout} | settings
            return Host(folder, redis_socket, api.port, port, address, path, **settings)

        yield make


@contextlib.contextmanager
def working(*hosts: Host) -> Iterator[list["subprocess.Popen[bytes]"]]:
    workers = [host.start_worker() for host in hosts]
    try:
        yield workers
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def count(remote: Path) -> int:
    command = ["git", "--git-dir", str(remote), "ls-tree", "-r", "--name-only", "main"]
    return subprocess.run(command, capture_output=True, check=False).stdout.count(b"\n")


def stored(remote: Path) -> dict[str, bytes]:
    """The records in the remote, by path."""
    git = ["git", "--git-dir", str(remote)]
    listing = [*git, "ls-tree", "-r", "--format=%(objectname) %(path)", "main"]
    rows = subprocess.run(listing, capture_output=True, check=True).stdout.decode().splitlines()
    found = {}
    prefix = "" if remote.name == "remote.git" else "releases/00/"
    for oid, path in (row.split(" ", 1) for row in rows):
        found[prefix + path] = subprocess.run(
            [*git, "cat-file", "blob", oid], capture_output=True
        ).stdout
    return found


def expected(api: Api, host: Host) -> dict[str, bytes]:
    rules = cleaning.rules_for(config.load(environ=host.environment), "releases")
    found = {}
    for number in api.world.alive["releases"]:
        text = json.dumps(api.world.document("releases", number, 1), ensure_ascii=False)
        document = exact_json.loads(text.encode())
        found[record_path("releases", number)] = cleaning.clean(document, rules)
    return found


Fault = tuple[str, Cut]

EVERY_CUT: list[Fault] = list(itertools.product(("redis", "api", "remote"), ("reset", "silent")))


@pytest.mark.parametrize("layout", ["single", pytest.param("submodules", marks=pytest.mark.long)])
@pytest.mark.parametrize(
    ("records", "faults"),
    [
        (120, [("remote", "reset"), ("api", "silent")]),
        pytest.param(1_500, 2 * EVERY_CUT, marks=pytest.mark.long),
    ],
)
def test_three_machines_lose_nothing_when_all_are_cut_off_and_one_dies(
    tmp_path: Path,
    api: Api,
    remote: Path,
    machine: Machine,
    redis_client: redis.Redis,
    records: int,
    faults: list[Fault],
) -> None:
    # The first two share an address and so a quota; the third has one of its own.
    first = machine("first", RATE_IDENTITY="office")
    second = machine("second", RATE_IDENTITY="office")
    third = machine("third", "127.0.0.2", RATE_IDENTITY="cellar")
    hosts = [first, second, third]
    target = tmp_path / "discogs_20261101_releases.xml.gz"
    dump.write(target, api.world, "releases")
    first.run("discogs_xml_split.py", "-d", target, "-r", tmp_path / "hashes")
    first.run("seed_queue.py", "-n", tmp_path / "hashes")
    queue = Queue(redis_client, "releases", prefix="discogs", lease_s=2)

    def logs() -> str:
        return "\n".join(host.log() for host in hosts)

    def is_done() -> bool:
        return count(remote) == records

    with working(*hosts) as workers:
        host_of = {worker.pid: host for worker, host in zip(workers, hosts, strict=True)}

        def one_at_work() -> int:
            """The process, of those that are left, that has stored something and goes on.

            A worker claims what it can fetch in 20 seconds, here everything: whoever is at work
            may leave nothing to the others until it is gone.
            """
            found: list[int] = []

            def look() -> bool:
                owners = {int(held.owner.rpartition(":")[2]) for held in queue.leased()}
                found[:] = [
                    pid for pid in owners & host_of.keys() if "stored" in host_of[pid].log()
                ]
                return bool(found) or is_done()

            wait_until(look, logs)
            return found[0] if found else next(iter(host_of))

        cut_off = host_of.pop(one_at_work())
        cut_off.cables["redis"].cut("reset")
        killed = one_at_work()
        os.kill(killed, signal.SIGKILL)
        del host_of[killed]
        one_at_work()
        assert not is_done()
        cut_off.cables["redis"].mend()
        host_of = {w.pid: h for w, h in zip(workers, hosts, strict=True) if w.pid != killed}
        for name, how in faults:
            cable = host_of[one_at_work()].cables[name]
            cable.cut(how)
            wait_until(lambda cable=cable: cable.felt.is_set() or is_done(), logs)
            cable.mend()
        wait_until(is_done, logs)
        for worker in workers:
            if worker.pid != killed:
                worker.terminate()
                assert worker.wait(90) == EXIT_DONE, logs()

    first.run("seed_queue.py")
    rows = list(sqlite_utils.Database(first.folder / "state/crawler.db")["releases"].rows)
    assert {row["id"] for row in rows} == set(api.world.alive["releases"])
    assert all(row["alive"] and row["due"] is None for row in rows)
    assert not (third.folder / "state/crawler.db").exists()

    requests = api.journal.since()
    assert {request.status for request in requests} == {200}
    assert busiest(requests, WINDOW_S * 0.99) <= LIMIT
    assert len({request.client for request in requests}) == 2
    assert stored(remote) == expected(api, first)


@pytest.mark.parametrize("records", [200])
def test_a_machine_that_was_cut_off_asks_for_nothing_that_others_have_taken_over(
    machine: Machine, api: Api, queue: Queue, redis_client: redis.Redis, records: int
) -> None:
    others = Queue(redis_client, "releases", prefix="discogs", lease_s=600)
    host = machine("only", LEASE_S="1")
    taken: set[int] = set()

    def take_all() -> bool:
        taken.update(lease.id for lease in others.claim("other", records))
        return not queue.leased() or {held.owner for held in queue.leased()} == {"other"}

    with working(host) as [worker]:
        wait_until(lambda: len(queue.leased()) > 100, host.log)
        host.cables["redis"].cut("reset")
        wait_until(take_all, host.log)
        before = len(api.journal.asked())
        host.cables["redis"].mend()
        wait_until(lambda: "lapsed" in host.log(), host.log)
        queue.push("new", [records + 1_000])  # which it asks for after all that it still has
        wait_until(lambda: records + 1_000 in api.journal.asked(), host.log)
        worker.terminate()
        assert worker.wait(30) == EXIT_DONE, host.log()
    assert len(taken) > 100
    assert len(taken.intersection(api.journal.asked()[before:])) < 60


# A worker is told to end while the remote is away -------------------------------------------------


@pytest.fixture
def queue(redis_client: redis.Redis, api: Api) -> Queue:
    queue = Queue(redis_client, "releases", prefix="discogs", lease_s=3)
    queue.push("new", api.world.alive["releases"])
    return queue


@pytest.mark.parametrize("records", [15])
@pytest.mark.parametrize("how", ["refused", "silent"])
def test_a_worker_that_is_told_to_end_does_not_wait_for_a_remote_that_is_away(
    machine: Machine, remote: Path, queue: Queue, how: Cut, records: int
) -> None:
    host = machine("only", COMMIT_SECONDS="0.1", LEASE_S="600")
    cable = host.cables["remote"]
    cable.cut(how)
    with working(host) as [worker]:
        wait_until(lambda: cable.felt.is_set() or "trying again" in host.log(), host.log)
        worker.terminate()
        assert worker.wait(30) == EXIT_UNAVAILABLE, host.log()
    assert "cannot be reached" in host.log().splitlines()[-1]
    assert "Traceback" not in host.log()
    assert (queue.leased(), queue.unread(), sum(queue.depths().values())) == ([], 0, records)
    wait_until(lambda: not processes_in(host.folder), lambda: str(processes_in(host.folder)))
    cable.mend()
    with working(host) as [worker]:
        wait_until(lambda: count(remote) == records, host.log)
        worker.terminate()
        assert worker.wait(30) == EXIT_DONE, host.log()
    assert queue.unread() == records


@pytest.mark.parametrize("records", [15])
def test_a_second_signal_ends_even_a_push_that_hangs(
    machine: Machine, queue: Queue, records: int
) -> None:
    host = machine("only", COMMIT_SECONDS="0.1", LEASE_S="1")
    host.cables["remote"].cut("silent")
    with working(host) as [worker]:
        wait_until(host.cables["remote"].felt.is_set, host.log)
        worker.send_signal(signal.SIGINT)
        wait_until(lambda: "finishing what is under way" in host.log(), host.log)
        worker.send_signal(signal.SIGINT)
        assert worker.wait(30) == EXIT_PARTLY, host.log()
    assert host.log().splitlines()[-1] == "worker.py: interrupted; run it again to go on"
    assert queue.unread() == 0
    wait_until(lambda: not processes_in(host.folder), lambda: str(processes_in(host.folder)))
    back: list[Lease] = []

    def claim_more() -> bool:
        back.extend(queue.claim("other", records))
        return len(back) == records

    wait_until(claim_more, host.log)
