"""STORE_REMOTE: machines that push to one bare repository over Git's own transport."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from discogs_crawler import config
from discogs_crawler.config import Settings
from discogs_crawler.errors import ConfigurationError, Unavailable
from discogs_crawler.store import git_process, layouts, remote, single, stale_locks
from discogs_crawler.store.fast_import import Pushed, Reply
from discogs_crawler.store.layouts import SingleStore
from tests.conftest import ROOT, make_ledger, program
from tests.store.test_store import changes, everything, put, record


def machine(tmp_path: Path, name: str, url: str, *, ledger: bool = False) -> Settings:
    """The settings of a machine of its own; with `ledger` the one that exports."""
    state = tmp_path / name
    state.mkdir(exist_ok=True)
    if ledger:
        make_ledger(state / "crawler.db")
    return config.load(
        environ={"STATE_DIR": str(state), "ENV_FILE": os.devnull, "STORE_REMOTE": url}
    )


def opened(settings: Settings, branch: str | None = None) -> SingleStore:
    found = layouts.open_store(settings, branch=branch)
    assert isinstance(found, SingleStore)
    return found


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A bare repository that machines push to."""
    path = tmp_path / "remote.git"
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(path)], check=True)
    subprocess.run(["git", "-C", str(path), "config", "uploadpack.allowFilter", "true"], check=True)
    return path


def tip_of(bare: Path, branch: str = "main") -> str:
    command = ["git", "-C", str(bare), "rev-parse", branch]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_a_commit_returns_when_the_remote_has_it(tmp_path: Path, bare: Path) -> None:
    first = opened(machine(tmp_path, "a", f"file://{bare}"))
    done = put(first, [1, 2])
    assert tip_of(bare) == done.revision == first.tip()
    assert first.repository.refs(single.PENDING) == {}


def test_a_rejected_push_is_repeated_on_the_new_tip(tmp_path: Path, bare: Path) -> None:
    """Another machine pushes between our fetch and our push."""
    one, two = (opened(machine(tmp_path, name, f"file://{bare}")) for name in "ab")
    seen = put(one, [1]).revision
    asked: list[str] = []

    def still_ours() -> range:
        if not asked:
            asked.append(put(two, [2]).revision)
        return range(1, 100)

    done = one.commit("releases", changes([3]), still_ours, {})
    assert done.changed == {3}
    line = ["git", "-C", str(bare), "rev-list", "--first-parent", "main"]
    history = subprocess.run(line, check=True, capture_output=True, text=True).stdout.split()
    assert history == [done.revision, asked[0], seen]


@pytest.mark.parametrize("rounds", [3, pytest.param(40, marks=pytest.mark.long)])
def test_machines_that_push_at_once_lose_nothing(tmp_path: Path, bare: Path, rounds: int) -> None:
    machines = [opened(machine(tmp_path, name, f"file://{bare}")) for name in "abc"]

    def work(number: int) -> None:
        for turn in range(rounds):
            put(machines[number], [1 + number + 10 * turn])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    machines[0].refresh()
    expected = sorted(1 + number + 10 * turn for number in range(3) for turn in range(rounds))
    assert list(machines[0].ids("releases")) == expected


def test_a_machine_of_workers_has_neither_records_nor_history(tmp_path: Path, bare: Path) -> None:
    whole = opened(machine(tmp_path, "a", f"file://{bare}", ledger=True))
    for number in range(1, 4):
        put(whole, range(number * 100, number * 100 + 50))
    worker = opened(machine(tmp_path, "b", f"file://{bare}"))
    put(worker, [100, 101, 500], "new")
    run = worker.repository.run
    assert (worker.repository.path / "shallow").exists()
    missing = run("rev-list", "--objects", "--missing=print", "--all").count(b"?")
    assert missing >= 140, "it has downloaded records"
    whole.settle()
    assert whole.read("releases", [101, 500]) == {
        101: record(101, "new"),
        500: record(500, "new"),
    }
    assert not (whole.repository.path / "shallow").exists()


