"""The dump's hashes the slow and obvious way, with lxml on the whole; and our way on bytes."""

import io
import tempfile
from pathlib import Path

from lxml import etree

from discogs_crawler.dumps import canonical
from discogs_crawler.dumps.block_reader import Blocks, Source
from discogs_crawler.dumps.hash_cache import Book, BookWriter
from discogs_crawler.dumps.hash_workers import Hasher
from discogs_crawler.dumps.hashfile_writer import ResultWriter
from discogs_crawler.dumps.pipeline import Splitter
from discogs_crawler.dumps.scanner import Boundaries
from discogs_crawler.records import ELEMENTS, KINDS, parse_id


def slow_split(xml: bytes) -> bytes:
    """RESULT of a well-formed dump: lxml finds the records, their ids and their bytes."""
    root = etree.fromstring(xml, etree.XMLParser(resolve_entities=False))
    assert root.tag in KINDS
    hashes = {}
    for element in root.iterchildren(ELEMENTS[root.tag]):
        child = element.find("id")
        text = element.get("id") if root.tag in ("releases", "masters") else child.xpath("string()")
        record = etree.tostring(element, encoding="utf-8", with_tail=False)
        hashes[parse_id(text)] = canonical.content_hash(record, root.tag)
    return b"".join(b"%d\t%b\n" % (n, hashes[n].hex().encode()) for n in sorted(hashes))


def our_split(
    dump: bytes, block_size: int = 512 * 1024, book: bytes = b"", workers: int = 1
) -> tuple[bytes, bytes, Splitter]:
    """RESULT, the new book, and the splitter after its work on a dump in a file."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "dump").write_bytes(dump)
        with (folder / "result").open("w+b") as result, io.BytesIO() as new_book:
            with Source(folder / "dump") as source, Blocks(source, block_size) as blocks:
                boundaries = Boundaries(blocks, None)
                with Hasher(boundaries.kind, workers) as hasher:
                    known = Book(io.BytesIO(book))
                    splitter = Splitter(blocks, boundaries, known, hasher)
                    writer = ResultWriter(result, BookWriter(new_book), folder)
                    splitter.run(writer, lambda: None)
            result.seek(0)
            return result.read(), new_book.getvalue(), splitter
