"""Export into numbered files: readers follow them without Git, and get each change once.

    NAME-000000123.jsonl.gz        the changes of one run
    NAME-000000123.state.json      what is known of them
    NAME-000000090.full.jsonl.gz   a baseline: all records, as they were at that number
    NAME.state.json                the last of the states; what it does not name does not exist

First the files are saved to disk, then the consumer's place and number move in one transaction of
SQLite, and only then the state is renamed into place. Killed before the transaction, the next run
writes the same number again, which was not announced; killed after it, the next run begins with
the state. A number that was announced is never written again.
"""

import hashlib
import json
import logging
import re
import sqlite3
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from isal import igzip

from discogs_crawler import clock, locks
from discogs_crawler.clock import DAY_S
from discogs_crawler.errors import ConfigurationError
from discogs_crawler.export import run
from discogs_crawler.export.revisions import StoreSource
from discogs_crawler.export.run import Form, Plan
from discogs_crawler.files import atomic_write
from discogs_crawler.ledger import consumers
from discogs_crawler.ledger.consumers import Consumer, ExportedFile
from discogs_crawler.store.objects import EMPTY_TREE

log = logging.getLogger(__name__)

# Of isal's four levels the one that makes the smallest files, still three times as fast as zlib.
LEVEL = 2

# Rises when a reader would have to be changed.
FORMAT = 1


class Target(NamedTuple):
    """The name of the files, and their folder."""

    name: str
    folder: Path

    def changes(self, sequence: int) -> Path:
        return self.folder / f"{self.name}-{sequence:09}.jsonl.gz"

    def baseline(self, sequence: int) -> Path:
        return self.folder / f"{self.name}-{sequence:09}.full.jsonl.gz"

    def state(self, sequence: int | None = None) -> Path:
        """The state as of that number; None: the one that readers ask for."""
        number = "" if sequence is None else f"-{sequence:09}"
        return self.folder / f"{self.name}{number}.state.json"

    def number_of(self, path: Path) -> int:
        """The number in the name of one of those files; 0 if it has none or is none of them."""
        pattern = rf"{re.escape(self.name)}-([0-9]{{9,}})\.((full\.)?jsonl\.gz|state\.json)"
        match = re.fullmatch(pattern, path.name)
        return int(match[1]) if match else 0

    def is_ours(self, name: str) -> bool:
        """Whether a file of that name is one of those."""
        return name == self.state().name or self.number_of(Path(name)) > 0


class Chain(NamedTuple):
    """The numbers with which a reader can go on, and the baseline with which one can begin."""

    first: int
    """the lowest number from which on all are here; one more than the last if none is"""
    last: ExportedFile | None
    baseline: ExportedFile | None
    baseline_path: Path | None


def export(
    db: sqlite3.Connection,
    consumer: Consumer,
    source: StoreSource,
    target: Target,
    *,
    form: Form,
    limit: int | None = None,
    keep_days: int | None = None,
) -> int:
    """Write what is new into the next file and announce it; return the number of changes in it.

    Files older than `keep_days` are removed once there is a younger baseline. OSError if the disk
    is full or the folder is gone; whatever happens, the next run goes on.
    """
    _check_is_here(db, consumer, target)
    target.folder.mkdir(parents=True, exist_ok=True)
    # Another ledger may have a consumer of the same name.
    with locks.exclusive(target.folder / f".{target.name}.lock", f"an export to {target.name}"):
        consumer = _claim(db, consumer, target)
        _announce(consumer, target, _chain(db, consumer, target))
        _remove_leftovers(consumer, target)
        plan = run.plan(consumer, source, limit)
        if plan is None:
            log.info("%s: nothing new", consumer.name)
            return 0
        return _export(db, plan, target, form, keep_days)


