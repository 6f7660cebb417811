"""The store, whose layout is one of two, and how it is opened."""

import itertools
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from discogs_crawler.cli.shutdown import Stop
from discogs_crawler.config import Settings
from discogs_crawler.errors import ConfigurationError, Unavailable
from discogs_crawler.store import conversion, git, git_process
from discogs_crawler.store.fast_import import Pushed
from discogs_crawler.store.git import Author, Repository
from discogs_crawler.store.git_process import without_login
from discogs_crawler.store.remote import CRAWL, HEADS, NAME, Remote, is_partial
from discogs_crawler.store.single import (
    FROM_DUMP,
    READ_AT_ONCE,
    Committed,
    Edit,
    SingleStore,
    TreePair,
)
from discogs_crawler.store.submodules import Elsewhere, SubmoduleStore

__all__ = ["Committed", "Edit", "SingleStore", "Store", "SubmoduleStore", "open_store"]

# How `git for-each-ref --contains` ends if there is none.
NO_SUCH_COMMIT = 129


class Store(Protocol):
    """What both layouts can; `SingleStore` says of each method what it promises."""

    layout: str
    repository: Repository

    @property
    def top(self) -> SingleStore: ...
    def tip(self) -> str | None: ...
    def refresh(self) -> str | None: ...
    def settle(self) -> str | None: ...
    def settled_tip(self, part: SingleStore) -> str | Pushed: ...
    def pin(
        self, tips: Mapping[str, str | None], trailers: Mapping[str, str] | None = None
    ) -> str | None: ...
    def parts(self) -> list[SingleStore]: ...
    def part(self, kind: str, segment: int) -> SingleStore: ...
    def repositories(self) -> list[Repository]: ...
    def spans(self, old: str | None, new: str) -> Iterator[TreePair]: ...
    def commit(
        self,
        kind: str,
        changes: Sequence[Edit],
        still_ours: Callable[[], Collection[int]],
        trailers: Mapping[str, str],
    ) -> Committed: ...
    def read(self, kind: str, ids: Iterable[int]) -> dict[int, bytes]: ...
    def ids(self, kind: str) -> Iterator[int]: ...


def repository_path(settings: Settings) -> Path:
    """The repository that consumers read, in both layouts."""
    return settings.store / "discogs.git"


def open_store(
    settings: Settings,
    *,
    create: bool = True,
    branch: str | None = None,
    stop: Stop | None = None,
) -> Store:
    """The store of these settings; with `branch` commits go to `crawl/BRANCH`.

    A remote that does not answer is waited for until `stop`, and a little longer.

    ConfigurationError if it is of the other layout, or not there and `create` is False.
    """
    path = repository_path(settings)
    git_process.check_version()
    if (settings.store / conversion.CONVERTING / path.name).exists() and not path.exists():
        raise conversion.interrupted(path)
    if create:
        repository = git.create(path, settings.store_branch, settings.store_layout)
    elif (path / "HEAD").exists():
        repository = Repository(path)
    else:
        raise ConfigurationError(f"{path}: there is no store yet; worker.py makes it")
    _check_layout(repository, settings)
    repository.check_branch(settings.store_branch)
    author = Author(settings.git_author_name, settings.git_author_email)
    name = CRAWL + branch if branch else settings.store_branch
    remote, stop = None, Stop() if stop is None else stop
    # Whoever has the ledger exports and checks, which takes history; others only commit.
    whole = settings.database.exists()
    address = settings.store_remote.reveal() if settings.store_remote else ""
    if settings.store_layout == "submodules":
        elsewhere = Elsewhere(_folder_address(address), whole, stop) if address else None
        return SubmoduleStore(repository, name, settings.store_branch, author, elsewhere)
    if address:
        remote = Remote(repository, address, settings.store_branch, whole=whole, stop=stop)
    elif is_partial(repository):
        url = repository.configured('remote "origin"', "url")
        raise ConfigurationError(
            f"{path}: it has only what a worker needs of its remote: set STORE_REMOTE={url}, or "
            "move that folder away"
        )
    return SingleStore(repository, name, settings.store_branch, author, remote=remote, stop=stop)


def _folder_address(address: str) -> str:
    """The address of the folder of repositories, or a pattern; ConfigurationError for another."""
    last = re.split("[/:]", address.rstrip("/"))[-1]
    if NAME in address and NAME not in last:
        raise ConfigurationError(f"STORE_REMOTE: {NAME} belongs into what follows the last /")
    if NAME not in address and last.endswith(".git"):
        raise ConfigurationError(
            f"STORE_REMOTE {without_login(address)}: with STORE_LAYOUT=submodules it names the "
            f"folder that the repositories are to be in, or has {NAME} for their names"
        )
    return address


