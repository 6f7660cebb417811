"""What changed between two trees, record by record, and what the records now are.

A record's file is indented JSON, in which a line feed is never inside a string: without its line
feeds it is the same JSON on one line. So nothing of our own is parsed, which would take 40 us a
record, as long as all the rest. The indentation stays: taking it out costs 25 us a record, five
times as much as the line feeds, and would make us slower than Git.
"""

import collections
import contextlib
import fcntl
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, NamedTuple

from discogs_crawler.api import exact_json
from discogs_crawler.errors import BadData
from discogs_crawler.export import mirror
from discogs_crawler.export.revisions import LeftOut, Subtree
from discogs_crawler.records import parse_record_path, record_path
from discogs_crawler.store import git_process, objects
from discogs_crawler.store.objects import ABSENT, FILE

BEFORE = ""

# Bytes in a block of output: few writes, little memory.
BLOCK = 1 << 18

# Objects that a partial clone asks its remote for at once: a request of 400 kB, about 25 MB of
# answer. One at a time, as Git would by itself, costs a connection each.
FETCH_AT_ONCE = 10_000

# Git takes twice as long to unpack a record as we take to pass it on, so two of them feed us.
READERS = 2

# Records requested at once: about as many (1 MB) as a pipe holds while the other one is read.
GROUP = 200

# A request to `cat-file`: `contents`, an object's name (of a SHA-256 repository), a line feed.
_REQUEST = 74

# The largest record known has 2 MB; larger ones of a foreign store are not read.
LARGEST_B = 1 << 24

_RECORD = re.compile(rb"([0-9]+)\.json\n")

# JSON allows them in a string, but a terminal obeys some. C1 occurs in real texts, too.
_CONTROL = re.compile(rb"\x7f|\xc2[\x80-\x9f]")


class Change(NamedTuple):
    """One record that differs: added (A), modified (M) or deleted (D), and its new blob.

    Or what it was before (BEFORE) and its old blob, which comes first, if that is requested.
    """

    kind: str
    id: int
    status: str
    blob: str

    @property
    def path(self) -> str:
        return record_path(self.kind, self.id)


# What a line has of a change in each format but `jsonl`, with tabs (or NUL) in between.
COLUMNS: dict[str, Callable[[Change], Sequence[str]]] = {
    "names": lambda change: [change.path],
    "status": lambda change: [change.status, change.path],
    "ids": lambda change: [str(change.id)],
}
FORMATS = (*COLUMNS, "jsonl")

# Kinds share their numbers, so a consumer of these can only get one kind.
WITHOUT_KIND = ("ids",)

# Of a store of our own Git prints these lines itself, eight times as fast.
_PRINTED_BY_GIT = ("names", "status", "ids")

# Blocks of output, each with the number of changes in it.
Blocks = Iterator[tuple[bytes, int]]


def blocks(
    output_format: str,
    subtree: Subtree,
    revision: str,
    left_out: LeftOut,
    *,
    end: bytes,
    foreign: bool = False,
    previous: bool = False,
) -> Blocks:
    """The changes of a subtree in one of FORMATS, each ended by `end` (a line feed or NUL).

    Everything from a `foreign` store is checked. `previous`: jsonl also with the record before.
    """
    if output_format == "jsonl":
        lines = _json_lines(subtree, revision, left_out, end, foreign=foreign, previous=previous)
        return _joined(lines)
    if output_format in _PRINTED_BY_GIT and not foreign:
        return _printed_by_git(output_format, subtree, end)
    changes = _changes(subtree, left_out, foreign=foreign)
    return _joined(_lines(COLUMNS[output_format], changes, end))


def _lines(
    columns: Callable[[Change], Sequence[str]], changes: Iterable[Change], end: bytes
) -> Iterator[bytes]:
    separator = _separator(end).decode()
    for change in changes:
        yield separator.join(columns(change)).encode() + end


