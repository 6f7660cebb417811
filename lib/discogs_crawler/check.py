"""Look for damage: every stored record canonical and in its place, Git sound, the ledger right.

A finding is one line that begins with the record's path or the repository. `since` limits the
look at the records to what changed after that revision; the rest is for the monthly check.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from discogs_crawler import exact_json, git, progress
from discogs_crawler.errors import BadData, CrawlerError
from discogs_crawler.git import EMPTY_TREE, Repository
from discogs_crawler.importing import blob_id
from discogs_crawler.ledger import Ledger
from discogs_crawler.records import parse_record_path, record_path
from discogs_crawler.repository_store import Store
from discogs_crawler.store import AnyStore

# Records read at once: a megabyte or two.
BLOCK = 500

# Files in the root that are not records.
OTHERS = {"README.md", ".gitmodules"}

_RAW = re.compile(rb":\d+ (\d+) [0-9a-f]+ ([0-9a-f]+) [A-Z]")


class _File(NamedTuple):
    path: str
    mode: bytes
    oid: str


def records(store: AnyStore, revision: str | None, since: str | None = None) -> Iterator[str]:
    """What is wrong with the records of `revision`, or with those that differ from `since`."""
    if revision is None:
        return
    with progress.count("check", "records") as advance:
        for repository, prefix, old, new in _spans(store, revision, since):
            try:
                files = _changed(repository, prefix, old, new)
                while block := list(itertools.islice(files, BLOCK)):
                    yield from _judge_block(repository, block)
                    advance(len(block))
            except CrawlerError as error:
                yield str(error)


def _spans(
    store: AnyStore, revision: str, since: str | None
) -> Iterator[tuple[Repository, str, str, str]]:
    """Repository, prefix of its paths, and the two commits to compare in it."""
    yield store.repository, "", since or EMPTY_TREE, revision
    if isinstance(store, Store):
        return
    before = store.pins(since)
    parts = {part.prefix: part.repository for part in store.parts()}
    for path, pinned in store.pins(revision).items():
        if before.get(path) != pinned and f"{path}/" in parts:
            yield parts[f"{path}/"], f"{path}/", before.get(path, EMPTY_TREE), pinned


def _changed(repository: Repository, prefix: str, old: str, new: str) -> Iterator[_File]:
    command = ("diff-tree", "-r", "--raw", "--no-abbrev", "--no-renames", "-z", old, new)
    fields = repository.lines(*command)
    for header in fields:
        path = prefix + next(fields).decode("utf-8", "replace")
        match = _RAW.fullmatch(header)
        if match and match[2].strip(b"0") and match[1] != b"160000":
            yield _File(path, match[1], match[2].decode())


def _judge_block(repository: Repository, files: Sequence[_File]) -> Iterator[str]:
    blobs = git.read_blobs(repository, [file.oid for file in files])
    for file, data in zip(files, blobs, strict=True):
        fault = _fault(file, data)
        if fault:
            yield f"{file.path}: {fault}"


def _fault(file: _File, data: bytes | None) -> str:
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
    if file.mode != b"100644":
        return f"not a plain file, its mode is {file.mode.decode()}"
    if data is None:
        return f"its content, blob {file.oid}, is missing"
    if blob_id(data).hex() != file.oid:
        return f"its content is not that of blob {file.oid}"
    try:
        document = exact_json.loads(data)
        if exact_json.dumps(document) != data:
            return "not in canonical form (keys sorted, indent 2, a line feed at the end)"
    except BadData as error:
        return str(error)
    if not isinstance(document, dict) or str(document.get("id")) != str(place[1]):
        return "it holds another record's id"
    return ""


def repositories(store: AnyStore) -> Iterator[str]:
    """What `git fsck` finds in each repository."""
    for repository in store.repositories():
        done = repository.call("fsck", "--full", "--strict", "--no-dangling", "--no-progress")
        lines = (done.stdout + done.stderr).decode("utf-8", "replace").splitlines()
        found = [line for line in lines if line.strip() and not line.startswith("notice:")]
        if done.returncode or found:
            for line in found or [f"git fsck ended with {done.returncode}"]:
                yield f"{repository.path}: {line}"


def against_ledger(store: AnyStore, ledger: Ledger, kind: str) -> Iterator[str]:
    """Records that only one of Git and ledger has.

    Workers commit before the ledger hears of it, so what differs is looked at once more.
    """
    try:
        stored = iter(store.ids(kind))
        known = (row.id for row in ledger.select(kind, "state = 'stored' ORDER BY id"))
        only = list(_differences(stored, known))
    except CrawlerError as error:
        yield str(error)
        return
    for start in range(0, len(only), BLOCK):
        block = only[start : start + BLOCK]
        in_git = store.read(kind, block).keys()
        rows = ledger.rows(kind, block)
        for record_id in block:
            path = record_path(kind, record_id)
            if rows[record_id].stored and record_id not in in_git:
                yield f"{path}: missing, the ledger says that it is stored"
            elif record_id in in_git and not rows[record_id].stored:
                yield f"{path}: stored, the ledger does not know it"


def _differences(left: Iterator[int], right: Iterator[int]) -> Iterator[int]:
    """The numbers that only one of two ascending sequences has."""
    one, other = next(left, None), next(right, None)
    while one is not None or other is not None:
        if other is None or (one is not None and one < other):
            assert one is not None
            yield one
            one = next(left, None)
        elif one is None or other < one:
            yield other
            other = next(right, None)
        else:
            one, other = next(left, None), next(right, None)