@pytest.mark.parametrize(
    "said",
    [
        "error: could not lock config file /b/store/discogs.git/config: File exists",
        "fatal: shallow file has changed since we read it",
    ],
)
def test_workers_that_make_their_clone_at_once_wait_for_each_other(
    tmp_path: Path, bare: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    """Git says this to the slower ones of those that fetch for the first time."""
    put(opened(machine(tmp_path, "a", f"file://{bare}")), [1])
    worker = opened(machine(tmp_path, "b", f"file://{bare}"))
    script = (
        f'case "$*" in *" fetch "*) if mkdir {tmp_path}/told; then echo "{said}" >&2; exit 128; fi'
        f';; esac\nexec {shutil.which("git")} "$@"'
    )
    monkeypatch.setenv("PATH", program(tmp_path / "bin", "git", script))
    assert worker.refresh() == tip_of(bare)
    assert (tmp_path / "told").exists()


@pytest.mark.parametrize("left", ["shallow.lock", "config.lock"])
def test_a_first_fetch_goes_on_after_one_that_died(
    tmp_path: Path, bare: Path, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    monkeypatch.setattr(remote, "LOCKED_S", 5)
    put(opened(machine(tmp_path, "a", f"file://{bare}")), [1])
    worker = opened(machine(tmp_path, "b", f"file://{bare}"))
    lock = worker.repository.path / left
    lock.touch()
    os.utime(lock, (time.time() - 7 * 3_600,) * 2)
    assert worker.refresh() == tip_of(bare)


def test_a_machine_that_gets_the_ledger_gets_history_and_records(
    tmp_path: Path, bare: Path
) -> None:
    first = opened(machine(tmp_path, "a", f"file://{bare}"))
    for number in range(1, 4):
        put(first, [number])
    put(opened(machine(tmp_path, "b", f"file://{bare}")), [4])
    whole = opened(machine(tmp_path, "b", f"file://{bare}", ledger=True))
    whole.settle()
    bare.rename(tmp_path / "away.git")
    assert whole.read("releases", range(1, 9)).keys() == {1, 2, 3, 4}
    assert whole.repository.run("rev-list", "--count", whole.tip() or "") == b"4\n"


def test_a_machine_may_get_the_ledger_before_anything_is_stored(tmp_path: Path, bare: Path) -> None:
    opened(machine(tmp_path, "b", f"file://{bare}")).refresh()
    whole = opened(machine(tmp_path, "b", f"file://{bare}", ledger=True))
    put(whole, [1, 2])
    put(opened(machine(tmp_path, "c", f"file://{bare}")), [3])
    whole.settle()
    assert whole.read("releases", range(1, 9)).keys() == {1, 2, 3}


def test_a_remote_that_is_down_completes_nothing(tmp_path: Path, bare: Path) -> None:
    machine_a = opened(machine(tmp_path, "a", f"file://{bare}"))
    put(machine_a, [1])
    bare.rename(tmp_path / "away.git")
    machine_a.patience_s = 0.1
    with pytest.raises(Unavailable, match="cannot be reached"):
        put(machine_a, [2])
    (tmp_path / "away.git").rename(bare)
    assert put(machine_a, [2]).added == 1


def test_a_push_that_never_arrives_completes_nothing(
    tmp_path: Path, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The remote went down after its tip was fetched."""
    machine_a = opened(machine(tmp_path, "a", f"file://{bare}"))
    put(machine_a, [1])

    def push(*_: object) -> Pushed:
        return Pushed(Reply.UNKNOWN, "the connection broke")

    machine_a.patience_s = 0
    with monkeypatch.context() as broken:
        broken.setattr(remote.Remote, "push", push)
        with pytest.raises(Unavailable, match="the connection broke"):
            put(machine_a, [2])
    assert set(machine_a.read("releases", [1, 2])) == {1}
    assert put(machine_a, [2]).added == 1


def test_a_push_that_was_killed_without_a_word_completes_nothing(
    tmp_path: Path, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the kernel does when memory is short."""
    machine_a = opened(machine(tmp_path, "a", f"file://{bare}"))
    put(machine_a, [1])
    talk = git_process.talk

    def killed(
        folder: Path, command: str, *arguments: str, **options: Any
    ) -> "subprocess.CompletedProcess[bytes] | None":
        if command == "push":
            return subprocess.CompletedProcess([command], -signal.SIGKILL, b"", b"")
        return talk(folder, command, *arguments, **options)

    machine_a.patience_s = 0
    with monkeypatch.context() as broken:
        broken.setattr(git_process, "talk", killed)
        with pytest.raises(Unavailable, match="git push was killed by signal 9"):
            put(machine_a, [2])
    assert put(machine_a, [2]).added == 1
    assert set(machine_a.read("releases", [1, 2])) == {1, 2}


def test_a_remote_that_comes_back_gets_the_batch(
    tmp_path: Path, bare: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(single, "DOWN_S", 0.05)
    machine_a = opened(machine(tmp_path, "a", f"file://{bare}"))
    bare.rename(tmp_path / "away.git")
    renewed = []

    def still_ours() -> range:
        renewed.append(1)
        if len(renewed) == 3:
            (tmp_path / "away.git").rename(bare)
        return range(1, 100)

    done = machine_a.commit("releases", changes([1]), still_ours, {})
    assert tip_of(bare) == done.revision
    assert len(renewed) == 4, "leases are renewed while it is down"
    assert [text.endswith("; trying again") for text in caplog.messages] == [True] * 3


def test_an_answer_that_was_lost_counts_once(
    tmp_path: Path, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The remote took the push, but the connection broke before it could say so."""
    machine_a = opened(machine(tmp_path, "a", f"file://{bare}"))
    put(machine_a, [1])
    push = remote.Remote.push
    broken = []

    def push_and_break(self: remote.Remote, commit: str, branch: str) -> Pushed:
        pushed = push(self, commit, branch)
        if broken:
            return pushed
        broken.append(1)
        return Pushed(Reply.UNKNOWN, "cut")

    monkeypatch.setattr(remote.Remote, "push", push_and_break)
    done = put(machine_a, [2])
    assert (done.changed, done.revision) == ({2}, tip_of(bare))


def test_a_remote_that_never_answers_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "FETCH_S", 0.3)
    monkeypatch.setenv("GIT_SSH_COMMAND", "sleep 60 #")
    machine_a = opened(machine(tmp_path, "a", "ssh://host.invalid/discogs.git"))
    machine_a.patience_s = 0
    with pytest.raises(Unavailable, match="cannot be reached: no answer to git fetch"):
        put(machine_a, [1])


def test_of_two_pushes_without_an_answer_the_first_may_arrive(
    tmp_path: Path, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(single, "DOWN_S", 0.05)
    machine_a = opened(machine(tmp_path, "a", f"file://{bare}"))
    put(machine_a, [1])
    push = remote.Remote.push
    sent: list[str] = []

    def late(self: remote.Remote, commit: str, branch: str) -> Pushed:
        if sent:
            push(self, sent[0], branch)
        sent.append(commit)
        return Pushed(Reply.UNKNOWN, "cut")

    monkeypatch.setattr(remote.Remote, "push", late)
    done = put(machine_a, [2])
    assert (done.changed, done.revision, len(sent)) == ({2}, tip_of(bare), 2)


def test_branches_reach_the_remote_too(tmp_path: Path, bare: Path) -> None:
    put(opened(machine(tmp_path, "a", f"file://{bare}")), [1])
    branch = opened(machine(tmp_path, "b", f"file://{bare}"), branch="two")
    done = put(branch, [2])
    assert tip_of(bare, "crawl/two") == done.revision
    assert tip_of(bare) != done.revision


def test_a_url_is_parted_from_its_secrets() -> None:
    parse = remote.parse_address
    assert parse("https://me:p%40ss@host:8/x.git") == ("https://host:8/x.git", "me", "p@ss")
    assert parse("https://token@host/x.git") == ("https://host/x.git", "token", "")
    assert parse("git@host:x.git") == ("git@host:x.git", "", "")
    assert parse("/srv/x.git") == ("/srv/x.git", "", "")


@pytest.fixture
def guarded() -> Iterator[tuple[str, list[str]]]:
    """A server that asks for a password and refuses all; what it was told, and its address."""
    told: list[str] = []

    class Guard(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            told.append(self.headers.get("Authorization", ""))
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="x"')
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Guard) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}", told
        server.shutdown()
        thread.join()


def test_a_password_reaches_the_remote_and_nothing_else(
    tmp_path: Path, guarded: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, told = guarded
    real = subprocess.run(
        ["sh", "-c", "command -v git"], capture_output=True, text=True, check=True
    )
    ps = "for f in /proc/[0-9]*/cmdline; do tr '\\0' ' ' < $f; echo; done"
    script = (
        f'{real.stdout.strip()} "$@" & \nsleep 0.05\n{ps} >> {tmp_path}/ps 2>/dev/null\nwait $!'
    )
    monkeypatch.setenv("PATH", program(tmp_path / "bin", "git", script))
    settings = machine(tmp_path, "a", f"http://me:sesame@{address}/x.git")
    with pytest.raises(ConfigurationError, match="refuses us") as caught:
        opened(settings).commit("releases", changes([1]), everything, {})
    assert any(told), "the password was not sent"
    written = [path for path in settings.store.rglob("*") if path.is_file()]
    assert "sesame" not in str(caught.value)
    assert "fetch" in (tmp_path / "ps").read_text()
    assert "sesame" not in (tmp_path / "ps").read_text()
    assert all(b"sesame" not in path.read_bytes() for path in written)


def assert_down(tmp_path: Path, url: str, why: str) -> None:
    """Nothing can be stored, because the remote cannot be reached."""
    store_a = opened(machine(tmp_path, "a", url))
    store_a.patience_s = 0
    with pytest.raises(Unavailable, match=f"cannot be reached: .*{why}"):
        put(store_a, [1])


@pytest.mark.parametrize("scheme", ["http", "git"])
def test_a_port_where_nobody_listens_is_a_service_that_is_down(tmp_path: Path, scheme: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"{scheme}://127.0.0.1:{free.getsockname()[1]}/x.git"
    assert_down(tmp_path, url, "(refused|Failed to connect)")


def test_a_remote_that_falls_silent_is_a_service_that_is_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that died without a word: nobody answers, and nobody hangs up."""
    monkeypatch.setenv("GIT_HTTP_LOW_SPEED_TIME", "1")
    monkeypatch.setattr(remote, "FETCH_S", 60)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/discogs.git"
        assert_down(tmp_path, url, "too slow")


def test_a_remote_with_other_hashes_is_no_service_that_is_down(tmp_path: Path) -> None:
    bare = tmp_path / "remote.git"
    subprocess.run(["git", "init", "-q", "--bare", "--object-format=sha256", bare], check=True)
    with pytest.raises(ConfigurationError, match=r"make it anew: git init .*=sha1"):
        put(opened(machine(tmp_path, "a", f"file://{bare}")), [1])


def test_a_push_that_a_hook_declines_may_pass_and_its_words_are_told(
    tmp_path: Path, bare: Path
) -> None:
    store_a = opened(machine(tmp_path, "a", f"file://{bare}"))
    store_a.patience_s = 0
    words = "echo >&2; echo >&2 disk quota; echo >&2 exceeded; exit 1"
    program(bare / "hooks", "pre-receive", words)
    with pytest.raises(Unavailable, match=r"refuses this push: .*hook declined") as caught:
        put(store_a, [1])
    assert str(caught.value).endswith("declined); remote: disk quota; remote: exceeded")
    (bare / "hooks" / "pre-receive").unlink()
    assert put(store_a, [1]).added == 1


def test_the_lock_of_a_fetch_that_was_killed_is_removed(
    tmp_path: Path, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine_a = opened(machine(tmp_path, "a", f"file://{bare}"))
    put(machine_a, [1])
    put(opened(machine(tmp_path, "b", f"file://{bare}")), [2])
    lock = machine_a.repository.path / "refs/remotes/origin/main.lock"
    lock.touch()
    monkeypatch.setattr(remote, "LOCKED_S", 0)
    with pytest.raises(Unavailable, match=r"main\.lock': File exists"):
        machine_a.refresh()
    assert lock.exists(), "it is young: somebody may be at work"
    monkeypatch.setattr(remote, "LOCKED_S", 20)
    monkeypatch.setattr(stale_locks, "STALE_LOCK_S", 0.5)
    assert machine_a.refresh() == tip_of(bare)


def test_ssh_is_called_as_the_user_wishes_else_so_that_it_asks_nothing(
    tmp_path: Path, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = f'echo "$0 $*" >> {tmp_path}/log\nfor last; do :; done\nexec sh -c "$last"'
    program(tmp_path, "mine", script)
    monkeypatch.setenv("PATH", program(tmp_path, "ssh", script))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("GIT_SSH_COMMAND", "GIT_SSH"):
        monkeypatch.delenv(name, raising=False)
    put(opened(machine(tmp_path, "a", f"ssh://host{bare}")), [1])
    assert "/ssh -o BatchMode=yes" in (tmp_path / "log").read_text()
    (tmp_path / "log").unlink()
    (tmp_path / ".gitconfig").write_text(f"[core]\n\tsshCommand = {tmp_path}/mine\n")
    put(opened(machine(tmp_path, "b", f"ssh://host{bare}")), [2])
    assert "/mine" in (tmp_path / "log").read_text()
    assert "BatchMode" not in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("git@host: Permission denied (publickey).", ConfigurationError),
        ("ssh: connect to host host port 22: Connection refused", Unavailable),
    ],
)
def test_what_ssh_says_is_told_and_not_only_that_git_could_not_read(
    said: str, error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", program(tmp_path, "ssh", f"printf '{said}\\r\\n' >&2; exit 255"))
    with pytest.raises(error, match=re.escape(said)):
        opened(machine(tmp_path, "a", "ssh://git@host/x.git")).refresh()


def test_a_machine_that_dies_before_the_push_has_completed_nothing(
    tmp_path: Path, bare: Path
) -> None:
    put(opened(machine(tmp_path, "a", f"file://{bare}")), [1])
    before = tip_of(bare)
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom discogs_crawler.store import remote\n"
        "from tests.store.test_store_remote import *\n"
        "remote.Remote.push = lambda *_: os.kill(os.getpid(), 9)\n"
        "put(opened(machine(Path(sys.argv[1]), 'a', sys.argv[2])), [2])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), f"file://{bare}"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == -9
    assert tip_of(bare) == before
    machine_a = opened(machine(tmp_path, "a", f"file://{bare}"))
    assert machine_a.tip() == before
    assert put(machine_a, [2]).added == 1
