"""Hashes made by processes are those made here; a process that is killed is said."""

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from discogs_crawler.dumps import hash_workers
from discogs_crawler.dumps.hash_workers import Hasher, hash_records
from discogs_crawler.errors import Unavailable
from tests.discogs import dump
from tests.discogs.world import invented

RECORDS = [
    *(text.strip().encode() for text in dump.records(invented(100), "releases")),
    b"<release id='5'>&</release>",
    b"<release id='6'><![CDATA[<]]></release>",
]


@pytest.fixture
def hasher(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hasher]:
    """One with two processes that are ready."""
    monkeypatch.setattr(hash_workers, "PATIENCE", 0)
    with Hasher("releases", workers=2) as made:
        deadline = time.monotonic() + 60
        while len(ready(made)) < 2:
            assert made.submit(RECORDS)() == hash_records(RECORDS, "releases")
            assert time.monotonic() < deadline
        yield made


def ready(hasher: Hasher) -> list[int]:
    """The processes that have work to do from now on."""
    return [worker.pid for worker in hasher.workers if worker.is_ready]


def test_processes_give_the_same_outcomes_in_the_order_of_the_calls(hasher: Hasher) -> None:
    lists = [RECORDS[number:] for number in range(hasher.capacity)]
    promises = [hasher.submit(records) for records in lists]
    outcomes = [promise() for promise in promises]
    assert outcomes == [hash_records(records, "releases") for records in lists]


def test_records_of_many_megabytes_do_not_wait_for_answers(hasher: Hasher) -> None:
    long = b'<release id="7"><notes>' + b"x" * 8_000_000 + b"</notes></release>"
    malformed = [b"<release id='5'>&%d</release>" % number for number in range(5_000)]
    promises = [hasher.submit(records) for records in (malformed, malformed, [long], [long])]
    assert [len(promise()) for promise in promises] == [5_000, 5_000, 1, 1]


def test_a_process_that_is_killed_is_said_and_not_waited_for(hasher: Hasher) -> None:
    for pid in ready(hasher):
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(Unavailable, match="was killed; is memory short"):
        for _ in range(100):
            hasher.submit(RECORDS)()


def test_few_records_start_no_process() -> None:
    with Hasher("releases", workers=2) as hasher:
        for _ in range(hash_workers.PATIENCE // len(RECORDS)):
            hasher.submit(RECORDS)
        assert not hasher.workers


@pytest.mark.parametrize(
    "command", [["dumps.hash_workers", "releases"], ["importing.lanes"]], ids=lambda c: c[0]
)
@pytest.mark.parametrize("sent", [b"", pickle.dumps([b"<release id='1'/>" * 9])[:40]])
def test_a_process_whose_starter_is_killed_ends_without_a_word(
    command: list[str], sent: bytes
) -> None:
    module, *arguments = command
    ended = subprocess.run(
        [sys.executable, "-m", f"discogs_crawler.{module}", *arguments],
        input=sent,
        capture_output=True,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"", b"")
