"""Somebody else's store, for reading only: a copy of a URL, a view of a folder.

A clone without blobs of 19 million records is about half a gigabyte instead of 25; the records
that an export shows are fetched many at a time, just before they are read. A server that knows
no filters sends everything, and all works the same.

That store may be hostile. So Git never runs with its configuration, which can name programs, and
nothing is written where it leads: a view is a repository of ours that borrows the objects and
references of the folder. Submodules have the paths that ours have, and lie
beside the superproject.
"""

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from discogs_crawler import files, locks
from discogs_crawler.errors import BadData, ConfigurationError, Unavailable, UsageError
from discogs_crawler.export.revisions import StoreSource, submodule_folder
from discogs_crawler.records import KINDS, is_segment_name
from discogs_crawler.store import git_process, objects, packs
from discogs_crawler.store.git import Repository
from discogs_crawler.store.git_process import ASK_S, gist, without_login
from discogs_crawler.store.objects import GITLINK
from discogs_crawler.store.stale_locks import FETCH_S

# Where the tip of the remote's default branch is kept.
TIP = "refs/heads/main"

_URL = re.compile(r"[a-z][a-z0-9+.-]*://.+|[\w.-]+@[\w.-]+:.+", re.ASCII)
# What a view borrows besides the objects: no configuration, hooks or attributes.
_LINKED = ("refs", "packed-refs", "shallow", "reftable")

# Of a view. Without the command a fetch would have Git list references in the folder itself.
_SETTINGS = """\
[core]
repositoryFormatVersion = 1
bare = true
alternateRefsCommand = :
[gc]
auto = 0
[extensions]
"""

# The remote from which a view of a partial clone gets records: no transport that is a program.
_REMOTE = re.compile(r"((https?|ssh|git|file)://|/|[\w.-]+@[\w.-]+:)[ !#-\[\]-~]+", re.ASCII)

# Where a submodule is: beside the superproject, or below a folder there.
_SIBLING = re.compile(r"\.\./(\w[\w.+-]*(/\w[\w.+-]*)*/?)", re.ASCII)
_PARENT = re.compile(r"(.+[^/:]/|[^/:]+:/?)[^/]+/*")

# Each export leaves a pack or two; with thousands Git takes seconds to find anything.
MOST_PACKS = 50

# Seconds in which a remote has to send the records of one request, at most 25 MB.
RECORDS_S = 3_600

# Seconds that one export waits for another that brings the same copy up to date.
PATIENCE_S = 60

# A .gitmodules has 90 bytes for each of at most 4,000 segments.
LARGEST_LIST_B = 1 << 20

_NO_NEGOTIATION = ("-c", "fetch.negotiationAlgorithm=noop")
_THOSE_HERE = (
    *("rev-list", "--objects", "--no-walk", "--no-object-names"),
    *("--ignore-missing", "--missing=allow-any", "--stdin"),
)
_ONLY_OBJECTS = ("--no-tags", "--no-write-fetch-head", "--recurse-submodules=no", "--quiet")


def is_url(text: str) -> bool:
    """Whether `text` is the address of a repository elsewhere, not a folder."""
    return _URL.fullmatch(text) is not None and not Path(text).is_dir()


def of_folder(folder: Path, views: Path) -> StoreSource:
    """The clone at `folder`, bare or not, as it is: its tip is HEAD, and nothing is fetched."""
    for candidate in (folder / ".git", folder):
        if (candidate / "HEAD").is_file() and (candidate / "objects").is_dir():
            break
    else:
        raise UsageError(f"--repository {folder}: there is no Git repository in that folder")
    name = str(folder.resolve())
    view = _place(views, name)
    with locks.exclusive(view.with_suffix(".lock"), f"the view of {name}", wait=True):
        _show(candidate.resolve(), view)
        for path in _segments_beside(candidate.resolve()):
            _show(submodule_folder(candidate.resolve(), path), view / "modules" / path)
    return StoreSource(view, "HEAD", name, foreign=True)


