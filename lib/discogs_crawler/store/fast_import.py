"""From records to a commit: one `git fast-import` process a batch, without index and work tree.

Git's cost is the trees that a commit touches. A new process a batch keeps nothing in memory, its
exit status tells whether the branch has moved, and it moves a branch only forward: a process that
lives on answers every checkpoint and loses the commits of the slower of two writers in silence.
"""

import enum
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from discogs_crawler import clock
from discogs_crawler.store import git_process, objects, stale_locks
from discogs_crawler.store.git import Author, Repository
from discogs_crawler.store.git_process import GitFailed

# fast-import chains each blob to the one before, 50 deep: with 3 the store grows by 5 % and reads
# in random order are twice as fast.
DELTA_DEPTH = 3

FAST_IMPORT = ("fast-import", "--quiet", "--done", f"--depth={DELTA_DEPTH}")

# Git 2.39 begins the warning with a capital, 2.55 does not.
_REFUSED = re.compile(r"[Nn]ot updating|cannot lock ref")

_ENTRY = re.compile(rb"[0-7]{5,6} ([^\0]+)\0(.{20})", re.DOTALL)


class Reply(enum.Enum):
    """What came of moving a branch, here or at the remote."""

    ACCEPTED = enum.auto()
    MOVED = enum.auto()
    """it has moved on, or another process is moving it: do it again from its new tip"""
    LOCKED = enum.auto()
    """a lock file is in the way: of a process that is at work, or of one that was killed"""
    UNKNOWN = enum.auto()
    """the remote did not answer: it may have been accepted"""


class Pushed(NamedTuple):
    """A reply, and why it is not ACCEPTED."""

    reply: Reply
    why: str = ""
    commit: str = ""
    """of an UNKNOWN: the commit that may have arrived"""


ACCEPTED = Pushed(Reply.ACCEPTED)


def _reply_to(stderr: bytes) -> Pushed | None:
    """The reply for which a Git on this machine gives its reason; None: it is another failure."""
    said = stderr.decode("utf-8", "replace")
    if "File exists" in said:
        return Pushed(Reply.LOCKED, git_process.gist(said))
    if _REFUSED.search(said):
        return Pushed(Reply.MOVED, git_process.gist(said))
    return None


class Entry(NamedTuple):
    """A file to write, or with neither `data` nor `oid` to remove."""

    path: str
    """"" is the root"""
    data: bytes | None
    oid: str = ""
    """an object that is there already"""
    mode: str = "100644"


def blob_id(data: bytes) -> bytes:
    """The 20 bytes by which Git knows a file with that content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).digest()


def stored(repository: Repository, base: str | None, paths: Iterable[str]) -> dict[str, bytes]:
    """The blob ids of those of `paths` that are in commit `base`.

    Reads one tree for each directory. Asking for each file would make a partial clone download
    the records, and takes three times as long for a batch of neighbours.
    """
    if base is None:
        return {}
    wanted: dict[str, dict[bytes, str]] = {}
    for path in paths:
        folder, _, name = path.rpartition("/")
        wanted.setdefault(folder, {})[name.encode()] = path
    folders = sorted(wanted)
    names = [f"{base}:{folder}" for folder in folders]
    found: dict[str, bytes] = {}
    for folder, tree in zip(folders, objects.contents(repository.path, names), strict=True):
        here = wanted[folder]
        found |= {here[name]: oid for name, oid in _ENTRY.findall(tree or b"") if name in here}
    return found


def commit(
    repository: Repository,
    ref: str,
    base: str | None,
    entries: Iterable[Entry],
    message: str,
    author: Author,
    *,
    parents: Iterable[str] = (),
) -> str | Pushed:
    """Put `entries` on commit `base` and move `ref` there; the new commit, synced to disk.

    `parents` are further ones. The branch stays as it was if it is not at `base` or an ancestor of
    it (MOVED), or another process, or a dead one, holds it (LOCKED).
    """
    with stale_locks.writing(repository) as lock:
        pieces = _stream(ref, base, entries, message, author, parents)
        done = git_process.feed(repository.path, *FAST_IMPORT, pieces=pieces, pass_fds=(lock,))
    if done.returncode:
        refused = _reply_to(done.stderr)
        if refused is None:
            raise git_process.failure(repository.path, FAST_IMPORT, done.returncode, done.stderr)
        return refused
    made = done.stdout.decode("ascii").strip()
    if not objects.contains(repository.path, repository.tip(ref), made):
        raise GitFailed(f"{repository.path}: {ref} does not have the commit {made}")
    return made


def move(repository: Repository, ref: str, old: str | None, new: str | None) -> Pushed:
    """Move a reference; None stands for no reference. MOVED if it is not at `old` any more."""
    values = ["-d", ref] if new is None else [ref, new]
    done = repository.call("update-ref", *values, old or "0" * 40)
    if done.returncode == 0:
        return ACCEPTED
    said = git_process.gist(done.stderr.decode("utf-8", "replace"))
    return _reply_to(done.stderr) or Pushed(Reply.MOVED, said)


def _stream(
    ref: str,
    base: str | None,
    entries: Iterable[Entry],
    message: str,
    author: Author,
    parents: Iterable[str],
) -> Iterator[bytes]:
    text = message.encode()
    stamp = f"{author.name} <{author.email}> {int(clock.now())} +0000"
    yield f"commit {ref}\nmark :1\ncommitter {stamp}\ndata {len(text)}\n".encode() + text + b"\n"
    if base is not None:
        yield f"from {base}\n".encode()
    for parent in parents:
        yield f"merge {parent}\n".encode()
    for path, data, oid, mode in entries:
        if oid:
            yield f"M {mode} {oid} {path}\n".encode()
        elif data is None:
            yield f"D {path}\n".encode()
        else:
            yield f"M {mode} inline {path}\ndata {len(data)}\n".encode()
            yield data
            yield b"\n"
    yield b"\nget-mark :1\ndone\n"


def describe(subject: str, trailers: Mapping[str, str]) -> str:
    """A commit message: one line, then `Name: value` for each trailer that has a value."""
    lines = [f"{name}: {' '.join(value.split())}" for name, value in trailers.items() if value]
    return "\n".join([subject, "", *lines]).rstrip() + "\n"
