"""A clock that was wrong for a while: what it wrote is noticed and not believed."""

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import sqlite_utils

from discogs_crawler import clock
from discogs_crawler.broker.queue import Queue
from discogs_crawler.clock import DAY_S
from discogs_crawler.config import Settings
from discogs_crawler.errors import ConfigurationError
from discogs_crawler.ledger.rows import Row
from discogs_crawler.maintenance import housekeeping
from discogs_crawler.seeding.want_rules import CONFIRM_AFTER_S, DEAD_AGAIN_S, without_times_to_come
from discogs_crawler.store import layouts, stale_locks
from tests.conftest import ROOT, Run
from tests.discogs.world import invented
from tests.seeding_world import World, queue_of, row
from tests.test_chain import Upstream, assert_the_store_equals, crawl, seed, succeed

YEAR_S = 365 * DAY_S
NOW = 1_800_000_000
AHEAD = NOW + YEAR_S


def crawl_anyhow(environment: dict[str, str], upstream: Upstream) -> str:
    """Let a worker run until nothing is left to do, whatever it says; that."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "bin" / "worker.py"), "--until-empty"],
        env=environment | upstream.settings,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")
    return done.stderr


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[Upstream]:
    upstream = Upstream(invented(60), tmp_path)
    yield upstream
    upstream.api.close()


@pytest.fixture
def world(tmp_path: Path, redis_client: redis.Redis) -> Iterator[World]:
    offset = clock.OFFSET_S
    world = World(tmp_path, redis_client)
    world.upstream = {n: f"record {n}" for n in range(1, 21)}
    yield world
    world.close()
    clock.OFFSET_S = offset


def test_what_was_fetched_a_year_ahead_misses_no_change(
    run: Run, upstream: Upstream, environment: dict[str, str]
) -> None:
    seed(run, upstream)
    upstream.day = 365
    crawl(environment, upstream, workers=1)
    succeed(run("maintain_store.py", **upstream.settings))
    succeed(run("seed_queue.py", "--ids", "5,7,900", **upstream.settings))
    succeed(run("export_changes.py", "--consumer", "demo", **upstream.settings))
    everything = upstream.requests()

    changes = upstream.world.let_a_month_go_by()["releases"]
    upstream.day = 31
    told = succeed(run("stats.py", **upstream.settings))
    assert "times up to" in told
    dump = upstream.dump()
    hashes = dump.with_suffix(".txt")
    succeed(run("discogs_xml_split.py", "-d", dump, "-r", hashes, **upstream.settings))
    done = run("seed_queue.py", "-n", hashes, **upstream.settings)
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert "a clock was wrong" in done.stderr
    crawl(environment, upstream, workers=1)
    asked = upstream.requests()
    assert {*changes["edited"], *changes["added"], *changes["removed"]} <= {*asked}
    assert len(asked) <= len({*everything, *asked, 900}), "none is asked for twice"

    succeed(run("seed_queue.py", "--ids", "5", **upstream.settings))
    crawl(environment, upstream, workers=1)
    assert upstream.requests() == [5]
    assert "manual" not in succeed(run("seed_queue.py", "--dry-run", **upstream.settings))
    assert "times up to" not in succeed(run("stats.py", **upstream.settings))
    listed = succeed(run("export_changes.py", "--list", **upstream.settings))
    assert time.strftime("%Y-%m", time.gmtime(time.time() + 365 * DAY_S)) not in listed


def test_a_crawl_in_1970_leaves_nothing_unsatisfied(
    run: Run, upstream: Upstream, environment: dict[str, str]
) -> None:
    seed(run, upstream)
    upstream.day = -int(time.time()) // DAY_S + 2
    told = crawl_anyhow(environment, upstream)
    assert told.count("\n") == 1
    assert "the clock of this machine says 1970-01-0" in told
    upstream.requests()
    before = sqlite_utils.Database(environment["STATE_DIR"] + "/crawler.db")
    wants = list(before.query("SELECT * FROM wants"))
    refused = run("seed_queue.py", "--ids", "5", **upstream.settings)
    assert refused.returncode == 78
    assert "the clock of this machine says 1970-01-0" in refused.stderr
    assert list(before.query("SELECT * FROM wants")) == wants

    upstream.day = 0
    for _ in range(2):
        succeed(run("seed_queue.py", **upstream.settings))
        crawl(environment, upstream, workers=1)
    assert upstream.requests() == sorted(upstream.world.alive["releases"]), "once more, then never"
    assert_the_store_equals(upstream.world, environment)


def test_results_of_a_wrong_clock_that_are_read_by_a_right_one_are_asked_for_again(
    world: World,
) -> None:
    world.seed(world.dump())
    world.pass_time(YEAR_S)
    world.crawl_all()
    world.pass_time(-YEAR_S)
    world.seed()
    assert {row(world.ledger, n).alive is not None for n in world.upstream} == {True}
    assert set(world.wanted().values()) == {"refresh"}
    assert len(world.crawl_all()) == len(world.upstream)
    world.seed()
    assert world.wanted() == {}


def test_a_first_import_that_was_seeded_ahead_is_due_at_once(world: World) -> None:
    world.pass_time(20 * DAY_S)
    world.seed(world.dump())
    world.client.flushall()
    world.pass_time(-20 * DAY_S)
    assert world.seed().counts["queued_backfill"] == len(world.upstream)


def test_two_clocks_that_differ_are_told_and_nothing_is_changed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.seed(world.dump())
    world.crawl_all()
    of_redis = clock.now() + YEAR_S
    with monkeypatch.context() as patched:
        patched.setattr(Queue, "time", lambda self: of_redis)
        with pytest.raises(ConfigurationError, match="that of Redis"):
            world.seed()
    assert queue_of(world.client).unread() == len(world.upstream)
    world.seed()
    assert world.wanted() == {}


def test_a_dump_of_tomorrow_can_be_forced(
    run: Run, upstream: Upstream, environment: dict[str, str]
) -> None:
    upstream.day = 40
    dump = upstream.dump()
    hashes = dump.with_suffix(".txt")
    upstream.day = 0
    succeed(run("discogs_xml_split.py", "-d", dump, "-r", hashes, **upstream.settings))
    assert run("seed_queue.py", "-n", hashes, **upstream.settings).returncode == 78
    assert run("seed_queue.py", "-n", hashes, "--force", **upstream.settings).returncode == 0
    succeed(run("seed_queue.py", **upstream.settings))
    crawl(environment, upstream, workers=1)
    assert_the_store_equals(upstream.world, environment)


@pytest.mark.parametrize(
    ("values", "after"),
    [
        pytest.param(
            {"crawled": NOW + DAY_S, "alive": NOW + DAY_S}, {}, id="a day is no reason to doubt"
        ),
        pytest.param(
            {"reason": "new", "due": NOW + DAY_S, "since": 5}, {}, id="nor is it of a want"
        ),
        pytest.param(
            {"crawled": AHEAD, "alive": AHEAD, "changed": 5},
            {"crawled": None, "alive": NOW, "reason": "refresh", "due": NOW, "since": NOW},
            id="when it was fetched is not known",
        ),
        pytest.param(
            {"crawled": 5, "reason": "manual", "due": AHEAD, "since": AHEAD},
            {"due": NOW, "since": NOW},
            id="a wish of that time is due now",
        ),
        pytest.param(
            {"misses": 1, "crawled": AHEAD, "reason": "confirm", "due": AHEAD, "since": AHEAD},
            {"crawled": None, "due": NOW + CONFIRM_AFTER_S, "since": NOW},
            id="a removal is confirmed a day later all the same",
        ),
        pytest.param(
            {"misses": 1, "crawled": AHEAD, "reason": "confirm", "due": 5, "since": 5},
            {"crawled": None},
            id="but is not put off if it was due before",
        ),
        pytest.param(
            {"failure": "HTTP 500", "reason": "new", "due": NOW + DEAD_AGAIN_S, "since": 5},
            {},
            id="a dead letter waits for a month",
        ),
        pytest.param(
            {"failure": "HTTP 500", "reason": "new", "due": AHEAD + DEAD_AGAIN_S, "since": 5},
            {"due": NOW},
            id="but not for a year",
        ),
        pytest.param(
            {"crawled": NOW, "reason": "changed", "due": NOW + 7 * DAY_S, "since": 5},
            {},
            id="a cooldown",
        ),
    ],
)
def test_which_times_of_a_row_are_believed(values: dict[str, Any], after: dict[str, Any]) -> None:
    before = Row(7, **values)
    assert without_times_to_come(before, NOW) == before._replace(**after)


def test_leases_and_delays_follow_a_clock_of_redis_that_is_set_back(
    redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = Queue(redis_client, "releases", prefix="discogs", lease_s=600)
    offset = clock.OFFSET_S
    queue.push("changed", [1, 2, 3])
    monkeypatch.setattr(clock, "OFFSET_S", offset + YEAR_S)
    delayed, kept, _ = queue.claim("lost", 3)
    queue.delay(delayed, 3_600, count_attempt=True)
    monkeypatch.setattr(clock, "OFFSET_S", offset)
    assert queue.claim("other", 3) == []
    assert queue.renew([kept]) == {2}
    assert queue.delayed()[0].due == pytest.approx(clock.now() + 3_600, abs=60)
    monkeypatch.setattr(clock, "OFFSET_S", offset + 3_700)
    assert {lease.id for lease in queue.claim("other", 3)} == {1, 2, 3}


def test_a_copy_of_the_ledger_from_the_future_does_not_outlive_those_of_today(
    settings: Settings, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = dataclasses.replace(settings, database=world.ledger.path)
    world.seed(ids=[1])
    for day in (365, 366, 0):
        monkeypatch.setattr(clock, "OFFSET_S", day * DAY_S)
        copy = housekeeping.back_up(settings)
    assert copy is not None
    assert copy.exists()


def test_a_lock_from_the_future_is_stale(settings: Settings) -> None:
    repository = layouts.open_store(settings).repository
    lock = repository.path / "packed-refs.lock"
    lock.touch()
    stale_locks.remove_locks(repository)
    assert lock.exists()
    os.utime(lock, (time.time() + YEAR_S,) * 2)
    stale_locks.remove_locks(repository)
    assert not lock.exists()
