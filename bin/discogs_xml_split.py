#!/usr/bin/env python3
"""Split a Discogs dump into hashes: one line per record, with its id and the SHA-1 of its content.

Reads discogs_YYYYMMDD_KIND.xml.gz (or plain XML, or standard input), recognises the kind by the
root element, and writes RESULT with lines `id<TAB>sha1`, ascending by id. Videos, images, the order
of attributes, indentation and empty elements do not matter to a hash, so seed_queue.py queues what
has changed, not what is only written differently. A hash cache in STATE_DIR makes next month's
split about six times as fast; the result is the same without it.

The same pass verifies the dump. If it is cut off, damaged, or not a dump at all, one line says what
is wrong and where, and no RESULT is written. A damaged record in an otherwise whole dump is
reported and gets the hash of its bytes; with more than 100 of them the dump is damaged. What is
known about the dump goes into the ledger, where seed_queue.py finds its kind and date. Elements and
attributes that no earlier dump had do not stop it; the summary and stats.py name them.

Examples:
    discogs_xml_split.py -d discogs_20261101_releases.xml.gz -r releases.hashes
    discogs_xml_split.py -d discogs_20261101_releases.xml.gz --check
    curl -s URL | discogs_xml_split.py -d - -r - | wc -l

Exit codes: 0 done, 1 interrupted, 64 usage, or a file cannot be opened, 65 the dump is damaged
(nothing is written), 69 the disk is full, 75 a dump of the same kind is being split, 78 a setting
or a permission is wrong.
"""

import signal

if __name__ == "__main__":  # until we listen (see cli/shutdown.py)
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))

import argparse
import functools
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

from discogs_crawler import config
from discogs_crawler.cli import command
from discogs_crawler.config import Settings
from discogs_crawler.dumps import canonical, hash_cache, hashfile, metadata, split
from discogs_crawler.dumps.split import SplitJob, SplitReport
from discogs_crawler.errors import EXIT_DONE, BadData, UsageError
from discogs_crawler.ledger import database as ledger
from discogs_crawler.ledger import drift
from discogs_crawler.ledger.database import Ledger

log = logging.getLogger("discogs_crawler.split")


def arguments() -> argparse.ArgumentParser:
    parser = command.parser(__doc__, "DATABASE")
    parser.add_argument(
        "-d", "--dump", type=command.filled, required=True, help="the dump; - is standard input"
    )
    parser.add_argument(
        "-r", "--result", type=command.filled, help="file for the hashes; - is standard output"
    )
    parser.add_argument(
        "--check", action="store_true", help="write no RESULT, only print the verdict"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--verify", action="store_true", help="parse every record, also unchanged ones"
    )
    how.add_argument("--raw", action="store_true", help="hash the records' bytes, parse nothing")
    return parser


def main(flags: argparse.Namespace, settings: Settings) -> int:
    command.terminate_like_interrupt()
    if flags.check == (flags.result is not None):
        raise UsageError("give either -r RESULT or --check")
    source = None if flags.dump == metadata.STDIN else Path(flags.dump)
    if source and not flags.check and source.resolve() == Path(flags.result).resolve():
        raise UsageError("RESULT would overwrite the dump")
    config.make_state_dir(settings)
    target = None if flags.check else Path(flags.result)
    known = functools.partial(hash_cache_of, settings.database)
    job = SplitJob(source, target, settings.state_dir, known, flags.raw, flags.verify)
    if flags.check:
        report = split.examine(job)
    else:
        with ledger.open(settings.database) as opened:
            if is_split(job, opened):
                log.info("%s was split before, into this very file", source)
                return EXIT_DONE
            report = split_and_record(job, opened)
    if report.facts.verdict != metadata.WHOLE:
        raise BadData(f"{report.facts.file}: {report.facts.verdict}")
    if flags.check:
        print(report.line())
    elif sys.stderr.isatty():
        print(report.line(), file=sys.stderr)
    else:
        log.info("%s", report.line())
    return EXIT_DONE


def hash_cache_of(database: Path, kind: str) -> bytes | None:
    """The SHA-256 of the hash cache that the ledger knows; None if there is none."""
    if not database.exists():
        return None
    with ledger.open(database, read_only=True) as opened:
        return opened.hash_cache_of(kind, canonical.CANONICAL_VERSION)


def is_split(job: SplitJob, opened: Ledger) -> bool:
    """Whether RESULT is what this dump gives, so that a daily job need not read it again."""
    path, result = job.path, job.result
    if not (path and result and path.is_file() and result.is_file()) or job.verify:
        return False
    before = opened.dump_of_result(hashfile.sha256_of(result) or b"")
    version = 0 if job.raw else canonical.CANONICAL_VERSION
    if before is None or (before.canonical_version, before.verdict) != (version, metadata.WHOLE):
        return False
    return before.sha256 == hashfile.sha256_of(path)


def split_and_record(job: SplitJob, opened: Ledger) -> SplitReport:
    """Split the dump, and record in the ledger what is known of it."""
    report = split.examine(job)
    facts = report.facts
    if before := opened.dump_of_file(facts.sha256):
        log.info("%s was split before: dump %d in the ledger", facts.file, before.id)
    if facts.kind:
        opened.record_dump(facts.as_row())
        with opened.transaction() as connection:
            drift.record(connection, facts.kind, "dump", report.drift)
    if facts.hash_cache_sha256:
        hash_cache.forget_other_hash_caches(job.state_dir, facts.kind, facts.hash_cache_sha256)
    return report


if __name__ == "__main__":
    command.script(main, arguments())
