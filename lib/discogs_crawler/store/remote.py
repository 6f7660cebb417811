"""The remote that a commit must reach before it counts (STORE_REMOTE).

`refs/remotes/origin/...` is what was fetched. `refs/heads/...` is what counts and what consumers
read; it only ever moves to descendants: a remote that is empty or an older copy gets what it lacks,
and one with another history is rejected. A batch is committed on what was fetched, its first
parent, and pushed without force, so that no revision that a consumer has seen is ever orphaned.
User and password of the URL are passed to `git` in its environment, so neither `ps` nor Git's
messages nor the repository's configuration shows them.
"""

import functools
import logging
import random
import re
import shlex
import time
from collections.abc import Callable
from urllib.parse import unquote, urlsplit

from discogs_crawler.cli.shutdown import Stop
from discogs_crawler.errors import ConfigurationError, Unavailable
from discogs_crawler.store import fast_import, git_process, objects, stale_locks
from discogs_crawler.store.fast_import import ACCEPTED, Pushed, Reply
from discogs_crawler.store.git import Repository
from discogs_crawler.store.git_process import ASK_S, gist
from discogs_crawler.store.objects import FOLDER
from discogs_crawler.store.stale_locks import FETCH_S

log = logging.getLogger(__name__)

# Seconds; a push of a batch takes one.
PUSH_S = 300

# Seconds in which a fetch is repeated because of other processes; it removes locks of dead ones.
LOCKED_S = 60

TRACKING = "refs/remotes/origin/"
HEADS = "refs/heads/"

# The branches of `worker.py --branch NAME`.
CRAWL = "crawl/"

# Filters of a partial clone. One that was made without records remains partial for Git; the second
# filter is for all records.
_NO_RECORDS = "--filter=blob:none"
_ALL_RECORDS = "blob:limit=1g"

_HELPER = (
    '!f() { test "$1" = get && '
    'printf "username=%s\\npassword=%s\\n" "$STORE_REMOTE_USER" "$STORE_REMOTE_PASSWORD"; }; f'
)
# The first entry disables the user's helpers.
_OUR_CREDENTIALS = (("credential.helper", ""), ("credential.helper", _HELPER))
_FORBIDDEN = re.compile(
    r"Authentication failed|could not read (Username|Password)|Permission denied"
    r"|Host key verification failed|returned error: 40[13]"
)
# The second is what Git says of `config.lock`.
_LOCKED = r"\.lock': File exists|could not lock config file .*: File exists"
# Another machine, or another process of ours that fetches at the same time, was faster.
_MOVED = re.compile(
    r"\[rejected\]|fetch first|non-fast-forward|failed to (update ref|lock)|cannot lock ref"
    r"|incorrect old value|reference already exists"
    rf"|shallow file has changed|{_LOCKED}"
)
# There is no such repository, in the words of the usual servers.
_ABSENT = re.compile(
    r"repository\b.*not found|not appear to be a git repository|not exported"
    r"|[Cc]annot find repository|could not be found"
)
_NOT_THERE = Pushed(Reply.UNKNOWN, "there is no such repository")

# What Git says of a repository with other hashes, which the remote's may make by default.
_HASHES = re.compile("hash algorithm|mismatched algorithms")

# A command that Git runs at the remote in place of the one that serves a fetch; it creates the
# repository. The store's folder must exist: without it, its disk may not be mounted.
_MAKE = (
    'f() {{ test -d "${{1%{above}}}" && '
    'git init --quiet --bare --object-format=sha1 --initial-branch={main} "$1" && '
    'git --git-dir="$1" config uploadpack.allowFilter true; }}; f'
)
_RUNS_COMMANDS = re.compile(r"(?!(https?|git|ftps?)://)(?!.*[/:]~)")

# The placeholder in STORE_REMOTE for the names of repositories.
NAME = "{repository}"


