"""The store, whose layout is one of two, and how it is opened."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from discogs_crawler.cli.shutdown import Stop
from discogs_crawler.config import Settings
from discogs_crawler.errors import ConfigurationError
from discogs_crawler.store import conversion, git, git_process
from discogs_crawler.store.fast_import import Pushed
from discogs_crawler.store.git import Author, Repository
from discogs_crawler.store.remote import CRAWL, Remote, is_partial
from discogs_crawler.store.single import Committed, Edit, SingleStore, TreePair
from discogs_crawler.store.submodules import SubmoduleStore

__all__ = ["Committed", "Edit", "SingleStore", "Store", "SubmoduleStore", "open_store"]


class Store(Protocol):
    """What both layouts can; `SingleStore` says of each method what it promises."""

    layout: str
    repository: Repository

    @property
    def top(self) -> SingleStore: ...
    def tip(self) -> str | None: ...
    def settle(self) -> str | None: ...
    def settled_tip(self, part: SingleStore) -> str | Pushed: ...
    def pin(
        self, tips: Mapping[str, str | None], trailers: Mapping[str, str] | None = None
    ) -> str | None: ...
    def parts(self) -> list[SingleStore]: ...
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
    if settings.store_layout == "submodules":
        return SubmoduleStore(repository, name, settings.store_branch, author)
    remote, stop = None, Stop() if stop is None else stop
    if settings.store_remote:
        # Whoever has the ledger exports and checks, which takes history; others only commit.
        whole = settings.database.exists()
        address = settings.store_remote.reveal()
        remote = Remote(repository, address, settings.store_branch, whole=whole, stop=stop)
    elif is_partial(repository):
        url = repository.configured('remote "origin"', "url")
        raise ConfigurationError(
            f"{path}: it has only what a worker needs of its remote: set STORE_REMOTE={url}, or "
            "move that folder away"
        )
    return SingleStore(repository, name, settings.store_branch, author, remote=remote, stop=stop)


def layout_of(repository: Repository) -> str:
    """Which of the two layouts it is; a clone that was put in its place does not say so."""
    said = repository.configured("crawler", "layout")
    has_modules = not said and not repository.call("cat-file", "-e", "HEAD:.gitmodules").returncode
    return said or ("submodules" if has_modules else "single")


def _check_layout(repository: Repository, settings: Settings) -> None:
    """Refuse to mix the layouts."""
    wanted = settings.store_layout
    if wanted == "submodules" and settings.store_remote:
        raise ConfigurationError(
            "STORE_LAYOUT=submodules works without STORE_REMOTE only: "
            "mirror its repositories with git, e.g. git push --mirror"
        )
    found = layout_of(repository)
    if found != wanted:
        raise ConfigurationError(
            f"{repository.path}: its layout is {found}; set STORE_LAYOUT={found}"
            + (", or convert it: maintain_store.py --to-submodules" if found == "single" else "")
        )
