"""One run of seed_queue.py: results in, wants recorded, due wants out."""

import contextlib
import functools
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from discogs_crawler import clock, config, ledger_here, locks
from discogs_crawler.broker.connect import announce_store, connect, queue_of
from discogs_crawler.broker.queue import Queue
from discogs_crawler.cli.formatting import printable
from discogs_crawler.config import Settings
from discogs_crawler.dumps.hashfile import HashFile
from discogs_crawler.errors import EXIT_DONE, EXIT_PARTLY, BadData, ConfigurationError
from discogs_crawler.ledger import database
from discogs_crawler.ledger.database import Ledger
from discogs_crawler.ledger.rows import DumpRow
from discogs_crawler.seeding import dump_lookup, exchange, ingest, on_demand, rebuild

log = logging.getLogger(__name__)


class Request(NamedTuple):
    """What the user asks for; see the options of the same names."""

    kind: str | None = None
    new: Path | None = None
    old: Path | None = None
    dump_date: str | None = None
    ids: Sequence[int] = ()
    discover: int = 0
    refresh: int = 0
    retry_dead: bool = False
    adopt: bool = False
    force: bool = False
    dry_run: bool = False
    stored: Callable[[str], Iterable[tuple[int, bool]]] | None = None
    """of a kind, all ids in the store, and whether a dump brought them: to rebuild the ledger"""


class Seeded(NamedTuple):
    """What a run did."""

    kind: str
    counts: dict[str, int]
    """`read_OUTCOME`, `added`, `changed`, `retired`, `wanted_CLASS`, `queued_CLASS`, and
    `withheld_confirm`: not queued because so many records are missing at once"""
    exit_code: int


class _Files(NamedTuple):
    new: HashFile
    dump: DumpRow
    old: HashFile | None
    old_dump: DumpRow | None


def run(
    settings: Settings,
    request: Request,
    tip_of_store: Callable[[], str | None],
    refuse_older_copy: Callable[[Collection[str]], None],
) -> Seeded:
    """Open ledger and queue, one run at a time, and do what is asked.

    `tip_of_store` opens the store, which seeding must not import; None if it has no records.
    `refuse_older_copy` raises if the store lacks one of the commits that the ledger knows of.
    """
    config.make_state_dir(settings)
    lock = settings.state_dir / "seed_queue.lock"
    with locks.exclusive(lock, "seed_queue", patience_s=locks.PATIENCE_S):
        if request.stored is None and not ledger_here.ledger_is_here(settings.database):
            _refuse_to_forget(settings, tip_of_store)
        with database.open(settings.database) as ledger:
            if request.stored is None:
                refuse_older_copy(ledger.revisions())
            queues = functools.partial(queue_of, connect(settings), settings)
            seeded = seed(ledger, queues, request, settings.cooldown_days * clock.DAY_S)
            if not request.dry_run:
                # Last: an older copy of Redis has been emptied by now.
                announce_store(settings, queues(seeded.kind))
            if neglect := ledger.neglect():
                log.warning("%s", neglect)  # a mail
            return seeded


def _refuse_to_forget(settings: Settings, tip_of_store: Callable[[], str | None]) -> None:
    """Refuse to start over beside a store with records, here or at its remote."""
    may_have_records = settings.store_remote or (settings.store / "discogs.git").is_dir()
    if may_have_records and tip_of_store() is not None:
        raise ledger_here.lost(settings)


def dead_letters(settings: Settings, kind: str) -> Iterator[str]:
    """A line for each dead letter: id, why it failed, when it is tried again."""
    with database.open(settings.database, read_only=True) as ledger:
        for record_id, failure, due in on_demand.dead_letters(ledger, kind):
            again = f"tried again from {clock.iso(due)}" if due else "not wanted any more"
            yield f"{record_id}\t{printable(failure)}\t{again}"


