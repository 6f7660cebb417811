"""Git: one bare repository, how it is configured, and what its references name.

GitPython reads references and writes configuration. Everything that moves records runs as a plain
process of `git`.
"""

import contextlib
import errno
import io
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from git import GitConfigParser, Repo, SymbolicReference
from git.exc import GitError

from discogs_crawler import files, locks
from discogs_crawler.errors import ConfigurationError, CrawlerError, Unavailable
from discogs_crawler.store import git_process
from discogs_crawler.store.git_process import Finished

# What the machine is short of now, and may have again later.
_PASSING = (errno.ENOMEM, errno.EAGAIN, errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.EIO)

# By default Git syncs neither loose objects nor references, collects garbage whenever it likes
# (which breaks writers beside it), and makes loose files of small imports.
CONFIGURATION = {
    "core.fsync": "all",
    "core.logAllRefUpdates": "true",
    "core.hooksPath": os.devnull,
    "gc.auto": "0",
    "maintenance.auto": "false",
    "receive.autogc": "false",
    "receive.denyNonFastForwards": "true",
    "fastimport.unpackLimit": "1",
    "fetch.unpackLimit": "1",
    "receive.unpackLimit": "1",
    "uploadpack.allowFilter": "true",
    "uploadpack.allowAnySHA1InWant": "true",
}


class Author(NamedTuple):
    """Who signs the commits."""

    name: str
    email: str


class _Configuration(GitConfigParser):
    """One that may be interrupted while it is made: its finalizer then finds nothing to write."""

    _read_only = True


class _ConfigurationText(io.BytesIO):
    """What GitPython changes. A file it would empty before it writes, and be killed in between."""

    name = ""
    """the file that it locks as Git does"""


class Repository:
    """A bare repository. Its methods may be called by several threads and processes at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._inode = self._find_inode()

    def replaced(self) -> bool:
        """Whether another repository lies at our path by now."""
        return self._inode != self._find_inode()

    def _find_inode(self) -> int:
        try:
            return self.path.stat().st_ino
        except OSError:
            return 0

    def __repr__(self) -> str:
        return f"Repository({str(self.path)!r})"

    def tip(self, ref: str) -> str | None:
        """The commit that `ref` (`refs/heads/main`) names, None if there is none."""
        with self._explained(), Repo(self.path) as repo:
            try:
                return SymbolicReference.dereference_recursive(repo, ref)
            except ValueError:
                return None

    def refs(self, prefix: str) -> dict[str, str]:
        """The references whose full names start with `prefix`, and the objects they name."""
        listing = self.run("for-each-ref", "--format=%(objectname) %(refname)", prefix)
        lines = listing.decode(errors="replace").split("\n")[:-1]
        return {name: oid for oid, name in (line.split(" ", 1) for line in lines)}

    def configure(self, values: Mapping[str, str]) -> None:
        """Set `section.option` or `section.sub.option` in the repository's own configuration."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._explained())
            lock = self.path / "configuration.flock"
            stack.enter_context(locks.exclusive(lock, "configuring", wait=True))
            # Git's own lock on the file can then only be that of a process that was killed.
            (self.path / "config.lock").unlink(missing_ok=True)
            file = self.path / "config"
            text = _ConfigurationText(file.read_bytes())
            text.name = str(file)
            writer = stack.enter_context(_Configuration(text, read_only=False))
            for name, value in values.items():
                section, option = name.rsplit(".", 1)
                head, _, sub = section.partition(".")
                writer.set_value(f'{head} "{sub}"' if sub else head, option, value)
            with files.atomic_write(file) as new:
                new.write(text.getvalue())

    def configured(self, section: str, option: str) -> str:
        """A value of the repository's own configuration, "" if it is not set."""
        with self._explained():
            return str(_Configuration(str(self.path / "config")).get_value(section, option, ""))

    def check_branch(self, branch: str) -> None:
        """ConfigurationError if the records are on another branch; an empty one takes this."""
        with self._explained():
            head = (self.path / "HEAD").read_text("utf-8").strip()
        named = head.removeprefix("ref: refs/heads/")
        if named == branch:
            return
        if self.tip("HEAD"):
            raise ConfigurationError(
                f"{self.path}: its branch is {named}: set STORE_BRANCH={named}, or rename it: "
                f"git --git-dir={self.path} branch -m {named} {branch}"
            )
        self.run("symbolic-ref", "HEAD", f"refs/heads/{branch}")

    def run(self, *arguments: str, stdin: bytes = b"") -> bytes:
        """See `git_process.run`."""
        return git_process.run(self.path, *arguments, stdin=stdin)

    def call(self, *arguments: str, stdin: bytes = b"") -> Finished:
        """See `git_process.call`."""
        return git_process.call(self.path, *arguments, stdin=stdin)

    def lines(self, *arguments: str, end: bytes = b"\0") -> Iterator[bytes]:
        """See `git_process.lines`."""
        return git_process.lines(self.path, *arguments, end=end)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (GitError, OSError) as error:
            is_one = (self.path / "objects").is_dir()
            said = _text(error).encode() if is_one else b"not a git repository"
            raise git_process.failure(self.path, ("config",), 128, said) from error


def _text(error: BaseException) -> str:
    return (getattr(error, "strerror", None) or str(error)) or type(error).__name__


def create(path: Path, branch: str, layout: str) -> Repository:
    """The repository at `path`, made with our CONFIGURATION if there is none.

    It is made under another name and renamed, so that one that is there is whole. `layout` tells
    what it is: `single`, `submodules` for the superproject, `segment` for one of its parts.
    """
    git_process.check_version()
    if (path / "HEAD").exists():
        return Repository(path)
    made = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        options = ("--quiet", "--bare", "--template=", f"--initial-branch={branch}")
        git_process.run(made, "init", *options)
        Repository(made).configure(CONFIGURATION | {"crawler.layout": layout})
        made.rename(path)
    except (OSError, CrawlerError) as error:
        shutil.rmtree(made, ignore_errors=True)
        # Somebody else may have made it at the same time.
        if not (path / "HEAD").exists():
            is_passing = isinstance(error, Unavailable) or getattr(error, "errno", 0) in _PASSING
            raised = Unavailable if is_passing else ConfigurationError
            raise raised(f"{path}: cannot be made: {_text(error)}") from error
    return Repository(path)
