"""Every call to Redis, HTTP, Git and SQLite of a whole run fails once: the end is always right."""

import json
import random
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import redis

from discogs_crawler import config
from discogs_crawler.api import cleaning, exact_json
from discogs_crawler.clock import DAY_S
from discogs_crawler.records import parse_record_path, record_path
from discogs_crawler.store import layouts
from tests.chaos import failing, scripts
from tests.chaos.consumer import EXPORT, Consumer
from tests.conftest import ROOT, bare_environment
from tests.discogs.dump import write
from tests.discogs.world import World, invented

RECORDS = 10
POINTS = 16

# Of the long form; they may run beside each other.
PARTS = 8

SEED = 20261123

# Cron would come again tomorrow; here it comes again at once, but not for ever.
ATTEMPTS = 8

# The number of a call that no run reaches: nothing fails.
NEVER = 10**9

EXPECTED_CODES = {0, 1, 69, 75, -9}


class Upstream(NamedTuple):
    """The stand-in in a process of its own, and the truth it shows."""

    url: str
    world: World
    dump: Path
    gone: int


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upstream]:
    world = invented(RECORDS)
    dump = tmp_path_factory.mktemp("dump") / "discogs_20200101_releases.xml.gz"
    write(dump, world, "releases")
    command = [sys.executable, "-m", "tests.discogs", "--records", str(RECORDS)]
    command += ["--limit", "6000", "--window", "0.5"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        gone = sorted(world.alive["releases"])[3]
        world.remove("releases", [gone])
        body = json.dumps({"remove": {"releases": [gone]}}).encode()
        urllib.request.urlopen(url + "/-/world", body).close()
        yield Upstream(url, world, dump, gone)
        server.kill()


class Crawl:
    """One small whole run, from the dump to the consumer, each script repeated until it is done."""

    def __init__(self, upstream: Upstream, folder: Path, redis_socket: Path) -> None:
        self.upstream = upstream
        self.folder = folder
        self.counter = failing.Counter(folder / "calls")
        self.counter.reset()
        with redis.Redis(unix_socket_path=str(redis_socket)) as client:
            client.flushall()
        self.environment = bare_environment(folder, folder / "state") | {
            "REDIS_URL": f"unix://{redis_socket}",
            "DISCOGS_API": upstream.url,
            "DISCOGS_TOKEN": "not-a-real-one",
            "RATE_WINDOW_S": "0.5",
            "LEASE_S": "1",
            "RETRY_DELAYS": "1s,1s,1s,1s,1s",
            "COMMIT_EVERY": "4",
        }
        self.consumer = Consumer(folder / "state" / "crawler.db")

    def run(self, nth: int, mode: str) -> None:
        """Run everything while the `nth` call fails; then once more as the next day would."""
        hashes = self.folder / "hashes.txt"
        split = ("discogs_xml_split.py", "-d", self.upstream.dump, "-r", hashes)
        worker = ("worker.py", "--until-empty")
        imported = ("import_dump.py", "-d", self.upstream.dump)
        for command in (split, ("seed_queue.py", "-n", hashes), imported, worker, EXPORT):
            self.repeat(nth, mode, *command)
        # What was imported and is gone must be denied twice, a day apart.
        self.environment["CLOCK_OFFSET_S"] = str(2 * DAY_S)
        for command in (("seed_queue.py",), worker, EXPORT):
            self.repeat(nth, mode, *command)

    def repeat(self, nth: int, mode: str, script: str, *arguments: object) -> None:
        """Repeat one script until it exits 0, and consume what an export that did has printed."""
        output = self.folder / "output"
        for _ in range(ATTEMPTS):
            self.consumer.begin()
            pid = scripts.start(
                script,
                *arguments,
                environment=self.environment,
                output=output,
                before=lambda: failing.install(self.counter, nth, mode),
            )
            code = scripts.wait(pid)
            errors = output.with_name("output.err").read_text()
            assert code in EXPECTED_CODES, (script, code, errors)
            assert "Traceback" not in errors
            if script == EXPORT[0]:
                self.consumer.take(output, code)
            if code == 0:
                return
        raise AssertionError(f"{script} never got done: exit code {code}: {errors}")

    def check(self) -> None:
        """The store holds what upstream has, the consumer what the store has."""
        settings = config.load(environ=self.environment)
        held = layouts.open_store(settings)
        stored = held.read("releases", list(held.ids("releases")))
        rules = cleaning.rules_for(settings, "releases")
        assert set(stored) == set(self.upstream.world.alive["releases"])
        for record_id, data in stored.items():
            answer = self.upstream.world.document("releases", record_id, moment=1)
            assert data == cleaning.clean(exact_json.loads(json.dumps(answer).encode()), rules)
        alive = {path: data for path, data in self.consumer.records.items() if data is not None}
        assert {parse_record_path(path) for path in alive} == {("releases", n) for n in stored}
        assert all(
            json.loads(alive[record_path("releases", n)]) == json.loads(stored[n]) for n in stored
        )
        repository = settings.store / "discogs.git"
        fsck = subprocess.run(
            ["git", "-C", repository, "fsck", "--full", "--strict"],
            capture_output=True,
            check=False,
        )
        assert fsck.returncode == 0, fsck.stderr


@pytest.fixture(scope="module")
def calls_of_a_run(
    upstream: Upstream, tmp_path_factory: pytest.TempPathFactory, redis_socket: Path
) -> int:
    """How many calls an undisturbed run makes."""
    crawl = Crawl(upstream, tmp_path_factory.mktemp("undisturbed"), redis_socket)
    crawl.run(NEVER, "error")
    crawl.check()
    return crawl.counter.total()


def fail(nth: int, mode: str, upstream: Upstream, folder: Path, redis_socket: Path) -> bool:
    """Run with a failure; False if the run had ended before its `nth` call."""
    crawl = Crawl(upstream, folder, redis_socket)
    crawl.run(nth, mode)
    crawl.check()
    return crawl.counter.total() >= nth


@pytest.mark.parametrize("point", range(POINTS))
def test_a_run_in_which_one_call_fails_ends_as_any_other(
    point: int,
    calls_of_a_run: int,
    upstream: Upstream,
    tmp_path_factory: pytest.TempPathFactory,
    redis_socket: Path,
) -> None:
    chance = random.Random(f"{SEED} {point}")
    mode = failing.MODES[point % len(failing.MODES)]
    # Who waits makes calls; how often depends on the machine.
    assert any(
        fail(nth, mode, upstream, tmp_path_factory.mktemp("run"), redis_socket)
        for nth in (chance.randrange(calls_of_a_run) + 1 for _ in range(3))
    )


@pytest.mark.long
@pytest.mark.parametrize("part", range(PARTS))
def test_whichever_call_fails_the_run_ends_as_any_other(
    part: int,
    calls_of_a_run: int,
    upstream: Upstream,
    tmp_path_factory: pytest.TempPathFactory,
    redis_socket: Path,
) -> None:
    """Each call in one mode, as all of them in each would take hours; neighbours in others."""
    calls = range(1 + part, calls_of_a_run + 1, PARTS)
    failed = sum(
        fail(
            nth,
            failing.MODES[(nth + nth // PARTS) % len(failing.MODES)],
            upstream,
            tmp_path_factory.mktemp("run"),
            redis_socket,
        )
        for nth in calls
    )
    assert failed >= 0.9 * len(calls)