def _place(folder: Path, name: str) -> Path:
    """Where the copy or view of a store is."""
    slug = re.sub(r"[^A-Za-z0-9]+", "-", Path(name).name.removesuffix(".git")).strip("-")
    return folder / f"{slug or 'store'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}.git"


def _segments_beside(folder: Path) -> Iterator[str]:
    """The paths at which `submodule_folder` finds a submodule of that repository."""
    for kind in KINDS:
        places = (folder / "modules" / kind, folder.parent / kind)
        found = {entry.name for place in places if place.is_dir() for entry in place.iterdir()}
        for name in sorted({name.removesuffix(".git") for name in found}):
            if is_segment_name(name):
                with contextlib.suppress(BadData):
                    submodule_folder(folder, f"{kind}/{name}")
                    yield f"{kind}/{name}"


def _show(folder: Path, view: Path) -> None:
    """Make `view` a repository that has the objects and references of the one at `folder`."""
    (view / "objects" / "info").mkdir(parents=True, exist_ok=True, mode=0o700)
    for name in _LINKED:
        link, target = view / name, folder / name
        if not link.is_symlink() or link.readlink() != target:
            link.unlink(missing_ok=True)
            link.symlink_to(target)
    texts = {
        "objects/info/alternates": os.fsencode(folder / "objects") + b"\n",
        "config": _configuration(folder, view).encode(),
        "HEAD": _head(folder),
    }
    for name, text in texts.items():
        path = view / name
        if not path.exists() or path.read_bytes() != text:
            with files.atomic_write(path) as file:
                file.write(text)


def _configuration(folder: Path, view: Path) -> str:
    """The settings that a view needs: formats, and the remote that has missing records."""
    theirs = folder / "config"
    command = ("config", "--file", str(theirs), "--no-includes", "-z", "--list")
    values = _parsed(git_process.run(view, *command) if theirs.is_file() else b"")
    lines = [_SETTINGS]
    if values.get("extensions.objectformat", "sha1") != "sha1":
        raise ConfigurationError(
            f"--repository {folder}: its objectFormat is sha256; only sha1 works here"
        )
    if values.get("extensions.refstorage") == "reftable":
        lines.append("refstorage = reftable")
    for key in values:
        remote = key.removesuffix(".promisor")
        url = values.get(f"{remote}.url", "")
        if remote != key and _REMOTE.fullmatch(url):
            lines += ['[remote "origin"]', "promisor = true", f'url = "{url}"']
            break
    return "\n".join([*lines, ""])


def _parsed(listed: bytes) -> dict[str, str]:
    """The values that `git config -z --list` prints, by key."""
    entries = listed.decode(errors="replace").split("\0")
    return dict(entry.partition("\n")[::2] for entry in entries)


def _head(folder: Path) -> bytes:
    with (folder / "HEAD").open("rb") as file:
        return file.read(4096)


def of_url(url: str, folder: Path) -> StoreSource:
    """The copy in `folder` of the store at `url`, made or brought up to date now.

    Unavailable if the remote does not answer: the copy is then as it was before. TryLater if
    another export fetches it and needs more than PATIENCE_S.
    """
    name = without_login(url)
    target = _place(folder, name)
    with locks.exclusive(
        target.with_suffix(".lock"), f"an export that fetches {name}", patience_s=PATIENCE_S
    ):
        _update(target, url)
        pins = objects.segments(target, TIP, GITLINK)
        urls = _submodule_urls(target, url) if pins else {}
        for path, pinned in pins.items():
            if path not in urls:
                raise BadData(f"{name}: .gitmodules names no repository beside it for {path}")
            module = target / "modules" / path
            if not module.is_dir() or objects.look_up(module, [TIP]) != [pinned]:
                _update(module, urls[path])
    return StoreSource(target, TIP, name, foreign=True)


