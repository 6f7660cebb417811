"""A year of crawling in a minute: which policy keeps the copy freshest for the fewest requests?

    python -m tests.bench.policy [--scale 200] [--seed 1] [--sweep]

Simulates Discogs in virtual time, scaled down by --scale (records, edits and quota alike, so shares
and days stay true), and lets four policies crawl it for a year, once from a complete copy and once
from nothing. Rates: 19.5 million releases, 2.6 thousand new ones a day among 8.3 thousand new
numbers (one in ten appears up to a month after its number), 5.3 thousand edits a day (half of them
within a month of the release's creation), 330 retirements a day, 86,400 requests a day; a dump on
the first of each month, of which one is missing and one is truncated and so refused.

Staleness of a release is the days since the first change that the copy does not have; wasted is the
share of requests whose answer changed nothing.
"""

import argparse
import bisect
import heapq
import itertools
import random
import statistics
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

RELEASES = 19_500_000
NUMBERS_A_DAY = 8_333
NEW_SHARE = 0.31
LATE_SHARE = 0.1
LATE_DAYS = 30
EDITS_A_DAY = 5_333
YOUNG_EDIT_SHARE = 0.5
YOUNG_DAYS = 30
RETIRED_A_DAY = 330
REQUESTS_A_DAY = 86_400
DAYS = 365
DUMP_EVERY_DAYS = 30
MISSING_DUMP, TRUNCATED_DUMP = 4, 8
REPROBE_DAYS = (7, 30)


class Release:
    """A release upstream and what the copy has of it; times in days, None: never."""

    __slots__ = ("born", "edited", "fetched", "gone", "stale_since")

    def __init__(self, born: float) -> None:
        self.born = born
        self.gone = False
        self.edited = born
        self.fetched: float | None = None
        self.stale_since: float | None = born


class Outcome(NamedTuple):
    """What a policy achieved in a year."""

    mean_days: float
    p90_days: float
    stale_share: float
    new_seen_days: float
    requests: int
    wasted_share: float


