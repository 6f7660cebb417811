#!/usr/bin/env python3
"""Fetch what is in the queue from the API and commit it to the store, until told to stop.

Claims ids from the queue, asks the API for them as fast as its quota allows, removes the fields
that change on every fetch, and commits the records in batches. Any number of workers may run on any
number of machines, as long as they use one Redis: they share the quota and never get in each
other's way.

SIGTERM, Ctrl-C or a closed terminal let it commit what it has fetched and give the rest back to
the queue. A second signal ends it at once; nothing is lost then either. On a terminal one line
shows the progress; -v logs every commit, -vv every answer.

An id without a usable answer is asked for again after 1, 5 and 30 minutes, 3 and 12 hours
(RETRY_DELAYS); then it is a dead letter (see seed_queue.py --dead). While the API is down no
attempt is counted and no id is given up.

Examples:

    worker.py                               without end, e.g. in tmux or under systemd
    worker.py --until-empty --max-seconds 3000    hourly, from cron
    worker.py --check                       what is configured, and does it work?
    worker.py --branch a --segments 0-18    fetch half of the ids, and commit to a branch

Exit codes: 0 stopped as asked, or all done; 1 something is left in spite of --until-empty, perhaps
for a branch that has no worker, or a second signal ended it; 64 usage; 69 Redis, the disk or the
remote was not available, or the remote declined pushes, for an hour, or when it was told to stop
(what could not be stored went back into the queue); 78 configuration, e.g. the API does not accept
the token.
"""

import signal

if __name__ == "__main__":  # until we listen (see cli/shutdown.py)
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))

import argparse
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

from discogs_crawler import config
from discogs_crawler.cli import command, healthcheck
from discogs_crawler.cli.formatting import printable
from discogs_crawler.cli.shutdown import Stop
from discogs_crawler.config import Settings
from discogs_crawler.errors import EXIT_DONE, EXIT_PARTLY
from discogs_crawler.records import KINDS
from discogs_crawler.worker import crawler, preflight
from discogs_crawler.worker.crawler import CrawlTask


def arguments() -> argparse.ArgumentParser:
    parser = command.parser(
        __doc__, "COMMIT_EVERY", "COMMIT_SECONDS", "DATABASE", "STORE", "RATE_LIMIT"
    )
    parser.add_argument(
        "--kind", choices=KINDS, default="releases", help="kind of records [releases]"
    )
    parser.add_argument(
        "--threads", dest="worker_threads", metavar="N", help="requests under way at once [2]"
    )
    parser.add_argument(
        "--segments", metavar="LIST", type=segments, help="only ids of these millions: 0-9,13"
    )
    parser.add_argument(
        "--branch", metavar="NAME", default="", help="commit to the branch crawl/NAME"
    )
    parser.add_argument("--limit", metavar="N", type=command.positive, help="end after N ids")
    parser.add_argument(
        "--max-seconds", metavar="S", type=duration, help="end after S seconds (or 50m, 8h)"
    )
    parser.add_argument(
        "--until-empty",
        action="store_true",
        help="end when nothing is pending, leased to any worker, or waiting for another attempt",
    )
    parser.add_argument(
        "--check", action="store_true", help="check settings and services, then end"
    )
    return parser


def duration(text: str) -> int:
    try:
        return config.parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def segments(text: str) -> frozenset[int]:
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,3})(?:-([0-9]{1,3}))?", part.strip(), re.ASCII)
        if match is None:
            raise argparse.ArgumentTypeError(
                f"{part.strip()!r} is not a segment; a list is written as 0-9,13"
            )
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise argparse.ArgumentTypeError(f"{part.strip()}: a range must ascend")
        found.update(range(first, last + 1))
    return frozenset(found)


def main(flags: argparse.Namespace, settings: Settings) -> int:
    if flags.check:
        command.terminate_like_interrupt()
        config.make_state_dir(settings)
        return check(settings, flags.kind)
    stop = Stop(flags.max_seconds)
    stop.listen()
    config.make_state_dir(settings)
    task = CrawlTask(flags.kind, flags.segments, flags.branch, flags.limit, flags.until_empty)
    outcome = crawler.crawl(settings, task, stop)
    return EXIT_PARTLY if flags.until_empty and not outcome.empty else EXIT_DONE


def check(settings: Settings, kind: str) -> int:
    """Print what was found; the exit code of what is wrong first."""
    code = EXIT_DONE
    for finding in preflight.check(settings, kind):
        verdict = "ok" if finding.error is None else "BAD"
        print(f"{verdict:3}  {finding.what:8}  {printable(finding.text)}")
        if finding.error is not None and code == EXIT_DONE:
            code = finding.error.exit_code
    return code


def pings(flags: argparse.Namespace) -> tuple[str, ...]:
    """What HEALTHCHECK_URL is told."""
    if flags.check:
        return ()
    ends = flags.until_empty or flags.limit or flags.max_seconds
    return healthcheck.ALL if ends else (healthcheck.FAIL,)


if __name__ == "__main__":
    command.script(main, arguments(), pings)
