#!/usr/bin/env python3
"""Fill the store from a dump, without the API: a complete copy on the first day.

Takes the dump that seed_queue.py accepted last, converts each record to what the API would answer,
as far as the dump determines it, and commits it. Such a record begins with `"_dump"`, the date of
the dump it comes from. A record from the API is never replaced; the API's answer replaces an
imported record. From the next dump only what differs is imported, and imported records that it
lacks are removed. What is wanted from the API stays wanted.

It needs neither Redis nor the API, and may run beside workers. If it is interrupted, run it again:
it goes on. Run again with the same dump it does nothing.

Examples:
    discogs_xml_split.py -d discogs_20261101_releases.xml.gz -r releases.hashes
    seed_queue.py -n releases.hashes
    import_dump.py -d discogs_20261101_releases.xml.gz

A damaged record is skipped and named. REMOVE_FIELDS, KEEP_FIELDS and CLEAN_PRESET apply as they do
to the API's answers.

Exit codes: 0 done, 1 interrupted (run it again), 64 usage, or the dump cannot be opened, 65 the
ledger has not accepted the dump or the dump lacks too much of what was imported (nothing was
changed), 69 the disk is full or the remote is down, 75 another run, or seed_queue.py with a newer
dump, has not ended (within half an hour), 78 a setting or a permission is wrong.
"""

import signal

if __name__ == "__main__":  # until we listen (see cli/shutdown.py)
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))

import argparse
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

from discogs_crawler import config
from discogs_crawler.cli import command
from discogs_crawler.config import Settings
from discogs_crawler.errors import EXIT_DONE, UsageError
from discogs_crawler.importing import run
from discogs_crawler.importing.run import ImportReport

log = logging.getLogger("discogs_crawler.import_dump")


def arguments() -> argparse.ArgumentParser:
    parser = command.parser(__doc__, "DATABASE", "STORE", "STORE_LAYOUT")
    parser.add_argument("-d", "--dump", type=command.path, required=True, help="the dump, a file")
    parser.add_argument(
        "--force", action="store_true", help="remove what the dump lacks, however much it is"
    )
    return parser


def main(flags: argparse.Namespace, settings: Settings) -> int:
    command.terminate_like_interrupt()
    if not flags.dump.is_file():
        is_there = flags.dump.exists() or str(flags.dump) == "-"
        why = "it must be a regular file, because it is read more than once"
        raise UsageError(f"{flags.dump}: {why if is_there else 'there is no such file'}")
    config.make_state_dir(settings)
    tell(run.run(flags.dump, settings, force=flags.force))
    return EXIT_DONE


def tell(report: ImportReport) -> None:
    if sys.stderr.isatty():
        print(report.line(), file=sys.stderr)
    else:
        log.info("%s", report.line())


if __name__ == "__main__":
    command.script(main, arguments())
