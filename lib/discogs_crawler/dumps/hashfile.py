"""Hash files: one line per record, `id<TAB>40 lowercase hex digits`, ids ascending.

Twenty million lines are a gigabyte, so whole blocks are checked and parsed by a few operations on
bytes; only a block in which something is wrong is looked at line by line, to say where.
"""

import contextlib
import hashlib
import itertools
import operator
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from discogs_crawler.cli import progress
from discogs_crawler.errors import BadData, TryLater, UsageError
from discogs_crawler.records import MAX_ID

# Bytes read at once: 20,000 lines.
BLOCK_SIZE = 1 << 20

_HEX = b"0123456789abcdef"
_LINE = re.compile(rb"([1-9][0-9]{0,8})\t([0-9a-f]{40})")


class HashFile(NamedTuple):
    """A hash file that was read to its end and is valid."""

    path: Path
    sha256: bytes
    records: int
    first_id: int
    last_id: int
    version: tuple[int, ...]
    """differs if another file has replaced it, or if somebody has written to it"""


class Block(NamedTuple):
    """Some lines: their ids, and their hashes of 20 bytes one after the other."""

    ids: list[int]
    digests: bytes

    def pairs(self) -> Iterator[tuple[int, bytes]]:
        digests = self.digests
        return zip(self.ids, (digests[i : i + 20] for i in range(0, len(digests), 20)), strict=True)


class Difference(NamedTuple):
    """An id whose hash differs between two files; None: that file does not have the id."""

    id: int
    old: bytes | None
    new: bytes | None


class Unsorted(BadData):
    """Only the order of the lines is wrong."""


def check(path: Path) -> HashFile:
    """Read all of the file; BadData names the file and the line that is wrong."""
    sha256 = hashlib.sha256()
    records, first_id, last_id = 0, 0, 0
    with (
        _open(path) as file,
        progress.bar("reading hashes", path.stat().st_size, "MB/s", 1e6) as advance,
    ):
        version = _version(file)
        for text in _blocks(file):
            advance(len(text))
            sha256.update(text)
            ids = _parse(text, path, records).ids
            if ids[0] <= last_id or not all(map(operator.lt, ids, ids[1:])):
                raise _disorder(path, records, last_id, ids)
            first_id = first_id or ids[0]
            last_id = ids[-1]
            records += len(ids)
    if not records:
        raise BadData(f"{path}: it is empty; it should have a line `id<TAB>sha1` for every record")
    return HashFile(path, sha256.digest(), records, first_id, last_id, version)


@contextlib.contextmanager
def opened(file: HashFile) -> Iterator[BinaryIO]:
    """Open the file that was checked; TryLater if it has changed since, or changes in the block.

    A dump may be split into the file of the month before while that is being read.
    """
    with file.path.open("rb", buffering=BLOCK_SIZE) as stream:
        _check_version(file, stream)
        yield stream
        _check_version(file, stream)


def _check_version(file: HashFile, stream: BinaryIO) -> None:
    if _version(stream) != file.version:
        raise TryLater(f"{file.path}: somebody has written to it in the meantime; run this again")


def _version(file: BinaryIO) -> tuple[int, ...]:
    found = os.fstat(file.fileno())
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def blocks(file: HashFile) -> Iterator[Block]:
    """All lines of a file that was checked, parsed."""
    with opened(file) as stream:
        records = 0
        for text in _blocks(stream):
            block = _parse(text, file.path, records)
            records += len(block.ids)
            yield block


def sha256_of(path: Path) -> bytes | None:
    """SHA-256 of the file; None if it cannot be read."""
    if not path.is_file():
        return None
    with contextlib.suppress(OSError), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
    return None


@contextlib.contextmanager
def lines(path: Path) -> Iterator[Iterator[bytes]]:
    """The lines of a file, with their line feeds."""
    with path.open("rb", buffering=BLOCK_SIZE) as file:
        yield iter(file)


