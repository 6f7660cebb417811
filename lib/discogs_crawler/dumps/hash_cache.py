"""The book of hashes: which raw hash had which content hash, for every record of the last dump.

It saves parsing the 98 % of records whose bytes have not changed since. Entries of 44 bytes: id
(big-endian), raw hash, content hash; ascending. Damaged records are not in it, so that they are
looked at again. It is kept as `books/KIND-SHA256.book` in the state folder, where SHA256 is the
start of its own; the ledger has the whole. A book that does not match is as good as none.
"""

import contextlib
import hashlib
import io
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from struct import Struct
from typing import BinaryIO

from discogs_crawler import files

log = logging.getLogger(__name__)

# An entry: its key is id and raw hash, the rest is the content hash.
pack_key = Struct(">I20s").pack
_KEY = 24
_ENTRY = 44

# What no key reaches: the end of the book.
_END = b"\xff" * _ENTRY


class Book:
    """Content hashes by id and raw hash, for keys that ascend; others are not found."""

    def __init__(self, file: BinaryIO | None = None) -> None:
        """`file` is a book that has been checked; None is an empty one."""
        self._read = (file or io.BytesIO()).read
        self._entry = self._read(_ENTRY) or _END

    def look_up(self, keys: Iterable[bytes]) -> list[bytes]:
        """The content hash for each key; empty where the book has no such record."""
        read, entry = self._read, self._entry
        found: list[bytes] = []
        for key in keys:
            while entry[:4] < key[:4]:
                entry = read(_ENTRY) or _END
            found.append(entry[_KEY:] if entry[:_KEY] == key else b"")
        self._entry = entry
        return found


@contextlib.contextmanager
def open_book(folder: Path, kind: str, sha256: bytes | None) -> Iterator[Book]:
    """The book of a kind that has this SHA-256; an empty one if it is not there or not right."""
    if sha256 is None:
        yield Book()
        return
    path = book_path(folder, kind, sha256)
    try:
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}")
        file = path.open("rb")
    except OSError as error:
        log.info("no book of hashes (%s): every record is parsed", error)
        yield Book()
        return
    with file:
        if hashlib.file_digest(file, "sha256").digest() != sha256:
            log.warning("%s is damaged: every record is parsed", path)
            yield Book()
            return
        file.seek(0)
        yield Book(file)


class BookWriter:
    """Writes entries to `file`; `sha256` is that of what was written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def write(self, keys: Iterable[bytes], contents: Iterable[bytes]) -> None:
        entries = b"".join([key + content for key, content in zip(keys, contents, strict=True)])
        self.sha256.update(entries)
        self._file.write(entries)


@contextlib.contextmanager
def new_book(folder: Path, kind: str) -> Iterator[BookWriter]:
    """A book that is kept, under the name of its SHA-256, if the block ends without an error."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with files.atomic_write(folder / f"{kind}.new", 0o600) as file:
        writer = BookWriter(file)
        yield writer
    (folder / f"{kind}.new").rename(book_path(folder, kind, writer.sha256.digest()))
    files.fsync_folder(folder)


def forget_other_books(folder: Path, kind: str, sha256: bytes) -> None:
    """Remove the books of a kind that another one has replaced."""
    for path in folder.glob(f"{kind}-*.book"):
        if path != book_path(folder, kind, sha256):
            path.unlink(missing_ok=True)


def book_path(folder: Path, kind: str, sha256: bytes) -> Path:
    return folder / f"{kind}-{sha256.hex()[:16]}.book"
