"""Random histories of Discogs, its dumps, our requests and our misfortunes, against a model."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import redis
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from discogs_crawler import clock
from discogs_crawler.broker.messages import IMPATIENT, Lease, Result
from discogs_crawler.clock import DAY_S
from discogs_crawler.seeding import ingest
from tests.seeding_world import COOLDOWN_S, World, queue_of, row

IDS = st.integers(1, 9)


class _Killed(Exception):
    """We were killed."""


def _die(*arguments: object) -> None:
    raise _Killed


class History(RuleBasedStateMachine):
    """Months in the life of a crawler.

    The model: whatever upstream was when the last dump was taken is what the store has once all
    that was wanted has been fetched; and each request had a cause that was not answered yet.
    """

    client: redis.Redis

    @initialize(imported=st.booleans())
    def begin(self, imported: bool) -> None:
        self.client.flushall()
        self._offset = clock.OFFSET_S
        self._folder = tempfile.TemporaryDirectory()
        self.world = World(Path(self._folder.name), self.client)
        self.world.upstream = {n: f"record {n}" for n in (1, 2, 3, 5, 6)}
        self.edits = 0
        self.deleted: dict[int, str] = {}
        self.answered: dict[int, int] = {}
        self.unread: dict[int, int] = {}
        self.causes: dict[int, int] = {}
        self.known: dict[int, str] = {}
        self.manual: set[int] = set()
        self.in_flight: list[tuple[Lease, Result]] = []
        self.lost: set[int] = set()
        self.take_dump()
        if imported:
            self._import_the_first_dump()
        else:
            self.seed_with_the_dump(False)

    def _import_the_first_dump(self) -> None:
        """The store has all of it, and nothing is wanted from the API."""
        path, self.known, not_after = self.dump
        self.world.pass_time(not_after + 3600 - int(clock.now()))
        self._seed(path, adopt=True)
        self.world.store.update(self.known)
        known = self.world.ledger.rows("releases", self.known)
        with self.world.ledger.transaction():
            self.world.ledger.save(
                "releases", [row._replace(imported=row.dump) for row in known.values()]
            )

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            self._finish()
        finally:
            self.world.close()
            self._folder.cleanup()
            clock.OFFSET_S = self._offset

    @rule(record_id=IDS)
    def edit(self, record_id: int) -> None:
        self.edits += 1
        self.world.upstream[record_id] = f"edit {self.edits}"
        self.world.pass_time(7)

    @precondition(lambda self: len(self.world.upstream) > 3)
    @rule(record_id=IDS)
    def delete(self, record_id: int) -> None:
        if record_id in self.world.upstream:
            self.deleted[record_id] = self.world.upstream.pop(record_id)
        self.world.pass_time(7)

    @rule(record_id=IDS)
    def revive(self, record_id: int) -> None:
        """A deleted record comes back as it was.

        An edit that is fetched and undone before the next dump is not in the model: both dumps
        have the same hash, so only a refresh can tell.
        """
        if record_id not in self.world.upstream:
            self.world.upstream[record_id] = self.deleted.get(record_id, f"record {record_id}")
        self.world.pass_time(7)

    @rule(hours=st.sampled_from([1, 13, 30, 24 * 8]))
    def wait(self, hours: int) -> None:
        self.world.pass_time(hours * 3600)

    @rule()
    def take_dump(self) -> None:
        self.dump = self.world.dump(), dict(self.world.upstream), int(clock.now()) + 10 * 3600
        self.world.pass_time(7)

    @rule(interrupted=st.booleans())
    def seed_with_the_dump(self, interrupted: bool) -> None:
        """Hours or weeks after it was taken; it may be killed when all but the end is done."""
        path, contents, not_after = self.dump
        self.world.pass_time(max(0, not_after + 3600 - int(clock.now())))
        for record_id in self.known.keys() | contents.keys() | self.world.store.keys():
            self.causes[record_id] = max(not_after, self.causes.get(record_id, 0))
        if interrupted:
            with pytest.raises(_Killed), pytest.MonkeyPatch.context() as patch:
                patch.setattr(ingest, "accept", _die)
                self._seed(path)
                raise _Killed  # it was accepted before
            return
        self._seed(path)
        self.known = contents

    @rule(discover=st.sampled_from([0, 3]), retry_dead=st.booleans())
    def daily(self, discover: int, retry_dead: bool) -> None:
        self._seed(None, discover=discover, retry_dead=retry_dead)

    @rule(ids=st.lists(IDS, min_size=1, max_size=3))
    def by_hand(self, ids: list[int]) -> None:
        self.manual.update(ids)
        self._seed(None, ids=ids)

    @rule(number=st.integers(1, 4))
    def refresh(self, number: int) -> None:
        """Now or before, the oldest copies beyond their cooldown have come to be wanted."""
        cooled = int(clock.now()) - COOLDOWN_S
        self._seed(None, refresh=number)
        rows = self.world.ledger.select("releases", "TRUE ORDER BY ifnull(crawled, 0), id")
        oldest = [row for row in rows if row.stored and (row.crawled or 0) <= cooled]
        assert all(row.reason for row in oldest[:number])

    def _seed(self, path: Path | None, **request: object) -> None:
        self.world.pass_time(7)
        self.world.seed(path, force=True, **request)
        self.answered |= self.unread
        self.unread.clear()

    @rule(count=st.integers(1, 9), fails=st.booleans())
    def crawl(self, count: int, fails: bool = False) -> None:
        self.start_fetching(count, fails)
        self.report()

    @precondition(lambda self: not self.in_flight)
    @rule(count=st.integers(1, 9), fails=st.booleans())
    def start_fetching(self, count: int, fails: bool = False) -> None:
        """Requests are sent and answered now; the worker reports them when it likes to."""
        self.report()
        self.world.pass_time(7)
        now = int(clock.now())
        for lease in self.world.claim(count):
            self._judge(lease.id, lease.reason, now)
            if fails and lease.id % 3 == 0:
                result = Result(lease.id, lease.reason, "dead", 500, now, failure="HTTP 500")
            else:
                result = self.world.answer(lease, now)
            self.in_flight.append((lease, result))

    @rule()
    def report(self) -> None:
        accepted = queue_of(self.client).complete(self.in_flight)
        for lease, result in self.in_flight:
            if lease.id not in accepted:
                self.lost.add(lease.id)
            elif result.outcome != "dead":
                self.unread[lease.id] = result.fetched
        self.in_flight = []

    @precondition(lambda self: not self.in_flight)
    @rule(record_id=IDS)
    def overtake(self, record_id: int) -> None:
        """A dump with a new edit is seeded while an older answer is on its way."""
        self.by_hand([record_id])
        self.start_fetching(9)
        self.edit(record_id)
        self.take_dump()
        self.seed_with_the_dump(False)
        self.report()

    def _judge(self, record_id: int, reason: str, now: int) -> None:
        """Nothing is asked twice within its cooldown, or when no dump is newer than the answer."""
        last = self.answered.get(record_id)
        if last is None or reason in IMPATIENT:
            if reason == "manual":
                assert record_id in self.manual
            return
        assert now - last >= COOLDOWN_S, f"{record_id} asked again within its cooldown"
        if reason != "refresh":
            assert self.causes[record_id] >= last, f"{record_id} asked again without a reason"

    @rule()
    def lose_redis(self) -> None:
        self.client.flushall()
        self.lost.update(self.unread)
        self.unread.clear()

    @rule()
    def lose_the_accepted_file(self) -> None:
        for path in self.world.folder.glob("crawler.db.*.hashes"):
            path.unlink()

    def _finish(self) -> None:
        """No more edits: a last dump, and daily runs until nothing is wanted."""
        self.report()
        self.world.pass_time(DAY_S)
        upstream = dict(self.world.upstream)
        self.take_dump()
        self.seed_with_the_dump(False)
        for _ in range(12):
            self._seed(None)
            while self._crawl_once():
                pass
            self.world.pass_time(8 * DAY_S)
        self._seed(None)
        assert self.world.wanted() == {}
        # A record whose only answer was lost with Redis, and that then went away before any dump
        # had it, is in the store without the ledger's knowledge: maintain_store.py --check says so.
        for record_id in self.lost - upstream.keys():
            if not row(self.world.ledger, record_id).stored:
                self.world.store.pop(record_id, None)
        assert self.world.store == upstream
        self._check_counts()

    def _crawl_once(self) -> bool:
        self.start_fetching(20)
        found = bool(self.in_flight)
        self.report()
        return found

    def _check_counts(self) -> None:
        """What the triggers kept is what counting gives."""
        counted = self.world.ledger.db.execute(
            "SELECT state, dump IS NOT NULL, ifnull(reason, ''), count(*) FROM releases "
            "GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
        ).fetchall()
        kept = self.world.ledger.db.execute(
            "SELECT state, in_dump, reason, sum(records) FROM counts "
            "GROUP BY 1, 2, 3 HAVING sum(records) ORDER BY 1, 2, 3"
        ).fetchall()
        assert kept == counted
        ages = self.world.ledger.db.execute(
            "SELECT day, records FROM ages WHERE records ORDER BY day"
        ).fetchall()
        assert (
            ages
            == self.world.ledger.db.execute(
                "SELECT alive / 86400, count(*) FROM releases WHERE state = 'stored' "
                "GROUP BY 1 ORDER BY 1"
            ).fetchall()
        )


@pytest.fixture
def still_clock() -> Iterator[None]:
    offset = clock.OFFSET_S
    yield
    clock.OFFSET_S = offset


def test_whatever_the_last_dump_says_is_asked_for_and_nothing_is_asked_for_in_vain(
    redis_client: redis.Redis, still_clock: None, request: pytest.FixtureRequest
) -> None:
    History.client = redis_client
    long = request.config.getoption("--long")
    run_state_machine_as_test(
        History,
        settings=hypothesis.settings(
            max_examples=400 if long else 12,
            stateful_step_count=40,
            deadline=None,
            phases=[hypothesis.Phase.generate] if not long else list(hypothesis.Phase),
        ),
    )