class World:
    """Upstream and the copy: numbers in ascending order, of which some are releases."""

    def __init__(self, scale: int, complete: bool, rng: random.Random) -> None:
        self.rng = rng
        self.scale = scale
        self.releases: dict[int, Release] = {}
        self.young: deque[int] = deque()
        self.numbers: list[int] = []
        self.top = 0
        self.today = 0.0
        self.late: list[tuple[float, int]] = []
        self.seen_after: list[float] = []
        self.requests = self.wasted = 0
        for number in range(1, RELEASES // scale + 1):
            release = Release(-rng.uniform(1, 3_650))
            release.stale_since = None if complete else 0.0
            release.fetched = -rng.uniform(0, 226) if complete else None
            self.releases[number] = release
            self.numbers.append(number)
            self.top = number

    def numbers_alive(self) -> list[int]:
        """The numbers that a dump of this instant lists."""
        return [number for number in self.numbers if not self.releases[number].gone]

    def known_gone(self, number: int) -> bool:
        """Whether the copy has heard that the release is no more."""
        release = self.releases[number]
        return release.gone and release.stale_since is None

    def live_a_day(self) -> None:
        """Let a day of new numbers, late drafts, edits and retirements happen."""
        for _ in range(_about(NUMBERS_A_DAY / self.scale, self.rng)):
            self.top += 1
            if self.rng.random() < NEW_SHARE:
                late = self.rng.random() < LATE_SHARE
                delay = self.rng.uniform(0, LATE_DAYS) if late else 0
                heapq.heappush(self.late, (self.today + delay, self.top))
        while self.late and self.late[0][0] < self.today + 1:
            born, number = heapq.heappop(self.late)
            self.releases[number] = Release(born)
            bisect.insort(self.numbers, number)
            self.young.append(number)
        while self.young and self.releases[self.young[0]].born < self.today - YOUNG_DAYS:
            self.young.popleft()
        for _ in range(_about(EDITS_A_DAY / self.scale, self.rng)):
            self._change(retire=False)
        for _ in range(_about(RETIRED_A_DAY / self.scale, self.rng)):
            self._change(retire=True)
        self.today += 1

    def _change(self, *, retire: bool) -> None:
        young = self.young and not retire and self.rng.random() < YOUNG_EDIT_SHARE
        release = self.releases[self.rng.choice(self.young if young else self.numbers)]
        if release.gone:
            return
        release.gone = retire
        release.edited = self.today + self.rng.random()
        if release.stale_since is None:
            release.stale_since = release.edited

    def fetch(self, number: int, now: float) -> Release | None:
        """Ask the API for a number; None is a 404 for a number that is no release."""
        self.requests += 1
        release = self.releases.get(number)
        if release is None or release.stale_since is None or release.stale_since > now:
            self.wasted += 1
        if release is None or release.born > now:
            return None
        if release.fetched is None and release.born >= 0:
            self.seen_after.append(now - release.born)
        release.fetched = now
        if release.stale_since is not None and release.stale_since <= now:
            release.stale_since = None
        return release


def _about(expected: float, rng: random.Random) -> int:
    return int(expected) + (rng.random() < expected % 1)


class Dump(NamedTuple):
    """A dump: when it was taken, the changes since the last good one, and all its numbers."""

    taken: float
    changed: list[int]
    numbers: list[int]


def dumps(world: World) -> Callable[[int], Dump | None]:
    """A function of the day that gives the dump accepted on it, if any."""
    last_taken = -1e9
    published = 0

    def take(day: int) -> Dump | None:
        nonlocal last_taken, published
        if day % DUMP_EVERY_DAYS:
            return None
        published += 1
        if published in (MISSING_DUMP, TRUNCATED_DUMP):
            return None
        changed = [n for n in world.numbers if world.releases[n].edited > last_taken]
        last_taken = world.today
        return Dump(world.today, changed, world.numbers_alive())

    return take


Policy = Callable[[World, int, Dump | None], Iterator[int]]


def first_in_first_out() -> Policy:
    """Every known number in turn, for ever; the dump only tells which numbers there are."""
    queue: deque[int] = deque()
    known: set[int] = set()

    def choose(world: World, day: int, dump: Dump | None) -> Iterator[int]:
        for number in dump.numbers if dump else ():
            if number not in known:
                known.add(number)
                queue.append(number)
        while queue:
            queue.rotate(-1)
            if not world.known_gone(queue[-1]):
                yield queue[-1]

    return choose


def random_refresh() -> Policy:
    """Any number of the last dump, at random."""
    known: list[int] = []

    def choose(world: World, day: int, dump: Dump | None) -> Iterator[int]:
        if dump:
            known[:] = dump.numbers
        while known:
            yield world.rng.choice(known)

    return choose


def dump_only() -> Policy:
    """What the hashes of two dumps say has changed, and nothing else."""
    return ours(discover=0, refresh=False)


def ours(*, discover: int = 1_000, refresh: bool = True, cooldown_days: float = 7) -> Policy:
    """New numbers, then the dump's differences, then what was never fetched, then the oldest.

    `discover`: a day's run goes on above the highest release until so many numbers are unused.
    """
    wanted: deque[int] = deque()
    queued: set[int] = set()
    backfill: deque[int] = deque()
    unused: list[tuple[float, int, int]] = []
    known: set[int] = set()
    oldest: deque[int] = deque()
    highest = 0

    def read(world: World, dump: Dump) -> None:
        nonlocal highest
        if known:
            for number in dump.changed:
                fetched = world.releases[number].fetched
                if number not in queued and (fetched is None or fetched < dump.taken):
                    queued.add(number)
                    wanted.append(number)
        else:
            backfill.extend(n for n in dump.numbers if world.releases[n].fetched is None)
        known.update(dump.numbers)
        highest = max(highest, dump.numbers[-1])

    def probe(world: World) -> Iterator[int]:
        nonlocal highest
        while unused and unused[0][0] <= world.today:
            _, number, times = heapq.heappop(unused)
            yield number
            if number in world.releases:
                known.add(number)
            elif times < len(REPROBE_DAYS):
                heapq.heappush(unused, (world.today + REPROBE_DAYS[times], number, times + 1))
        for number in range(highest + 1, world.top + discover // world.scale + 1):
            yield number
            if number in world.releases:
                known.add(number)
                highest = number
            elif number <= world.top:
                heapq.heappush(unused, (world.today + REPROBE_DAYS[0], number, 1))

    def choose(world: World, day: int, dump: Dump | None) -> Iterator[int]:
        if dump:
            read(world, dump)
        if discover and highest:
            yield from probe(world)
        for _ in range(len(wanted)):
            number = wanted.popleft()
            fetched = world.releases[number].fetched
            if fetched is not None and world.today - fetched < cooldown_days:
                wanted.append(number)
                continue
            queued.discard(number)
            yield number
        while backfill:
            number = backfill.popleft()
            if world.releases[number].fetched is None:
                yield number
        while refresh and known:
            if not oldest:
                oldest.extend(sorted(known, key=lambda n: _last_fetched(world, n)))
            number = oldest.popleft()
            if not world.known_gone(number):
                yield number

    return choose


def _last_fetched(world: World, number: int) -> float:
    fetched = world.releases[number].fetched
    return -1e9 if fetched is None else fetched


def live(policy: Policy, scale: int, seed: int, *, complete: bool) -> Outcome:
    """A year under `policy`; the figures are means over the last day of each month."""
    world = World(scale, complete, random.Random(seed))
    dump_of = dumps(world)
    if complete:
        dump_of(0)
    quota = REQUESTS_A_DAY // scale
    means, p90s, shares = [], [], []
    for day in range(DAYS):
        dump = dump_of(day) if day or not complete else Dump(-1, [], world.numbers_alive())
        world.live_a_day()
        for done, number in enumerate(itertools.islice(policy(world, day, dump), quota)):
            world.fetch(number, world.today - 1 + done / quota)
        if day % 30 == 29:
            ages = sorted(_staleness(release, world.today) for release in world.releases.values())
            means.append(statistics.fmean(ages))
            p90s.append(ages[int(len(ages) * 0.9)])
            shares.append(sum(age > 0 for age in ages) / len(ages))
    return Outcome(
        statistics.fmean(means),
        statistics.fmean(p90s),
        statistics.fmean(shares),
        statistics.median(world.seen_after) if world.seen_after else float("nan"),
        world.requests * scale,
        world.wasted / max(1, world.requests),
    )


def _staleness(release: Release, now: float) -> float:
    return now - release.stale_since if release.stale_since is not None else 0.0


def _bar(value: float, longest: float) -> str:
    return "#" * max(1, round(40 * value / longest)) if longest else ""


def report(scale: int, seed: int, policies: dict[str, Callable[[], Policy]]) -> Iterator[str]:
    """The Markdown table and the plot of both years, line by line."""
    for title, complete in (("from a complete copy", True), ("from nothing", False)):
        outcomes = {
            name: live(make(), scale, seed, complete=complete) for name, make in policies.items()
        }
        yield f"### A year {title}\n"
        yield (
            "| policy | stale, mean days | 90 % below | stale share | new release seen after "
            "| requests | wasted |"
        )
        yield "|---|---|---|---|---|---|---|"
        for name, outcome in outcomes.items():
            yield (
                f"| {name} | {outcome.mean_days:.2f} | {outcome.p90_days:.1f} "
                f"| {outcome.stale_share:.2%} | {outcome.new_seen_days:.1f} days "
                f"| {outcome.requests / 1e6:.1f} M | {outcome.wasted_share:.0%} |"
            )
        longest = max(outcome.mean_days for outcome in outcomes.values())
        yield "\n```text"
        for name, outcome in outcomes.items():
            yield f"{name:>24} {_bar(outcome.mean_days, longest)} {outcome.mean_days:.2f} days"
        yield "```\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", type=int, default=200, help="one in so many records [200]")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sweep", action="store_true", help="our policy under other settings")
    flags = parser.parse_args()
    policies: dict[str, Callable[[], Policy]] = {
        "ours": ours,
        "first in, first out": first_in_first_out,
        "random refresh": random_refresh,
        "dump only": dump_only,
    }
    if flags.sweep:
        policies = {
            f"cooldown {days} d, discover {discover}, refresh {'on' if refresh else 'off'}": (
                lambda days=days, discover=discover, refresh=refresh: ours(
                    cooldown_days=days, discover=discover, refresh=refresh
                )
            )
            for days in (0, 3, 7, 14)
            for discover in (0, 1_000, 10_000)
            for refresh in (False, True)
        }
    for line in report(flags.scale, flags.seed, policies):
        print(line)


if __name__ == "__main__":
    main()
