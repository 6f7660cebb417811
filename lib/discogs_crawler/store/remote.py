"""The remote that a commit must reach before it counts (STORE_REMOTE).

What was fetched is `refs/remotes/origin/...`; what counts, and consumers read, is `refs/heads/...`,
which only ever moves to descendants: a remote that was emptied, or is an older copy, gets what it
lacks, and one with another history is refused. A batch is always put on what was fetched, as its
first parent, and pushed without force, so that no revision a consumer has seen is ever orphaned.
Name and password of the URL travel in the environment of `git`: neither `ps`, nor its messages, nor
the repository's configuration ever show them.
"""

import functools
import logging
import os
import random
import re
import shlex
import time
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from discogs_crawler.cli.shutdown import Stop
from discogs_crawler.errors import ConfigurationError, Unavailable
from discogs_crawler.store import fast_import, git_process, objects, stale_locks
from discogs_crawler.store.fast_import import ACCEPTED, Pushed, Reply
from discogs_crawler.store.git import Repository
from discogs_crawler.store.git_process import gist
from discogs_crawler.store.objects import FOLDER
from discogs_crawler.store.stale_locks import FETCH_S

log = logging.getLogger(__name__)

# A push of a batch takes a second.
PUSH_S = 300

# How long a fetch is tried in vain because of others; a dead one's lock is removed in this time.
LOCKED_S = 60

TRACKING = "refs/remotes/origin/"
HEADS = "refs/heads/"

# The branches of `worker.py --branch NAME`.
CRAWL = "crawl/"

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
_OUR_CREDENTIALS = (("credential.helper", ""), ("credential.helper", _HELPER))
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
    "could not lock config file",
    "shallow file has changed",
    _LOCKED,
)

# The one of whom there is none yet: as each of the usual servers says it.
_ABSENT = re.compile(
    r"repository\b.*not found|not appear to be a git repository|not exported"
    r"|[Cc]annot find repository|could not be found"
)
_NOT_THERE = Pushed(Reply.UNKNOWN, "there is no such repository")

# Makes the repository whose path follows, on the other side, where Git runs what serves a fetch.
# The folder of the store has to be there: its disk may not be mounted.
_MAKE = (
    'f() {{ test -d "${{1%{above}}}" && git init --quiet --bare --initial-branch={main} "$1" && '
    'git --git-dir="$1" config uploadpack.allowFilter true; }}; f'
)
_MADE_BY_A_COMMAND = re.compile(r"(?!(https?|git|ftps?)://)(?!.*[/:]~)")

# What in STORE_REMOTE stands for the name of a repository.
NAME = "{repository}"


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
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    return Address(git_process.without_login(text), user, password)


def address_of(remote: str, path: str) -> str:
    """Where the repository `path` (`discogs`, `releases/13`) of a store in several is.

    They lie in the folder `remote` as they do here, or have the names `releases-13` in it.
    """
    if NAME in remote:
        return remote.replace(NAME, path.replace("/", "-"))
    return f"{remote.rstrip('/')}/{path}.git"


def is_partial(repository: Repository) -> bool:
    """Whether it is a clone for workers, without records and history."""
    filtered = repository.configured('remote "origin"', "partialclonefilter")
    return f"--filter={filtered}" == _NO_RECORDS