def _printed_by_git(output_format: str, subtree: Subtree, end: bytes) -> Blocks:
    """What Git prints, at its speed: only whole blocks are changed."""
    what = "--name-status" if output_format == "status" else "--name-only"
    prefix = [f"--line-prefix={subtree.prefix}"] if output_format == "names" else []
    separator = _separator(end) + subtree.prefix.encode()
    for block in _git_lines(subtree, what, *prefix):
        if output_format == "ids":
            ids = _RECORD.findall(block)
            yield end.join([*ids, b""]), len(ids)
        else:
            yield block.replace(b"\t", separator).replace(b"\n", end), block.count(b"\n")


def _git_lines(subtree: Subtree, *options: str) -> Iterator[bytes]:
    folder, prefix, old, new = subtree
    for paths in objects.portions(folder, old, new, prefix):
        command = ("diff-tree", "-r", "--no-renames", *options, old, new, *paths)
        with git_process.running(folder, *command) as pipes:
            yield from _whole_lines(pipes.stdout)


def _separator(end: bytes) -> bytes:
    """What stands between the fields of a line."""
    return b"\0" if end == b"\0" else b"\t"


def _whole_lines(stream: IO[bytes]) -> Iterator[bytes]:
    """Blocks of `stream` that end with a line."""
    rest = b""
    while block := stream.read(BLOCK):
        whole, newline, rest = (rest + block).rpartition(b"\n")
        yield whole + newline


def _json_lines(
    subtree: Subtree,
    revision: str,
    left_out: LeftOut,
    end: bytes,
    *,
    foreign: bool,
    previous: bool,
) -> Iterator[bytes]:
    fetch = _fetcher(subtree)
    line = b'{"kind":"%%b","id":%%d,"status":"%%b","revision":"%b","data":%%b%%b}%b'
    line %= (revision.encode(), end)
    before, more = None, b""
    changes = fetch(_changes(subtree, left_out, foreign=foreign, previous=previous))
    if foreign:
        changes = _no_giants(subtree, changes, left_out)
    for change, data in read_records(subtree, changes):
        if data is None:
            value = None
        else:
            value = _checked(change, data, left_out) if foreign else one_line(data)
        if change.status == BEFORE:
            before, more = value, b',"previous":%b' % (value or b"null")
            continue
        was_there = bool(before) if previous else change.status != "A"
        # In a foreign store something may have become a record, or ceased to be one.
        if value or was_there:
            status = b"D" if not value else b"M" if was_there else b"A"
            yield line % (change.kind.encode(), change.id, status, value or b"null", more)


def _checked(change: Change, data: bytes, left_out: LeftOut) -> bytes | None:
    """The record on one line; None if it is no record."""
    line = one_line(data)
    if _is_record(line, change.id):
        return _CONTROL.sub(_escaped, line)
    _leave_out(change, left_out)
    return None


def _leave_out(change: Change, left_out: LeftOut) -> None:
    note = left_out.meet if change.status == BEFORE else left_out.add
    note(change.path)


def _no_giants(subtree: Subtree, changes: Iterator[Change], left_out: LeftOut) -> Iterator[Change]:
    """The changes; what is larger than any record, or no file, is not to be read."""
    command = ("cat-file", "--batch-check=%(objecttype) %(objectsize)")
    for group in _groups(changes, FETCH_AT_ONCE):
        names = "".join(f"{change.blob}\n" for change in group if change.blob).encode()
        answers = iter(git_process.run(subtree.folder, *command, stdin=names).splitlines())
        for change in group:
            what, _, size = next(answers).partition(b" ") if change.blob else (b"", b"", b"")
            if size.isdigit() and (what != b"blob" or int(size) > LARGEST_B):
                _leave_out(change, left_out)
                yield change._replace(blob="")
            else:
                yield change


def _is_record(line: bytes, record_id: int) -> bool:
    """Whether it is one JSON object, on one line, that has this id."""
    if b"\r" in line or b"\t" in line:
        return False
    try:
        document = exact_json.loads(line)
    except BadData:
        return False
    found = document.get("id") if isinstance(document, dict) else None
    return isinstance(found, exact_json.Number) and found == str(record_id)


def _escaped(match: re.Match[bytes]) -> bytes:
    return b"\\u%04x" % ord(match[0].decode())


def one_line(record: bytes) -> bytes:
    """A stored record without its line feeds: the same JSON on one line."""
    return record.translate(None, b"\n")


