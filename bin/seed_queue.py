#!/usr/bin/env python3
"""Queue the records that have to be fetched: those that a dump shows to be new, changed or gone.

Every run reads the workers' results into the ledger, records what is wanted, and puts into the
queue everything that is due and not there yet. Run it with -n after each dump, and daily without.
If it is interrupted, run it again.

  seed_queue.py -n new.hashes              what differs from the last dump (the first: everything)
  seed_queue.py -n new.hashes -o OLD       also what differs from the hashes in OLD
  seed_queue.py                            daily: what has become due since
  seed_queue.py --discover 20000           also ids that are newer than the dump
  seed_queue.py --ids 249504 5000-5010     these, before all others
  seed_queue.py --dead --kind artists      list what could not be fetched
  seed_queue.py --rebuild-ledger           make a lost ledger again, and fetch everything again
                                           (with --adopt: only what is not stored)

Exit codes: 0 done (with -n also if confirmations were withheld: the dump was accepted), 1
interrupted, or done except that confirmations were withheld, 64 usage, 65 the hashes are damaged or
implausible (nothing was changed), 69 Redis is not available, 75 another run has not ended within
half an hour, or the hash file was replaced during the run, 78 configuration.
"""

import signal

if __name__ == "__main__":  # until we listen (see cli/shutdown.py)
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))

import argparse
import functools
import logging
import sys
from collections.abc import Collection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

from discogs_crawler.cli import command
from discogs_crawler.config import Settings
from discogs_crawler.errors import EXIT_DONE, UsageError
from discogs_crawler.records import KINDS
from discogs_crawler.seeding import dump_lookup, on_demand
from discogs_crawler.seeding import run as seed_run
from discogs_crawler.seeding.run import Request, Seeded
from discogs_crawler.store import layouts
from discogs_crawler.store.layouts import Store

log = logging.getLogger("discogs_crawler.seed_queue")


def arguments() -> argparse.ArgumentParser:
    parser = command.parser(__doc__, "DATABASE", "COOLDOWN_DAYS", "REDIS_PREFIX", "STORE")
    parser.add_argument(
        "-n",
        "--new",
        type=command.path,
        metavar="FILE",
        help="hashes of a dump, from discogs_xml_split.py",
    )
    parser.add_argument(
        "-o", "--old", type=command.path, metavar="FILE", help="also compare with these hashes"
    )
    parser.add_argument("--kind", choices=KINDS, help="kind of records [that of -n, or releases]")
    parser.add_argument(
        "--dump-date", metavar="YYYYMMDD", help="date of a dump that was split elsewhere"
    )
    parser.add_argument(
        "--ids", nargs="+", metavar="ID", help="fetch these first: numbers, ranges, a file, or -"
    )
    parser.add_argument(
        "--discover",
        type=command.positive,
        metavar="N",
        help="also fetch the N numbers above the highest known id",
    )
    parser.add_argument(
        "--refresh",
        type=command.positive,
        metavar="N",
        help="also fetch the N oldest copies again, first those that only a dump brought",
    )
    parser.add_argument(
        "--retry-dead", action="store_true", help="also try all dead letters again now"
    )
    parser.add_argument(
        "--dead", action="store_true", help="only list dead letters: ids that could not be fetched"
    )
    parser.add_argument(
        "--adopt", action="store_true", help="do not fetch records only because their hash differs"
    )
    parser.add_argument(
        "--force", action="store_true", help="accept what would be refused: a dump, 404s, a clock"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the numbers, change nothing")
    parser.add_argument(
        "--rebuild-ledger",
        action="store_true",
        help="make a lost ledger from the store and the hashes of the last dump",
    )
    return parser


def main(flags: argparse.Namespace, settings: Settings) -> int:
    command.terminate_like_interrupt()
    _check_usage(flags)
    if flags.dead:
        for line in seed_run.dead_letters(settings, flags.kind or "releases"):
            print(line)
        return EXIT_DONE

    def store(*, whole: bool) -> Store:
        create = settings.store_remote is not None
        return layouts.open_store(settings, create=create, whole=whole)

    def tip_of_store() -> str | None:
        tip = store(whole=False).settle()
        if tip is None and settings.store_remote:
            # From now on the ledger is here, and with it all that will be stored.
            store(whole=True).settle()
        return tip

    stored = None
    if flags.rebuild_ledger:
        opened = store(whole=True)  # its history tells who has stored what
        opened.settle()
        stored = functools.partial(layouts.origins, opened)
    request = Request(
        kind=flags.kind,
        new=flags.new,
        old=flags.old,
        dump_date=flags.dump_date,
        ids=list(on_demand.parse_ids(flags.ids or (), sys.stdin)),
        discover=flags.discover or 0,
        refresh=flags.refresh or 0,
        retry_dead=flags.retry_dead,
        adopt=flags.adopt,
        force=flags.force,
        dry_run=flags.dry_run,
        stored=stored,
    )
    seeded = seed_run.run(
        settings,
        request,
        tip_of_store,
        functools.partial(_refuse_older_copy, settings),
    )
    if flags.rebuild_ledger and not flags.dry_run:
        log.warning(
            "the places of consumers were in the lost ledger: export_changes.py gives them all "
            "again, or what came after REV with --from REV"
        )
    tell(seeded, flags.dry_run)
    return seeded.exit_code


def _refuse_older_copy(settings: Settings, revisions: Collection[str]) -> None:
    if revisions and (layouts.repository_path(settings) / "HEAD").exists():
        layouts.refuse_older_copy(layouts.open_store(settings, create=False), revisions)


def _check_usage(flags: argparse.Namespace) -> None:
    if flags.old and not flags.new:
        raise UsageError("-o OLD is compared with -n NEW: give both")
    if flags.dump_date:
        dump_lookup.parse_date(flags.dump_date)


def tell(seeded: Seeded, dry_run: bool) -> None:
    for name, number in seeded.counts.items():
        line = f"{seeded.kind}: {name.replace('_', ' ', 1)}: {number:,}"
        if dry_run or sys.stdout.isatty():
            print(line)
        else:
            log.info("%s", line)
    if withheld := seeded.counts.get("withheld_confirm"):
        log.warning(
            "%s: %d stored records answer 404 although the last dump has them: this looks like an "
            "outage, so they are not confirmed and nothing is removed; --force confirms them",
            seeded.kind,
            withheld,
        )


if __name__ == "__main__":
    command.script(main, arguments())
