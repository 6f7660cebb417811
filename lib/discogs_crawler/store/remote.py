"""The remote that a commit must reach before it counts (STORE_REMOTE).

What the remote is known to have is `refs/remotes/origin/...`; consumers read that. A batch is
always put on what was fetched, as its first parent, and pushed without force, so that no revision
a consumer has seen is ever orphaned. Name and password of the URL travel in the environment of
`git`: neither `ps`, nor its messages, nor the repository's configuration ever show them.
"""

import functools
import logging
import os
import random
import time
from typing import NamedTuple
from urllib.parse import unquote, urlsplit, urlunsplit

from discogs_crawler.cli.shutdown import Stop
from discogs_crawler.errors import ConfigurationError, Unavailable
from discogs_crawler.store import stale_locks
from discogs_crawler.store.fast_import import Locked, Refused
from discogs_crawler.store.git import Repository

log = logging.getLogger(__name__)

# A push of a batch takes a second; the first fetch of a whole store an hour.
PUSH_S = 300
FETCH_S = 6 * 3_600

# How long a fetch is tried in vain because of others; a dead one's lock is removed in this time.
LOCKED_S = 60

TRACKING = "refs/remotes/origin/"

# A clone that has begun without records stays one that may lack some, for Git; this is all of them.
_NO_RECORDS = "--filter=blob:none"
_ALL_RECORDS = "blob:limit=1g"

# A connection that died without a word is noticed sooner than in FETCH_S.
_SSH = (
    "ssh -o BatchMode=yes -o ConnectTimeout=20 -o ServerAliveInterval=30 -o ServerAliveCountMax=4"
)

_HELPER = (
    '!f() { test "$1" = get && '
    'printf "username=%s\\npassword=%s\\n" "$STORE_REMOTE_USER" "$STORE_REMOTE_PASSWORD"; }; f'
)
# The first entry forgets the helpers of the user.
_OUR_CREDENTIALS = {
    "GIT_CONFIG_COUNT": "2",
    "GIT_CONFIG_KEY_0": "credential.helper",
    "GIT_CONFIG_VALUE_0": "",
    "GIT_CONFIG_KEY_1": "credential.helper",
    "GIT_CONFIG_VALUE_1": _HELPER,
}
_FORBIDDEN = (
    "Authentication failed",
    "could not read Username",
    "could not read Password",
    "Permission denied",
    "Host key verification failed",
    "returned error: 401",
    "returned error: 403",
    "hook declined",
)
_LOCKED = ".lock': File exists"
# Somebody else, or a process of ours that fetches at the same time, was faster.
_MOVED = (
    "[rejected]",
    "fetch first",
    "non-fast-forward",
    "failed to update ref",
    "failed to lock",
    "cannot lock ref",
    "incorrect old value",
    "reference already exists",
    _LOCKED,
)


class Address(NamedTuple):
    """A Git URL without its secrets, and those."""

    url: str
    user: str
    password: str


def parse_address(text: str) -> Address:
    """Take user and password out of an http(s) URL; other addresses stay as they are."""
    parts = urlsplit(text) if text.startswith(("http://", "https://")) else None
    if parts is None or "@" not in parts.netloc:
        return Address(text, "", "")
    host = parts.netloc.rpartition("@")[2]
    clean = urlunsplit((parts.scheme, host, parts.path, parts.query, ""))
    return Address(clean, unquote(parts.username or ""), unquote(parts.password or ""))