def _joined(lines: Iterator[bytes]) -> Blocks:
    """The lines in blocks of about BLOCK bytes."""
    waiting: list[bytes] = []
    size = 0
    for line in lines:
        waiting.append(line)
        size += len(line)
        if size >= BLOCK:
            yield b"".join(waiting), len(waiting)
            waiting, size = [], 0
    if waiting:
        yield b"".join(waiting), len(waiting)


def _changes(
    subtree: Subtree, left_out: LeftOut, *, foreign: bool, previous: bool = False
) -> Iterator[Change]:
    """The records among what differs: regular files in their place."""
    compare = objects.differences_in_segment if foreign else objects.differences
    found = compare(subtree.folder, subtree.old, subtree.new, prefix=subtree.prefix)
    for old_mode, new_mode, before, blob, path in found:
        record = parse_record_path(path)
        if new_mode != ABSENT and (record is None or new_mode != FILE):
            left_out.add(path)
        elif record is None:
            left_out.meet(path)
        if record is None or FILE not in (old_mode, new_mode):
            continue
        if previous:
            yield Change(*record, BEFORE, before if old_mode == FILE else "")
        if new_mode != FILE:
            yield Change(*record, "D", "")
        else:
            yield Change(*record, "M" if old_mode == FILE else "A", blob)


def read_records(
    subtree: Subtree, changes: Iterable[Change]
) -> Iterator[tuple[Change, bytes | None]]:
    """Each change with what its blob says and a line feed (None: there is no record).

    `git cat-file` puts the line feed there. READERS of them unpack groups of records in turn.
    Requests run ahead of the answers by two groups each, for which its pipe has room: so neither
    side waits for the other for ever. (A thread for the requests costs 7 % more CPU time.)
    """
    with contextlib.ExitStack() as stack:
        command = ("cat-file", "--batch-command", "--buffer")
        readers = [
            stack.enter_context(git_process.running(subtree.folder, *command))
            for _ in range(READERS)
        ]
        room = min(fcntl.fcntl(reader.stdin, fcntl.F_GETPIPE_SZ) for reader in readers)
        size = max(1, min(GROUP, room // _REQUEST // 2 - 1))
        asked: collections.deque[tuple[Sequence[Change], IO[bytes]]] = collections.deque()
        for group, reader in zip(_groups(changes, size), itertools.cycle(readers), strict=False):
            requests = "".join(f"contents {change.blob}\n" for change in group if change.blob)
            reader.stdin.write(requests.encode() + b"flush\n")
            reader.stdin.flush()
            asked.append((group, reader.stdout))
            if len(asked) == 2 * READERS:
                yield from _answers(subtree, *asked.popleft())
        for group, stream in asked:
            yield from _answers(subtree, group, stream)


def _answers(
    subtree: Subtree, group: Sequence[Change], stream: IO[bytes]
) -> Iterator[tuple[Change, bytes | None]]:
    for change in group:
        if not change.blob:
            yield change, None
            continue
        what, data = objects.next_object(stream)
        if what != "blob":
            raise BadData(
                f"{subtree.folder}: {change.kind} {change.id}: object {change.blob} is"
                f" {what}; the repository is pruned or damaged: see git fsck"
            )
        yield change, data


def _groups(changes: Iterable[Change], size: int) -> Iterator[Sequence[Change]]:
    iterator = iter(changes)
    while group := tuple(itertools.islice(iterator, size)):
        yield group


def _fetcher(subtree: Subtree) -> Callable[[Iterator[Change]], Iterator[Change]]:
    """For a clone without blobs: a stage that fetches those of many changes at once."""
    command = ("config", "--get-regexp", r"^remote\..*\.promisor$")
    found = git_process.run(subtree.folder, *command, codes=(0, 1)).decode(errors="replace")
    if not found:
        return lambda changes: changes
    remote = found.split()[0].removeprefix("remote.").removesuffix(".promisor")

    def fetched(changes: Iterator[Change]) -> Iterator[Change]:
        for group in _groups(changes, FETCH_AT_ONCE):
            wanted = sorted({f"{change.blob}\n" for change in group if change.blob})
            mirror.fetch_objects(subtree.folder, remote, "".join(wanted).encode())
            yield from group

    return fetched
