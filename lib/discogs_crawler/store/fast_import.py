"""From files to a commit: one `git fast-import` process per batch, without index and work tree.

What a commit costs Git is the trees that it touches. A new process per batch keeps nothing in
memory, its exit status tells whether the branch has moved, and it moves a branch only forward. A
process that stays alive confirms every checkpoint, and silently loses the commits of the slower of
two writers.
"""

import enum
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from discogs_crawler import clock
from discogs_crawler.store import git_process, objects, stale_locks
from discogs_crawler.store.git import Author, Repository
from discogs_crawler.store.git_process import FAST_IMPORT, GitFailed

# Git 2.39 begins the warning with a capital, 2.55 does not.
_REFUSED = re.compile(r"[Nn]ot updating|cannot lock ref")


class Reply(enum.Enum):
    """The result of moving a branch, here or at the remote."""

    ACCEPTED = enum.auto()
    MOVED = enum.auto()
    """it has moved on, or another process is moving it: start again from its new tip"""
    LOCKED = enum.auto()
    """a lock file is in the way: its process is still working, or was killed"""
    UNKNOWN = enum.auto()
    """the remote did not answer: it may have been accepted"""


class Pushed(NamedTuple):
    """A reply, and the reason why it is not ACCEPTED."""

    reply: Reply
    why: str = ""
    commit: str = ""
    """if UNKNOWN: the commit that may have arrived"""


ACCEPTED = Pushed(Reply.ACCEPTED)


def _reply_to(stderr: bytes) -> Pushed | None:
    """Return the reply that an error message of a local Git means; None: it is another failure."""
    said = stderr.decode("utf-8", "replace")
    if "File exists" in said:
        return Pushed(Reply.LOCKED, git_process.gist(said))
    if _REFUSED.search(said):
        return Pushed(Reply.MOVED, git_process.gist(said))
    return None


class Entry(NamedTuple):
    """A file to write; with neither `data` nor `oid` it is removed."""

    path: str
    """"" is the root"""
    data: bytes | None
    oid: str = ""
    """an object that the repository has already"""
    mode: str = objects.FILE


def stored(repository: Repository, base: str | None, paths: Iterable[str]) -> dict[str, bytes]:
    """Return, by path, the blob ids (20 bytes) of those `paths` that exist in commit `base`.

    Reads one tree per directory. Asking for each file would make a partial clone download the
    records, and takes three times as long for a batch of neighbours.
    """
    if base is None:
        return {}
    wanted: dict[str, dict[bytes, str]] = {}
    for path in paths:
        folder, _, name = path.rpartition("/")
        wanted.setdefault(folder, {})[name.encode()] = path
    folders = sorted(wanted)
    trees = objects.contents(repository.path, [f"{base}:{folder}" for folder in folders])
    found: dict[str, bytes] = {}
    for folder, tree in zip(folders, trees, strict=True):
        here = wanted[folder]
        entries = objects.TREE_ENTRY.findall(tree or b"")
        found |= {here[name]: oid for _, name, oid in entries if name in here}
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
    """Commit `entries` on top of `base`, move `ref` there and return the commit, saved to disk.

    `parents` are the parents besides `base`. The branch stays as it was if it is neither at `base`
    nor at an ancestor of it (MOVED), or if a process that may be dead has locked it (LOCKED).
    Raises what `git_process.failure` makes of any other error.
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
    """Move a reference from `old` to `new` (None: no reference). MOVED if it is not at `old`."""
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


def subject(kind: str, counts: Mapping[str, int]) -> str:
    """Return the first line of a commit message: `releases: 3 added, 1 removed`."""
    return f"{kind}: " + ", ".join(f"{count} {word}" for word, count in counts.items() if count)


def describe(subject: str, trailers: Mapping[str, str]) -> str:
    """Return a commit message: one line, then `Name: value` for each trailer that has a value."""
    lines = [f"{name}: {' '.join(value.split())}" for name, value in trailers.items() if value]
    return "\n".join([subject, "", *lines]).rstrip() + "\n"
