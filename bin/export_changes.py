#!/usr/bin/env python3
"""Give a consumer every change of the store since its last export, once.

A consumer is a name. Its first export begins at the start of history (or at --from), each later one
where the last ended. An export goes up to the newest commit at the start of the run. The consumer's
place moves only when every byte has been taken. An export that was cut short is repeated as a whole
by the next.

Formats, one line per change, in the order of paths:

  names    releases/13/99/99/13999999.json, as `git diff --name-only` prints it
  status   A, M or D (added, modified, deleted), a tab, and the path
  ids      the number alone, also of deleted records
  jsonl    {"kind":"releases","id":13999999,"status":"M","revision":"...","data":{...}};
           data is the record, or null if it was deleted

--previous adds "previous" to each line of jsonl: the record before the change, or null if it was
added. So a reader can tell what changed.

--exec gives all that to the standard input of a shell command; if nothing changed, the command is
not started. The place moves when the command has read everything and ended with 0, so it must read
its input to the end (`cat > /dev/null` is enough). Input that it reads and throws away, as
`head -1` does with the rest of a block, counts as read. Its environment has EXPORT_CONSUMER,
EXPORT_KIND, EXPORT_FORMAT, EXPORT_REPOSITORY, EXPORT_FROM and EXPORT_TO; the last two are revisions
for `git --git-dir "$EXPORT_REPOSITORY" diff`.

--into DIR writes numbered files that anybody can follow through a web server, without Git and each
change exactly once: DIR/NAME-000000123.jsonl.gz, and DIR/NAME.state.json, which names the last
file, the first that is kept, and a baseline with all records. --keep DAYS removes older files, and
a baseline that is older is replaced. lib/discogs_crawler/data/examples/follow.py is a short reader.
If the export is killed at any point, nothing is missing or announced twice. (An export to standard
output is lost if a SIGKILL comes in its last milliseconds, after the place has moved.)

--from says where a new consumer begins, and may stay in a crontab. For a known consumer it is
refused if it is a revision other than the one it began at; --reset moves the place, which may
repeat or skip changes.

Without --repository it reads the crawler's own store, and the ledger has the places of consumers.
With --repository no crawler is needed. Of a URL it keeps a copy without records in the state folder
and fetches those that it exports; a folder is a clone that you keep up to date yourself. The places
are then in a SQLite file beside the copy or the clone, CLONE.consumers.db. Such a store need not be
trusted: anything that is not a record in its place is left out, with one warning.

Examples:

  export_changes.py --consumer mirror --format jsonl --exec 'load.py music.db'
  export_changes.py --consumer mail --from now --format status
  export_changes.py --repository https://example.org/discogs.git --consumer me --format ids
  export_changes.py --consumer web --kind all --into /srv/www/discogs --keep 90
  export_changes.py --list

Exit codes: 0 exported, or there was nothing new; 1 interrupted, or the reader went away or the
command failed (nothing is lost, run it again); 64 usage; 65 the consumer's revision is not in the
repository, or the repository is damaged; 69 the disk is full or a remote does not answer; 75
another export to this consumer is running, or one that fetches the same URL, the store is being
converted, or nothing is stored yet; 78 configuration.
"""

import signal

if __name__ == "__main__":  # until we listen (see cli/shutdown.py)
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))

import argparse
import contextlib
import functools
import logging
import os
import re
import sqlite3
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

from discogs_crawler import clock
from discogs_crawler.cli import command
from discogs_crawler.config import Settings
from discogs_crawler.errors import EXIT_DONE, UsageError
from discogs_crawler.export import delivery, numbered_files, revisions
from discogs_crawler.export import run as export_run
from discogs_crawler.export.formats import FORMATS, WITHOUT_KIND
from discogs_crawler.export.numbered_files import Target
from discogs_crawler.export.revisions import StoreSource
from discogs_crawler.export.run import Form, Plan
from discogs_crawler.ledger import consumers
from discogs_crawler.ledger.consumers import Consumer
from discogs_crawler.records import KINDS
from discogs_crawler.store import objects

