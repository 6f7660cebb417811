"""From one repository to a superproject with submodules, without losing a consumer's place.

For each revision that a consumer is at, and for the tip, the superproject gets one commit with the
same records; what lies between them is left behind in the old repository, which is kept. All is
built beside the store and put in place by renames; a run that was interrupted is run again. No
export may be under way: it would read one layout and remember a revision of the other.
"""

import json
import logging
import shutil
from pathlib import Path

from discogs_crawler import clock, files, locks
from discogs_crawler.cli.shutdown import Stop
from discogs_crawler.config import Settings
from discogs_crawler.errors import ConfigurationError, TryLater, UsageError
from discogs_crawler.ledger import consumers
from discogs_crawler.ledger.database import Ledger
from discogs_crawler.records import KINDS
from discogs_crawler.store import git, objects, stale_locks
from discogs_crawler.store.conversion import CONVERTING, EXPORTS, KEPT, MOVED
from discogs_crawler.store.git import Author, Repository
from discogs_crawler.store.layouts import NO_STORE, SingleStore, layout_of, repository_path
from discogs_crawler.store.objects import FOLDER
from discogs_crawler.store.remote import PUSH_S, Remote, is_partial
from discogs_crawler.store.single import PENDING, pending_since
from discogs_crawler.store.submodules import SubmoduleStore

log = logging.getLogger(__name__)


def to_submodules(settings: Settings, ledger: Ledger | None) -> Path | None:
    """Convert the store, or finish an interrupted run; return where the old repository is now.

    None if there was nothing to do. Writers wait, then stop with 78; TryLater during an export.
    """
    if not settings.store.is_dir():
        raise ConfigurationError(f"{settings.store}: {NO_STORE}")
    with locks.exclusive(settings.store / EXPORTS, "an export"):
        return _convert(settings, ledger)


def _convert(settings: Settings, ledger: Ledger | None) -> Path | None:
    source = Repository(repository_path(settings))
    kept = settings.store / KEPT
    building = settings.store / CONVERTING
    if not source.path.exists() and (building / "discogs.git").exists():
        _finish(settings.store, building)
    elif not source.path.exists():
        raise ConfigurationError(f"{source.path}: {NO_STORE}")
    elif layout_of(source) == "submodules" and not (settings.store / MOVED).exists():
        return None
    if layout_of(source) != "submodules":
        if kept.exists():
            raise UsageError(f"--to-submodules: {kept} is in the way; move it away first")
        with stale_locks.writing(source, alone=True):
            _check_whole(source, settings)
            for half_done in (building, *(settings.store / kind for kind in KINDS)):
                shutil.rmtree(half_done, ignore_errors=True)
            moved = _build(settings, source, building, _places(ledger))
            with files.atomic_write(settings.store / MOVED) as file:
                file.write(json.dumps(moved).encode())
            _put_in_place(settings.store, building, kept)
    shutil.rmtree(building, ignore_errors=True)
    _move_consumers(ledger, settings.store / MOVED)
    return kept


def _check_whole(source: Repository, settings: Settings) -> None:
    """ConfigurationError if not all records are on the main branch of this repository."""
    source.check_branch(settings.store_branch)
    if is_partial(source):
        raise ConfigurationError(
            f"{source.path}: a worker's partial copy of its remote; convert it on the machine "
            "that has the ledger"
        )
    main = _main_of(source, settings)
    main.refresh()
    on_their_way = [
        ref
        for ref, commit in source.refs(PENDING).items()
        if clock.now() - pending_since(ref) < PUSH_S
        and not objects.contains(source.path, main.tip(), commit)
    ]
    if on_their_way:
        raise TryLater(f"{source.path}: a commit is on its way to the remote: end all workers")
    unmerged = [
        name
        for name, tip in main.branches().items()
        if not objects.contains(source.path, main.tip(), tip)
    ]
    if unmerged:
        raise ConfigurationError(
            f"{source.path}: branches that are not merged: {', '.join(unmerged)}: end their "
            "workers and run maintain_store.py --merge first"
        )


