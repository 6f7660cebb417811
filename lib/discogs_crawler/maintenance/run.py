"""The jobs of `maintain_store.py`: every night, merge only, check all, reclean, convert.

Each returns an exit code. Without a ledger they do what needs none.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from discogs_crawler import __version__, locks
from discogs_crawler.api import cleaning
from discogs_crawler.broker.connect import connect, queue_of
from discogs_crawler.broker.queue import Queue
from discogs_crawler.cli import disk_space, progress
from discogs_crawler.config import Settings
from discogs_crawler.errors import (
    EXIT_BAD_DATA,
    EXIT_DONE,
    ConfigurationError,
    CrawlerError,
    NothingYet,
    UsageError,
)
from discogs_crawler.ledger import database, drift
from discogs_crawler.ledger.database import Ledger
from discogs_crawler.ledger_here import ledger_is_here
from discogs_crawler.maintenance import (
    convert_layout,
    housekeeping,
    integrity,
    merge_branches,
    store_readme,
)
from discogs_crawler.maintenance import reclean as recleaning
from discogs_crawler.maintenance.integrity import Fault
from discogs_crawler.records import KINDS
from discogs_crawler.seeding import exchange, on_demand
from discogs_crawler.sqlite_errors import REBUILD_COST, how_to_restore
from discogs_crawler.store import layouts
from discogs_crawler.store.git import Repository
from discogs_crawler.store.layouts import Store

log = logging.getLogger(__name__)


class Upkeep(NamedTuple):
    """What every job gets besides the ledger."""

    settings: Settings
    tell: Callable[[str], None]
    """takes each line of the answer"""
    all_of_it: bool
    """print every finding, not only the first ten of each kind"""


Job = Callable[[Upkeep, Ledger | None], int]


def alone(job: Job, upkeep: Upkeep) -> int:
    """Do the job, unless another run holds the lock; the ledger keeps how it ended.

    NothingYet if there is no store yet, and the ledger does not say that there should be.
    """
    settings = upkeep.settings
    nothing = NothingYet(f"{settings.store}: {layouts.NO_STORE}")
    with locks.exclusive(settings.state_dir / "maintain_store.lock", "maintain_store.py"):
        if not settings.database.exists():
            if not settings.store.exists():
                raise nothing
            return job(upkeep, None)
        with database.open(settings.database) as ledger:
            is_lost = not settings.store.exists()
            if is_lost and not (ledger.has_results() or ledger.stored()):
                raise nothing
            with ledger.run("maintain_store", "all") as run:
                if is_lost:
                    layouts.refuse_to_begin_anew(settings, ledger.stored())
                run.exit_code = job(upkeep, ledger)
            return run.exit_code


def nightly(upkeep: Upkeep, ledger: Ledger | None) -> int:
    """Everything that keeps the store small and safe; of the records, the new ones are checked.

    A machine that has workers only, and no records, packs what it has; the rest is for the one
    that has the ledger.
    """
    settings = upkeep.settings
    for shortage in disk_space.shortages(disk_space.disks(settings)):
        log.warning("%s", shortage)  # one mail a day
    store = _open_newest(settings, ledger)
    if _has_workers_only(store, settings):
        _tidy(store.repositories())
        return EXIT_DONE
    _merge(store, ledger, settings)
    store_readme.update(store, ledger, __version__, settings.store_branch)
    _tidy(store.repositories())
    copy = housekeeping.back_up(settings)
    if copy:
        log.info("ledger copied to %s", copy)
    tip = store.tip()
    since = store.repository.tip(housekeeping.CHECKED)
    damaged = _report(integrity.records(store, tip, since), upkeep)
    if tip and not damaged:
        store.repository.run("update-ref", housekeeping.CHECKED, tip)
    return EXIT_BAD_DATA if damaged else EXIT_DONE


def _has_workers_only(store: Store, settings: Settings) -> bool:
    return layouts.has_workers_only(store) and not ledger_is_here(settings.database)


def _tidy(repositories: Sequence[Repository]) -> None:
    with progress.bar("pack", len(repositories), "repositories/s") as advance:
        for repository in repositories:
            packs = housekeeping.tidy(repository)
            log.info("%s: packs: %d", repository.path, packs)
            advance(1)


def merge(upkeep: Upkeep, ledger: Ledger | None) -> int:
    """Merge the branches, and free the segments of those that are gone.

    ConfigurationError on a machine that has workers only: it lacks the history that tells who has
    changed what.
    """
    store = _open_newest(upkeep.settings, ledger)
    if _has_workers_only(store, upkeep.settings):
        raise ConfigurationError(
            f"{upkeep.settings.store}: a worker's partial copy of its remote: run "
            "maintain_store.py --merge on the machine with the ledger"
        )
    _merge(store, ledger, upkeep.settings)
    return EXIT_DONE


def _open_newest(settings: Settings, ledger: Ledger | None) -> Store:
    """The store; ConfigurationError if it lacks commits that the ledger knows of."""
    store = layouts.open_store(settings, create=False)
    if ledger is not None:
        layouts.refuse_older_copy(store, ledger.revisions())
    return store


def _merge(store: Store, ledger: Ledger | None, settings: Settings) -> None:
    store.refresh()
    parts = store.parts()
    queues = _queues_of_branches(settings, needed=any(part.branches() for part in parts))

    def want_again(places: Sequence[tuple[str, int]]) -> None:
        if not places:
            return
        if ledger is None or not ledger.knows_something():
            raise ConfigurationError(
                f"{settings.database}: there is no ledger, so what two branches changed would "
                "never be fetched again: merge where the ledger is, or restore it first"
            )
        for kind in KINDS:
            again = [number for where, number in places if where == kind]
            on_demand.want_ids(ledger, kind, again)

    merged = merge_branches.merge(parts, queues, want_again)
    log.info("branches merged: %d", merged)
    store.settle()


def _queues_of_branches(settings: Settings, *, needed: bool) -> list[Queue]:
    """The queues, in which a branch that was deleted or never committed may own segments.

    If no branch is to be merged, a missing Redis is not a failure.
    """
    try:
        return _queues(settings, wait=needed)
    except CrawlerError as error:
        if needed:
            raise
        log.info(
            "no branches; it is not known whether segments belong to one that is gone: %s", error
        )
        return []


def _queues(settings: Settings, *, wait: bool = True) -> list[Queue]:
    client = connect(settings, wait=wait)
    return [queue_of(client, settings, kind) for kind in KINDS]


def check(upkeep: Upkeep, ledger: Ledger | None) -> int:
    """Read every record, and compare Git with the ledger both ways."""
    settings = upkeep.settings
    store = layouts.open_store(settings, create=False)
    tip = store.settle()
    damaged = _report(integrity.repositories(store), upkeep)
    damaged |= _report(integrity.records(store, tip), upkeep)
    if ledger is not None:
        damaged |= _check_against_ledger(store, ledger, upkeep)
    elif tip:
        log.warning(
            "%s: there is no ledger, so the store is not compared with it; if it was lost, "
            "%s, or run seed_queue.py --rebuild-ledger -n HASHES: %s",
            *(settings.database, _how_to_restore(settings), REBUILD_COST),
        )
    if tip and not damaged:
        store.repository.run("update-ref", housekeeping.CHECKED, tip)
    return EXIT_BAD_DATA if damaged else EXIT_DONE


def _check_against_ledger(store: Store, ledger: Ledger, upkeep: Upkeep) -> bool:
    older = layouts.older_copy(store, ledger.revisions())
    if older:
        upkeep.tell(older)
    damaged = bool(older)
    for kind, queue in zip(KINDS, _queues(upkeep.settings), strict=True):
        if ledger.knows_something():
            exchange.drain(ledger, queue)
        if _report(integrity.against_ledger(store, ledger, kind), upkeep):
            _tell_how_to_agree(kind, ledger, upkeep.settings)
            damaged = True
    return damaged


def _tell_how_to_agree(kind: str, ledger: Ledger, settings: Settings) -> None:
    """Print in one line what to do when ledger and Git differ."""
    if ledger.last_accepted(kind) is None:
        log.warning(
            "%s: the ledger knows no dump of %s: if it was lost, %s, or run "
            "seed_queue.py --rebuild-ledger -n HASHES: %s",
            *(settings.database, kind, _how_to_restore(settings), REBUILD_COST),
        )
    else:
        log.warning(
            "%s: to make ledger and Git agree, run maintain_store.py --refetch, which marks as "
            "wanted what differs; if very much differs, move %s away and run seed_queue.py "
            "--rebuild-ledger -n HASHES: %s",
            *(kind, settings.database, REBUILD_COST),
        )


def _how_to_restore(settings: Settings) -> str:
    return how_to_restore(settings.database, settings.state_dir / "backups")


def refetch(upkeep: Upkeep, ledger: Ledger | None) -> int:
    """Mark as wanted what Git lacks, has in an old version, or has although it was removed.

    What came from a dump is for the next import to put right.
    """
    settings = upkeep.settings
    if ledger is None:
        raise UsageError(f"--refetch: {settings.database}: there is no ledger to compare with")
    store = layouts.open_store(settings, create=False)
    is_older = layouts.lacks(store, ledger.revisions())
    store.settle()
    for kind, queue in zip(KINDS, _queues(settings), strict=True):
        exchange.drain(ledger, queue, wait=True)
        rows = list(integrity.one_sided(store, ledger, kind))
        unknown = [row.id for row in rows if not (row.stored or row.misses)]
        kept = integrity.from_dump(store, kind, unknown)
        rows += integrity.outdated(store, ledger, kind) if is_older else []
        lost = [row.id for row in rows if row.imported is not None]
        number = on_demand.import_again(ledger, kind, lost, kept)
        if number:
            upkeep.tell(f"{kind}: {number:,} for import_dump.py to look at, with the last dump")
        for reason in ("manual", "confirm"):
            ids = {row.id for row in rows if (reason == "confirm") == bool(row.misses)}
            on_demand.want_ids(ledger, kind, ids.difference(lost, kept), reason)
        if number := len({row.id for row in rows}.difference(lost, kept)):
            upkeep.tell(f"{kind}: {number:,} wanted again; seed_queue.py --kind {kind} queues them")
    ledger.forget_revisions()
    return EXIT_DONE


def _report(findings: Iterable[Fault], upkeep: Upkeep) -> bool:
    """Print the findings, or the first ten of each kind; True if there are any."""
    found = False
    for line in map(str, findings) if upkeep.all_of_it else integrity.shortened(findings):
        upkeep.tell(line)
        found = True
    return found


def reclean(upkeep: Upkeep, ledger: Ledger | None) -> int:
    """Apply changed cleaning rules to what is stored; report what they cannot bring back."""
    settings = upkeep.settings
    store = _open_newest(settings, ledger)
    rules = {kind: cleaning.rules_for(settings, kind) for kind in KINDS}
    number = recleaning.reclean(store, rules, settings.state_dir / "reclean.json")
    log.info("records rewritten: %d", number)
    if number and ledger is not None:
        with ledger.transaction() as connection:
            drift.forget_churn(connection)
    for kind, fields in recleaning.lost(store, rules, settings.commit_seconds).items():
        _tell_what_is_lost(kind, fields, ledger)
    return EXIT_DONE


def _tell_what_is_lost(kind: str, fields: dict[str, int], ledger: Ledger | None) -> None:
    """One line if records lack fields that earlier rules removed and today's keep."""
    which, number = "records", "N"
    if ledger is not None:
        counts = {field: recleaning.count_lost(ledger, kind, fields[field]) for field in fields}
        fields = {field: until for field, until in fields.items() if counts[field]}
        most = max(counts.values())
        which = f"up to {most} records"
        # Imported records, which lack nothing, are refreshed before any others; see `refresh`.
        first = "kind = ? AND state = 'imported' AND reason <> 'backfill'"
        number = str(most + ledger.count(first, kind))
    if fields:
        log.warning(
            "%s: earlier rules removed %s from %s; only fetching them again brings it back: "
            "seed_queue.py --kind %s --refresh %s --cooldown-days 0 (or --ids for some)",
            *(kind, ", ".join(sorted(fields)), which, kind, number),
        )


def to_submodules(upkeep: Upkeep, ledger: Ledger | None) -> int:
    """Convert the store to one repository for each kind and million."""
    store = upkeep.settings.store
    kept = convert_layout.to_submodules(upkeep.settings, ledger)
    done = f"converted; set STORE_LAYOUT=submodules; the old repository is {kept}"
    if upkeep.settings.store_remote and upkeep.settings.store_layout == "single":
        done += "; let STORE_REMOTE name a folder for the repositories, which gets them"
    already = f"{store} has that layout already; set STORE_LAYOUT=submodules"
    upkeep.tell(done if kept else already)
    return EXIT_DONE