class Remote:
    """A repository's remote `origin`."""

    def __init__(
        self,
        repository: Repository,
        address: str,
        main: str,
        *,
        whole: bool,
        stop: Stop,
        levels: int = 0,
        before_giving: Callable[[], object] = lambda: None,
    ) -> None:
        """`main` is the branch that HEAD names: it shows people what the remote has.

        With `levels` it is made if there is none, so many below a folder that is there. What it
        lacks of this repository is pushed after `before_giving`.
        """
        self._repository = repository
        self._stop = stop
        self._address = parse_address(address)
        self._main = main
        self._whole = whole
        self._levels = levels
        self._before_giving = before_giving
        before = repository.configured('remote "origin"', "url")
        if before != self._address.url:
            # What the other one had says nothing of this one.
            for ref in repository.refs(TRACKING) if before else ():
                repository.run("update-ref", "-d", ref)
            repository.configure(
                {
                    "remote.origin.url": self._address.url,
                    "remote.origin.fetch": f"+refs/heads/*:{TRACKING}*",
                }
            )

    def fetch(self) -> None:
        """Learn all branches of the remote, and join ours with them.

        A machine without the ledger has workers only, which need the newest trees but neither
        records nor history: 24 MB instead of 1.3 GB for a million records.

        Unavailable if the remote cannot be reached, ConfigurationError if it has another history.
        """
        if self._whole:
            self._complete()
            self._fetch()
        elif self._branches(TRACKING) or self._branches(HEADS):
            self._fetch()
        else:
            self._fetch("--depth=1", _NO_RECORDS)
        self._persistently(self._join)

    def _branches(self, prefix: str) -> dict[str, str]:
        """The tips of the main branch and of those of workers, by name."""
        refs = self._repository.refs(prefix)
        named = ((ref.removeprefix(prefix), tip) for ref, tip in refs.items())
        return {n: tip for n, tip in named if n == self._main or n.startswith(CRAWL)}

    def _join(self, *, look_again: bool = True) -> Pushed:
        """Let each branch here follow the remote's, or the remote's follow ours."""
        ours, theirs = self._branches(HEADS), self._branches(TRACKING)
        for name in sorted(ours | theirs, key=lambda name: (name != self._main, name)):
            here, there = ours.get(name), theirs.get(name)
            if here == there:
                continue
            main = self._repository.tip(HEADS + self._main)
            is_over = name != self._main and here and self._contains(main, here)
            if there and not here:
                self._check_layout(there)
            joined = ACCEPTED
            if there and (is_over or not here or self._contains(there, here)):
                joined = fast_import.move(self._repository, HEADS + name, here, there)
            elif is_over:
                joined = fast_import.move(self._repository, HEADS + name, here, None)
            elif here and there and not self._contains(here, there):
                raise self._stranger(name, here, there)
            elif here and not is_partial(self._repository):
                joined = self._give(name, here)
            elif here and name == self._main:
                if not look_again:
                    raise self._stranger(name, here, there)
                # Another process of ours may have pushed while we fetched.
                self._fetch()
                return self._join(look_again=False)
            if joined != ACCEPTED:
                return joined
        return ACCEPTED

    def _contains(self, tip: str | None, revision: str) -> bool:
        return objects.contains(self._repository.path, tip, revision)

    def _give(self, name: str, tip: str) -> Pushed:
        """Push a branch with all its history."""
        self._before_giving()
        log.warning("%s gets what it lacks of %s, up to %s", self._address.url, name, tip[:12])
        pushed = self._push(tip, HEADS + name, FETCH_S)
        if pushed.reply in (Reply.MOVED, Reply.LOCKED):
            self._fetch()
        return pushed

    def _check_layout(self, theirs: str) -> None:
        """ConfigurationError if a commit of the remote's is of the other layout."""
        repository, other = self._repository, ""
        ours = repository.configured("crawler", "layout")
        if ours == "single" and repository.run("ls-tree", theirs, ".gitmodules"):
            other = "submodules"
        elif ours == "submodules" and objects.segments(repository.path, theirs, FOLDER):
            other = "single"
        if other:
            raise ConfigurationError(
                f"STORE_REMOTE {self._address.url}: its layout is {other}; set STORE_LAYOUT={other}"
            )

    def _stranger(self, name: str, here: str, there: str | None) -> ConfigurationError:
        tips = (
            f"{self._repository.path}: {name} is at {here[:12]} here and at "
            f"{there[:12] if there else 'nothing'} in STORE_REMOTE {self._address.url}"
        )
        if is_partial(self._repository) and (not there or self._contains(here, there)):
            return ConfigurationError(
                f"{tips}, which has lost the rest: run maintain_store.py on the machine that has "
                "the ledger, it pushes what is missing; if it is missing there too, move this "
                "folder away and fetch again what maintain_store.py --check finds there"
            )
        return ConfigurationError(
            f"{tips}, and neither descends from the other: set the STORE_REMOTE that belongs to "
            "this store, or an empty one; or move this folder away to go on with the remote's "
            "records, and fetch again what maintain_store.py --check then misses"
        )

    def _complete(self) -> None:
        """Get the history and the records that a clone for workers has left out."""
        if not is_partial(self._repository):
            return
        self._fetch()
        # From a remote that is empty Git would wait for ever for what it is to fetch again.
        if self._repository.refs(TRACKING):
            if (self._repository.path / "shallow").exists():
                self._fetch("--unshallow")
            self._fetch("--refetch", f"--filter={_ALL_RECORDS}")
        self._repository.configure({"remote.origin.partialclonefilter": _ALL_RECORDS})

    def _fetch(self, *options: str) -> None:
        command = ["fetch", "--quiet", "--prune", "--no-tags", "--recurse-submodules=no", *options]

        def fetch() -> Pushed:
            fetched = self._talk(command, "origin", timeout_s=FETCH_S)
            return ACCEPTED if fetched == _NOT_THERE else fetched

        self._persistently(fetch)

    def _persistently(self, do: Callable[[], Pushed]) -> None:
        """Another process may be at it, or one that was killed may have left its lock."""
        deadline = time.monotonic() + LOCKED_S
        while (pushed := do()) != ACCEPTED:
            if pushed.reply is Reply.UNKNOWN:
                raise Unavailable(pushed.why)
            if self._stop or time.monotonic() > deadline:
                raise Unavailable(f"{self._repository.path}: {pushed.why}")
            if pushed.reply is Reply.LOCKED:
                stale_locks.remove_locks(self._repository, of_fetches=True)
            time.sleep(random.uniform(0.1, 0.3))

    def push(self, commit: str, branch: str) -> Pushed:
        """Make `branch` of the remote `commit`; never forced.

        UNKNOWN, too, if it could not be joined with ours afterwards.
        """
        pushed = self._push(commit, branch, PUSH_S)
        if pushed == ACCEPTED:
            try:
                self._persistently(self._join)
            except Unavailable as down:
                return Pushed(Reply.UNKNOWN, str(down))
        return pushed

    def _push(self, commit: str, branch: str, timeout_s: float) -> Pushed:
        command = ["push", "--porcelain", "--recurse-submodules=no"]
        arguments = ("origin", f"{commit}:{branch}")
        pushed = self._talk(command, *arguments, timeout_s=timeout_s)
        if pushed == _NOT_THERE:
            self._make()
            pushed = self._talk(command, *arguments, timeout_s=timeout_s)
        if pushed == _NOT_THERE:
            raise ConfigurationError(
                f"STORE_REMOTE {self._address.url}: there is no such repository, and it cannot be "
                "made from here: make it there, bare and empty (or the folder that it is to be in)"
            )
        tracking = TRACKING + branch.removeprefix(HEADS)
        if pushed == ACCEPTED and self._repository.tip(tracking) is None:
            self._repository.run("update-ref", tracking, commit)
        return pushed

    def _make(self) -> None:
        """Make the repository where that takes a command; some servers do so at the first push."""
        if _MADE_BY_A_COMMAND.match(self._address.url):
            script = _MAKE.format(above="/*" * self._levels, main=shlex.quote(self._main))
            log.warning("%s is made", self._address.url)
            self._talk(["ls-remote"], f"--upload-pack={script}", "origin", timeout_s=PUSH_S)

    def _talk(self, command: list[str], *arguments: str, timeout_s: float) -> Pushed:
        """Run Git against the remote. ConfigurationError if that refuses us."""
        deadline = time.monotonic() + timeout_s

        def is_given_up() -> bool:
            return self._stop.is_overdue() or time.monotonic() >= deadline

        done = git_process.talk(
            self._repository.path,
            *command,
            *arguments,
            extra=self._environment(),
            settings=_OUR_CREDENTIALS if self._address.user else (),
            is_given_up=is_given_up,
        )
        name = f"STORE_REMOTE {self._address.url}"
        if done is None:
            why = f"{name} cannot be reached: no answer to git {command[0]}"
            return Pushed(Reply.UNKNOWN, why)
        said = (done.stdout + done.stderr).decode("utf-8", "replace")
        # A shallow fetch from a remote that is empty ends with 1 and says nothing.
        is_empty = command[0] == "fetch" and done.returncode == 1 and not said.strip()
        if done.returncode == 0 or is_empty:
            return ACCEPTED
        if done.returncode < 0:
            killed = f"git {command[0]} was killed by signal {-done.returncode}"
            return Pushed(Reply.UNKNOWN, f"{name}: {killed}")
        if self._levels and _ABSENT.search(said) and not self._branches(TRACKING):
            return _NOT_THERE
        if any(text in said for text in _FORBIDDEN):
            raise ConfigurationError(f"{name} refuses us: {gist(said)}")
        if any(text in said for text in _MOVED):
            # What a push finds locked is the remote's, and not ours to remove.
            ours = command[0] == "fetch" and _LOCKED in said
            return Pushed(Reply.LOCKED if ours else Reply.MOVED, gist(said))
        return Pushed(Reply.UNKNOWN, f"{name} cannot be reached: {gist(said)}")

    @functools.cached_property
    def _ssh(self) -> dict[str, str]:
        """How to call ssh: as the user wishes; else it asks nothing and notices a dead line."""
        if "GIT_SSH_COMMAND" in os.environ or "GIT_SSH" in os.environ:
            return {}
        wish = ["config", "--get", "core.sshCommand"]
        found = git_process.talk(
            self._repository.path, *wish, extra={}, is_given_up=self._stop.is_overdue
        )
        return {} if found and found.stdout else {"GIT_SSH_COMMAND": _SSH}

    def _environment(self) -> dict[str, str]:
        extra = dict(self._ssh)
        if self._address.user:
            extra["STORE_REMOTE_USER"] = self._address.user
            extra["STORE_REMOTE_PASSWORD"] = self._address.password
        return extra
