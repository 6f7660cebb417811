"""The store in its two layouts, how it is opened, and checks that it is the right one."""

import itertools
import re
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

from discogs_crawler import ledger_here
from discogs_crawler.cli.shutdown import Stop
from discogs_crawler.config import Settings
from discogs_crawler.errors import ConfigurationError, Unavailable
from discogs_crawler.store import conversion, git, git_process
from discogs_crawler.store.git import Author, Repository
from discogs_crawler.store.git_process import without_login
from discogs_crawler.store.remote import CRAWL, HEADS, NAME, Remote, address_of, is_partial
from discogs_crawler.store.single import FROM_DUMP, READ_AT_ONCE, Committed, Edit, SingleStore
from discogs_crawler.store.submodules import RemoteFolder, SubmoduleStore

__all__ = ["Committed", "Edit", "SingleStore", "Store", "SubmoduleStore", "open_store"]

# The exit status of `git for-each-ref --contains` if there is no such commit.
NO_SUCH_COMMIT = 129

NO_STORE = "there is no store yet; import_dump.py or worker.py makes it"

# Section and option of a repository's configuration: where the ledger was last, `here` or not.
_LEDGER = ("crawler", "ledger")

# The store in either layout. The two classes have the same methods, which `SingleStore` documents.
Store = SingleStore | SubmoduleStore


def repository_path(settings: Settings) -> Path:
    """Return the path of the repository that consumers read, in both layouts."""
    return settings.store / "discogs.git"


def open_store(
    settings: Settings,
    *,
    create: bool = True,
    branch: str | None = None,
    stop: Stop | None = None,
    whole: bool = False,
) -> Store:
    """Open the store of these settings; with `branch` commits go to `crawl/BRANCH`.

    On the machine with the ledger, or with `whole`, it gets all records and all history of its
    remote, which exports and checks need; elsewhere only what commits need. A remote that does not
    answer is given up a little after `stop`. ConfigurationError if the store has the other layout
    or another branch, or if it does not exist and `create` is False.
    """
    repository = _open_repository(settings, create=create)
    author = Author(settings.git_author_name, settings.git_author_email)
    main, stop = settings.store_branch, Stop() if stop is None else stop
    name = CRAWL + branch if branch else main
    is_here = ledger_here.ledger_is_here(settings.database)
    whole = whole or is_here
    address = settings.store_remote.reveal() if settings.store_remote else ""
    if settings.store_layout == "submodules":
        remotes = RemoteFolder(_folder_address(address), whole, stop) if address else None
        modules = SubmoduleStore(repository, name, main, author, remotes)
        _note_where_the_ledger_is(modules, settings, is_here=is_here)
        return modules
    remote = Remote(repository, address, main, whole=whole, stop=stop) if address else None
    if remote is None and is_partial(repository):
        url = repository.configured('remote "origin"', "url")
        raise ConfigurationError(
            f"{repository.path}: a worker's partial copy of its remote: set STORE_REMOTE={url}, or "
            "move this folder away"
        )
    single = SingleStore(repository, name, main, author, remote=remote)
    _note_where_the_ledger_is(single, settings, is_here=is_here)
    return single


def _note_where_the_ledger_is(store: Store, settings: Settings, *, is_here: bool) -> None:
    """Let the store say so itself: once an export has completed it, nothing else tells."""
    if settings.store_remote is None:
        return
    place = "here"
    if not is_here:
        # Of many repositories a worker has only the superproject before its first commit.
        is_partly_there = has_workers_only(store) or (store.tip() and not store.parts())
        if settings.redis_url is None or not is_partly_there:
            return
        place = "elsewhere"
    if store.repository.configured(*_LEDGER) != place:
        store.repository.configure({".".join(_LEDGER): place})


def _open_repository(settings: Settings, *, create: bool) -> Repository:
    """Open the repository that consumers read, and check its layout and its branch."""
    path = repository_path(settings)
    git_process.check_version()
    if (settings.store / conversion.CONVERTING / path.name).exists() and not path.exists():
        raise conversion.interrupted(path)
    if create:
        repository = git.create(path, settings.store_branch, settings.store_layout)
    elif (path / "HEAD").exists():
        repository = Repository(path)
    else:
        raise ConfigurationError(f"{path}: {NO_STORE}")
    _check_layout(repository, settings)
    repository.check_branch(settings.store_branch)
    return repository


def _folder_address(address: str) -> str:
    """Check that the address is one of many repositories, and return it."""
    last = re.split("[/:]", address.rstrip("/"))[-1]
    if NAME in address and NAME not in last:
        raise ConfigurationError(f"STORE_REMOTE: {NAME} must stand after the last /")
    if NAME not in address and last.endswith(".git"):
        raise ConfigurationError(
            f"STORE_REMOTE {without_login(address)}: with STORE_LAYOUT=submodules it must be a "
            f"folder for all repositories, or contain {NAME} in place of their names"
        )
    return address


