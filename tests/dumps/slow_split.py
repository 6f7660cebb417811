"""The dump's hashes the slow and obvious way, with lxml on the whole; and our way on bytes."""

import io
import tempfile
from pathlib import Path

from lxml import etree

from discogs_crawler.dumps import canonical
from discogs_crawler.dumps.block_reader import DumpFile, Window
from discogs_crawler.dumps.hash_cache import HashCache, HashCacheWriter
from discogs_crawler.dumps.hash_workers import Hasher
from discogs_crawler.dumps.hashfile_writer import Counts, ResultWriter
from discogs_crawler.dumps.known_elements import ElementWatch
from discogs_crawler.dumps.pipeline import Splitter
from discogs_crawler.dumps.prolog import read_prolog
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
    dump: bytes, block_size: int = 512 * 1024, cache: bytes = b"", workers: int = 1
) -> tuple[bytes, bytes, Counts]:
    """RESULT, the new hash cache, and the counts of a dump in a file."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "dump").write_bytes(dump)
        with (folder / "result").open("w+b") as result, io.BytesIO() as new_cache:
            with DumpFile(folder / "dump") as source, Window(source, block_size) as window:
                kind = read_prolog(window, None)
                with Hasher(kind, workers) as hasher:
                    known = HashCache(io.BytesIO(cache))
                    counts = Counts()
                    writer = ResultWriter(result, HashCacheWriter(new_cache), folder, counts)
                    watch = ElementWatch(kind)
                    splitter = Splitter(window, kind, known, hasher, writer, watch)
                    for _ in splitter.steps():
                        pass
            result.seek(0)
            return result.read(), new_cache.getvalue(), counts