log = logging.getLogger("discogs_crawler.export_changes")


def arguments() -> argparse.ArgumentParser:
    parser = command.parser(__doc__, "DATABASE", "STORE", "STORE_BRANCH")
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--consumer", metavar="NAME", help="export to this consumer")
    task.add_argument("--list", action="store_true", help="show all consumers and their places")
    parser.add_argument("--format", choices=FORMATS, help="see above [names; with --into jsonl]")
    parser.add_argument(
        "--previous", action="store_true", help="with jsonl: also the record before the change"
    )
    parser.add_argument("-z", dest="nul", action="store_true", help="end lines and fields with NUL")
    parser.add_argument(
        "--kind", choices=(*KINDS, export_run.ALL), help="kind of records [releases]"
    )
    parser.add_argument(
        "--from",
        dest="start",
        metavar="REV",
        help="where a new consumer begins: start, now or a revision [start]",
    )
    parser.add_argument(
        "--limit", type=command.positive, metavar="N", help="export at most N commits"
    )
    parser.add_argument(
        "--skip-technical",
        action="store_true",
        help="leave out changes that only new cleaning rules made",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--exec",
        dest="line",
        type=command.filled,
        metavar="CMD",
        help="give the changes to a shell command",
    )
    where.add_argument("--into", type=command.path, metavar="DIR", help="write numbered files")
    parser.add_argument(
        "--keep", type=command.positive, metavar="DAYS", help="with --into: remove older files"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="only print; the place does not move"
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--reset", metavar="REV", help="only move the consumer: to start, now or a revision"
    )
    instead.add_argument("--forget", action="store_true", help="only forget the consumer")
    parser.add_argument(
        "--repository",
        type=command.filled,
        metavar="URL|DIR",
        help="read this store instead of the crawler's own",
    )
    return parser


def main(flags: argparse.Namespace, settings: Settings) -> int:
    command.terminate_like_interrupt()
    check_usage(flags)
    with export_run.reading(flags.repository, settings):
        return run(flags, settings)


def run(flags: argparse.Namespace, settings: Settings) -> int:
    source = export_run.find_source(flags.repository, settings)
    database = export_run.find_database(flags.repository, source, settings)
    if flags.repository and flags.database:
        database = settings.database
    with contextlib.ExitStack() as stack:
        db = stack.enter_context(consumers.opened(database))
        if flags.list:
            print(table(db, source), end="")
            return EXIT_DONE
        # What is refused is refused here, without a lock, whose file would be left behind.
        if flags.reset or flags.forget:
            consumers.get(db, flags.consumer)
            export_run.resolve(source, flags.reset or "start")
        else:
            enrol(db, source, flags, keep=False)
        only_look = contextlib.nullcontext(-1)
        alone = only_look if flags.dry_run else export_run.alone(database, flags.consumer)
        lock = stack.enter_context(alone)
        if flags.reset:
            reset(db, source, flags)
        elif flags.forget:
            forget(db, database, flags)
        elif move := export_changes(db, source, flags, lock):
            # Killed after it, we would have failed in the eyes of our reader: so it comes last of
            # all.
            command.end_with(functools.partial(move_and_exit, move, stack.pop_all()))
    return EXIT_DONE


def move_and_exit(move: Callable[[], None], held: contextlib.ExitStack) -> NoReturn:
    move()
    # The journal of a database that is not closed would be replayed over a backup put in its place.
    held.close()
    os._exit(EXIT_DONE)


def check_usage(flags: argparse.Namespace) -> None:
    if flags.consumer is not None:
        consumers.check_name(flags.consumer)
    if flags.keep and not flags.into:
        raise UsageError("--keep goes with --into")
    if flags.into and re.search(r"-[0-9]{9,}$", flags.consumer or ""):
        raise UsageError(f"--into: {flags.consumer} looks like the name of another consumer's file")
    if flags.into and (flags.nul or flags.format not in (None, "jsonl")):
        raise UsageError("--into writes jsonl with line feeds")
    flags.format = flags.format or ("jsonl" if flags.into else "names")
    if flags.previous and flags.format != "jsonl":
        raise UsageError("--previous goes with --format jsonl, or --into")
    if flags.format in WITHOUT_KIND and flags.kind == export_run.ALL:
        raise UsageError(
            f"--format {flags.format}: kinds share their numbers; name one with --kind"
        )


