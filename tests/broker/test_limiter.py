"""All of the quota and never a 429, against a server that counts exactly, in virtual time."""

import collections
import heapq
import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from discogs_crawler import clock
from discogs_crawler.broker.limiter import Limiter, Permit

WINDOW_S = 60.0
START = 2_000_000_000.0


class World:
    """Virtual time, and an API that counts the requests of the last 60 s exactly."""

    def __init__(self, limit: int = 60, seed: int = 1) -> None:
        self.limit = limit
        self.chance = random.Random(seed)
        self.arrived: collections.deque[float] = collections.deque()
        self.log: list[tuple[float, int]] = []
        self.workers = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = itertools.count()
        self.now = START
        self.set_time(START)

    def set_time(self, now: float) -> None:
        self.now = now
        clock.OFFSET_S = now - time.time()

    def after(self, seconds: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._serial), do))

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            at, _, do = heapq.heappop(self._events)
            self.set_time(at)
            do()
        self.set_time(end)

    def request(self, ours: bool = True) -> tuple[int, int, int]:
        """Status, limit and remaining, as the API answers a request that arrives now."""
        while self.arrived and self.arrived[0] <= self.now - WINDOW_S:
            self.arrived.popleft()
        self.arrived.append(self.now)
        status = 200 if len(self.arrived) <= self.limit else 429
        if ours:
            self.log.append((self.now, status))
        return status, self.limit, max(0, self.limit - len(self.arrived))

    def statuses(self, since: float = 0) -> collections.Counter[int]:
        return collections.Counter(status for at, status in self.log if at >= START + since)

    def share(self, since: float, until: float) -> float:
        sent = sum(START + since <= at < START + until for at, _ in self.log)
        return sent / (self.limit * (until - since) / WINDOW_S)


class Worker:
    """A process with `threads` requests under way at most, each `latency` + jitter long."""

    def __init__(
        self, world: World, limiter: Limiter, *, threads: int = 2, latency: float = 0.4
    ) -> None:
        self.world, self.limiter, self.latency = world, limiter, latency
        self.idle, self.alive = threads, True
        world.workers += 1
        world.after(world.chance.random(), self.look)

    def look(self) -> None:
        if not self.alive:
            return
        if self.idle and (permit := self.limiter.lend(0)):
            self.idle -= 1
            self.world.after(self._half_way(), lambda: self._arrive(permit))
        self.world.after(0.08 * self.world.workers, self.look)

    def _half_way(self) -> float:
        return self.latency / 2 + self.world.chance.expovariate(8 / self.latency)

    def _arrive(self, permit: Permit) -> None:
        answer = self.world.request()
        self.world.after(self._half_way(), lambda: self._receive(permit, *answer))

    def _receive(self, permit: Permit, status: int, limit: int, remaining: int) -> None:
        if not self.alive:
            return
        self.idle += 1
        self.limiter.answered(permit, limit, remaining, "good" if status == 200 else "bad")
        if status == 429:
            self.limiter.pause("quota")


@pytest.fixture(autouse=True)
def _clock_as_it_was() -> Iterator[None]:
    offset = clock.OFFSET_S
    yield
    clock.OFFSET_S = offset


@pytest.fixture
def new_limiter(redis_client: redis.Redis) -> Callable[..., Limiter]:
    def make(identity: str = "shared", **extra: Any) -> Limiter:
        return Limiter(redis_client, identity, prefix="t", window_s=WINDOW_S, **extra)

    return make


New = Callable[..., Limiter]


def spend(world: World, limiter: Limiter) -> int:
    """Send one request after the other, at once answered, until no permit is left."""
    sent = 0
    while permit := limiter.lend(0):
        _, limit, remaining = world.request()
        limiter.answered(permit, limit, remaining, "good")
        sent += 1
        world.set_time(world.now + 0.55)
    return sent


def started(world: World, limiter: Limiter) -> None:
    """Let the first window pass, in which part of the quota is kept back."""
    permit = limiter.lend(0)
    assert permit is not None
    assert permit.probe == "start"
    _, limit, remaining = world.request()
    limiter.answered(permit, limit, remaining, "good")
    world.set_time(world.now + WINDOW_S + 1)