class Remote:
    """A repository's remote `origin`."""

    def __init__(
        self, repository: Repository, address: str, main: str, *, whole: bool, stop: Stop
    ) -> None:
        """`main` is the branch that HEAD names: it shows people what the remote has."""
        self._repository = repository
        self._stop = stop
        self._address = parse_address(address)
        self._main = main
        self._whole = whole
        if repository.configured('remote "origin"', "url") != self._address.url:
            repository.configure(
                {
                    "remote.origin.url": self._address.url,
                    "remote.origin.fetch": f"+refs/heads/*:{TRACKING}*",
                }
            )

    def fetch(self) -> None:
        """Learn all branches of the remote. Unavailable if it cannot be reached.

        A machine without the ledger has workers only, which need the newest trees but neither
        records nor history: 24 MB instead of 1.3 GB for a million records.
        """
        if self._whole:
            self._complete()
            self._fetch()
        elif self._repository.refs(TRACKING):
            self._fetch()
        else:
            self._fetch("--depth=1", _NO_RECORDS)
        self._show_main()

    def _show_main(self) -> None:
        """Let plain `git log` in the repository show what counts; nothing depends on it."""
        tip = self._repository.tip(TRACKING + self._main)
        if tip and tip != self._repository.tip(f"refs/heads/{self._main}"):
            self._repository.call("update-ref", f"refs/heads/{self._main}", tip)

    def _complete(self) -> None:
        """Get the history and the records that a clone for workers has left out."""
        filtered = self._repository.configured('remote "origin"', "partialclonefilter")
        if f"--filter={filtered}" != _NO_RECORDS:
            return
        self._fetch()
        # From a remote that is empty Git would wait for ever for what it is to fetch again.
        if self._repository.refs(TRACKING):
            if (self._repository.path / "shallow").exists():
                self._fetch("--unshallow")
            self._fetch("--refetch", f"--filter={_ALL_RECORDS}")
        self._repository.configure({"remote.origin.partialclonefilter": _ALL_RECORDS})

    def _fetch(self, *options: str) -> None:
        """Another fetch may be at it, or one that was killed may have left its lock."""
        arguments = ["fetch", "--quiet", "--prune", "--no-tags", *options]
        deadline = time.monotonic() + LOCKED_S
        while True:
            try:
                self._talk(arguments, "origin", timeout_s=FETCH_S)
                return
            except Refused as refused:
                if self._stop or time.monotonic() > deadline:
                    raise Unavailable(f"{self._repository.path}: {refused}") from None
                if isinstance(refused, Locked):
                    stale_locks.remove_locks(self._repository, of_references=True)
            time.sleep(random.uniform(0.1, 0.3))

    def push(self, commit: str, branch: str) -> None:
        """Make `branch` of the remote `commit`. Refused if it has moved; never forced."""
        self._talk(["push", "--porcelain"], "origin", f"{commit}:{branch}", timeout_s=PUSH_S)
        tracking = TRACKING + branch.removeprefix("refs/heads/")
        if self._repository.tip(tracking) is None:
            self._repository.run("update-ref", tracking, commit)
        self._show_main()

    def _talk(self, command: list[str], *arguments: str, timeout_s: float) -> bytes:
        deadline = time.monotonic() + timeout_s

        def is_given_up() -> bool:
            return self._stop.is_overdue() or time.monotonic() >= deadline

        extra = self._environment()
        done = self._repository.talk(*command, *arguments, extra=extra, is_given_up=is_given_up)
        if done is None:
            what = f"no answer to git {command[0]}"
            raise Unavailable(f"STORE_REMOTE {self._address.url} cannot be reached: {what}")
        said = (done.stdout + done.stderr).decode("utf-8", "replace")
        # A shallow fetch from a remote that is empty ends with 1 and says nothing.
        is_empty = command[0] == "fetch" and done.returncode == 1 and not said.strip()
        if done.returncode == 0 or is_empty:
            return done.stdout
        if done.returncode < 0:
            killed = f"git {command[0]} was killed by signal {-done.returncode}"
            raise Unavailable(f"STORE_REMOTE {self._address.url}: {killed}")
        if any(text in said for text in _FORBIDDEN):
            raise ConfigurationError(f"STORE_REMOTE {self._address.url} refuses us: {_gist(said)}")
        if any(text in said for text in _MOVED):
            # What a push finds locked is the remote's, and not ours to remove.
            ours = command[0] == "fetch" and _LOCKED in said
            raise (Locked if ours else Refused)(_gist(said))
        raise Unavailable(f"STORE_REMOTE {self._address.url} cannot be reached: {_gist(said)}")

    @functools.cached_property
    def _ssh(self) -> dict[str, str]:
        """How to call ssh: as the user wishes; else it asks nothing and notices a dead line."""
        if "GIT_SSH_COMMAND" in os.environ or "GIT_SSH" in os.environ:
            return {}
        wish = ["config", "--get", "core.sshCommand"]
        found = self._repository.talk(*wish, extra={}, is_given_up=self._stop.is_overdue)
        return {} if found and found.stdout else {"GIT_SSH_COMMAND": _SSH}

    def _environment(self) -> dict[str, str]:
        extra = dict(self._ssh)
        if self._address.user:
            extra |= _OUR_CREDENTIALS
            extra["STORE_REMOTE_USER"] = self._address.user
            extra["STORE_REMOTE_PASSWORD"] = self._address.password
        return extra


def _gist(said: str) -> str:
    """The line that says why: the first complaint."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    complaints = [
        line for line in lines if line.startswith(("fatal:", "error:", "!", "remote: error"))
    ]
    said_first = (complaints or lines or ["git said nothing"])[0]
    if said_first.endswith(":"):  # what follows is the reason
        said_first = " ".join(lines[lines.index(said_first) :][:2])
    return said_first.replace("\t", " ")