def differences(old: Iterable[bytes], new: Iterable[bytes]) -> Iterator[Difference]:
    """What differs between two hash files; lines that are equal are compared as bytes."""
    old_lines, new_lines = iter(old), iter(new)
    while True:
        for before, after in itertools.zip_longest(old_lines, new_lines, fillvalue=b""):
            if before != after:
                break
        else:
            return
        while before != after:
            old_id, new_id = _id_of(before), _id_of(after)
            yield Difference(
                min(old_id, new_id),
                _digest_of(before) if old_id <= new_id else None,
                _digest_of(after) if new_id <= old_id else None,
            )
            if old_id <= new_id:
                before = next(old_lines, b"")
            if new_id <= old_id:
                after = next(new_lines, b"")


def line_of(record_id: int, digest: bytes) -> bytes:
    """The line of a record."""
    return b"%d\t%s\n" % (record_id, digest.hex().encode())


def key_of(line: bytes) -> int:
    """The sort key of a line."""
    return int(line.partition(b"\t")[0])


def _id_of(line: bytes) -> int:
    return int(line[:-42]) if line else MAX_ID + 1


def _digest_of(line: bytes) -> bytes:
    return bytes.fromhex(line[-41:-1].decode("ascii"))


def _open(path: Path) -> BinaryIO:
    if path.exists() and not path.is_file():
        raise UsageError(f"{path}: it must be a regular file, because it is read more than once")
    try:
        return path.open("rb", buffering=0)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    """The file in blocks; each but the last ends at the end of a line."""
    rest = b""
    while read := file.read(BLOCK_SIZE):
        text = rest + read
        end = text.rfind(b"\n") + 1
        if not end and len(text) > BLOCK_SIZE:
            break
        text, rest = text[:end], text[end:]
        if text:
            yield text
    if rest:
        yield rest


def _parse(text: bytes, path: Path, lines_before: int) -> Block:
    """Ids and hashes of whole lines."""
    count = text.count(b"\n")
    try:
        # Without hex digits the lines are what stands between them, and must be just that.
        if text.translate(None, _HEX) != b"\t\n" * count:
            raise ValueError
        fields = text.split()
        hashes = fields[1::2]
        ids = list(map(int, fields[::2]))
        if len(fields) != 2 * count or b"\n0" in text or text[:1] == b"0":
            raise ValueError
        if set(map(len, hashes)) != {40} or max(ids) > MAX_ID or text[-1:] != b"\n":
            raise ValueError
        return Block(ids, bytes.fromhex(b"".join(hashes).decode("ascii")))
    except ValueError:
        raise _fault(text, path, lines_before) from None


def _fault(text: bytes, path: Path, lines_before: int) -> BadData:
    """The error for the first line that is wrong."""
    lines = text.split(b"\n")
    at = next((i for i, line in enumerate(lines) if not _LINE.fullmatch(line)), len(lines) - 1)
    number = lines_before + at + 1
    return BadData(f"{path}, line {number}: {_explain(lines[at], number)}")


def _explain(line: bytes, number: int) -> str:
    record_id, tab, digest = line.partition(b"\t")
    shown = repr(line[:60].decode("utf-8", "replace"))
    if number == 1 and line.startswith(b"\x1f\x8b"):
        return "it is a gzip file; unpack it first"
    if number == 1 and line.lstrip().startswith(b"<"):
        return "it is XML; discogs_xml_split.py makes a hash file from a dump"
    if line.endswith(b"\r"):
        return "it ends with CR LF; remove the CRs (sed 's/\\r$//')"
    if not line:
        return "it is empty"
    if not tab:
        return f"it has no tab, so the hash is missing: {shown}"
    if not re.fullmatch(rb"[1-9][0-9]{0,8}", record_id):
        return f"it does not begin with an id between 1 and {MAX_ID}: {shown}"
    if len(digest) != 40:
        return f"the hash has {len(digest)} characters, not 40: {shown}"
    if re.fullmatch(rb"[0-9a-f]{40}", digest):
        return "it is cut off: the file does not end with a line feed"
    return f"the hash is not 40 lowercase hex digits: {shown}"


def _disorder(path: Path, lines_before: int, last_id: int, ids: list[int]) -> BadData:
    for number, record_id in enumerate(ids, lines_before + 1):
        if record_id == last_id:
            return BadData(f"{path}, line {number}: id {record_id} is there twice")
        if record_id < last_id:
            return Unsorted(f"{path}, line {number}: id {record_id} comes after {last_id}")
        last_id = record_id
    raise AssertionError("the ids ascend")