def parse_address(text: str) -> tuple[str, str, str]:
    """Return a Git URL without its login, user and password; only http(s) URLs have them."""
    parts = urlsplit(text) if text.startswith(("http://", "https://")) else None
    if parts is None or "@" not in parts.netloc:
        return text, "", ""
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    return git_process.without_login(text), user, password


def address_of(remote: str, path: str) -> str:
    """Return the address of the repository `path` (`discogs`, `releases/13`) of a submodule store.

    `remote` is their folder, or a pattern with NAME, which stands for `releases-13`.
    """
    if NAME in remote:
        return remote.replace(NAME, path.replace("/", "-"))
    return f"{remote.rstrip('/')}/{path}.git"


def is_partial(repository: Repository) -> bool:
    """Whether it is a worker's partial clone, without records and history."""
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
        before_filling: Callable[[], object] = lambda: None,
    ) -> None:
        """Configure the remote at `address`, whose HEAD names the branch `main`.

        `whole` is whether all records and all history are needed here. With `levels` a missing
        repository is created, in a folder so many levels up that exists. `before_filling` is called
        before history that the remote lacks is pushed.
        """
        self.stop = stop
        self._repository = repository
        self._url, self._user, self._password = parse_address(address)
        self._main = main
        self._whole = whole
        self._levels = levels
        self._before_filling = before_filling
        before = repository.configured('remote "origin"', "url")
        if before and before != self._url:
            # What was fetched from another remote tells nothing about this one.
            for ref in repository.refs(TRACKING):
                repository.run("update-ref", "-d", ref)
        # A store may have been put here with `git clone --bare` or `--mirror`.
        wanted = f"+refs/heads/*:{TRACKING}*"
        if (before, repository.configured('remote "origin"', "fetch")) != (self._url, wanted):
            repository.configure(
                {
                    "remote.origin.url": self._url,
                    "remote.origin.fetch": wanted,
                    "remote.origin.mirror": "false",
                }
            )

    def look(self) -> None:
        """Ask for its branches; Unavailable or ConfigurationError if it does not tell them.

        One that is created with the first push need not be there.
        """
        answer = self._talk("ls-remote", "--heads", "origin", timeout_s=ASK_S)
        if answer not in (ACCEPTED, _NOT_THERE):
            raise Unavailable(answer.why)

    def fetch(self) -> None:
        """Fetch all branches of the remote, and join ours with them.

        Unless `whole`, the first fetch gets the newest trees, which are all that workers need,
        but neither records nor history: 24 MB instead of 1.3 GB for a million records.
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
        """Return the tips of the main branch and of those of workers, by name."""
        refs = self._repository.refs(prefix)
        named = ((ref.removeprefix(prefix), tip) for ref, tip in refs.items())
        return {n: tip for n, tip in named if n == self._main or n.startswith(CRAWL)}

    def _join(self, *, look_again: bool = True) -> Pushed:
        """Bring each branch here or at the remote, whichever is behind, up to the other one."""
        ours, theirs = self._branches(HEADS), self._branches(TRACKING)
        for name in sorted(ours | theirs, key=lambda name: (name != self._main, name)):
            here, there = ours.get(name), theirs.get(name)
            if here == there:
                continue
            main = self._repository.tip(HEADS + self._main)
            is_merged = name != self._main and here and self._contains(main, here)
            if there and not here:
                self._check_layout(there)
            joined = ACCEPTED
            if there and (is_merged or not here or self._contains(there, here)):  # ours is behind
                joined = fast_import.move(self._repository, HEADS + name, here, there)
            elif is_merged:  # the remote no longer has it
                joined = fast_import.move(self._repository, HEADS + name, here, None)
            elif here and there and not self._contains(here, there):
                raise self._unrelated(name, here, there)
            elif here and not is_partial(self._repository):  # the remote is behind
                joined = self._fill(name, here)
            elif here and name == self._main:
                if not look_again:
                    raise self._unrelated(name, here, there)
                # Another process here may have pushed while we fetched.
                self._fetch()
                return self._join(look_again=False)
            if joined != ACCEPTED:
                return joined
        return ACCEPTED

    def _contains(self, tip: str | None, revision: str) -> bool:
        return objects.contains(self._repository.path, tip, revision)

    def _fill(self, name: str, tip: str) -> Pushed:
        """Push a branch, with all history that the remote lacks."""
        self._before_filling()
        log.warning("pushing what %s lacks of %s, up to %s", self._url, name, tip[:12])
        pushed = self._push(tip, HEADS + name, FETCH_S)
        if pushed.reply in (Reply.MOVED, Reply.LOCKED):
            self._fetch()
        return pushed

    def _check_layout(self, theirs: str) -> None:
        """Raise ConfigurationError if a commit of the remote has the other layout."""
        repository, other = self._repository, ""
        ours = repository.configured("crawler", "layout")
        if ours == "single" and repository.run("ls-tree", theirs, ".gitmodules"):
            other = "submodules"
        elif ours == "submodules" and objects.segments(repository.path, theirs, FOLDER):
            other = "single"
        if other:
            raise ConfigurationError(
                f"STORE_REMOTE {self._url}: its layout is {other}; set STORE_LAYOUT={other}"
            )

    def _unrelated(self, name: str, here: str, there: str | None) -> ConfigurationError:
        tips = (
            f"{self._repository.path}: {name} is at {here[:12]} here and at "
            f"{there[:12] if there else 'nothing'} in STORE_REMOTE {self._url}"
        )
        if is_partial(self._repository) and (not there or self._contains(here, there)):
            return ConfigurationError(
                f"{tips}, which has lost commits: run maintain_store.py on the machine that has "
                "the ledger: it pushes what is missing; if it is missing there too, move this "
                "folder away and fetch again what maintain_store.py --check finds there"
            )
        return ConfigurationError(
            f"{tips}, and neither descends from the other: set the STORE_REMOTE that belongs to "
            "this store, or an empty one; or move this folder away to go on with the remote's "
            "records, and fetch again what maintain_store.py --check then misses"
        )

    def _complete(self) -> None:
        """Fetch the history and the records that a partial clone lacks."""
        if not is_partial(self._repository):
            return
        self._fetch()
        # From an empty remote `git fetch --refetch` would never return.
        if self._repository.refs(TRACKING):
            if (self._repository.path / "shallow").exists():
                self._fetch("--unshallow")
            self._fetch("--refetch", f"--filter={_ALL_RECORDS}")
        self._repository.configure({"remote.origin.partialclonefilter": _ALL_RECORDS})

    def _fetch(self, *options: str) -> None:
        fixed = ("--quiet", "--prune", "--no-tags", "--recurse-submodules=no")

        def fetch() -> Pushed:
            fetched = self._talk("fetch", *fixed, *options, "origin", timeout_s=FETCH_S)
            return ACCEPTED if fetched == _NOT_THERE else fetched

        self._persistently(fetch)

    def _persistently(self, do: Callable[[], Pushed]) -> None:
        """Repeat `do` until it is accepted: others may be working, or have left a lock.

        Unavailable after LOCKED_S seconds, if the remote is down, or if it is time to end.
        """
        deadline = time.monotonic() + LOCKED_S
        while (pushed := do()) != ACCEPTED:
            if pushed.reply is Reply.UNKNOWN:
                raise Unavailable(pushed.why)
            if self.stop or time.monotonic() > deadline:
                raise Unavailable(f"{self._repository.path}: {pushed.why}")
            if pushed.reply is Reply.LOCKED:
                stale_locks.remove_locks(self._repository, of_fetches=True)
            time.sleep(random.uniform(0.1, 0.3))

    def push(self, commit: str, branch: str) -> Pushed:
        """Move `branch` of the remote to `commit`, without force.

        UNKNOWN also if our branch could not be moved there afterwards.
        """
        pushed = self._push(commit, branch, PUSH_S)
        if pushed == ACCEPTED:
            try:
                self._persistently(self._join)
            except Unavailable as down:
                return Pushed(Reply.UNKNOWN, str(down))
        return pushed

    def _push(self, commit: str, branch: str, timeout_s: float) -> Pushed:
        command = ("push", "--porcelain", "--recurse-submodules=no", "origin", f"{commit}:{branch}")
        pushed = self._talk(*command, timeout_s=timeout_s)
        if pushed == _NOT_THERE:
            self._make()
            pushed = self._talk(*command, timeout_s=timeout_s)
        if pushed == _NOT_THERE:
            raise ConfigurationError(
                f"STORE_REMOTE {self._url}: there is no such repository, and it cannot be "
                "created from here: create it there, bare and empty, or the folder for it"
            )
        tracking = TRACKING + branch.removeprefix(HEADS)
        if pushed == ACCEPTED and self._repository.tip(tracking) is None:
            self._repository.run("update-ref", tracking, commit)
        return pushed

    def _make(self) -> None:
        """Create the repository with a command; some servers create it at the first push."""
        if _RUNS_COMMANDS.match(self._url):
            script = _MAKE.format(above="/*" * self._levels, main=shlex.quote(self._main))
            log.warning("creating %s", self._url)
            self._talk("ls-remote", f"--upload-pack={script}", "origin", timeout_s=PUSH_S)

    def _talk(self, *command: str, timeout_s: float) -> Pushed:
        """Run Git against the remote; ConfigurationError if that refuses us access."""
        deadline = time.monotonic() + timeout_s
        login = {"STORE_REMOTE_USER": self._user, "STORE_REMOTE_PASSWORD": self._password}
        done = git_process.talk(
            self._repository.path,
            *command,
            extra=self._ssh | login,
            settings=_OUR_CREDENTIALS if self._user else (),
            is_given_up=lambda: self.stop.is_overdue() or time.monotonic() >= deadline,
        )
        if done is None:
            why = f"cannot be reached: no answer to git {command[0]}"
            return Pushed(Reply.UNKNOWN, f"STORE_REMOTE {self._url} {why}")
        return self._reply(command[0], done)

    def _reply(self, command: str, done: git_process.Finished) -> Pushed:
        """Return what the end of a `git` that talked to the remote means."""
        name = f"STORE_REMOTE {self._url}"
        said = (done.stdout + done.stderr).decode("utf-8", "replace")
        # A shallow fetch from an empty remote ends with 1 and prints nothing.
        is_empty = command == "fetch" and done.returncode == 1 and not said.strip()
        if done.returncode == 0 or is_empty:
            return ACCEPTED
        if done.returncode < 0:
            killed = f"git {command} was killed by signal {-done.returncode}"
            return Pushed(Reply.UNKNOWN, f"{name}: {killed}")
        if self._levels and _ABSENT.search(said) and not self._branches(TRACKING):
            return _NOT_THERE
        if _HASHES.search(said):
            raise ConfigurationError(
                f"{name}: its hashes are not SHA-1, which alone works here: set another, or make "
                f"it anew: git init --bare --object-format=sha1 --initial-branch={self._main}"
            )
        if _FORBIDDEN.search(said):
            raise ConfigurationError(f"{name} refuses us: {gist(said)}")
        if _MOVED.search(said):
            # A lock that stops a push is at the remote, where we must not remove it.
            ours = command == "fetch" and re.search(_LOCKED, said)
            return Pushed(Reply.LOCKED if ours else Reply.MOVED, gist(said))
        # What a hook or a full disk refuses today may pass tomorrow.
        problem = "refuses this push" if "[remote rejected]" in said else "cannot be reached"
        return Pushed(Reply.UNKNOWN, f"{name} {problem}: {gist(said)}")

    @functools.cached_property
    def _ssh(self) -> dict[str, str]:
        return git_process.ssh(self._repository.path, self.stop.is_overdue)
