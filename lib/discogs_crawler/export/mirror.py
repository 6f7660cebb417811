"""A copy of somebody else's store for those who only read: commits and trees, records on demand.

A clone without blobs of 19 million records is about half a gigabyte instead of 25; the records
that an export shows are fetched many at a time, just before they are read. A server that knows
no filters sends everything, and all works the same.
"""

import hashlib
import re
import urllib.parse
from pathlib import Path

from discogs_crawler import locks
from discogs_crawler.errors import BadData, Unavailable, UsageError
from discogs_crawler.store import history
from discogs_crawler.store.history import Source

# Where the tip of the remote's default branch is kept.
TIP = "refs/heads/main"

_URL = re.compile(r"[a-z][a-z0-9+.-]*://.+|[\w.-]+@[\w.-]+:.+", re.ASCII)
_NO_NEGOTIATION = ("-c", "fetch.negotiationAlgorithm=noop")
_ONLY_OBJECTS = ("--no-tags", "--no-write-fetch-head", "--recurse-submodules=no", "--quiet")


def is_url(text: str) -> bool:
    """Whether `text` is the address of a repository elsewhere, not a folder."""
    return _URL.fullmatch(text) is not None and not Path(text).is_dir()


def public_name(url: str) -> str:
    """The URL without user name and password, fit for a log or a table."""
    parts = urllib.parse.urlsplit(url)
    if "@" not in parts.netloc:
        return url
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def of_folder(folder: Path) -> Source:
    """The clone at `folder`, bare or not, as it is: its tip is HEAD, and nothing is fetched."""
    for candidate in (folder / ".git", folder):
        if (candidate / "HEAD").is_file() and (candidate / "objects").is_dir():
            return Source(candidate.resolve(), "HEAD", str(folder.resolve()))
    raise UsageError(f"--repository {folder}: there is no Git repository in that folder")


def of_url(url: str, folder: Path) -> Source:
    """The copy in `folder` of the store at `url`, made or brought up to date now.

    Unavailable if the remote does not answer: what is here is then as it was before.
    """
    name = public_name(url)
    slug = re.sub(r"[^A-Za-z0-9]+", "-", Path(name).name.removesuffix(".git")).strip("-")
    target = folder / f"{slug or 'store'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}.git"
    with locks.exclusive(target.with_suffix(".lock"), f"the copy of {name}", wait=True):
        _update(target, url)
        for path, pinned in _submodules(target).items():
            module = target / "modules" / path
            if not module.is_dir() or history.look_up(module, [TIP]) != [pinned]:
                _update(module, _submodule_url(target, path, url))
    return Source(target, TIP, name)


def _update(target: Path, url: str) -> None:
    if not (target / "HEAD").exists():
        target.mkdir(parents=True, exist_ok=True, mode=0o700)
        history.output(target, "init", "--quiet", "--bare", "--initial-branch=main")
        history.output(target, "config", "gc.auto", "0")
    history.output(target, "config", "remote.origin.url", url)
    filtered = ["--filter=blob:none", "--no-tags", "--quiet", "origin", f"+HEAD:{TIP}"]
    try:
        history.output(target, "fetch", *filtered)
    except BadData as error:
        raise Unavailable(f"{public_name(url)}: {_last_words(error)}") from error


def _last_words(error: BadData) -> str:
    """What Git said, without user name and password."""
    return re.sub(r"(://)[^/@\s]*@", r"\1", str(error).partition(": git fetch: ")[2])


def _submodules(folder: Path) -> dict[str, str]:
    """The paths of the submodules, and the commits of theirs that the tip pins."""
    if history.look_up(folder, [f"{TIP}:.gitmodules"])[0] is None:
        return {}
    listing = history.output(folder, "ls-tree", "-r", TIP)
    pins = re.findall(r"^160000 commit ([0-9a-f]+)\t(.+)$", listing, re.MULTILINE)
    return {path: pinned for pinned, path in pins}


def _submodule_url(folder: Path, path: str, url: str) -> str:
    """Where the submodule at `path` is, by the superproject's .gitmodules."""
    listed = history.output(
        folder, "config", "--blob", f"{TIP}:.gitmodules", "--get-regexp", r"\.(path|url)$"
    )
    values = dict(line.split(" ", 1) for line in listed.splitlines())
    names = (key.removesuffix(".path") for key, value in values.items() if value == path)
    relative = next((values.get(f"{name}.url") for name in names), None)
    if relative is None:
        raise BadData(f"{public_name(url)}: .gitmodules does not say where {path} is")
    return resolved(url, relative)


def resolved(url: str, relative: str) -> str:
    """`relative` as Git reads it in .gitmodules: `../x.git` is seen from the superproject's URL."""
    if not relative.startswith(("./", "../")):
        return relative
    base = url.rstrip("/")
    while relative.startswith(("./", "../")):
        step, _, relative = relative.partition("/")
        if step == "..":
            base = base.rpartition("/")[0]
    return f"{base}/{relative}"


def fetch_objects(folder: Path, remote: str, names: bytes) -> None:
    """Fetch these objects (hexadecimal, one a line), as far as they are not here, in one go."""
    arguments = [*_ONLY_OBJECTS, "--filter=blob:none", "--stdin", remote]
    try:
        history.output(folder, *_NO_NEGOTIATION, "fetch", *arguments, given=names)
    except BadData as error:
        raise Unavailable(f"{folder}: its remote does not answer: {_last_words(error)}") from error