def _update(target: Path, url: str) -> None:
    if not (target / "HEAD").exists():
        target.mkdir(parents=True, exist_ok=True, mode=0o700)
        git_process.run(target, "init", "--quiet", "--bare", "--initial-branch=main")
        git_process.run(target, "config", "gc.auto", "0")
    git_process.run(target, "config", "remote.origin.url", url)
    name = without_login(url)
    # A silent server is found out by a question: a fetch may be silent for long.
    if not _talk(target, "ls-remote", "origin", "HEAD", name=name, timeout_s=ASK_S).strip():
        raise ConfigurationError(
            f"{name}: its HEAD names a branch that is not there, or nothing is stored there yet"
        )
    _fetch(target, "origin", f"+HEAD:{TIP}", name=name, timeout_s=FETCH_S)
    repository = Repository(target)
    if len(packs.find(repository)) > MOST_PACKS:
        packs.join(repository, trusted=False)


def _fetch(folder: Path, *arguments: str, name: str, timeout_s: float, names: bytes = b"") -> None:
    command = [*_NO_NEGOTIATION] * bool(names) + ["fetch", *_ONLY_OBJECTS, "--filter=blob:none"]
    _talk(folder, *command, *arguments, name=name, timeout_s=timeout_s, stdin=names)


def _talk(folder: Path, *command: str, name: str, timeout_s: float, stdin: bytes = b"") -> bytes:
    """What Git prints of the remote `name`; Unavailable if it fails or takes longer."""
    deadline = time.monotonic() + timeout_s

    def is_given_up() -> bool:
        return time.monotonic() >= deadline

    ssh = git_process.ssh(folder, is_given_up)
    done = git_process.talk(folder, *command, extra=ssh, is_given_up=is_given_up, stdin=stdin)
    if done is None:
        raise Unavailable(f"{name}: no answer in {timeout_s:g} seconds")
    if done.returncode:
        raise Unavailable(f"{name}: {gist(done.stderr.decode(errors='replace'))}")
    return done.stdout


def _submodule_urls(folder: Path, url: str) -> dict[str, str]:
    """Where the submodules are, by their paths in the superproject's .gitmodules."""
    listing = git_process.run(folder, "ls-tree", "--object-only", TIP, ".gitmodules")
    blob = listing.decode().strip()
    if not blob:
        return {}
    fetch_objects(folder, "origin", listing)
    if int(git_process.run(folder, "cat-file", "-s", blob)) > LARGEST_LIST_B:
        raise BadData(f"{without_login(url)}: .gitmodules is too large for that of a store")
    command = ("config", "--no-includes", "--blob", blob, "-z", "--list")
    values = _parsed(git_process.run(folder, *command))
    found = {}
    for key, path in values.items():
        place = resolved(url, values.get(key.removesuffix(".path") + ".url", ""))
        if key.endswith(".path") and place is not None:
            found[path] = place
    return found


def resolved(url: str, relative: str) -> str | None:
    """What `../x.git` in .gitmodules means, seen from the superproject's URL.

    None if it is not beside the superproject: a hostile store could make us read any repository,
    for example one on our own disk.
    """
    parent, sibling = _PARENT.fullmatch(url), _SIBLING.fullmatch(relative)
    return parent[1] + sibling[1] if parent and sibling else None


def fetch_objects(folder: Path, remote: str, names: bytes) -> None:
    """Fetch these objects (hexadecimal, one a line), as far as they are not here, in one go.

    If even one is missing, Git would fetch all that are named again.
    """
    here = git_process.run(folder, *_THOSE_HERE, stdin=names).decode().split()
    missing = set(names.decode().split()).difference(here)
    if not missing:
        return
    names = "".join(f"{name}\n" for name in sorted(missing)).encode()
    name = f"{folder}: its remote does not answer"
    _fetch(folder, "--stdin", remote, name=name, timeout_s=RECORDS_S, names=names)
