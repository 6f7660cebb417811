"""The state of the crawler at one instant, and when each class will be done.

Reads only: the ledger in one read-only transaction, Redis if it runs (it is neither started nor
waited for), and the repositories of consumers if they are on this machine.
"""

import contextlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from discogs_crawler import __version__, clock
from discogs_crawler.broker.connect import connect, limiter_of, queue_of
from discogs_crawler.broker.limiter import Quota
from discogs_crawler.broker.messages import CLASSES
from discogs_crawler.broker.queue import Queue
from discogs_crawler.cli import disk_space
from discogs_crawler.cli.formatting import count, date
from discogs_crawler.clock import DAY_S
from discogs_crawler.config import Settings
from discogs_crawler.errors import (
    EXIT_PARTLY,
    EXIT_TRY_LATER,
    CrawlerError,
    NothingYet,
)
from discogs_crawler.ledger import database, drift
from discogs_crawler.ledger.database import Ledger
from discogs_crawler.ledger.wrong_times import latest_to_come
from discogs_crawler.stats import ledger_queries
from discogs_crawler.stats.snapshot import (
    AnswerRate,
    ClassStats,
    KindStats,
    QuotaStats,
    Snapshot,
    WorkerStats,
    made_printable,
)
from discogs_crawler.store import objects

# Dumps come every month, up to two weeks late.
DUMP_IS_OLD_S = 46 * DAY_S

# A commit a minute is 1,440 a day; counting further back would take longer than it tells.
BEHIND_AT_MOST = 100_000

# Places that a problem names.
NAMED = 5

# What the API allows with a token and without, in a window, until it has told.
LIMIT_WITH_TOKEN, LIMIT_WITHOUT = 60, 25


class QueueStats(NamedTuple):
    """What Redis has of one kind."""

    pending: dict[str, int]
    leased: Counter[str]
    delayed: Counter[str]
    workers: list[WorkerStats]
    unread: int


def take(settings: Settings, only: str | None = None) -> Snapshot:
    """Collect everything, or about `only` one kind.

    NothingYet if there is no ledger yet, ConfigurationError if it is of another version. If Redis
    does not run that is no error but a line in `problems`.
    """
    now = clock.now()
    try:
        opened = database.open(settings.database, read_only=True)
    except database.NoLedgerYet as error:
        raise NothingYet(str(error)) from error
    with opened:
        connection = opened.db.conn
        connection.execute("BEGIN")
        known = ledger_queries.kinds(connection)
        names = [only] if only else known or ["releases"]
        held, permits, absent = _look_at_redis(settings, sorted({*names, *known}))
        rates = {
            name: ledger_queries.rate(
                connection, name, now, held[name].unread if name in held else 0
            )
            for name in {*names, *known}
        }
        quota = _quota(settings, permits, sum(rate.per_day for rate in rates.values()))
        kinds = [
            _kind(opened, name, now, _at_least_assumed(rates[name], quota), held.get(name))
            for name in names
        ]
        snapshot = Snapshot(
            taken=int(now),
            version=__version__,
            database=str(settings.database),
            database_bytes=_size(settings.database),
            redis=absent,
            problems=list(_problems_of_ledger(opened)),
            quota=quota,
            kinds=kinds,
            consumers=ledger_queries.consumers(
                connection, lambda where, revision: behind(where, revision, settings.store_branch)
            ),
            runs=ledger_queries.runs(connection),
            disks=disk_space.disks(settings),
        )
        connection.execute("COMMIT")
    problems = [*snapshot.problems, *_problems(snapshot)]
    shown: Snapshot = made_printable(snapshot._replace(problems=problems))
    return shown


def _size(ledger: Path) -> int:
    """Bytes of the ledger, with what is not in its main file yet."""
    journal = ledger.with_name(ledger.name + "-wal")
    with contextlib.suppress(FileNotFoundError):
        return ledger.stat().st_size + journal.stat().st_size
    return ledger.stat().st_size