@pytest.mark.parametrize(
    ("workers", "limit", "latency", "share"),
    [
        (3, 60, 0.4, 0.98),
        pytest.param(1, 60, 0.4, 0.98, marks=pytest.mark.long),
        pytest.param(8, 60, 0.4, 0.98, marks=pytest.mark.long),
        pytest.param(3, 25, 0.4, 0.98, marks=pytest.mark.long),
        pytest.param(1, 60, 0.1, 0.99, marks=pytest.mark.long),
        pytest.param(8, 25, 0.1, 0.99, marks=pytest.mark.long),
        pytest.param(8, 60, 1.0, 0.95, marks=pytest.mark.long),
        pytest.param(1, 25, 1.0, 0.95, marks=pytest.mark.long),
    ],
)
def test_the_whole_quota_is_used_and_nothing_is_refused(
    new_limiter: New, workers: int, limit: int, latency: float, share: float
) -> None:
    world = World(limit)
    for _ in range(workers):
        Worker(world, new_limiter(), latency=latency)
    world.run(360)
    assert world.statuses()[429] == 0
    assert world.share(120, 360) >= share


def test_workers_that_join_or_die_with_permits_in_hand_cause_no_refusal(new_limiter: New) -> None:
    world = World()
    first = Worker(world, new_limiter(), threads=4)
    world.run(100)
    second = Worker(world, new_limiter(), threads=4)
    world.run(50)
    first.alive = False
    world.run(50)
    Worker(world, new_limiter())
    second.alive = False
    world.run(200)
    assert world.statuses()[429] == 0
    assert world.share(280, 400) >= 0.98


def test_the_permit_of_a_worker_that_died_comes_back_after_two_windows(new_limiter: New) -> None:
    world, limiter = World(limit=4), new_limiter()
    started(world, limiter)
    for _ in range(4):
        assert limiter.lend(0) is not None
        world.set_time(world.now + 8)
    world.set_time(world.now + 2 * WINDOW_S - 33)
    assert limiter.lend(0) is None
    world.set_time(world.now + 2)
    assert limiter.lend(0) is not None


def test_flushall_in_the_middle_causes_no_refusal(
    new_limiter: New, redis_client: redis.Redis
) -> None:
    world = World()
    for _ in range(8):
        Worker(world, new_limiter())
    for _ in range(4):
        world.run(53)
        redis_client.flushall()
    world.run(220)
    assert world.statuses()[429] == 0
    assert world.share(310, 430) >= 0.97


def test_the_first_request_alone_tells_how_many_may_follow(new_limiter: New) -> None:
    world, limiter = World(), new_limiter()
    for _ in range(20):
        world.request()  # by someone else on this address
    probe = limiter.lend(0)
    assert probe is not None
    assert probe.probe == "start"
    world.set_time(world.now + 1)
    assert limiter.lend(0) is None
    _, limit, remaining = world.request()
    limiter.answered(probe, limit, remaining, "good")
    world.set_time(world.now + 1)
    assert spend(world, limiter) == 60 - 20 - 1 - 3
    world.set_time(world.now + WINDOW_S)
    assert spend(world, limiter) >= 59


def test_a_first_request_that_dies_holds_the_others_up_for_one_window(new_limiter: New) -> None:
    world, limiter = World(), new_limiter()
    assert limiter.lend(0) is not None
    world.set_time(world.now + WINDOW_S - 1)
    assert limiter.lend(0) is None
    world.set_time(world.now + 1.1)
    second = limiter.lend(0)
    assert second is not None
    assert second.probe == "start"


@pytest.mark.parametrize("end", [Limiter.lost, Limiter.unused])
def test_a_first_request_without_an_answer_lets_the_next_ask_at_once(
    new_limiter: New, end: Callable[[Limiter, Permit], None]
) -> None:
    world, limiter = World(), new_limiter()
    first = limiter.lend(0)
    assert first is not None
    end(limiter, first)
    world.set_time(world.now + 3)
    second = limiter.lend(0)
    assert second is not None
    assert second.probe == "start"


