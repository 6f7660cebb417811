"""A small Discogs, its dumps, and a worker, for tests of the ledger that live through months."""

import hashlib
import random
from pathlib import Path
from typing import Any

import redis

from discogs_crawler import clock
from discogs_crawler.broker.messages import Lease, Result
from discogs_crawler.broker.queue import Queue
from discogs_crawler.clock import DAY_S
from discogs_crawler.dumps.metadata import DumpFacts
from discogs_crawler.ledger import database
from discogs_crawler.ledger.database import Ledger
from discogs_crawler.ledger.rows import Row
from discogs_crawler.seeding import run as seed_run
from discogs_crawler.seeding.run import Request, Seeded

ROOT = Path(__file__).resolve().parents[1]

COOLDOWN_S = 7 * DAY_S

# Longer than any history: who is slow is not dead.
LEASE_S = 10_000 * DAY_S

# A dump is taken within these hours of the day in its name.
DUMP_HOURS = 20


def digest(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()


def write_hashes(path: Path, contents: dict[int, str]) -> Path:
    """The hash file of a dump with these records."""
    lines = [f"{record_id}\t{digest(text)}\n" for record_id, text in sorted(contents.items())]
    path.write_text("".join(lines))
    return path


def queue_of(client: redis.Redis, kind: str = "releases") -> Queue:
    return Queue(client, kind, prefix="discogs", lease_s=LEASE_S)


def row(ledger: Ledger, record_id: int) -> Row:
    return ledger.rows("releases", [record_id])[record_id]


class World:
    """What is true upstream, what the store has of it, and a worker that answers as upstream."""

    def __init__(self, folder: Path, client: redis.Redis) -> None:
        self.folder = folder
        self.client = client
        self.upstream: dict[int, str] = {}
        self.store: dict[int, str] = {}
        self.requests: list[tuple[int, str, int]] = []
        self.ledger = database.open(folder / "crawler.db")

    def close(self) -> None:
        self.ledger.close()

    def pass_time(self, seconds: float) -> None:
        clock.OFFSET_S += seconds

    def dump(self) -> Path:
        """A dump of what upstream has now, as a hash file of this date."""
        name = f"dump-{int(clock.now())}.txt"
        path = write_hashes(self.folder / name, self.upstream)
        record_dump(self.ledger, path)
        return path

    def seed(self, new: Path | None = None, **request: object) -> Seeded:
        """Run seed_queue.py."""
        asked = Request(new=new, **request)  # type: ignore[arg-type]
        return seed_run.seed(
            self.ledger, lambda kind: queue_of(self.client, kind), asked, COOLDOWN_S
        )

    def claim(self, count: int) -> list[Lease]:
        return queue_of(self.client).claim("test:1", count)

    def crawl(self, count: int = 500) -> list[tuple[int, str]]:
        """Fetch up to `count` ids, all of one class and segment; ids and classes."""
        leases = self.claim(count)
        now = int(clock.now())
        queue_of(self.client).complete([(lease, self.answer(lease, now)) for lease in leases])
        self.requests += [(lease.id, lease.reason, now) for lease in leases]
        return [(lease.id, lease.reason) for lease in leases]

    def answer(self, lease: Lease, now: int) -> Result:
        """What upstream says, stored as a worker stores it."""
        text = self.upstream.get(lease.id)
        if text is None:
            if lease.reason == "confirm":
                self.store.pop(lease.id, None)
            return Result(lease.id, lease.reason, "gone", 404, now)
        changed = self.store.get(lease.id) != text
        self.store[lease.id] = text
        return Result(lease.id, lease.reason, "stored", 200, now, changed=changed)

    def crawl_all(self) -> list[tuple[int, str]]:
        """Fetch until nothing is pending."""
        done: list[tuple[int, str]] = []
        while found := self.crawl():
            done += found
        return done

    def wanted(self) -> dict[int, str]:
        rows = self.ledger.db.execute("SELECT id, reason FROM releases WHERE reason IS NOT NULL")
        return dict(rows.fetchall())


def record_dump(ledger: Ledger, path: Path, kind: str = "releases", **changes: object) -> None:
    """Tell the ledger of a dump of this moment, as the splitter does."""
    text = path.read_bytes()
    now = int(clock.now())
    ids = [int(line.split(b"\t")[0]) for line in text.splitlines()]
    values: dict[str, Any] = {
        "kind": kind,
        "file": f"{path.stem}.xml.gz",
        "not_before": now - DUMP_HOURS // 2 * 3600,
        "not_after": now + DUMP_HOURS // 2 * 3600,
        "size": 1,
        "sha256": hashlib.sha256(path.name.encode()).digest(),
        "records": len(ids),
        "first_id": ids[0],
        "last_id": ids[-1],
        "verdict": "whole",
        "damaged": 0,
        "result_sha256": hashlib.sha256(text).digest(),
        "canonical_version": 1,
    }
    ledger.record_dump(DumpFacts(**(values | changes)).as_row())


def some_contents(ids: int, seed_number: int = 1) -> dict[int, str]:
    """Records of which about half of the numbers exist."""
    rng = random.Random(seed_number)
    return {n: f"record {n}" for n in range(1, 2 * ids) if rng.random() < 0.5}
