#!/usr/bin/env python3
"""Keep the store in order: merge, pack, back up, check.

Without an option, for a nightly cron job: merges the branches of `worker.py --branch`, pins the
submodules, renews the repository's README, joins its packs, removes what killed processes left,
copies the ledger to STATE_DIR/backups (two are kept) and checks the records that are new since
the last check. Workers may go on meanwhile.

Examples:

    maintain_store.py -v                 # every night
    maintain_store.py --merge            # only merge the branches
    maintain_store.py --check            # every month: all records, git fsck, ledger against Git
    maintain_store.py --reclean          # after REMOVE_FIELDS, KEEP_FIELDS or the rules changed
    maintain_store.py --to-submodules    # one repository for each kind and million, for good

What a check finds goes to stdout, one line each, the first ten of a sort (-v: all).
A field that REMOVE_FIELDS named until now is not in the store: --reclean says how to fetch it.

Exit codes: 0 done, 1 interrupted, 64 usage, 65 a check found damage, 69 Redis, the remote or the
disk failed, 75 it runs already, 78 a setting or a permission is wrong or there is no store yet.
"""

import argparse
import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

from discogs_crawler import __version__, locks
from discogs_crawler.api import cleaning
from discogs_crawler.broker import private_server
from discogs_crawler.broker.queue import Queue
from discogs_crawler.cli import command, progress
from discogs_crawler.config import Settings
from discogs_crawler.errors import EXIT_BAD_DATA, EXIT_DONE, CrawlerError
from discogs_crawler.ledger import database
from discogs_crawler.ledger.database import Ledger
from discogs_crawler.maintenance import (
    convert_layout,
    housekeeping,
    integrity,
    merge_branches,
    reclean,
    store_readme,
)
from discogs_crawler.maintenance.integrity import Fault
from discogs_crawler.records import KINDS
from discogs_crawler.seeding import exchange, on_demand
from discogs_crawler.store import layouts
from discogs_crawler.store.layouts import Store

log = logging.getLogger("discogs_crawler.maintain_store")


def arguments() -> argparse.ArgumentParser:
    parser = command.parser(__doc__, "DATABASE", "STORE", "STORE_LAYOUT")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--merge", action="store_true", help="only merge the branches")
    group.add_argument("--check", action="store_true", help="only check, but everything")
    group.add_argument("--reclean", action="store_true", help="apply changed cleaning rules")
    group.add_argument("--to-submodules", action="store_true", help="convert the layout")
    return parser


def main(flags: argparse.Namespace, settings: Settings) -> int:
    command.terminate_like_interrupt()
    with contextlib.ExitStack() as stack:
        lock = settings.state_dir / "maintain_store.lock"
        stack.enter_context(locks.exclusive(lock, "maintain_store.py"))
        book = None
        if settings.database.exists():
            book = stack.enter_context(database.open(settings.database))
        if book is None:
            return maintain(flags, settings, None)
        with book.run("maintain_store", "all") as run:
            run.exit_code = maintain(flags, settings, book)
        return run.exit_code


def maintain(flags: argparse.Namespace, settings: Settings, book: Ledger | None) -> int:
    if flags.to_submodules:
        return to_submodules(settings, book)
    opened = layouts.open_store(settings, create=False)
    if flags.check:
        return check_everything(opened, book, settings, all_of_it=bool(flags.verbose))
    if flags.reclean:
        return reclean_everything(opened, book, settings)
    merge(opened, book, settings)
    if flags.merge:
        return EXIT_DONE
    return nightly(opened, book, settings, all_of_it=bool(flags.verbose))


def merge(opened: Store, book: Ledger | None, settings: Settings) -> None:
    """Merge the branches, and free the segments of those that are gone."""
    parts = opened.parts()
    for part in parts:
        part.refresh()
    queues = _queues_of_branches(settings, needed=any(part.branches() for part in parts))
    merged = merge_branches.merge(parts, queues)
    log.info("branches merged: %d", merged.branches)
    if book is not None:
        for kind in KINDS:
            again = [number for where, number in merged.conflicts if where == kind]
            if again:
                on_demand.want_ids(book, kind, again)
    opened.settle()


def _queues_of_branches(settings: Settings, *, needed: bool) -> list[Queue]:
    """The queues, in which a branch that was deleted or never committed may own segments.

    Without any branch to merge it is not worth a failure that Redis is not there.
    """
    try:
        return _queues(settings, wait=needed)
    except CrawlerError as error:
        if needed:
            raise
        log.info("no branches; whether one has left segments is unknown: %s", error)
        return []