def test_an_answer_without_counts_leaves_the_next_request_alone_too(new_limiter: New) -> None:
    world, limiter = World(), new_limiter()
    for _ in range(3):
        permit = limiter.lend(0)
        assert permit is not None
        assert permit.probe == "start"
        world.set_time(world.now + 2)
        assert limiter.lend(0) is None
        limiter.answered(permit, None, None, "poor")
    assert limiter.status().limit == 0


def test_answers_without_counts_change_nothing(new_limiter: New) -> None:
    world, limiter = World(), new_limiter()
    started(world, limiter)
    before = limiter.status()
    permit = limiter.lend(0)
    assert permit is not None
    limiter.answered(permit, None, None, "poor")
    limiter.answered(permit, None, 7, "poor")
    limiter.answered(permit, 7, None, "poor")
    assert limiter.status() == before._replace(ours=before.ours + 1)


def test_a_second_user_of_the_address_lowers_the_budget_and_gets_it_back(new_limiter: New) -> None:
    world = World()
    Worker(world, new_limiter())

    def someone_else() -> None:
        world.request(ours=False)
        if world.now < START + 300:
            world.after(4 + world.chance.random() * 4, someone_else)

    world.after(70, someone_else)
    world.run(300)
    assert world.statuses()[429] <= 3, "before we could know of them"
    assert world.statuses(since=160)[429] == 0
    assert 0.7 <= world.share(180, 300) <= 0.85, "they take 10 of 60"
    world.run(300)
    assert world.statuses(since=160)[429] == 0
    assert world.share(420, 600) >= 0.95, "two refusals cost two permits for an hour"


def test_a_lowered_limit_is_kept_from_the_first_answer_that_tells_of_it(new_limiter: New) -> None:
    world = World(60)
    Worker(world, new_limiter())
    world.run(150)
    world.limit = 25
    world.run(300)
    refused = world.statuses(since=150)[429]
    assert refused <= 2, "those that were under way"
    assert world.statuses(since=220)[429] == 0
    assert 0.9 <= world.share(330, 450) <= 1
    world.limit = 60
    world.run(200)
    assert world.share(530, 650) >= 0.94


def test_a_429_stops_everybody_then_one_asks_alone(new_limiter: New) -> None:
    world, limiter, other = World(), new_limiter(), new_limiter()
    started(world, limiter)
    under_way = [limiter.lend(0), (world.set_time(world.now + 1), other.lend(0))[1]]
    assert None not in under_way
    for permit in under_way:
        assert permit is not None
        limiter.answered(permit, None, None, "bad")
    pauses = [limiter.pause("quota"), other.pause("quota")]
    assert pauses == pytest.approx([10, 10], abs=0.1), "two refusals of one moment are one pause"
    world.set_time(world.now + 9.8)
    assert other.lend(0) is None
    world.set_time(world.now + 0.3)
    probe = other.lend(0)
    assert probe is not None
    assert probe.probe == "quota"
    world.set_time(world.now + 1)
    assert limiter.lend(0) is None
    other.answered(probe, 60, 40, "good")
    world.set_time(world.now + 1)
    following = limiter.lend(0)
    assert following is not None
    assert following.probe == ""


def refuse(world: World, limiter: Limiter, **extra: Any) -> float:
    permit = limiter.lend(0)
    assert permit is not None
    limiter.answered(permit, None, None, "bad")
    pause = limiter.pause("quota", **extra)
    world.set_time(world.now + pause + 1)
    return pause


def test_pauses_double_up_to_a_window_until_a_request_passes(new_limiter: New) -> None:
    world, limiter = World(), new_limiter()
    started(world, limiter)
    pauses = [refuse(world, limiter) for _ in range(5)]
    assert pauses == pytest.approx([10, 20, 40, 60, 60])
    permit = limiter.lend(0)
    assert permit is not None
    limiter.answered(permit, 60, 50, "good")
    world.set_time(world.now + 1)
    assert refuse(world, limiter) == pytest.approx(10)


def test_an_outage_pauses_from_one_window_to_fifteen(new_limiter: New) -> None:
    world, limiter = World(), new_limiter()
    started(world, limiter)
    pauses = []
    for _ in range(6):
        permit = limiter.lend(0)
        assert permit is not None
        limiter.answered(permit, 60, 50, "poor")
        pauses.append(limiter.pause("outage"))
        world.set_time(world.now + pauses[-1] + 1)
    assert pauses == pytest.approx([60, 120, 240, 480, 900, 900])


