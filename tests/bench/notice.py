"""What noticing costs: a worker's work on a record, and a split, with it and without.

    python -m tests.bench.notice [--records N]

The worker: parsing, cleaning and hashing an answer, beside comparing it with the schema. A worker
also talks to the API, Redis and Git: all in all a record costs WORKER_MS of CPU. The split: the
content hash of records that are parsed, beside looking at some of them. Real answers and dumps are
used where they are, else invented ones.
"""

import argparse
import gzip
import json
import os
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from typing import Any

from lxml import etree
from tabulate import tabulate

from discogs_crawler import config
from discogs_crawler.api import cleaning, exact_json
from discogs_crawler.broker.observations import Observations
from discogs_crawler.dumps import canonical
from discogs_crawler.dumps.known_elements import ElementWatch
from discogs_crawler.store import objects
from discogs_crawler.worker.noticing import Noticing, differing_fields
from tests.conftest import SAMPLES
from tests.discogs import answers, dump, invent
from tests.discogs.world import invented

# CPU of a worker for a record, all in all: measured on the machine of the README's figures.
WORKER_MS = 1.6

ROUNDS = 5


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, default=2_000)
    records = parser.parse_args().records
    rows = [*_worker(records), *_split(records * 20)]
    print(tabulate(rows, ("what", "us a record", "noticing, us", "share"), floatfmt=".1f"))
    return 0


def _worker(records: int) -> Iterator[tuple[str, float, float, str]]:
    settings = config.load(environ={"ENV_FILE": os.devnull, "STATE_DIR": os.devnull + "/x"})
    rules = cleaning.rules_for(settings, "releases")
    for name, texts in _answers():
        bodies = list(islice(cycle(texts), records))
        documents = [exact_json.loads(body) for body in bodies]

        def work(bodies: list[bytes] = bodies) -> None:
            for body in bodies:
                objects.blob_id(cleaning.clean(exact_json.loads(body), rules))

        def notice(documents: list[dict[str, Any]] = documents) -> None:
            noticing = Noticing("releases", Observations(None, ""))  # type: ignore[arg-type]
            for number, document in enumerate(documents):
                noticing.look_at(number, document)

        cost, more = _us(work, records), _us(notice, records)
        whole = max(cost, WORKER_MS * 1_000)
        yield f"worker, {name}: parsing, cleaning", cost, more, f"{more / whole:.1%} of {whole:.0f}"
        stored = [cleaning.clean(document, rules) for document in documents]

        def compare(stored: list[bytes] = stored) -> None:
            for before, after in zip(stored, stored[1:] + stored[:1], strict=True):
                differing_fields(before, after)

        more = _us(compare, records) / 10
        yield (
            f"worker, {name}: one in ten compared",
            cost,
            more,
            f"{more / whole:.1%} of {whole:.0f}",
        )


def _answers() -> Iterator[tuple[str, list[bytes]]]:
    facts = (invent.facts("releases", number) for number in range(1, 400))
    yield "invented", [json.dumps(answers.answer("releases", each, 1)).encode() for each in facts]
    if SAMPLES.is_dir():
        yield "real", [path.read_bytes() for path in (SAMPLES / "releases").glob("*.json")]


def _split(records: int) -> Iterator[tuple[str, float, float, str]]:
    for name, texts in _dumped():
        parsed = list(islice(cycle(texts), records))

        def hash_all(parsed: list[bytes] = parsed) -> None:
            for record in parsed:
                canonical.content_hash(record, "releases")

        def look(parsed: list[bytes] = parsed) -> None:
            ElementWatch("releases").look_at_some(range(len(parsed)), parsed)

        cost, more = _us(hash_all, records), _us(look, records)
        yield f"split, {name}: parsing, hashing", cost, more, f"{more / cost:.1%} of {cost:.0f}"


def _dumped() -> Iterator[tuple[str, list[bytes]]]:
    yield "invented", [text.encode() for text in dump.records(invented(1_000), "releases")]
    for path in (SAMPLES / "xml").glob("discogs_2020*releases*.gz"):
        root = etree.fromstring(gzip.decompress(path.read_bytes()))
        yield "real", [etree.tostring(record) for record in root]


def _us(work: Callable[[], None], records: int) -> float:
    """The least CPU time of some rounds, in microseconds a record."""
    times = []
    for _ in range(ROUNDS):
        begun = time.process_time()
        work()
        times.append(time.process_time() - begun)
    return min(times) / records * 1e6


if __name__ == "__main__":
    raise SystemExit(main())