def _look_at_redis(
    settings: Settings, kinds: list[str]
) -> tuple[dict[str, QueueStats], Quota | None, str]:
    """What Redis has of each kind, the permits in use, and why that is unknown if it is."""
    if settings.redis_url is None and not (settings.state_dir / "redis").is_dir():
        return {}, None, "the private Redis was never started; seed_queue.py starts it"
    try:
        with contextlib.closing(connect(settings, wait=False)) as client:
            held = {kind: _held(queue_of(client, settings, kind)) for kind in kinds}
            return held, limiter_of(client, settings).status(), ""
    except (CrawlerError, OSError) as error:
        return {}, None, str(error)


def _held(queue: Queue) -> QueueStats:
    leases = queue.leased()
    lapses = defaultdict(list)
    for lease in leases:
        lapses[lease.owner].append(lease.lapses)
    return QueueStats(
        pending=queue.depths(),
        leased=Counter(lease.reason for lease in leases),
        delayed=Counter(waiting.reason for waiting in queue.delayed()),
        workers=[
            WorkerStats(who, len(ends), int(min(ends))) for who, ends in sorted(lapses.items())
        ],
        unread=queue.unread(),
    )


def _quota(settings: Settings, permits: Quota | None, measured_per_day: float) -> QuotaStats:
    told = permits.limit if permits else 0
    assumed = LIMIT_WITH_TOKEN if settings.discogs_token else LIMIT_WITHOUT
    limit = min(told or assumed, settings.rate_limit or told or assumed)
    return QuotaStats(
        identity=settings.rate_identity,
        limit=limit,
        window_s=settings.rate_window_s,
        used=permits.ours if permits else None,
        foreign=permits.foreign if permits else None,
        pause_s=permits.pause_s if permits else None,
        per_day=int(limit / settings.rate_window_s * DAY_S),
        measured_per_day=measured_per_day,
    )


def _at_least_assumed(rate: AnswerRate, quota: QuotaStats) -> AnswerRate:
    return rate._replace(per_day=float(quota.per_day)) if rate.assumed else rate


def _kind(
    opened: Ledger, kind: str, now: float, rate: AnswerRate, held: QueueStats | None
) -> KindStats:
    connection = opened.db.conn
    return KindStats(
        kind=kind,
        coverage=ledger_queries.coverage(connection, kind),
        ages=ledger_queries.ages(connection, kind, now),
        classes=_classes(opened, kind, now, rate, held),
        workers=held.workers if held else [],
        unread=held.unread if held else None,
        rate=rate,
        outcomes=ledger_queries.outcomes(connection, kind, now),
        dead=ledger_queries.dead(connection, kind),
        dumps=ledger_queries.dumps(connection, kind),
        segments=ledger_queries.segments(connection, kind),
        drift=drift.drifts(connection, kind),
        churn=drift.churns(connection, kind, now),
    )


def _classes(
    opened: Ledger, kind: str, now: float, rate: AnswerRate, held: QueueStats | None
) -> list[ClassStats]:
    connection = opened.db.conn
    wanted = ledger_queries.wanted(connection, kind)
    later = ledger_queries.later(connection, kind, now)
    arriving = ledger_queries.arriving(connection, kind, now)
    backlog = {reason: _backlog(reason, wanted, later, held) for reason in CLASSES}
    estimates = etas(CLASSES, backlog, arriving, rate.per_day)
    return [
        ClassStats(
            reason=reason,
            wanted=wanted.get(reason, 0),
            later=later.get(reason, 0),
            pending=held.pending[reason] if held else None,
            leased=held.leased[reason] if held else None,
            delayed=held.delayed[reason] if held else None,
            arriving=arriving.get(reason, 0.0),
            eta_s=estimates[reason],
        )
        for reason in CLASSES
    ]


def _backlog(
    reason: str, wanted: dict[str, int], later: dict[str, int], held: QueueStats | None
) -> int:
    """What is left to fetch: what Redis holds, or what is due if that is more.

    The ledger does not know results that it has not read yet, and Redis does not know wants that
    have become due since the last seeding.
    """
    due = wanted.get(reason, 0) - later.get(reason, 0)
    if held is None:
        return due
    queued = held.pending[reason] + held.leased[reason] + held.delayed[reason]
    return max(queued, due - held.unread)


