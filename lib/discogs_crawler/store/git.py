"""One bare Git repository: its configuration, and its references.

GitPython reads references, and reads and writes the configuration. Everything that moves records
is a plain `git` process.
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

# Errors that a later run may not meet: the machine is short of something.
_PASSING = (errno.ENOMEM, errno.EAGAIN, errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.EIO)

# By default Git syncs neither loose objects nor references to disk, collects garbage at any time
# (which breaks other writers), and writes small imports as loose objects.
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
    """The author of the commits."""

    name: str
    email: str


class _Configuration(GitConfigParser):
    """A configuration whose constructor may be interrupted: its finalizer then writes nothing."""

    _read_only = True


class _ConfigurationText(io.BytesIO):
    """A copy for GitPython to change: it would empty the file first, and may then be killed."""

    name = ""
    """the file that GitPython locks, as Git does"""


class Repository:
    """A bare repository. Several threads and processes may use it at once.

    Methods raise what `git_process.failure` makes of an error of Git.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._inode = self._find_inode()

    def replaced(self) -> bool:
        """Whether another repository has been put at our path."""
        return self._inode != self._find_inode()

    def _find_inode(self) -> int:
        try:
            return self.path.stat().st_ino
        except OSError:
            return 0

    def tip(self, ref: str) -> str | None:
        """Return the commit that `ref` (`refs/heads/main`) names; None if it does not exist."""
        with self._our_errors(), Repo(self.path) as repo:
            try:
                return SymbolicReference.dereference_recursive(repo, ref)
            except ValueError:
                return None

    def refs(self, prefix: str) -> dict[str, str]:
        """Return the objects of the references whose full names start with `prefix`, by name."""
        listing = self.run("for-each-ref", "--format=%(objectname) %(refname)", prefix)
        lines = listing.decode(errors="replace").split("\n")[:-1]
        return {name: oid for oid, name in (line.split(" ", 1) for line in lines)}

    def configure(self, values: Mapping[str, str]) -> None:
        """Set `section.option` or `section.sub.option` in the repository's own configuration."""
        lock = self.path / "configuration.flock"
        with self._our_errors(), locks.exclusive(lock, "configuring", wait=True):
            # While we hold ours, Git's lock can only be that of a process that was killed.
            (self.path / "config.lock").unlink(missing_ok=True)
            file = self.path / "config"
            text = _ConfigurationText(file.read_bytes())
            text.name = str(file)
            with _Configuration(text, read_only=False) as writer, files.atomic_write(file) as new:
                for name, value in values.items():
                    section, option = name.rsplit(".", 1)
                    head, _, sub = section.partition(".")
                    writer.set_value(f'{head} "{sub}"' if sub else head, option, value)
                new.write(text.getvalue())

    def configured(self, section: str, option: str) -> str:
        """Return a value of the repository's own configuration; "" if it is not set."""
        with self._our_errors():
            return str(_Configuration(str(self.path / "config")).get_value(section, option, ""))

    def check_branch(self, branch: str) -> None:
        """Raise ConfigurationError if records are on another branch; without records, use this."""
        with self._our_errors():
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

    def call(self, *arguments: str) -> Finished:
        """See `git_process.call`."""
        return git_process.call(self.path, *arguments)

    def lines(self, *arguments: str, end: bytes = b"\0") -> Iterator[bytes]:
        """See `git_process.lines`."""
        return git_process.lines(self.path, *arguments, end=end)

    @contextlib.contextmanager
    def _our_errors(self) -> Iterator[None]:
        try:
            yield
        except (GitError, OSError) as error:
            is_repository = (self.path / "objects").is_dir()
            said = _text(error).encode() if is_repository else b"not a git repository"
            raise git_process.failure(self.path, ("config",), 128, said) from error


def _text(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def create(path: Path, branch: str, layout: str) -> Repository:
    """Return the repository at `path`, with our CONFIGURATION; create it if it does not exist.

    It is created under another name and then renamed, so it is never there half made. `layout` is
    `single`, `submodules` (the superproject) or `segment` (a submodule). Unavailable if the machine
    is short of something, ConfigurationError if it cannot be created for another reason.
    """
    git_process.check_version()
    if (path / "HEAD").exists():
        found = Repository(path)
        if not found.configured("core", "fsync"):  # somebody made it with `git clone`
            found.configure(CONFIGURATION)
        return found
    made = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        options = ("--quiet", "--bare", "--template=", f"--initial-branch={branch}")
        git_process.run(made, "init", *options)
        Repository(made).configure(CONFIGURATION | {"crawler.layout": layout})
        made.rename(path)
    except (OSError, CrawlerError) as error:
        shutil.rmtree(made, ignore_errors=True)
        # Another process may have created it at the same time.
        if not (path / "HEAD").exists():
            is_passing = isinstance(error, Unavailable) or getattr(error, "errno", 0) in _PASSING
            raised = Unavailable if is_passing else ConfigurationError
            raise raised(f"{path}: cannot be created: {_text(error)}") from error
    return Repository(path)