def _export(
    db: sqlite3.Connection, plan: Plan, target: Target, form: Form, keep_days: int | None
) -> int:
    consumer = plan.consumer
    sequence = consumer.sequence + 1
    changes = _write(target.changes(sequence), sequence, plan, form)
    if not changes.records:
        target.changes(sequence).unlink()
        consumers.move(db, consumer, "export", plan.new)
        return 0
    since = 0 if keep_days is None else int(clock.now()) - keep_days * DAY_S
    files = [changes]
    if changes.began is not None and _needs_baseline(_chain(db, consumer, target), since):
        everything = plan._replace(old=EMPTY_TREE)
        whole = form._replace(skip_technical=False)
        files.append(_write(target.baseline(sequence), sequence, everything, whole))
    consumers.publish(db, consumer, files)
    consumer = consumer._replace(sequence=sequence)
    chain = _chain(db, consumer, target, since)
    _announce(consumer, target, chain)
    _remove_old(target, chain)
    log.info("%s: %d changes in %s", consumer.name, changes.records, target.changes(sequence))
    return changes.records


def _check_is_here(db: sqlite3.Connection, consumer: Consumer, target: Target) -> None:
    """ConfigurationError if the consumer has files, and they are not in this folder."""
    last = max(consumers.files_of(db, consumer.name), default=0)
    if last and not target.state().exists() and not target.changes(last).exists():
        raise ConfigurationError(
            f"{target.folder}: the files of {target.name} are not here, the last is number {last}:"
            " is the disk mounted? If they are lost, start over with"
            f" --consumer {target.name} --reset start"
        )


def _claim(db: sqlite3.Connection, consumer: Consumer, target: Target) -> Consumer:
    """The consumer, with the place that the folder shows if it is ahead of the database.

    ConfigurationError if the files there are not its own.
    """
    announced = _read_state(target)
    last = max(consumers.files_of(db, consumer.name), default=0)
    _check_is_ours(db, target, announced, last)
    moved = consumer._replace(folder=str(target.folder.resolve()))
    unknown: list[ExportedFile] = []
    used = max(
        announced.get("sequence", 0),
        consumers.last_number(db, consumer.name),
        *(target.number_of(path) for path in target.folder.glob("*.state.json")),
    )
    if last and consumer.sequence < used == announced.get("sequence"):
        log.warning(
            "%s: the files are ahead of the database (a backup?): going on after number %d",
            *(consumer.name, announced["sequence"]),
        )
        numbers = range(consumer.sequence + 1, announced["sequence"] + 1)
        states = [_read_state(target, number) for number in numbers]
        unknown = [_file_of(state) for state in states if state]
        moved = moved._replace(sequence=announced["sequence"], revision=announced["to"])
    elif used >= max(1, consumer.sequence + bool(last)):
        # Another consumer of that name was here: the gap tells the readers to begin again.
        moved = moved._replace(sequence=used + 1)
    if moved != consumer:
        consumers.relocate(db, consumer, moved, unknown)
    return moved


def _check_is_ours(
    db: sqlite3.Connection, target: Target, announced: Mapping[str, Any], last: int
) -> None:
    """ConfigurationError if the state was announced by somebody else.

    It may be unknown if the ledger is from a backup; then the last file that it knows is there.
    """
    known = announced
    if announced and 0 < last < announced["sequence"]:
        known = _read_state(target, last)
    if known and not consumers.has_published(db, target.name, _file_of(known)):
        raise ConfigurationError(
            f"{target.state()}: it belongs to another export; take another name or folder."
            " If that one has ended, remove this file, and the numbers go on after the last"
        )


def _read_state(target: Target, sequence: int | None = None) -> dict[str, Any]:
    """A state that was announced, by default the last; empty if there is none."""
    path = target.state(sequence)
    try:
        state = json.loads(path.read_bytes())
        _file_of(state)
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError):
        raise ConfigurationError(f"{path}: it is not the state of an export; remove it") from None
    return cast(dict[str, Any], state)


def _file_of(state: Mapping[str, Any]) -> ExportedFile:
    """The file that a state describes: the inverse of `_described`."""
    return ExportedFile(
        int(state["sequence"]),
        state["from"],
        str(state["to"]),
        int(datetime.fromisoformat(state["time"]).timestamp()),
        int(state["changes"]),
        int(state["bytes"]),
        bytes.fromhex(state["sha256"]),
    )


