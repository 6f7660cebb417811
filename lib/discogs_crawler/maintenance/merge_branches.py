"""Merge the branches of `worker.py --branch NAME` into the main one.

A segment belongs to one branch until that is merged, so no record is on two of them. If that is
forgotten (with Redis), both sides may have changed a record: then the main branch's version stays,
and the record is wanted again. Only a version from a dump is replaced by the other branch's.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

from discogs_crawler.broker.queue import Queue
from discogs_crawler.errors import ConfigurationError
from discogs_crawler.records import parse_record_path
from discogs_crawler.store import fast_import, objects
from discogs_crawler.store.fast_import import ACCEPTED, Entry, Pushed
from discogs_crawler.store.git import Repository
from discogs_crawler.store.objects import ABSENT, EMPTY_TREE, FILE, TreeDifference
from discogs_crawler.store.single import FROM_DUMP, SingleStore

log = logging.getLogger(__name__)

# The object of a path at which nothing is.
_NOTHING = "0" * 40


# Takes kind and id of the records that both sides have changed, before the merge is committed:
# afterwards no run would find them again.
WantAgain = Callable[[Sequence[tuple[str, int]]], object]


def merge(parts: Iterable[SingleStore], queues: Sequence[Queue], want_again: WantAgain) -> int:
    """Merge all branches of all repositories, and free their segments for all workers.

    Return the number of branches that had something new.
    """
    repositories = list(parts)
    names = {name for part in repositories for name in part.branches()}
    for queue in queues:
        names |= set(queue.branches().values())
    merged = 0
    for name in sorted(names):
        for queue in queues:
            queue.freeze_segments(name)
        done = False
        try:
            news = [_merge_one(part, name, want_again) for part in repositories]
            done = True
        finally:
            for queue in queues:
                queue.release_segments(name, merged=done)
        merged += any(news)
    return merged


def _merge_one(part: SingleStore, name: str, want_again: WantAgain) -> bool:
    """Merge a branch of one repository; False if it had nothing new."""

    def attempt() -> bool | Pushed:
        base = part.refresh()
        tip = part.branches().get(name)
        if tip is None or objects.contains(part.repository.path, base, tip):
            _catch_up(part, name, base)
            return False
        if base is None or objects.contains(part.repository.path, tip, base):
            moved = part.advance(tip)
            return moved == ACCEPTED or moved
        return _merge_commit(part, name, base, tip, want_again)

    return part.retried(attempt)


def _catch_up(part: SingleStore, name: str, main: str | None) -> None:
    """Move the merged branch to the main one, unless its worker has committed again."""
    tip = part.branches().get(name)
    if main is None or tip is None or tip == main:
        return
    moved = part.advance(main, name)
    if moved != ACCEPTED:
        log.info("branch %s stays as it is until the next merge: %s", name, moved.why)


def _merge_commit(
    part: SingleStore, name: str, base: str, tip: str, want_again: WantAgain
) -> bool | Pushed:
    """Commit the merge of `tip` on `base`; where both have changed a file, `base` wins.

    File by file, because `git merge-tree` takes two similar records for one that was renamed, and
    cannot be told not to before Git 2.48.
    """
    repository = part.repository
    found = repository.call("merge-base", base, tip).stdout.decode().split()
    if not found and (repository.path / "shallow").exists():
        # Compared with nothing, everything that the branch has would count as its change.
        raise ConfigurationError(
            f"{repository.path}: branch {name} cannot be merged without its history: run "
            "maintain_store.py --merge on the machine with the ledger"
        )
    old = found[0] if found else EMPTY_TREE
    differing = list(objects.differences(repository.path, old, tip))
    changed = [
        change
        for change in differing
        if parse_record_path(part.prefix + change.path) and change.new_mode in (FILE, ABSENT)
    ]
    if others := [change.path for change in differing if change not in changed]:
        log.warning(
            "branch %s: files not merged because they are not records: %d; the first: %s",
            name,
            len(others),
            others[0],
        )
    ours = fast_import.stored(repository, base, [change.path for change in changed])
    entries, lost = [], []
    imported = _imported(repository, changed, ours)
    for change in changed:
        mine = ours[change.path].hex() if change.path in ours else _NOTHING
        if mine == change.old or change.path in imported:
            after = "" if change.new_mode == ABSENT else change.new
            entries.append(Entry(change.path, None, after))
        elif mine != change.new:
            lost.append(change.path)
    places = [place for path in lost if (place := parse_record_path(part.prefix + path))]
    want_again(places)
    message = fast_import.describe(f"merge branch {name}", {"Conflicts": str(len(lost) or "")})
    made = part.publish(base, entries, message, parents=[tip])
    if isinstance(made, Pushed):
        return made
    for kind, record_id in places:
        log.warning("%s %d: changed on two branches; it will be fetched again", kind, record_id)
    _catch_up(part, name, made)
    return True


def _imported(
    repository: Repository, changed: Iterable[TreeDifference], ours: Mapping[str, bytes]
) -> set[str]:
    """The paths that both sides have changed differently, and where ours is from a dump."""
    disputed = {
        change.path: ours[change.path].hex()
        for change in changed
        if change.path in ours and ours[change.path].hex() not in (change.old, change.new)
    }
    contents = objects.contents(repository.path, list(disputed.values()))
    return {
        path
        for path, data in zip(disputed, contents, strict=True)
        if data is not None and data.startswith(FROM_DUMP)
    }