def test_retry_after_is_honoured_within_reason(new_limiter: New) -> None:
    world, limiter = World(), new_limiter()
    started(world, limiter)
    assert refuse(world, limiter, seconds=300) == pytest.approx(300)
    assert refuse(world, limiter, seconds=10**6) == pytest.approx(7_200)


def test_after_a_429_one_permit_fewer_is_lent_until_a_clean_hour_has_passed(
    new_limiter: New,
) -> None:
    world, limiter = World(), new_limiter()
    started(world, limiter)
    refuse(world, limiter)
    assert limiter.status().limit == 59
    refuse(world, limiter)
    assert limiter.status().limit == 58
    world.set_time(world.now + 3_601)
    assert limiter.status().limit == 59
    world.set_time(world.now + 3_601)
    assert limiter.status().limit == 60


def test_one_request_at_least_is_lent_however_often_we_were_refused(new_limiter: New) -> None:
    world, limiter = World(), new_limiter()
    started(world, limiter)
    for _ in range(4):
        refuse(world, limiter)
    permit = limiter.lend(0)
    assert permit is not None
    limiter.answered(permit, 3, 2, "good")
    assert limiter.status().limit == 1
    world.set_time(world.now + 2 * WINDOW_S + 1)
    assert limiter.lend(0) is not None


def test_refusals_beyond_the_limit_are_forgiven_as_fast_as_the_others(new_limiter: New) -> None:
    world, limiter = World(limit=2), new_limiter()
    started(world, limiter)
    for _ in range(4):
        refuse(world, limiter)
        world.set_time(world.now + WINDOW_S + 1)
    assert limiter.status().limit == 1
    world.set_time(world.now + 3_602)
    assert limiter.status().limit == 2


def test_our_own_limit_holds_below_that_of_the_api(new_limiter: New) -> None:
    world, limiter = World(), new_limiter(limit=10)
    started(world, limiter)
    assert spend(world, limiter) == 10
    world.set_time(world.now + WINDOW_S + 1)
    assert spend(world, new_limiter(limit=1_000)) == 60


def test_a_request_that_got_no_answer_counts_for_two_windows(new_limiter: New) -> None:
    world, limiter = World(limit=1), new_limiter()
    started(world, limiter)
    permit = limiter.lend(0)
    assert permit is not None
    world.set_time(world.now + 30)
    limiter.lost(permit)
    world.set_time(world.now + 119)
    assert limiter.lend(0) is None
    world.set_time(world.now + 2)
    assert limiter.lend(0) is not None


def test_a_permit_that_was_not_used_can_be_lent_at_once(new_limiter: New) -> None:
    world, limiter = World(limit=1), new_limiter()
    started(world, limiter)
    permit = limiter.lend(0)
    assert permit is not None
    limiter.unused(permit)
    world.set_time(world.now + 31)
    assert limiter.lend(0) is not None


