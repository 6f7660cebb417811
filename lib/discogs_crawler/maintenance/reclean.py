"""Apply changed cleaning rules to what is stored, in commits marked technical.

A batch is read and written on the same tip: if a worker commits in between, it is read again, so
no newer record is overwritten. The position is kept in a file, from which an interrupted run goes
on.

What earlier rules removed is not in the store and cannot be restored from there: see `lost`.
"""

import itertools
import json
import logging
from collections.abc import Iterator
from pathlib import Path

from discogs_crawler import clock, files
from discogs_crawler.api import cleaning, exact_json
from discogs_crawler.api.cleaning import Rules
from discogs_crawler.cli import progress
from discogs_crawler.errors import BadData
from discogs_crawler.ledger.database import Ledger
from discogs_crawler.records import KINDS, parse_record_path
from discogs_crawler.store import fast_import, objects
from discogs_crawler.store.fast_import import Entry, Pushed
from discogs_crawler.store.layouts import SingleStore, Store
from discogs_crawler.store.objects import TECHNICAL

log = logging.getLogger(__name__)

# Records in a batch: 10 MB.
BATCH = 1_000


def reclean(store: Store, rules: dict[str, Rules], place: Path) -> int:
    """Rewrite every record that the rules clean differently; return the number of those."""
    rewritten = 0
    names = {kind: rules[kind].name for kind in KINDS}
    done = _read_place(place, names)
    store.refresh()
    with progress.count("reclean", "records") as advance:
        for part in store.parts():
            key = part.prefix or "all"
            for paths in _batches(part, done.get(key, "")):
                rewritten += _rewrite(store, part, paths, rules)
                done[key] = paths[-1]
                with files.atomic_write(place) as file:
                    file.write(json.dumps({"rules": names, "done": done}).encode())
                advance(len(paths))
    place.unlink(missing_ok=True)
    return rewritten


def _read_place(place: Path, names: dict[str, str]) -> dict[str, str]:
    """The last path that was done in each repository, if that was with these rules."""
    try:
        saved = json.loads(place.read_bytes())
        return dict(saved["done"]) if saved["rules"] == names else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _batches(part: SingleStore, after: str) -> Iterator[list[str]]:
    """The paths of the records after one of them, up to BATCH at once; Git sorts them as text."""
    tip = part.refresh()
    if tip is None:
        return
    names = part.repository.lines("ls-tree", "-r", "--name-only", "-z", tip)
    paths = (name.decode("utf-8", "replace") for name in names)
    rest = (path for path in paths if path > after and parse_record_path(part.prefix + path))
    while batch := list(itertools.islice(rest, BATCH)):
        yield batch


def _rewrite(store: Store, part: SingleStore, paths: list[str], rules: dict[str, Rules]) -> int:
    """Rewrite those of `paths` that need it, in one commit; return their number."""

    def attempt() -> int | Pushed:
        base = store.settled_tip(part)
        if isinstance(base, Pushed):
            return base
        blobs = objects.contents(part.repository.path, [f"{base}:{path}" for path in paths])
        entries = []
        for path, data in zip(paths, blobs, strict=True):
            kind = (part.prefix + path).split("/")[0]
            cleaned = data and _cleaned(path, data, rules[kind])
            if cleaned and cleaned != data:
                entries.append(Entry(path, cleaned))
        if not entries:
            return 0
        kinds = sorted({(part.prefix + entry.path).split("/")[0] for entry in entries})
        trailers = {TECHNICAL: "reclean", "Cleaner": rules[kinds[0]].name}
        message = fast_import.describe(f"{', '.join(kinds)}: {len(entries)} recleaned", trailers)
        made = part.publish(base, entries, message)
        if isinstance(made, Pushed):
            return made
        store.pin({part.prefix: made}, {TECHNICAL: "reclean"})
        return len(entries)

    return part.retried(attempt)


def _cleaned(path: str, data: bytes, rules: Rules) -> bytes | None:
    try:
        return cleaning.clean(exact_json.loads(data), rules)
    except BadData as error:
        log.warning("%s: left as it is: %s", path, error)
        return None


def lost(store: Store, rules: dict[str, Rules], commit_s: float) -> dict[str, dict[str, int]]:
    """By kind the fields that `rules` keep and earlier rules removed, and up to when they did.

    The commits name the rules. A fetch that changed nothing made none; so the time (epoch seconds)
    is that of the first record of the first commit by other rules, which is made `commit_s` later.
    Recleaning by other rules brought nothing back.
    """
    found: dict[str, dict[str, int]] = {kind: {} for kind in KINDS}
    for part in store.parts():
        since = dict.fromkeys(KINDS, int(clock.now()))
        for kind, name, epoch, fetched in _cleanings(part):
            fields = cleaning.brought_back(name, rules[kind], kind)
            for field in fields:
                found[kind][field] = max(epoch, since[kind], found[kind].get(field, 0))
            if fetched and not fields:
                since[kind] = min(since[kind], epoch - int(commit_s))
    return {kind: fields for kind, fields in found.items() if fields}


def _cleanings(part: SingleStore) -> Iterator[tuple[str, str, int, bool]]:
    """Kind, rules, time of the commits, whether records were fetched for them; the newest first."""
    tip = part.tip()
    if tip is None:
        return
    trailers = (
        f"%(trailers:key={key},valueonly,unfold,separator=%x2C)"
        for key in ("Source", TECHNICAL, "Cleaner")
    )
    layout = "%x09".join(["%ct", "%s", *trailers])
    for line in part.repository.lines("log", "--date-order", f"--format={layout}", tip, end=b"\n"):
        epoch, subject, source, technical, name = line.decode("utf-8", "replace").split("\t", 4)
        if source.startswith("dump"):  # nothing was fetched
            continue
        for kind in subject.partition(":")[0].split(", "):
            if kind in KINDS and name and epoch:
                yield kind, name, int(epoch), not technical


def count_lost(ledger: Ledger, kind: str, until: int) -> int:
    """The number of stored records of a kind that were last fetched by then."""
    query = f"SELECT count(*) FROM {kind} WHERE state = 'stored' AND crawled <= ?"
    return int(ledger.db.execute(query, (until,)).fetchone()[0])
