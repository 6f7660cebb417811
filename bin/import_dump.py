#!/usr/bin/env python3
"""Fill the store from a dump, without the API: a complete copy on the first day.

Takes the dump that seed_queue.py accepted, makes of each record what the API would answer as far
as the dump says it, and commits it. Such a record begins with `"_dump"`, the day of the dump that
brought it. What the store has from the API stays; the API's answer replaces an imported record,
never the other way round. With the next dump only what differs is imported, and imported records
that it lacks are removed. What is wanted from the API stays wanted.

It needs neither Redis nor the network, and may run beside workers. Interrupted anywhere, run it
again: it goes on. Run again with the same dump it does nothing.

Examples:
    discogs_xml_split.py -d discogs_20261101_releases.xml.gz -r releases.sha1
    seed_queue.py -n releases.sha1
    import_dump.py -d discogs_20261101_releases.xml.gz

A damaged record is skipped and named. REMOVE_FIELDS, KEEP_FIELDS and CLEAN_PRESET hold as for the
answers of the API.

Exit codes: 0 done, 1 interrupted (run it again), 64 the dump cannot be read, 65 the ledger has not
accepted the dump or it lacks very much of what was imported (nothing was changed), 69 the disk is
full or the remote is down, 75 it is running already, 78 a setting or a permission is wrong.
"""

import argparse
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

from discogs_crawler import config, locks
from discogs_crawler.cli import command
from discogs_crawler.cli.shutdown import Stop
from discogs_crawler.config import Settings
from discogs_crawler.errors import EXIT_DONE, UsageError
from discogs_crawler.importing import run as import_run
from discogs_crawler.importing.run import Report
from discogs_crawler.ledger import database
from discogs_crawler.store import layouts

log = logging.getLogger("discogs_crawler.import_dump")


def arguments() -> argparse.ArgumentParser:
    parser = command.parser(__doc__, "DATABASE", "STORE", "STORE_LAYOUT", "STORE_REMOTE")
    parser.add_argument("-d", "--dump", type=Path, required=True, help="the dump, a file")
    parser.add_argument(
        "--force", action="store_true", help="remove what the dump lacks, however much it is"
    )
    return parser


def main(flags: argparse.Namespace, settings: Settings) -> int:
    command.terminate_like_interrupt()
    if not flags.dump.is_file():
        raise UsageError(f"{flags.dump}: there is no such file")
    config.make_state_dir(settings)
    with (
        locks.exclusive(settings.state_dir / "import_dump.lock", "import_dump"),
        database.open(settings.database) as opened,
    ):
        dump = import_run.find_dump(opened, flags.dump)
        stop = Stop()
        kept = layouts.open_store(settings, stop=stop)
        with opened.run("import_dump", dump.kind) as run:
            report = import_run.import_dump(
                flags.dump, dump, kept, opened, settings, stop, force=flags.force
            )
            run.counts |= {**report.counts._asdict(), "damaged": report.damaged}
    tell(report)
    return EXIT_DONE


def tell(report: Report) -> None:
    if sys.stderr.isatty():
        print(report.line(), file=sys.stderr)
    else:
        log.info("%s", report.line())


if __name__ == "__main__":
    sys.exit(command.run(main, arguments()))
