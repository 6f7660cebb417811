#!/usr/bin/env python3
"""Split a Discogs dump into hashes: one line a record, its id and the SHA-1 of its content.

Reads discogs_YYYYMMDD_KIND.xml.gz (or plain XML, or standard input), tells the kind from the root
element, and writes RESULT with lines `id<TAB>sha1`, ascending. The hash is one of the content: it
is the same whatever videos, images, order of attributes or indentation, so that seed_queue.py
queues what has changed and not what is spelled differently. Keeps a book of hashes in STATE_DIR,
with which the next month takes a twentieth of the time.

The dump is verified in the same pass. If it is cut off, damaged, or not a dump at all, one line
says what and where, and no RESULT is written. Damaged records in an otherwise whole dump are
reported, and get the hash of their bytes; more than 100 of them are too many. What is known of the
dump goes into the ledger, where seed_queue.py finds its kind and date.

Examples:
    discogs_xml_split.py -d discogs_20261101_releases.xml.gz -r releases.sha1
    discogs_xml_split.py -d discogs_20261101_releases.xml.gz --check
    curl -s URL | discogs_xml_split.py -d - -r - | wc -l

Exit codes: 0 done, 1 interrupted, 64 the files cannot be opened, 65 the dump is damaged (nothing
is written), 69 the disk is full, 75 a dump of the same kind is being split, 78 a setting or a
permission is wrong.
"""

import argparse
import hashlib
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

from discogs_crawler import config
from discogs_crawler.cli import command
from discogs_crawler.config import Settings
from discogs_crawler.dumps import canonical, hash_cache, metadata
from discogs_crawler.dumps import split as verdict
from discogs_crawler.dumps.split import Report, Task
from discogs_crawler.errors import EXIT_DONE, BadData, UsageError
from discogs_crawler.ledger import database
from discogs_crawler.ledger.database import Ledger

log = logging.getLogger("discogs_crawler.split")


def arguments() -> argparse.ArgumentParser:
    parser = command.parser(__doc__, "DATABASE")
    parser.add_argument("-d", "--dump", required=True, help="the dump; - is standard input")
    parser.add_argument("-r", "--result", help="file for the hashes; - is standard output")
    parser.add_argument("--check", action="store_true", help="only print the verdict")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--verify", action="store_true", help="look into every record, by libxml2")
    how.add_argument("--raw", action="store_true", help="hash the records' bytes, parse nothing")
    return parser


def main(flags: argparse.Namespace, settings: Settings) -> int:
    command.terminate_like_interrupt()
    if flags.check == (flags.result is not None):
        raise UsageError("give either -r RESULT or --check")
    if "" in (flags.dump, flags.result):
        raise UsageError("the name of a file is empty")
    source = None if flags.dump == metadata.STDIN else Path(flags.dump)
    if source and not flags.check and source.resolve() == Path(flags.result).resolve():
        raise UsageError("RESULT would overwrite the dump")
    config.make_state_dir(settings)
    if flags.check:
        report = check(source, flags, settings)
    else:
        with database.open(settings.database) as opened:
            if is_split(source, flags, opened):
                log.info("%s was split before, into this very file", source)
                return EXIT_DONE
            report = split(source, flags, settings, opened)
    if report.facts.verdict != metadata.WHOLE:
        raise BadData(f"{report.facts.file}: {report.facts.verdict}")
    if flags.check:
        print(report.line())
    elif sys.stderr.isatty():
        print(report.line(), file=sys.stderr)
    else:
        log.info("%s", report.line())
    return EXIT_DONE


def check(source: Path | None, flags: argparse.Namespace, settings: Settings) -> Report:
    def book_of(kind: str) -> bytes | None:
        if not settings.database.exists():
            return None
        with database.open(settings.database, read_only=True) as opened:
            return opened.book_of(kind, canonical.CANONICAL_VERSION)

    return verdict.examine(Task(source, None, settings.state_dir, book_of, flags.raw, flags.verify))


def is_split(source: Path | None, flags: argparse.Namespace, opened: Ledger) -> bool:
    """Whether RESULT is what this dump gives, so that a daily job need not read it again."""
    result = Path(flags.result)
    if source is None or flags.verify or not (source.is_file() and result.is_file()):
        return False
    before = opened.dump_of_result(_sha256(result))
    version = 0 if flags.raw else canonical.CANONICAL_VERSION
    if before is None or before.canonical_version != version:
        return False
    return before.verdict == metadata.WHOLE and before.sha256 == _sha256(source)


def _sha256(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def split(
    source: Path | None, flags: argparse.Namespace, settings: Settings, opened: Ledger
) -> Report:
    def book_of(kind: str) -> bytes | None:
        return opened.book_of(kind, canonical.CANONICAL_VERSION)

    result = Path(flags.result)
    report = verdict.examine(
        Task(source, result, settings.state_dir, book_of, flags.raw, flags.verify)
    )
    facts = report.facts
    if before := opened.dump_of_file(facts.sha256):
        log.info("%s was split before: dump %d in the ledger", facts.file, before.id)
    if facts.kind:
        opened.record_dump(facts._asdict())
    if facts.book_sha256:
        hash_cache.forget_other_books(settings.state_dir / "books", facts.kind, facts.book_sha256)
    return report


if __name__ == "__main__":
    sys.exit(command.run(main, arguments()))
