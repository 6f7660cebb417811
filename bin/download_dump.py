#!/usr/bin/env python3
"""Download the newest dump from Discogs, verify it, and print its path.

Reads the index of the dump site, takes the newest month that is complete (its CHECKSUM file is
there) and downloads what is not here yet. An interrupted download goes on where it stopped, if the
site allows it. A file gets its name only when its SHA-256 is right; its modification time is that
of its upload. Of each kind the newest dumps stay (--keep); older ones and the files named after
them are removed. If everything is here already, the run costs one request.

Examples:
    download_dump.py                              the newest dump of releases
    download_dump.py artists labels masters       one path per line
    download_dump.py --date 20261101              the dump of that day

    dump=$(download_dump.py) && discogs_xml_split.py -d "$dump" -r "$dump.hashes" &&
        seed_queue.py -n "$dump.hashes"           the monthly job, which may run every day

Exit codes: 0 done, or nothing new; 1 interrupted; 64 usage, or no dump has that date; 65 the file
does not match its checksum; 69 the site does not answer or the disk is full; 75 another run
has not ended within half an hour, not published yet, or the site asked us to wait; 78
configuration.
"""

import signal

if __name__ == "__main__":  # until we listen (see cli/shutdown.py)
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))

import argparse
import logging
import sys
from datetime import datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

from discogs_crawler import config, locks
from discogs_crawler.cli import command
from discogs_crawler.config import Settings
from discogs_crawler.dumps import download
from discogs_crawler.errors import EXIT_DONE, UsageError
from discogs_crawler.records import KINDS

log = logging.getLogger("discogs_crawler.download_dump")

# Of the first dumps.
FIRST_YEAR = 2008


def arguments() -> argparse.ArgumentParser:
    parser = command.parser(__doc__, "DUMP_DIR", "DUMP_SITE")
    parser.add_argument(
        "kinds",
        nargs="*",
        metavar="KIND",
        help="any of releases, artists, labels, masters [releases]",
    )
    parser.add_argument(
        "--date", type=_date, default="latest", metavar="YYYYMMDD", help="date of the dump [latest]"
    )
    parser.add_argument(
        "--keep",
        type=command.positive,
        default=2,
        metavar="N",
        help="number of dumps of a kind to keep [2]",
    )
    return parser


def _date(text: str) -> int | None:
    if text == "latest":
        return None
    try:
        day = datetime.strptime(text, "%Y%m%d")
    except ValueError:
        day = None
    if day is None or len(text) != 8:
        raise argparse.ArgumentTypeError(f"not a date as YYYYMMDD: {text!r}")
    if day.year < FIRST_YEAR:
        raise argparse.ArgumentTypeError(f"there are no dumps before {FIRST_YEAR}: {text!r}")
    return int(text)


def main(flags: argparse.Namespace, settings: Settings) -> int:
    kinds = list(dict.fromkeys(flags.kinds)) or ["releases"]
    for kind in kinds:
        if kind not in KINDS:
            raise UsageError(f"not a kind: {kind!r}; there are {', '.join(KINDS)}")
    command.terminate_like_interrupt()
    config.make_state_dir(settings)
    lock = settings.state_dir / "download_dump.lock"
    with locks.exclusive(lock, "download_dump", patience_s=locks.PATIENCE_S):
        paths = download.fetch(settings, kinds, flags.date)
        for kind in kinds:
            for path in download.remove_old(settings.dump_dir, kind, flags.keep, paths):
                log.info("%s: removed", path)
    print(*paths, sep="\n")
    return EXIT_DONE


if __name__ == "__main__":
    command.script(main, arguments())