def look_at_remote(settings: Settings, address: str) -> None:
    """Unavailable or ConfigurationError if the remote does not answer; nothing is changed."""
    many = settings.store_layout == "submodules"
    address = address_of(_folder_address(address), "discogs") if many else address
    with tempfile.TemporaryDirectory(prefix="crawler-") as folder:
        main, layout = settings.store_branch, settings.store_layout
        asking = git.create(Path(folder) / "asking.git", main, layout)
        Remote(asking, address, main, whole=False, stop=Stop(), levels=int(many)).look()


def refuse_to_begin_anew(settings: Settings, records: int) -> None:
    """Raise ConfigurationError if the ledger has `records`, but there is neither store nor remote.

    Otherwise a store would be created in a folder whose disk is not mounted. In the midst of a
    conversion `open_store` says what to do.
    """
    if settings.store_remote or (settings.store / conversion.CONVERTING).exists():
        return
    if records and not repository_path(settings).exists():
        raise ConfigurationError(
            f"{settings.store}: there is no store, but the ledger says that {records:,} records "
            "are in it: mount its disk, set STORE, or restore a backup; to start over, move "
            f"{settings.database} away, too"
        )


def refuse_empty(store: Store, records: int, database: Path) -> None:
    """Raise ConfigurationError if the ledger has `records`, but store and remote are empty."""

    if records and _is_empty(store):
        store.top.refresh()
        if _is_empty(store):
            raise ConfigurationError(
                f"{store.repository.path}: it is empty, but {database} says that "
                f"{records} records are stored: set STORE and STORE_REMOTE to where they are; if "
                "they are lost, move the ledger away and seed again"
            )


def _is_empty(store: Store) -> bool:
    return not (store.tip() or any(part.tip() for part in store.parts()))


def refuse_lost_ledger(store: Store, settings: Settings) -> None:
    """Raise ConfigurationError if the store has records, but there is no ledger.

    A worker's copy has none beside it, nor has a store from which exports were begun so. Such a
    worker knows its Redis from the settings: one that is alone with its own is no other's.
    """
    is_workers = settings.redis_url is not None and has_workers_only(store)
    if not (ledger_here.places_are_here(settings.database) or is_workers or _is_empty(store)):
        raise ledger_here.lost(settings)


def has_workers_only(store: Store) -> bool:
    """Whether it is the copy of a machine that has workers only, complete or not."""
    is_elsewhere = store.repository.configured(*_LEDGER) == "elsewhere"
    return is_elsewhere or any(map(is_partial, store.repositories()))


def lacks(store: Store, revisions: Collection[str]) -> str:
    """Return the first of the commits that no branch of the store contains; "" if there is none.

    Also "" if a remote, which may have what is missing here, does not answer.
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
    # Commits before a conversion are in the old repository, which is kept beside the new ones.
    kept = store.repository.path.parent.glob(conversion.KEPT)
    repositories = [*store.repositories(), *map(Repository, kept)]
    return next((r for r in revisions if not any(_has_commit(one, r) for one in repositories)), "")


def _has_commit(repository: Repository, revision: str) -> bool:
    command = ("for-each-ref", "--count=1", "--contains", revision, HEADS)
    return bool(git_process.run(repository.path, *command, codes=(0, NO_SUCH_COMMIT)))


def refuse_older_copy(store: Store, revisions: Collection[str]) -> None:
    """Raise ConfigurationError if the store lacks one of the commits that the ledger knows of.

    The records in it count as stored, so they would never be fetched again.
    """
    if older := older_copy(store, revisions):
        raise ConfigurationError(older)


def older_copy(store: Store, revisions: Collection[str]) -> str:
    """The line that says so if the store lacks one of the commits, else nothing."""
    missing = lacks(store, revisions)
    return missing and (
        f"{store.repository.path}: an older copy: it lacks commit {missing[:12]}, whose "
        "records the ledger counts as stored: restore the newer copy, or keep this one and run "
        "maintain_store.py --refetch, which fetches again what it lacks"
    )


def layout_of(repository: Repository) -> str:
    """Return the layout of the repository; a clone does not have it in its configuration."""
    said = repository.configured("crawler", "layout")
    has_modules = not said and not repository.call("cat-file", "-e", "HEAD:.gitmodules").returncode
    return said or ("submodules" if has_modules else "single")


def origins(opened: Store, kind: str) -> Iterator[tuple[int, bool]]:
    """Yield the id of each stored record of a kind, ascending, and whether it came from a dump.

    Unless nothing was ever imported, it reads all records: an hour for 20 million.
    """
    # A conversion's snapshot does not tell whether something was imported before it.
    marks = ("--grep=^Source: dump ", "--grep=: snapshot$")
    for part in opened.parts():
        ids = part.ids(kind)
        tip = part.tip()
        search = ("log", "-1", "--format=%H", *marks, *([tip] if tip else []))
        if tip is None or not part.repository.run(*search):
            yield from ((record_id, False) for record_id in ids)
            continue
        while block := list(itertools.islice(ids, READ_AT_ONCE)):
            for record_id, data in part.read(kind, block).items():
                yield record_id, data.startswith(FROM_DUMP)


def _check_layout(repository: Repository, settings: Settings) -> None:
    """Raise ConfigurationError if layout or format of the repository are not ours."""
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