def etas(
    classes: Sequence[str],
    backlog: Mapping[str, int],
    arriving: Mapping[str, float],
    per_day: float,
) -> dict[str, int | None]:
    """Seconds until all ids of each class that are due now will have been answered.

    A class is served when those above it are empty, so it waits for their backlog and for what
    joins them meanwhile. `per_day` answers arrive in a day. None: at this rate the classes above
    take everything, for ever. 0: nothing to do.
    """
    result: dict[str, int | None] = {}
    before, taken = 0, 0.0
    for reason in classes:
        own = backlog.get(reason, 0)
        before += own
        free = per_day - taken
        if own == 0:
            result[reason] = 0
        else:
            result[reason] = round(before / free * DAY_S) if free > 0 else None
        taken += arriving.get(reason, 0.0)
    return result


def behind(where: str, revision: str | None, branch: str) -> int | None:
    """The number of commits after `revision` in a local repository; None if not known."""
    folder = Path(where)
    if not folder.is_absolute() or not folder.is_dir():
        return None
    try:
        return objects.commits_between(folder, revision, f"refs/heads/{branch}", BEHIND_AT_MOST)
    except CrawlerError:
        return None


def _problems_of_ledger(opened: Ledger) -> Iterator[str]:
    if latest := latest_to_come(opened):
        yield (
            f"a clock is or was wrong: the ledger has times up to {clock.iso(latest)}, which are "
            "still to come; if the clock of this machine is right, seed_queue.py corrects them"
        )
    if neglect := opened.neglect():
        yield neglect


def _problems(snapshot: Snapshot) -> Iterator[str]:
    yield from disk_space.shortages(snapshot.disks)
    if snapshot.redis:
        yield f"the queue is unknown: {snapshot.redis}"
    if snapshot.quota.pause_s and snapshot.quota.pause_s >= 1:
        yield f"nothing is sent for {snapshot.quota.pause_s:.0f} s: the API asked us to wait"
    for kind in snapshot.kinds:
        yield from _problems_of(kind, snapshot.taken)
        yield from _drift_problems(kind, snapshot.taken)
    for run in snapshot.runs:
        if run.exit_code not in (None, 0, EXIT_PARTLY, EXIT_TRY_LATER):
            of_kind = "" if run.kind == "all" else f" of {run.kind}"
            yield f"{run.script}{of_kind} ended with exit code {run.exit_code}"
        if withheld := run.counts.get("withheld_confirm"):
            yield (
                f"{run.script} of {run.kind} withheld {count(withheld)} confirmations: "
                "very many records answer 404 at once"
            )


def _problems_of(kind: KindStats, now: int) -> Iterator[str]:
    if kind.dumps:
        newest = kind.dumps[0]
        if newest.verdict.startswith("damaged"):  # of one that was split elsewhere it is not known
            yield f"{newest.file}: {newest.verdict}"
        whole = [dump.taken for dump in kind.dumps if dump.verdict == "whole"]
        if whole and now - whole[0] > DUMP_IS_OLD_S:
            yield f"the last whole dump of {kind.kind} is {(now - whole[0]) // DAY_S} days old"
    due = sum(row.wanted - row.later for row in kind.classes)
    if due and kind.rate.assumed and now - kind.rate.since > DAY_S:
        yield f"no {kind.kind} were fetched since yesterday; does a worker run?"


def _drift_problems(kind: KindStats, now: int) -> Iterator[str]:
    """What is new lately, and which fields should not be stored."""
    new = [row for row in kind.drift if now - row.first_seen < drift.DAYS * DAY_S]
    for what, words in (("unknown", "not known"), ("missing", "missing")):
        # A split and an import of the same dump notice the same.
        paths = [*dict.fromkeys(row.path for row in new if row.what == what)]
        if paths:
            named = ", ".join(paths[:NAMED]) + ", ..." * (len(paths) > NAMED)
            yield f"{kind.kind}: new at Discogs since {date(new[-1].first_seen)}: {words}: {named}"
    for row in kind.churn:
        if row.volatile:
            yield (
                f"{kind.kind}: {row.field} changed in {count(row.changed)} of "
                f"{count(row.refetched)} records fetched again although the dump had no change: "
                f"add it to REMOVE_FIELDS (REMOVE_FIELDS={row.field}), then run "
                "maintain_store.py --reclean"
            )
