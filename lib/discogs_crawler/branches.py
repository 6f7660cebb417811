"""Merge the branches of `worker.py --branch NAME` into the main one.

A segment belongs to one branch until that is merged, so no record is on two of them. Should that
be lost (with Redis), both sides may have changed a record: then the main branch's version stays,
and the record is wanted again.
"""

import logging
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from discogs_crawler import importing
from discogs_crawler.importing import Entry, Refused
from discogs_crawler.queue import Queue
from discogs_crawler.records import parse_record_path
from discogs_crawler.repository_store import Store

log = logging.getLogger(__name__)


class Merged(NamedTuple):
    """What a merge did."""

    branches: int
    """those that had something new"""
    conflicts: list[tuple[str, int]]
    """kind and id of the records that both sides had changed"""


def merge(parts: Iterable[Store], queues: Sequence[Queue]) -> Merged:
    """Merge all branches of all repositories, and let everybody claim in their segments again."""
    repositories = list(parts)
    names = {name for part in repositories for name in part.branches()}
    for queue in queues:
        names |= set(queue.branches().values())
    merged, conflicts = 0, []
    for name in sorted(names):
        for queue in queues:
            queue.freeze_segments(name)
        try:
            news = [_merge_one(part, name) for part in repositories]
        finally:
            for queue in queues:
                queue.release_segments(name)
        merged += any(found is not None for found in news)
        conflicts += [place for found in news for place in found or []]
    return Merged(merged, conflicts)


def _merge_one(part: Store, name: str) -> list[tuple[str, int]] | None:
    """Merge a branch of one repository; its conflicts, or None if it had nothing new."""

    def attempt() -> list[tuple[str, int]] | None:
        base = part.refresh()
        tip = part.branches().get(name)
        if tip is None or importing.contains(part.repository, base, tip):
            _catch_up(part, name, base)
            return None
        if base is None or importing.contains(part.repository, tip, base):
            part.advance(tip)
            return []
        conflicts, made = _merge_commit(part, name, base, tip)
        _catch_up(part, name, made)
        return conflicts

    return part.retried(attempt)


def _catch_up(part: Store, name: str, main: str | None) -> None:
    """Move the merged branch to the main one, unless its worker has committed again."""
    tip = part.branches().get(name)
    if main is None or tip is None or tip == main:
        return
    try:
        part.advance(main, name)
    except Refused as refused:
        log.info("branch %s goes on by itself until the next merge: %s", name, refused)


def _merge_commit(part: Store, name: str, base: str, tip: str) -> tuple[list[tuple[str, int]], str]:
    """Commit the merge of `tip` on `base`; where both differ, `base` wins."""
    command = ("merge-tree", "--write-tree", "-z", "--name-only", "--no-messages", base, tip)
    tree, *paths = part.repository.run(*command, accept=(0, 1)).decode().rstrip("\0").split("\0")
    paths = sorted(set(filter(None, paths)))
    ours = importing.stored(part.repository, base, paths)
    entries = [Entry("", None, tree, "040000")]
    entries += [Entry(path, None, ours[path].hex() if path in ours else "") for path in paths]
    message = importing.describe(f"merge branch {name}", {"Conflicts": str(len(paths) or "")})
    made = part.publish(base, entries, message, parents=[tip])
    places = [place for path in paths if (place := parse_record_path(part.prefix + path))]
    for kind, record_id in places:
        log.warning("%s %d: changed on two branches; it is to be fetched again", kind, record_id)
    return places, made