def test_a_permit_goes_stale_in_a_frozen_process(
    new_limiter: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    limiter = new_limiter()
    permit = limiter.lend(0)
    assert permit is not None
    assert limiter.usable(permit)
    monkeypatch.setattr(time, "monotonic", lambda: permit.asked + 5.1)
    assert not limiter.usable(permit)


def test_identities_do_not_share(new_limiter: New) -> None:
    world = World()
    started(world, new_limiter("one"))
    spend(world, new_limiter("one"))
    permit = new_limiter("two").lend(0)
    assert permit is not None
    assert permit.probe == "start"


def test_the_clock_of_this_machine_does_not_matter(
    new_limiter: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, limiter = World(), new_limiter()
    started(world, limiter)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    permit = limiter.lend(0)
    assert permit is not None
    assert permit.lent_at == pytest.approx(world.now, abs=1)


def test_a_clock_of_redis_that_was_set_back_does_not_stop_us(new_limiter: New) -> None:
    world, limiter = World(), new_limiter()
    started(world, limiter)
    spend(world, limiter)
    world.set_time(world.now - 86_400)
    permit = limiter.lend(0)
    assert permit is not None
    assert permit.probe == "start"


def test_a_pause_is_as_long_as_any_after_the_clock_of_redis_was_set_back(new_limiter: New) -> None:
    world, limiter = World(), new_limiter()
    started(world, limiter)
    refuse(world, limiter, seconds=300)
    world.set_time(world.now - 86_400)
    assert limiter.pause("outage") == pytest.approx(60)


def test_lending_waits_for_the_moment_a_permit_is_free(redis_client: redis.Redis) -> None:
    limiter = Limiter(redis_client, "real", prefix="t", window_s=0.4)
    permit = limiter.lend(1)
    assert permit is not None
    limiter.answered(permit, 1, 0, "good")
    began = time.monotonic()
    assert limiter.lend(0.1) is None
    assert limiter.lend(5) is not None
    assert 0.35 <= time.monotonic() - began < 2


def test_lending_sleeps_until_a_permit_is_free_and_no_longer(
    new_limiter: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, limiter = World(limit=2), new_limiter()
    started(world, limiter)
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        world.set_time(world.now + seconds)

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: world.now)
    began = world.now
    for remaining in (1, 0):
        permit = limiter.lend(20)
        assert permit is not None
        limiter.answered(permit, 2, remaining, "good")
    assert world.now - began == pytest.approx(15, abs=0.5), "twice as fast as on average"
    began = world.now
    assert limiter.lend(44) is None
    assert world.now - began == pytest.approx(44)
    assert limiter.lend(1.5) is not None
    assert world.now - began == pytest.approx(45, abs=0.5)
    assert len(slept) <= 10, "asking Redis is not for nothing"


def test_a_thread_that_waits_long_does_not_hold_up_one_that_does_not(new_limiter: New) -> None:
    limiter = new_limiter()
    assert limiter.lend(0) is not None
    patient = threading.Thread(target=limiter.lend, args=[1])
    patient.start()
    assert limiter.lend(0.05) is None
    assert patient.is_alive()
    patient.join()


def test_nothing_is_kept_of_an_identity_that_nobody_uses(redis_client: redis.Redis) -> None:
    limiter = Limiter(redis_client, "x", prefix="t", window_s=60)
    permit = limiter.lend(0)
    assert permit is not None
    limiter.answered(permit, 60, 10, "good")
    keys = list(redis_client.scan_iter("*"))
    assert len(keys) == 3
    assert all(86_000 < redis_client.ttl(key) <= 86_400 for key in keys)
    redis_client.flushall()
    limiter.answered(permit, 60, 10, "good")
    assert [redis_client.ttl(key) > 86_000 for key in redis_client.scan_iter()] == [True]


def test_permits_that_came_back_long_ago_take_no_room(
    new_limiter: New, redis_client: redis.Redis
) -> None:
    world, limiter = World(limit=20), new_limiter()
    for _ in range(4):
        world.request(ours=False)
    started(world, limiter)
    assert redis_client.zcard("{t}:rate:shared:foreign") == 4
    spend(world, limiter)
    world.set_time(world.now + 2 * WINDOW_S + 1)
    assert limiter.lend(0) is not None
    assert redis_client.zcard("{t}:rate:shared:permits") == 1
    assert redis_client.zcard("{t}:rate:shared:foreign") == 0


@pytest.mark.parametrize(
    "command",
    [
        ("HSET", "state", "paused_until", "1e300"),
        ("HSET", "state", "probe_until", "1e300"),
        ("HSET", "state", "paused_until", "nan"),
        ("ZADD", "permits", *(word for n in range(60) for word in ("+inf", f"stranger-{n}"))),
        ("ZADD", "foreign", *(word for n in range(60) for word in ("1e300", f"stranger-{n}"))),
    ],
    ids=lambda command: f"{command[1]} {command[2]}",
)
def test_what_a_stranger_wrote_does_not_stop_us_for_ever(
    new_limiter: New, redis_client: redis.Redis, command: tuple[str, ...]
) -> None:
    limiter = new_limiter()
    first = limiter.lend(0)
    assert first
    limiter.answered(first, 60, 59, "good")
    clock.OFFSET_S += 5
    (state,) = redis_client.keys("*:state")
    name, key, *values = command
    redis_client.execute_command(name, state.decode().replace("state", key), *values)
    assert limiter.lend(0)