def refuse_to_begin_anew(settings: Settings, records: int) -> None:
    """Make no store where the ledger says that there is one: its disk may not be mounted.

    ConfigurationError if the ledger has so many records, and no store is here or at a remote.
    """
    if records and not settings.store_remote and not repository_path(settings).exists():
        raise ConfigurationError(
            f"{settings.store}: there is no store, but the ledger says that {records:,} records "
            "are in it: mount its disk, set STORE, or put its copy back; to begin anew, move "
            f"{settings.database} away, too"
        )


def refuse_empty(store: Store, records: int, database: Path) -> None:
    """ConfigurationError if nothing is stored, here or at a remote, but the ledger has records."""

    def is_empty() -> bool:
        return not (store.tip() or any(part.tip() for part in store.parts()))

    if records and is_empty():
        store.top.refresh()
        if is_empty():
            raise ConfigurationError(
                f"{store.repository.path}: it is empty, but {database} says that "
                f"{records} records are stored: set STORE and STORE_REMOTE to where they are; if "
                "they are lost, move the ledger away and seed anew"
            )


def lacks(store: Store, revisions: Collection[str]) -> str:
    """The first of the commits that no branch of the store leads to; "" if it has all of them.

    "" too if a remote, which may have what is missing here, does not answer.
    """
    missing = _missing(store, revisions)
    if missing:
        try:
            store.refresh()
        except Unavailable:
            return ""
        missing = _missing(store, revisions)
    return missing


def _missing(store: Store, revisions: Collection[str]) -> str:
    # A conversion leaves the old repository, which has earlier commits, beside the new ones.
    kept = store.repository.path.parent.glob(conversion.KEPT)
    places = [*store.repositories(), *map(Repository, kept)]
    for revision in revisions:
        if not any(_leads_to(place, revision) for place in places):
            return revision
    return ""


def _leads_to(repository: Repository, revision: str) -> bool:
    command = ("for-each-ref", "--count=1", "--contains", revision, HEADS)
    return bool(git_process.run(repository.path, *command, codes=(0, NO_SUCH_COMMIT)))


def refuse_older_copy(store: Store, revisions: Collection[str]) -> None:
    """ConfigurationError if the store lacks one of the commits that the ledger knows of.

    What is in it counts as fetched and as stored, and would never be fetched again.
    """
    if missing := lacks(store, revisions):
        raise ConfigurationError(
            f"{store.repository.path}: an older copy: it lacks commit {missing[:12]}, whose "
            "records the ledger counts as stored: put the newer copy back, or go on with this one "
            "by maintain_store.py --refetch, which wants again what it lacks"
        )


def layout_of(repository: Repository) -> str:
    """Which of the two layouts it is; a clone that was put in its place does not say so."""
    said = repository.configured("crawler", "layout")
    has_modules = not said and not repository.call("cat-file", "-e", "HEAD:.gitmodules").returncode
    return said or ("submodules" if has_modules else "single")


def origins(opened: Store, kind: str) -> Iterator[tuple[int, bool]]:
    """The ids of all stored records of a kind, ascending; whether a dump brought the record.

    They are read for that, which takes an hour for 20 million, unless nothing was ever imported. A
    conversion's snapshot does not say what was imported before it.
    """
    marks = ("--grep=^Source: dump ", "--grep=: snapshot$")
    for part in opened.parts():
        ids = part.ids(kind)
        tip = part.tip()
        search = ("log", "-1", "--format=%H", *marks, *([tip] if tip else []))
        if tip is None or not part.repository.run(*search):
            yield from ((record_id, False) for record_id in ids)
            continue
        while block := list(itertools.islice(ids, READ_AT_ONCE)):
            found = part.read(kind, block)
            yield from (
                (record_id, data.startswith(FROM_DUMP)) for record_id, data in found.items()
            )


def _check_layout(repository: Repository, settings: Settings) -> None:
    """Refuse to mix the layouts."""
    wanted = settings.store_layout
    for option, works in (("objectFormat", "sha1"), ("refStorage", "files")):
        stored = repository.configured("extensions", option) or works
        if stored != works:
            raise ConfigurationError(
                f"{repository.path}: its extensions.{option} is {stored}; only {works} works here"
            )
    found = layout_of(repository)
    if found != wanted:
        raise ConfigurationError(
            f"{repository.path}: its layout is {found}; set STORE_LAYOUT={found}"
            + (", or convert it: maintain_store.py --to-submodules" if found == "single" else "")
        )
