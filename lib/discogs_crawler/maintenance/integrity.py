"""Look for damage: every stored record canonical and in its place, Git sound, the ledger right.

`since` limits the look at the records to what changed after that revision; the rest is for the
monthly check.
"""

import array
import heapq
import itertools
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from discogs_crawler.api import exact_json
from discogs_crawler.cli import progress
from discogs_crawler.errors import BadData, CrawlerError
from discogs_crawler.ledger.database import Ledger
from discogs_crawler.ledger.rows import Row
from discogs_crawler.records import SEGMENT_SIZE, parse_record_path, record_path
from discogs_crawler.store import fast_import, objects
from discogs_crawler.store.git import Repository
from discogs_crawler.store.layouts import Store
from discogs_crawler.store.objects import ABSENT, FILE, GITLINK, TreeDifference
from discogs_crawler.store.single import FROM_DUMP

# Records read by one `git cat-file`: some 10 MB. With 500 its start takes a third of the time.
BLOCK = 2_000

# Ids that are looked up once more at once: some hundred directories.
IDS = 10_000

# Faults of one sort that are shown; a mail with a million of them says no more.
SHOWN = 10

# From a request to the commit of its answer, if the remote is down meanwhile.
UNDER_WAY_S = 3_600

# What an answer or an import has changed after an epoch; an import that has not ended may have.
_LATER = (
    "(state = 'stored' AND changed > ? OR state = 'imported' AND imported IN "
    "(SELECT id FROM dumps WHERE imported IS NULL OR imported > ?)) "
    "AND (? IS NULL OR id / ? = ?)"
)

# Files in the root that are not records.
OTHERS = {"README.md", ".gitmodules"}

# A word with a digit in it tells two findings of one sort apart: a path, an object, an id.
_PARTICULAR = re.compile(r"\S*[0-9]\S*")


class Fault(NamedTuple):
    """Something that is wrong."""

    where: str
    """the path of a record, or a repository"""
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def records(store: Store, revision: str | None, since: str | None = None) -> Iterator[Fault]:
    """What is wrong with the records of `revision`, or with those that differ from `since`."""
    if revision is None:
        return
    with progress.count("check", "records") as advance:
        for repository, prefix, old, new in store.spans(since, revision):
            try:
                differing = objects.differences(repository.path, old, new, prefix=prefix)
                files = (file for file in differing if file.new_mode not in (ABSENT, GITLINK))
                while block := list(itertools.islice(files, BLOCK)):
                    yield from _judge_block(repository, block)
                    advance(len(block))
            except CrawlerError as error:
                yield _failed(repository, error)


def _judge_block(repository: Repository, files: Sequence[TreeDifference]) -> Iterator[Fault]:
    blobs = objects.contents(repository.path, [file.new for file in files])
    for file, data in zip(files, blobs, strict=True):
        fault = _fault(file, data)
        if fault:
            yield Fault(file.path, fault)


def _fault(file: TreeDifference, data: bytes | None) -> str:
    """What is wrong with a file, "" if nothing is."""
    if file.path in OTHERS:
        return ""
    place = parse_record_path(file.path)
    if place is None:
        number = file.path.rpartition("/")[2].removesuffix(".json")
        kind = file.path.split("/")[0]
        if number.isascii() and number.isdigit() and 0 < int(number[:10]) < 10**9:
            return f"not in its place, which is {record_path(kind, int(number))}"
        return "not a record, and not ours"
    if file.new_mode != FILE:
        return f"not a plain file, its mode is {file.new_mode}"
    if data is None:
        return f"its content, blob {file.new}, is missing"
    if objects.blob_id(data).hex() != file.new:
        return f"its content is not that of blob {file.new}"
    try:
        document = exact_json.canonical(data)
    except BadData as error:
        return str(error)
    if not isinstance(document, dict) or str(document.get("id")) != str(place[1]):
        return "it holds another record's id"
    return ""