def _queues(settings: Settings, *, wait: bool = True) -> list[Queue]:
    client = private_server.connect(settings, wait=wait)
    options = {"prefix": settings.redis_prefix, "lease_s": settings.lease_s}
    return [Queue(client, kind, **options) for kind in KINDS]


def nightly(opened: Store, book: Ledger | None, settings: Settings, *, all_of_it: bool) -> int:
    """Everything that keeps the store small and safe; the records that are new are checked."""
    store_readme.update(opened, book, __version__, settings.store_branch)
    repositories = opened.repositories()
    with progress.bar("pack", len(repositories), "repositories/s") as advance:
        for repository in repositories:
            packs = housekeeping.tidy(repository)
            log.info("%s: packs: %d", repository.path, packs)
            advance(1)
    copy = housekeeping.back_up(settings)
    if copy:
        log.info("ledger copied to %s", copy)
    tip = opened.tip()
    since = housekeeping.checked(opened.repository)
    found = _report(integrity.records(opened, tip, since), all_of_it)
    if tip and not found:
        housekeeping.mark_checked(opened.repository, tip)
    return EXIT_BAD_DATA if found else EXIT_DONE


def check_everything(
    opened: Store, book: Ledger | None, settings: Settings, *, all_of_it: bool
) -> int:
    """Read every record, and compare Git with the ledger both ways."""
    tip = opened.settle()
    found = _report(integrity.repositories(opened), all_of_it)
    found += _report(integrity.records(opened, tip), all_of_it)
    if book is not None:
        queues = _queues(settings)
        for kind, queue in zip(KINDS, queues, strict=True):
            exchange.drain(book, queue)
            differ = _report(integrity.against_ledger(opened, book, kind), all_of_it)
            if differ:
                tell_how_to_agree(kind, book, settings)
            found += differ
    elif tip:
        log.warning(
            "%s: there is no ledger, so the store is not compared with it; if it was lost, put "
            "its copy in %s back, or run seed_queue.py --rebuild-ledger -n HASHES",
            settings.database,
            settings.state_dir / "backups",
        )
    if tip and not found:
        housekeeping.mark_checked(opened.repository, tip)
    return EXIT_BAD_DATA if found else EXIT_DONE


def tell_how_to_agree(kind: str, book: Ledger, settings: Settings) -> None:
    """One line: what to do when ledger and Git differ."""
    if book.last_accepted(kind) is None:
        log.warning(
            "%s: the ledger knows no dump of %s: if it was lost, put its copy in %s back, or run "
            "seed_queue.py --rebuild-ledger -n HASHES",
            *(settings.database, kind, settings.state_dir / "backups"),
        )
    else:
        log.warning(
            "%s: ledger and Git agree again on what is fetched again: seed_queue.py --kind %s "
            "--ids FILE; if very much differs, move %s away and run seed_queue.py "
            "--rebuild-ledger -n HASHES",
            *(kind, kind, settings.database),
        )


def _report(findings: Iterator[Fault], all_of_it: bool) -> int:
    """Print the findings, or some of each sort; how many there were."""
    number = 0

    def counted() -> Iterator[Fault]:
        nonlocal number
        for finding in findings:
            number += 1
            yield finding

    for line in counted() if all_of_it else integrity.shortened(counted()):
        print(line)
    return number


def reclean_everything(opened: Store, book: Ledger | None, settings: Settings) -> int:
    rules = {kind: cleaning.rules_for(settings, kind) for kind in KINDS}
    number = reclean.reclean(opened, rules, settings.state_dir / "reclean.json")
    log.info("records rewritten: %d", number)
    for kind, fields in reclean.lost(opened, rules, settings.commit_seconds).items():
        tell_what_is_lost(kind, fields, book)
    return EXIT_DONE


def tell_what_is_lost(kind: str, fields: dict[str, int], book: Ledger | None) -> None:
    """One line if records lack fields that earlier rules removed and today's keep."""
    which, number = "records", "N"
    if book is not None:
        counts = {field: reclean.count_lost(book, kind, fields[field]) for field in fields}
        fields = {field: until for field, until in fields.items() if counts[field]}
        number = str(max(counts.values()))
        which = f"up to {number} records"
    if fields:
        log.warning(
            "%s: earlier rules removed %s from %s; only fetching them again brings it back: "
            "seed_queue.py --kind %s --refresh %s --cooldown-days 0 (or --ids for some)",
            *(kind, ", ".join(sorted(fields)), which, kind, number),
        )


def to_submodules(settings: Settings, book: Ledger | None) -> int:
    kept = convert_layout.to_submodules(settings, book)
    if kept:
        print(f"converted; set STORE_LAYOUT=submodules; the old repository is {kept}")
    else:
        print(f"{settings.store} has that layout already; set STORE_LAYOUT=submodules")
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(command.run(main, arguments()))