def table(db: sqlite3.Connection, source: StoreSource) -> str:
    """All consumers, one a line."""
    from tabulate import tabulate  # takes as long to load as an export to run

    tip = revisions.tip_of(source)
    rows = [
        (
            known.name,
            known.kind,
            (known.revision or "start")[:12],
            tip and objects.commits_between(source.folder, known.revision, tip),
            clock.iso(known.exported) if known.exported is not None else "never",
            known.records,
            known.sequence or "-",
            known.folder or known.repository,
        )
        for known in consumers.everyone(db)
    ]
    head = ("consumer", "kind", "revision", "behind", "exported", "changes", "file", "where")
    # tabulate takes no list of columns for a table without rows.
    as_text = [0, 2] if rows else True
    return tabulate(rows, head, tablefmt="plain", disable_numparse=as_text) + "\n"


def reset(db: sqlite3.Connection, source: StoreSource, flags: argparse.Namespace) -> None:
    consumer = consumers.get(db, flags.consumer)
    revision = export_run.resolve(source, flags.reset)
    moved = consumer._replace(repository=source.name, kind=flags.kind or consumer.kind)
    if not flags.dry_run:
        consumers.move(db, moved, "reset", revision)
    log.info("%s: from %s to %s", consumer.name, consumer.revision or "start", revision or "start")


def forget(db: sqlite3.Connection, database: Path, flags: argparse.Namespace) -> None:
    if not flags.dry_run:
        consumers.forget(db, consumers.get(db, flags.consumer))
        export_run.lock_of(database, flags.consumer).unlink(missing_ok=True)
    log.info("%s: forgotten", flags.consumer)


def enrol(
    db: sqlite3.Connection, source: StoreSource, flags: argparse.Namespace, *, keep: bool
) -> Consumer:
    """The consumer of the command line; a new one is remembered if `keep`."""
    consumer = export_run.enrol(db, source, flags.consumer, flags.kind, flags.start, keep=keep)
    if flags.format in WITHOUT_KIND and consumer.kind == export_run.ALL:
        raise UsageError(
            f"--format {flags.format}: {consumer.name} gets all kinds, which share their numbers"
        )
    return consumer


def export_changes(
    db: sqlite3.Connection, source: StoreSource, flags: argparse.Namespace, lock: int
) -> Callable[[], None] | None:
    """Write out what is new; what moves the consumer's place, if that is still to be done."""
    consumer = enrol(db, source, flags, keep=not flags.dry_run)
    form = Form(flags.format, flags.nul, flags.skip_technical, flags.previous)
    if flags.into and not flags.dry_run:
        target = Target(consumer.name, flags.into)
        numbered_files.export(
            db, consumer, source, target, form=form, limit=flags.limit, keep_days=flags.keep
        )
        return None
    if consumer.folder and not flags.dry_run:
        raise UsageError(
            f"consumer {consumer.name} is exported --into {consumer.folder}; its readers would miss"
            " these changes: use another name"
        )
    plan = export_run.plan(consumer, source, flags.limit)
    if plan is None:
        log.info("%s: nothing new", consumer.name)
        return None
    with receiver(flags, plan, lock) as write:
        count = export_run.write(plan, form, write)
    log.info("%s: %d changes up to %s", consumer.name, count, plan.new[:12])
    if flags.dry_run:
        return None
    return functools.partial(consumers.move, db, consumer, "export", plan.new, count)


def receiver(
    flags: argparse.Namespace, plan: Plan, lock: int
) -> AbstractContextManager[delivery.Write]:
    if flags.line and not flags.dry_run:
        variables = plan.variables() | {"EXPORT_FORMAT": flags.format}
        return delivery.to_command(flags.line, variables, lock)
    return delivery.to_stdout()


if __name__ == "__main__":
    command.script(main, arguments())