def repositories(store: Store) -> Iterator[Fault]:
    """What Git finds in each repository.

    As `git fsck --full`, which takes 170 bytes of memory for each object of the repository: this
    takes 60, or 150 for each of the largest pack if that is more.
    """
    for repository in store.repositories():
        folder = repository.path / "objects" / "pack"
        for command in (
            ("fsck", "--no-full", "--no-reflogs", "--strict", "--no-dangling", "--no-progress"),
            *(("index-pack", "--verify", "--strict", str(pack)) for pack in _whole(folder)),
            ("rev-list", "--objects", "--all", "--quiet"),
        ):
            done = repository.call(*command)
            lines = (done.stdout + done.stderr).decode("utf-8", "replace").splitlines()
            found = [line for line in lines if line.strip() and not line.startswith("notice:")]
            if done.returncode or found:
                for line in found or [f"git {command[0]} ended with {done.returncode}"]:
                    yield Fault(str(repository.path), line)


def _whole(folder: Path) -> Iterator[Path]:
    """The packs that have an index, which is written last: others are not of the repository yet."""
    packs = (index.with_suffix(".pack") for index in folder.glob("*.idx"))
    return (pack for pack in packs if pack.exists())


def _failed(repository: Repository, error: CrawlerError) -> Fault:
    where = str(repository.path)
    return Fault(where, str(error).removeprefix(f"{where}: "))


def shortened(findings: Iterable[Fault]) -> Iterator[str]:
    """A line for each of the first SHOWN findings of a sort, then one that counts the others."""
    counts: Counter[str] = Counter()
    for finding in findings:
        sort = _PARTICULAR.sub("…", finding.what)
        counts[sort] += 1
        if counts[sort] <= SHOWN:
            yield str(finding)
    for sort, number in counts.items():
        if number > SHOWN:
            yield f"... and {number - SHOWN:,} more: {sort}"


def against_ledger(store: Store, ledger: Ledger, kind: str) -> Iterator[Fault]:
    """Records that only one of Git and ledger has."""
    try:
        for row in one_sided(store, ledger, kind):
            missing = "missing, the ledger says that it is stored"
            what = missing if row.stored else "stored, the ledger does not know it"
            yield Fault(record_path(kind, row.id), what)
    except CrawlerError as error:
        yield _failed(store.repository, error)


def one_sided(store: Store, ledger: Ledger, kind: str) -> Iterator[Row]:
    """What the ledger knows of the records that only one of Git and ledger has.

    Workers commit before the ledger hears of it, so what differs is looked at once more.
    """
    known = (row.id for row in ledger.select(kind, "state IN ('stored', 'imported') ORDER BY id"))
    only = array.array("I", _differences(store.ids(kind), known))
    for start in range(0, len(only), IDS):
        block = only[start : start + IDS]
        in_git = _present(store, kind, block)
        rows = ledger.rows(kind, block).values()
        yield from (row for row in rows if row.stored != (row.id in in_git))


def outdated(store: Store, ledger: Ledger, kind: str) -> Iterator[Row]:
    """What has changed, by the ledger, after the last commit of a store that is older."""
    for part in store.parts():
        tip = part.tip()
        if tip is None or not (part.prefix or kind).startswith(kind):
            continue
        epoch = int(part.repository.run("log", "-1", "--format=%ct", tip))
        segment = int(part.prefix.split("/")[1]) if part.prefix else None
        since = epoch - UNDER_WAY_S
        values = (since, since, segment, SEGMENT_SIZE, segment)
        yield from ledger.select(kind, _LATER, *values)


def from_dump(store: Store, kind: str, ids: Collection[int]) -> set[int]:
    """Those of the ids whose record a dump has brought."""
    return {i for i, data in store.read(kind, ids).items() if data.startswith(FROM_DUMP)}


def _present(store: Store, kind: str, ids: Collection[int]) -> set[int]:
    """Those of the ids that Git has, by its directories alone."""
    paths = {record_path(kind, record_id): record_id for record_id in ids}
    found = set()
    for part in store.parts():
        here = [path for path in paths if path.startswith(part.prefix)]
        inside = (path.removeprefix(part.prefix) for path in here)
        stored = fast_import.stored(part.repository, part.tip(), inside)
        found |= {paths[part.prefix + path] for path in stored}
    return found


def _differences(left: Iterator[int], right: Iterator[int]) -> Iterator[int]:
    """The numbers that only one of two ascending sequences has."""
    for number, found in itertools.groupby(heapq.merge(left, right)):
        if len(list(found)) == 1:
            yield number