def seed(
    ledger: Ledger, queue_of: Callable[[str], Queue], request: Request, cooldown_s: float
) -> Seeded:
    """Do all of it; with `dry_run` undo it again, having handed nothing to Redis."""
    with contextlib.ExitStack() as stack:
        if request.dry_run:
            stack.enter_context(ledger.handover())
            stack.enter_context(ledger.rehearsal())
        if request.stored and not request.new:
            kept = rebuild.kept_hashes(ledger, request.kind or "releases")
            request = request._replace(new=kept)
        files = _identify(ledger, request, stack) if request.new else None
        kind = files.dump.kind if files else request.kind or "releases"
        run = stack.enter_context(ledger.run("seed_queue", kind))
        counts = run.counts
        queue = queue_of(kind)
        try:
            _note(counts, "read", _read(ledger, queue, request))
            if files:
                counts |= _compare(ledger, files, request, cooldown_s)
        except (BadData, ConfigurationError):
            if files:
                dump_lookup.forget(ledger, files.dump)
            raise
        _note(counts, "wanted", _ask(ledger, kind, request, cooldown_s))
        if not request.dry_run:
            stack.enter_context(ledger.handover())
        queued, withheld = exchange.push(
            ledger, queue, cooldown_s, force=request.force, dry_run=request.dry_run
        )
        _note(counts, "queued", queued)
        if withheld:
            counts["withheld_confirm"] = withheld
            # A dump that was accepted is to be imported all the same.
            run.exit_code = EXIT_DONE if files else EXIT_PARTLY
        return Seeded(kind, counts, run.exit_code)


def _read(ledger: Ledger, queue: Queue, request: Request) -> dict[str, int]:
    if request.dry_run:
        return exchange.read_results(ledger, queue, keep=True, force=request.force)
    return exchange.drain(ledger, queue, wait=True, force=request.force)


def _note(counts: dict[str, int], what: str, found: dict[str, int]) -> None:
    counts.update({f"{what}_{name}": number for name, number in found.items() if number})


def _identify(ledger: Ledger, request: Request, stack: contextlib.ExitStack) -> _Files:
    """Read the files through and find out what they are, before anything is changed."""

    def checked(path: Path) -> HashFile:
        file = dump_lookup.checked(path, ledger.path.parent)
        if file.path != path:  # a sorted copy
            stack.callback(file.path.unlink)
        return file

    assert request.new is not None
    new = checked(request.new)
    old = checked(request.old) if request.old else None
    dump = dump_lookup.dump_of(ledger, new, request.new, request.kind, request.dump_date)
    old_dump = None
    if old is not None and request.old is not None:
        old_dump = dump_lookup.dump_of(ledger, old, request.old, dump.kind, None)
    return _Files(new, dump, old, old_dump)


def _compare(ledger: Ledger, files: _Files, request: Request, cooldown_s: float) -> dict[str, int]:
    """Take in the new hashes; with OLD want what differs from it too."""
    if request.stored:
        ids = request.stored(files.dump.kind)
        return rebuild.rebuild(ledger, files.new, files.dump, ids, adopt=request.adopt)
    last = ledger.last_accepted(files.dump.kind)
    if files.old and files.old_dump and last is None:
        # To an empty ledger OLD is what the store has.
        ingest.take_in(ledger, files.old, files.old_dump, cooldown_s, adopt=True)
        last = files.old_dump
    counts = ingest.take_in(
        ledger, files.new, files.dump, cooldown_s, adopt=request.adopt, force=request.force
    )
    if files.old and last is not None and files.old.sha256 != last.result_sha256:
        ingest.want_differences(ledger, files.old, files.new, files.dump, cooldown_s)
    return counts


def _ask(ledger: Ledger, kind: str, request: Request, cooldown_s: float) -> dict[str, int]:
    """Record the wants that no dump causes."""
    counts = {}
    if request.ids:
        counts["manual"] = on_demand.want_ids(ledger, kind, request.ids)
    if request.discover:
        counts["discovered"] = on_demand.discover(ledger, kind, request.discover)
    if request.refresh:
        counts["refresh"] = on_demand.refresh(ledger, kind, request.refresh, cooldown_s)
    if request.retry_dead:
        counts["dead"] = on_demand.retry_dead(ledger, kind)
    return counts
