"""The queue does what a few Python sets do, whatever is done to it in whatever order."""

import contextlib
import hashlib
import itertools
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import hypothesis
import hypothesis.strategies as st
import pytest
import redis
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from discogs_crawler import clock, config
from discogs_crawler.broker import private_server, queue
from discogs_crawler.broker.connect import connect
from discogs_crawler.broker.messages import CLASSES, Lease, Result
from discogs_crawler.broker.queue import Queue
from discogs_crawler.records import MAX_ID, SEGMENT_SIZE
from tests.queue_audit import places

LEASE_S = 1_000

# Fewer than in earnest: a short run should get there.
SUSPICIOUS, FATAL = 2, 3

# Both ends of bytes, of segments and of all ids.
EDGES = (1, 2, 6, 7, 8, 9, 15, 16, 999_992, 999_999, 1_000_000, 1_000_001, 1_000_007, 1_000_008)
EDGES += (1_999_999, 2_000_000, 2_500_003, 38_000_000, MAX_ID - 8, MAX_ID)
SEGMENTS = sorted({record_id // SEGMENT_SIZE for record_id in EDGES})

IDS = st.lists(st.sampled_from(EDGES), min_size=1, max_size=12)
SOME = st.sets(st.integers(0, 19), min_size=1, max_size=6)
STEPS_S = st.sampled_from([10, 300, 600, 1_000, 5_000])


class Worker(NamedTuple):
    owner: str
    branch: str


WORKERS = (
    Worker("box:1", ""),
    Worker("box:2", ""),
    Worker("far box:3", "east"),
    Worker("b:4", "w"),
)


class _Held(NamedTuple):
    reason: str
    owner: str
    token: str
    lapses: int
    order: int
    """of those that lapse at once"""


def _lapsing(item: tuple[int, _Held]) -> tuple[int, int, str]:
    """What leases are ordered by: when they lapse, then as Redis does, the digits of their ids."""
    return item[1].lapses, item[1].order, str(item[0])


class QueueModel(RuleBasedStateMachine):
    """The queue beside plain sets: `now` of the sets is moved by hand, and Redis's with it."""

    connect: Callable[[], redis.Redis]
    kill_server: Callable[[], None]

    @initialize()
    def begin(self) -> None:
        clock.OFFSET_S = 0
        self.client = self.connect()
        self.client.flushall()
        self._empty()
        self.now = 0
        self.ever: list[Lease] = []
        self.order = itertools.count()
        self.cursor = ("", "0")
        self.queues = {worker: self._queue() for worker in WORKERS}
        self.last: dict[Worker, int | None] = dict.fromkeys(WORKERS)
        self.queue = self.queues[WORKERS[0]]

    def _queue(self) -> Queue:
        return Queue(self.client, "releases", prefix="t", lease_s=LEASE_S)

    def _empty(self) -> None:
        self.pending: dict[str, set[int]] = {reason: set() for reason in CLASSES}
        self.leased: dict[int, _Held] = {}
        self.delayed: dict[int, tuple[str, int]] = {}
        self.reported: list[int] = []
        self.attempts: dict[int, int] = {}
        self.lapses: Counter[int] = Counter()
        self.branches: dict[int, str] = {}
        self.frozen: set[int] = set()

    def teardown(self) -> None:
        clock.OFFSET_S = 0

    def _known(self) -> set[int]:
        return {*self.leased, *self.delayed, *self.reported}.union(*self.pending.values())

    @rule(reason=st.sampled_from(CLASSES), ids=IDS)
    def push(self, reason: str, ids: list[int]) -> None:
        lower = CLASSES[CLASSES.index(reason) + 1 :]
        gained = set(ids) - self._known()
        gained |= {i for i in ids for name in lower if i in self.pending[name]}
        assert self.queue.count(reason, ids) == len(gained)
        assert self.queue.push(reason, ids) == len(gained)
        for name in lower:
            self.pending[name] -= gained
        self.pending[reason] |= gained

    @rule(reason=st.sampled_from(CLASSES), start=st.sampled_from(EDGES), length=st.integers(1, 99))
    def push_a_run(self, reason: str, start: int, length: int) -> None:
        self.push(reason, list(range(start, min(start + length, MAX_ID + 1))))

    @rule(ids=IDS)
    def promote(self, ids: list[int]) -> None:
        raised = {i for i in ids if i not in self._known() or i in self.delayed}
        raised |= {i for i in ids for reason in CLASSES[1:] if i in self.pending[reason]}
        assert self.queue.promote(ids) == len(raised)
        for record_id in raised:
            self.delayed.pop(record_id, None)
        for reason in CLASSES:
            self.pending[reason] -= raised
        self.pending["manual"] |= raised

    @precondition(lambda self: any(self.pending.values()))
    @rule(worker=st.sampled_from(WORKERS), count=st.integers(1, 20), where=st.none() | SOME)
    def claim(self, worker: Worker, count: int, where: set[int] | None) -> None:
        segments = where and {SEGMENTS[i % len(SEGMENTS)] for i in where}
        if segments != set():
            self._sweep()
        expected = self._next(worker, count, segments)
        leases = self.queues[worker].claim(worker.owner, count, segments, worker.branch)
        assert [(lease.id, lease.reason) for lease in leases] == expected
        assert [lease.attempts for lease in leases] == [
            self.attempts.get(lease.id, 0) for lease in leases
        ]
        assert not {lease.token for lease in leases} & {lease.token for lease in self.ever}
        self.ever += leases
        order = next(self.order)
        for lease in leases:
            self.pending[lease.reason].remove(lease.id)
            lapses = self.now + LEASE_S
            held = _Held(lease.reason, worker.owner, lease.token, lapses, order)
            self.leased[lease.id] = held
            self.last[worker] = lease.id // SEGMENT_SIZE
            if worker.branch:
                self.branches[lease.id // SEGMENT_SIZE] = worker.branch

    def _sweep(self) -> None:
        for record_id, held in sorted(self.leased.items(), key=_lapsing):
            if held.lapses <= self.now:
                del self.leased[record_id]
                self._lapse(record_id, held.reason)
        for record_id, (reason, due) in list(self.delayed.items()):
            if due <= self.now:
                self.pending[reason].add(record_id)
                del self.delayed[record_id]

    def _lapse(self, record_id: int, reason: str) -> None:
        self.lapses[record_id] += 1
        number = self.lapses[record_id]
        if number < SUSPICIOUS:
            self.pending[reason].add(record_id)
        elif number < FATAL:
            digest = hashlib.sha1(f"{record_id} {number}".encode()).hexdigest()
            self.delayed[record_id] = (reason, self.now + int(digest[:6], 16) % (6 * LEASE_S))
        else:
            del self.lapses[record_id]
            self.attempts.pop(record_id, None)
            self.reported.append(record_id)

    def _next(self, worker: Worker, count: int, segments: set[int] | None) -> list[tuple[int, str]]:
        others = [i // SEGMENT_SIZE for i, h in self.leased.items() if h.owner != worker.owner]
        for reason in CLASSES:
            there = {record_id // SEGMENT_SIZE for record_id in self.pending[reason]}
            open_ = [
                segment
                for segment in there
                if (segments is None or segment in segments)
                and segment not in self.frozen
                and self.branches.get(segment, "" if segment in others else worker.branch)
                == worker.branch
            ]
            if open_:
                best = min(
                    open_,
                    key=lambda s: (s in others, s != self.last[worker], others.count(s), s),
                )
                ids = sorted(i for i in self.pending[reason] if i // SEGMENT_SIZE == best)
                return [(record_id, reason) for record_id in ids[:count]]
        return []

    def _ours(self, leases: list[Lease]) -> set[int]:
        return {
            lease.id
            for lease in leases
            if lease.id in self.leased
            and self.leased[lease.id].token == lease.token
            and self.leased[lease.id].lapses > self.now
        }

    def _leases(self, some: set[int]) -> list[Lease]:
        """Some of the leases that were ever given: those that should hold first, the newest first.

        Without that order nearly all of what a short run tries would be refused.
        """
        held = {holder.token for holder in self.leased.values()}
        order = self.ever[::-1]
        order.sort(key=lambda lease: lease.token not in held)
        return list(dict.fromkeys(order[i % len(order)] for i in sorted(some)))

    @precondition(lambda self: self.ever)
    @rule(some=SOME)
    def renew(self, some: set[int]) -> None:
        leases = self._leases(some)
        ours = self._ours(leases)
        assert self.queue.renew(leases) == ours
        later = {"lapses": self.now + LEASE_S, "order": next(self.order)}
        for record_id in ours:
            self.leased[record_id] = self.leased[record_id]._replace(**later)

    @precondition(lambda self: self.ever)
    @rule(some=SOME)
    def give_back(self, some: set[int]) -> None:
        leases = self._leases(some)
        ours = self._ours(leases)
        assert self.queue.give_back(leases) == len(ours)
        for record_id in ours:
            self.pending[self.leased.pop(record_id).reason].add(record_id)

    @precondition(lambda self: self.ever)
    @rule(some=SOME, outcome=st.sampled_from(["stored", "gone", "merged", "dead"]))
    def complete(self, some: set[int], outcome: str) -> None:
        leases = self._leases(some)
        ours = self._ours(leases)
        pairs = [(lease, Result(lease.id, lease.reason, outcome)) for lease in leases]
        assert self.queue.complete(pairs) == ours
        for lease in leases:
            if self._ours([lease]):
                del self.leased[lease.id]
                self.attempts.pop(lease.id, None)
                self.lapses.pop(lease.id, None)
                self.reported.append(lease.id)

    @precondition(lambda self: self.ever)
    @rule(index=st.integers(0, 9), seconds=STEPS_S, count_attempt=st.booleans())
    def delay(self, index: int, seconds: int, count_attempt: bool) -> None:
        for lease in self._leases({index}):
            ours = bool(self._ours([lease]))
            assert self.queue.delay(lease, seconds, count_attempt=count_attempt) == ours
            if ours:
                reason = self.leased.pop(lease.id).reason
                self.lapses.pop(lease.id, None)
                self.delayed[lease.id] = (reason, self.now + seconds)
                if count_attempt:
                    self.attempts[lease.id] = self.attempts.get(lease.id, 0) + 1

    @rule(seconds=STEPS_S)
    def time_passes(self, seconds: int) -> None:
        self.now += seconds
        clock.OFFSET_S += seconds

    @precondition(lambda self: self.reported)
    @rule(count=st.integers(1, 9), dies=st.booleans())
    def read_results(self, count: int, dies: bool) -> None:
        """As the ledger does: forget what is stored, read on, store; it may die before the next."""
        generation, after = self.cursor
        found, entries = self.queue.results(after, count)
        if found != generation:
            generation, after = found, "0"
            _, entries = self.queue.results(after, count)
        self.queue.forget(generation, after)
        self.reported = self.reported[len(self.reported) - self.queue.unread() :]
        ids = [result.id for _, result in entries]
        assert ids == self.reported[:count]
        after = entries[-1][0] if entries else after
        self.cursor = (generation, after)
        if not dies:
            assert self.queue.forget("another generation", after) == 0
            assert self.queue.forget(generation, after) == len(ids)
            del self.reported[: len(ids)]

    @precondition(lambda self: self.branches)
    @rule(branch=st.sampled_from(["east", "w"]))
    def freeze(self, branch: str) -> None:
        self._sweep()
        busy = {record_id // SEGMENT_SIZE for record_id in self.leased}
        idle = {s for s, name in self.branches.items() if name == branch and s not in busy}
        assert self.queue.freeze_segments(branch) == idle
        self.frozen |= idle

    @precondition(lambda self: self.frozen)
    @rule(branch=st.sampled_from(["east", "w"]))
    def release(self, branch: str) -> None:
        freed = {segment for segment in self.frozen if self.branches[segment] == branch}
        assert self.queue.release_segments(branch) == freed
        self.frozen -= freed
        for segment in freed:
            del self.branches[segment]

    @precondition(lambda self: len(self.ever) > 8)
    @rule()
    def flush_all(self) -> None:
        before = self._known()
        self.client.flushall()
        self.client.script_flush()
        self._empty()
        self.push("new", sorted(before))

    @precondition(lambda self: len(self.ever) > 5 and len(self.ever) % 8 == 0)
    @rule()
    def restart_the_server(self) -> None:
        self.kill_server()

    @invariant()
    def all_ids_are_where_the_sets_say(self) -> None:
        found = places(self.client, "{t}:releases")
        assert found.pending == {
            record_id: reason for reason, ids in self.pending.items() for record_id in ids
        }
        assert found.leased == {i: (held.reason, held.owner) for i, held in self.leased.items()}
        assert found.delayed == {i: reason for i, (reason, _) in self.delayed.items()}
        assert found.reported == self.reported
        assert found.attempts == self.attempts
        assert found.lapses == self.lapses
        assert found.branches == self.branches
        assert found.frozen == self.frozen


def test_the_queue_does_what_sets_would_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "SUSPICIOUS_LAPSES", SUSPICIOUS)
    monkeypatch.setattr(queue, "FATAL_LAPSES", FATAL)
    settings = config.load(environ={"ENV_FILE": os.devnull, "STATE_DIR": str(tmp_path)})

    def connected() -> redis.Redis:
        client = connect(settings)
        client.config_set("appendfsync", "always")
        return client

    def kill_server(machine: QueueModel) -> None:
        os.kill(int((tmp_path / "redis" / "redis.pid").read_text()), signal.SIGKILL)
        machine.client.ping()  # until it has loaded its file
        machine.client.config_set("appendfsync", "always")

    machine = type("Machine", (QueueModel,), {"connect": staticmethod(connected)})
    machine.kill_server = kill_server
    longer = hypothesis.settings.get_current_profile_name() == "long"
    try:
        run_state_machine_as_test(
            machine,
            settings=hypothesis.settings(
                max_examples=500 if longer else 20, stateful_step_count=30, deadline=None
            ),
        )
    finally:
        with contextlib.suppress(Exception):
            private_server.stop(settings)