def _main_of(source: Repository, settings: Settings) -> SingleStore:
    """The store as it was; with a remote, what has been pushed there is fetched."""
    author = Author(settings.git_author_name, settings.git_author_email)
    branch, remote = settings.store_branch, None
    if settings.store_remote and settings.store_layout == "single":
        address = settings.store_remote.reveal()
        remote = Remote(source, address, branch, whole=True, stop=Stop())
    return SingleStore(source, branch, branch, author, remote=remote)


def _places(ledger: Ledger | None) -> list[str]:
    if ledger is None:
        return []
    query = "SELECT DISTINCT revision FROM consumers WHERE revision IS NOT NULL"
    return [row[0] for row in ledger.db.execute(query)]


def _build(
    settings: Settings, source: Repository, building: Path, places: list[str]
) -> dict[str, str]:
    """Make the new repositories; the new name of each old revision."""
    main = _main_of(source, settings)
    author = main.author
    superproject = git.create(building / "discogs.git", settings.store_branch, "submodules")
    store = SubmoduleStore(superproject, settings.store_branch, settings.store_branch, author)
    tip = main.tip()
    empty = source.run("mktree").decode().strip()
    moved: dict[str, str] = {}
    trees: dict[str, str] = {}
    for revision in _in_order(source, places, tip):
        tips = {}
        # A segment that is empty by now stays, so that consumers hear of what it had.
        trees = dict.fromkeys(trees, empty) | objects.segments(source.path, revision, FOLDER)
        for path, tree in trees.items():
            snapshot = _snapshot(source, path, tree, author)
            part = git.create(building / f"{path}.git", settings.store_branch, "segment")
            branch = f"refs/heads/{settings.store_branch}"
            fetch = ("fetch", "--quiet", "--no-tags", str(source.path))
            part.run(*fetch, f"{snapshot}:{branch}")
            tips[f"{path}/"] = part.tip(branch)
        log.info("%s: %d segments", revision, len(tips))
        pinned = store.pin(tips, {"Converted-From": revision})
        if pinned:
            moved[revision] = pinned
    for ref, commit in source.refs("refs/crawler/convert/").items():
        source.run("update-ref", "-d", ref, commit)
    return moved


def _in_order(source: Repository, places: list[str], tip: str | None) -> list[str]:
    """The commits among `places` that exist, each once, oldest first, and then the tip.

    It comes last even if a place that is not below it, because history was moved back, has more
    commits: what comes last is what the new store holds.
    """
    found = objects.look_up(source.path, [f"{place}^{{commit}}" for place in places])
    commits = sorted({commit for commit in found if commit} - {tip})
    commits.sort(key=lambda commit: int(source.run("rev-list", "--count", commit)))
    return [*commits, tip] if tip else commits


def _snapshot(source: Repository, path: str, tree: str, author: Author) -> str:
    """A reference in the old repository to a commit of that tree, after the one before it."""
    ref = f"refs/crawler/convert/{path}"
    before = source.tip(ref)
    if before and source.run("rev-parse", f"{before}^{{tree}}").decode().strip() == tree:
        return ref
    who = f"{author.name} <{author.email}> {int(clock.now())} +0000"
    parent = f"parent {before}\n" if before else ""
    text = f"tree {tree}\n{parent}author {who}\ncommitter {who}\n\n{path}: snapshot\n"
    command = ("hash-object", "-t", "commit", "-w", "--stdin")
    commit = source.run(*command, stdin=text.encode()).decode().strip()
    source.run("update-ref", ref, commit)
    return ref


def _put_in_place(store: Path, building: Path, kept: Path) -> None:
    for kind in KINDS:
        if (building / kind).exists():
            (building / kind).rename(store / kind)
    (store / "discogs.git").rename(kept)
    _finish(store, building)


def _finish(store: Path, building: Path) -> None:
    (building / "discogs.git").rename(store / "discogs.git")
    files.fsync_folder(store)


def _move_consumers(ledger: Ledger | None, moved_file: Path) -> None:
    """Give each consumer the new name of its revision, once."""
    if not moved_file.exists():
        return
    moved: dict[str, str] = json.loads(moved_file.read_bytes())
    if ledger is not None:
        consumers.move_all(ledger.db.conn, moved)
        for newest in list(moved.values())[-1:]:
            ledger.move_revisions(newest)
    moved_file.unlink()