def _described(file: ExportedFile, path: Path) -> dict[str, Any]:
    return {
        "sequence": file.sequence,
        "file": path.name,
        "from": file.began,
        "to": file.revision,
        "time": clock.iso(file.time),
        "changes": file.records,
        "bytes": file.size,
        "sha256": file.sha256.hex(),
    }


def _remove_leftovers(consumer: Consumer, target: Target) -> None:
    """Remove what a killed run has left: temporary files, and numbers never announced."""
    for path in target.folder.iterdir():
        whole = re.fullmatch(r"\.(.+)\.[^.]+\.tmp", path.name)
        is_temporary = whole is not None and target.is_ours(whole[1])
        if is_temporary or target.number_of(path) > consumer.sequence:
            path.unlink(missing_ok=True)


def _write(path: Path, sequence: int, plan: Plan, form: Form) -> ExportedFile:
    with atomic_write(path) as file:
        counted = _Counted(file)
        with igzip.IGzipFile(  # type: ignore[no-untyped-call]
            "", "wb", LEVEL, counted, mtime=0
        ) as packed:
            records = run.write(plan, form, packed.write)
    began = None if plan.old == EMPTY_TREE else plan.old
    digest, now = counted.sha256.digest(), int(clock.now())
    return ExportedFile(sequence, began, plan.new, now, records, counted.bytes, digest)


class _Counted:
    """A file that counts and hashes what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.bytes, self.sha256 = file, 0, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.bytes += len(data)
        self.sha256.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def _chain(db: sqlite3.Connection, consumer: Consumer, target: Target, since: int = 0) -> Chain:
    """The files that readers can use; without those older than `since` that they do not need."""
    files = consumers.files_of(db, consumer.name)
    found = consumers.baseline_of(db, consumer.name)
    baseline, path = None, None
    if found is not None:
        baseline, is_changes = found
        path = (target.changes if is_changes else target.baseline)(baseline.sequence)
        if not path.exists():
            baseline = path = None
    needed = baseline.sequence if baseline else 0
    first = consumer.sequence + 1
    while (file := files.get(first - 1)) and target.changes(first - 1).exists():
        if file.time < since and first - 1 <= needed and first <= consumer.sequence:
            break
        first -= 1
    if baseline and baseline.sequence < first - 1:  # files after it were lost
        baseline = path = None
    return Chain(first, files.get(consumer.sequence), baseline, path)


def _needs_baseline(chain: Chain, since: int) -> bool:
    """Whether a new reader could not begin, once files before `since` are removed.

    A baseline with a time in the future does not count: the clock was wrong.
    """
    return chain.baseline is None or not since <= chain.baseline.time <= clock.now()


def _announce(consumer: Consumer, target: Target, chain: Chain) -> None:
    """Write the state, if it is not what the database says."""
    if chain.last is None:
        return
    state = {
        "format": FORMAT,
        "consumer": consumer.name,
        "kind": consumer.kind,
        "first": chain.first,
        **_described(chain.last, target.changes(chain.last.sequence)),
        "baseline": None,
    }
    if chain.baseline is not None and chain.baseline_path is not None:
        state["baseline"] = _described(chain.baseline, chain.baseline_path)
    if state == _read_state(target):
        return
    text = json.dumps(state, indent=2).encode() + b"\n"
    for path in (target.state(chain.last.sequence), target.state()):
        with atomic_write(path) as file:
            file.write(text)


def _remove_old(target: Target, chain: Chain) -> None:
    """Remove what the state no longer names; the oldest first, so that there is never a gap."""
    for path in sorted(target.folder.iterdir()):
        is_baseline = path.name.endswith(".full.jsonl.gz")
        is_old = is_baseline or target.number_of(path) < chain.first
        if target.number_of(path) and is_old and path != chain.baseline_path:
            path.unlink(missing_ok=True)
