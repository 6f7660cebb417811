#!/usr/bin/env python3
"""Show the state of the crawler: what is stored, queued, failed and missing, and the rate.

Prints tables for a terminal of 80 columns, or with --json everything as one JSON object (times are
UTC epoch seconds, durations seconds, shares 0 to 1, null if unknown). --html writes one
self-contained page with plots, --prometheus a file for node_exporter's textfile collector; with
either of them nothing is printed unless --json asks for it. Each file is written whole or not at
all.

It only reads: run it as often as you like, while everything else runs. If Redis is not running, it
says so and shows the rest.

Examples:

  stats.py
  stats.py --kind releases --json | jq '.kinds[0].coverage'
  stats.py --html /var/www/crawler.html \\
      --prometheus /var/lib/prometheus/node-exporter/discogs.prom

Exit codes: 0 done, 1 interrupted, 64 usage, 65 the ledger is damaged, 69 it cannot be read now,
75 there is no ledger yet, 78 it is from another version, or a setting or a permission is wrong.
"""

import signal

if __name__ == "__main__":  # until we listen (see cli/shutdown.py)
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))

import argparse
import io
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

from discogs_crawler.cli import command
from discogs_crawler.config import Settings
from discogs_crawler.errors import EXIT_DONE, ConfigurationError
from discogs_crawler.files import atomic_write
from discogs_crawler.records import KINDS
from discogs_crawler.stats import collect, html, prometheus, terminal
from discogs_crawler.stats.snapshot import plain


def arguments() -> argparse.ArgumentParser:
    parser = command.parser(__doc__, "DATABASE", "RATE_IDENTITY")
    parser.add_argument("--kind", choices=KINDS, help="only this kind [all that have records]")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--html", metavar="FILE", type=command.path, help="write a page with plots")
    parser.add_argument("--prometheus", metavar="FILE", type=command.path, help="write metrics")
    return parser


def main(flags: argparse.Namespace, settings: Settings) -> int:
    command.terminate_like_interrupt()
    snapshot = collect.take(settings, flags.kind)
    if flags.html:
        write(flags.html, html.render(snapshot))
    if flags.prometheus:
        write(flags.prometheus, prometheus.render(snapshot))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # Latin-1 has no bars
    if flags.json:
        print(json.dumps(plain(snapshot), indent=2, ensure_ascii=False))
    elif not flags.html and not flags.prometheus:
        print(terminal.render(snapshot), end="")
    return EXIT_DONE


def write(path: Path, text: str) -> None:
    """Write the file whole or not at all."""
    try:
        with atomic_write(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be written: {error.strerror}") from error


if __name__ == "__main__":
    command.script(main, arguments())
