"""The store in both layouts: what a commit promises, whatever happens beside it."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import pytest
from git import GitConfigParser

from discogs_crawler import config
from discogs_crawler.api import exact_json
from discogs_crawler.config import Settings
from discogs_crawler.errors import ConfigurationError, CrawlerError, Unavailable
from discogs_crawler.records import parse_record_path, record_path
from discogs_crawler.store import git, git_process, layouts, objects, stale_locks
from discogs_crawler.store.fast_import import Entry, Pushed, Reply
from discogs_crawler.store.layouts import Edit, Store
from tests.conftest import ROOT, make_ledger, program

EVERYTHING = range(1, 10**9)


def record(number: int, text: str = "") -> bytes:
    return exact_json.dumps({"id": exact_json.Number(str(number)), "title": text})


def changes(ids: Iterable[int], text: str = "") -> list[Edit]:
    return [Edit(number, record(number, text)) for number in ids]


def everything() -> Collection[int]:
    return EVERYTHING


def put(opened: Store, ids: Iterable[int], text: str = "") -> layouts.Committed:
    return opened.commit("releases", changes(ids, text), everything, {"Reason": "new"})


def fsck(opened: Store) -> None:
    for repository in opened.repositories():
        done = subprocess.run(
            ["git", f"--git-dir={repository.path}", "fsck", "--strict", "--no-dangling"],
            capture_output=True,
            text=True,
            check=False,
        )
        notices = [line for line in done.stderr.splitlines() if not line.startswith("notice:")]
        assert (done.returncode, done.stdout, notices) == (0, "", [])


@pytest.fixture
def plain(tmp_path: Path) -> Settings:
    """Settings of a store that needs no Redis."""
    environ = {"STATE_DIR": str(tmp_path / "state"), "ENV_FILE": os.devnull}
    return config.load(environ=environ)


class TestBothLayouts:
    """What every store does, alone and as the machine with the ledger that has a remote."""

    @pytest.fixture(
        params=[
            ("single", ""),
            ("submodules", ""),
            ("single", "remote.git"),
            ("submodules", "remote"),
            pytest.param(("submodules", "remote/x-{repository}.git"), marks=pytest.mark.long),
        ],
        ids=str,
    )
    def environ(self, request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
        layout, remote = request.param
        (tmp_path / "state").mkdir()
        if remote:
            make_ledger(tmp_path / "state" / "crawler.db")
            (tmp_path / "remote").mkdir()
            subprocess.run(
                ["git", "init", "-qb", "main", "--bare", tmp_path / "remote.git"], check=True
            )
        return {
            "STATE_DIR": str(tmp_path / "state"),
            "ENV_FILE": os.devnull,
            "STORE_LAYOUT": layout,
            "STORE_REMOTE": f"file://{tmp_path}/{remote}" if remote else "",
        }

    @pytest.fixture
    def opened(self, environ: dict[str, str]) -> Store:
        return layouts.open_store(config.load(environ=environ))

    def test_what_was_committed_is_read_back(self, opened: Store) -> None:
        ids = [1, 2, 10, 99, 100, 999_999, 1_000_000, 37_000_000, 100_000_001, 999_999_999]
        done = put(opened, ids)
        assert done.ids == done.changed == frozenset(ids)
        assert (done.added, done.updated, done.removed) == (10, 0, 0)
        assert opened.read("releases", [*ids, 3]) == {number: record(number) for number in ids}
        for number in ids:
            path = record_path("releases", number)
            (part,) = (part for part in opened.parts() if path.startswith(part.prefix))
            name = f"{done.revision_of(number)}:{path.removeprefix(part.prefix)}"
            assert part.repository.run("show", name) == record(number)
        fsck(opened)

    def test_ids_come_in_ascending_order_by_kind(self, opened: Store) -> None:
        ids = [2, 10, 9, 100, 1_000_000, 12, 100_000_001, 99_000_000]
        put(opened, ids)
        opened.commit("labels", [Edit(7, record(7))], everything, {})
        opened.settle()
        assert list(opened.ids("releases")) == sorted(ids)
        assert list(opened.ids("labels")) == [7]
        assert list(opened.ids("masters")) == []

    def test_an_empty_store_has_nothing(self, opened: Store) -> None:
        assert opened.tip() is None
        assert opened.settle() is None
        assert opened.read("releases", [1]) == {}
        assert list(opened.ids("releases")) == []

    def test_storing_the_same_again_makes_no_commit(self, opened: Store) -> None:
        first = put(opened, [1, 2])
        again = put(opened, [1, 2])
        assert again[:6] == (first.revision, frozenset({1, 2}), frozenset(), 0, 0, 0)

    def test_only_what_differs_is_committed(self, opened: Store) -> None:
        put(opened, [1, 2, 3, 5])
        batch = [Edit(1, record(1)), Edit(2, record(2, "x")), Edit(3, None), Edit(4, None)]
        batch.append(Edit(5, record(5, "x")))
        done = opened.commit("releases", batch, everything, {})
        assert done.changed == {2, 3, 5}
        assert done[3:6] == (0, 2, 1)
        assert opened.read("releases", [1, 2, 3, 4]) == {1: record(1), 2: record(2, "x")}

    def test_what_is_no_longer_ours_is_left_alone(self, opened: Store) -> None:
        done = opened.commit("releases", changes([1, 2, 3]), lambda: {2}, {})
        assert done.ids == {2}
        assert opened.read("releases", [1, 2, 3]).keys() == {2}
        assert opened.commit("releases", changes([1]), set, {}).ids == frozenset()

    def test_nobody_commits_over_a_newer_result(self, opened: Store) -> None:
        """Another worker stores the id between our look at the tip and our commit."""
        put(opened, [1], "old")
        asked = []

        def still_ours() -> Collection[int]:
            asked.append(1)
            if len(asked) == 1:
                put(opened, [1], "newer")
                return {1}
            return set()

        done = opened.commit("releases", changes([1], "older"), still_ours, {})
        assert done.ids == frozenset()
        assert opened.read("releases", [1]) == {1: record(1, "newer")}
        assert len(asked) == 2

    def test_nobody_commits_over_a_newer_result_whatever_git_calls_it(
        self, opened: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The warning begins with a small letter in newer ones."""
        script = f'exec 3>&1; {{ {shutil.which("git")} "$@" 2>&1 >&3 3>&-; echo $? >"$0.$$"; }}'
        script += ' | sed "s/Not updating/not updating/" >&2; exit "$(cat "$0.$$")"'
        monkeypatch.setenv("PATH", program(tmp_path / "bin", "git", script))
        self.test_nobody_commits_over_a_newer_result(opened)

    def test_between_two_revisions_are_the_records_that_differ(self, opened: Store) -> None:
        put(opened, [1, 2_000_000])
        old = opened.settle()
        put(opened, [1], "new")
        put(opened, [1_000_001])
        new = opened.settle()
        assert new
        found = [
            difference.path
            for span in opened.spans(old, new)
            for difference in objects.differences(
                span.repository.path, span.old, span.new, prefix=span.prefix
            )
        ]
        records = {path for path in found if parse_record_path(path)}
        assert records == {record_path("releases", 1), record_path("releases", 1_000_001)}

    def test_a_part_is_committed_to_where_readers_are(self, opened: Store) -> None:
        put(opened, [1, 1_000_001])
        opened.settle()
        for part, number in zip(opened.parts(), (1, 1_000_001), strict=False):
            base = opened.settled_tip(part)
            assert base == part.tip()
            path = record_path("releases", number).removeprefix(part.prefix)
            made = part.publish(base, [Entry(path, record(number, "new"))], "by hand\n")
            assert isinstance(made, str)
            pinned = opened.pin({part.prefix: made}, {})
            assert pinned == opened.tip() == opened.settle() == opened.top.tip()
            assert opened.read("releases", [number]) == {number: record(number, "new")}

    def test_the_message_says_what_and_why(self, opened: Store) -> None:
        put(opened, [1, 2])
        batch = [Edit(1, None), Edit(2, record(2, "x")), Edit(3, record(3))]
        trailers = {"Reason": "changed", "Dump": "a\nb", "Worker": ""}
        done = opened.commit("releases", batch, everything, trailers)
        part = opened.parts()[0].repository
        text = part.run("log", "-1", "--format=%B|%an <%ae>", done.revision).decode()
        assert text.splitlines() == [
            "releases: 1 added, 1 changed, 1 removed",
            "",
            "Reason: changed",
            "Dump: a b",
            "|crawler_for_discogs <crawler_for_discogs@localhost>",
        ]

    def test_it_can_be_cloned_with_plain_git(self, opened: Store, tmp_path: Path) -> None:
        put(opened, [1, 13_999_999])
        opened.settle()
        remote = opened.repository.configured('remote "origin"', "url")
        command = ["git", "-c", "protocol.file.allow=always", "clone", "-q", "--recurse-submodules"]
        command += [remote or str(opened.repository.path), str(tmp_path / "clone")]
        subprocess.run(command, check=True, capture_output=True)
        path = tmp_path / "clone" / "releases" / "13" / "99" / "99" / "13999999.json"
        assert path.read_bytes() == record(13_999_999)
        status = subprocess.run(
            ["git", "submodule", "status"],
            cwd=tmp_path / "clone",
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert not [line for line in status.splitlines() if line[0] != " "]

    def test_a_branch_begins_at_the_main_one_and_leaves_it_alone(self, plain: Settings) -> None:
        opened = layouts.open_store(plain)
        main = put(opened, [1]).revision
        branch = layouts.open_store(plain, branch="two")
        assert branch.tip() == main
        put(branch, [2])
        assert opened.tip() == main
        assert set(branch.read("releases", [1, 2])) == {1, 2}

    def test_many_writers_lose_nothing(self, environ: dict[str, str]) -> None:
        opened = layouts.open_store(config.load(environ=environ))
        writers = [_writer(environ, 1 + number * 10, 8) for number in range(3)]
        for writer in writers:
            assert writer.wait(60) == 0
        opened.settle()
        expected = [n * 10 + 1 + r * 1_000 for r in range(8) for n in range(3)]
        assert list(opened.ids("releases")) == sorted(expected)
        fsck(opened)


WRITER = """
import os, sys
from discogs_crawler import config
from discogs_crawler.store import layouts
from tests.store.test_store import put
start, rounds = sys.argv[1:]
settings = config.load(environ=os.environ)
opened = layouts.open_store(settings)
for number in range(int(rounds)):
    put(opened, [int(start) + number * 1000])
    print(int(start) + number * 1000, flush=True)
"""


def _writer(
    environ: dict[str, str], start: int, rounds: int, path: str = ""
) -> "subprocess.Popen[str]":
    """A process that commits one record after another, and prints each when it is stored."""
    environ = os.environ | {"PYTHONPATH": str(ROOT)} | environ
    if path:
        environ["PATH"] = path
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(start), str(rounds)],
        env=environ,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _alone(settings: Settings) -> dict[str, str]:
    return {"STATE_DIR": str(settings.state_dir), "ENV_FILE": os.devnull}


def _after_a_kill(settings: Settings, acked: Iterable[int]) -> None:
    opened = layouts.open_store(settings)
    # The Git of the dead one may still commit: what comes meanwhile fsck takes for damage.
    with stale_locks.writing(opened.repository, alone=True):
        fsck(opened)
    assert set(opened.read("releases", acked)) == set(acked)
    for lock in opened.repository.path.rglob("*.lock"):
        os.utime(lock, (1, 1))
    put(opened, [500_000_000], str(time.monotonic_ns()))


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", range(1, 6))
def test_killed_at_any_step_no_stored_record_is_lost(
    plain: Settings, tmp_path: Path, step: int, when: str
) -> None:
    """A `git` that kills its caller before or after the n-th call, counted from the first ack."""
    put(layouts.open_store(plain), [999])
    real = shutil.which("git")
    kill = f'[ "$n" = {step + 6} ] && kill -9 $PPID'
    before, after = (kill, ":") if when == "before" else (":", kill)
    script = (
        f"n=$(cat {tmp_path}/n 2>/dev/null || echo 0)\n"
        f"n=$((n + 1))\necho $n > {tmp_path}/n\n"
        f'{before}\n{real} "$@"\ncode=$?\n{after}\nexit $code'
    )
    path = program(tmp_path / "bin", "git", script)
    writer = _writer(_alone(plain), 1, 5, path)
    said, _ = writer.communicate(timeout=60)
    assert writer.returncode == -signal.SIGKILL
    _after_a_kill(plain, [999, *map(int, said.split())])


def _killed_at_random(settings: Settings, rounds: int) -> Iterator[list[int]]:
    for number in range(rounds):
        writer = _writer(_alone(settings), 1 + number, 1_000)
        assert writer.stdout is not None
        said = [writer.stdout.readline()]
        time.sleep(0.01 + (number * 7 % 50) / 1_000)
        os.killpg(writer.pid, signal.SIGKILL)
        said += writer.stdout.read().splitlines(keepends=True)
        writer.wait()
        yield [int(line) for line in said if line.endswith("\n")]


def test_killed_at_random_no_stored_record_is_lost(plain: Settings) -> None:
    for acked in _killed_at_random(plain, 3):
        _after_a_kill(plain, acked)


@pytest.mark.long
def test_killed_hundreds_of_times_no_stored_record_is_lost(plain: Settings) -> None:
    everything_acked: set[int] = set()
    for acked in _killed_at_random(plain, 300):
        everything_acked |= set(acked)
        _after_a_kill(plain, acked)
    assert set(layouts.open_store(plain).read("releases", everything_acked)) == everything_acked


@pytest.mark.parametrize("name", ["HEAD.lock", "refs/heads/main.lock"])
def test_a_lock_of_a_dead_process_stops_nobody(plain: Settings, name: str) -> None:
    opened = layouts.open_store(plain)
    put(opened, [1])
    lock = opened.repository.path / name
    lock.touch()
    os.utime(lock, (1, 1))
    assert put(opened, [2]).added == 1
    assert not lock.exists()


def test_a_lock_of_the_configuration_stops_nobody(plain: Settings) -> None:
    repository = layouts.open_store(plain).repository
    (repository.path / "config.lock").touch()
    repository.configure({"crawler.test": "here"})
    assert repository.configured("crawler", "test") == "here"


def test_whoever_dies_while_he_configures_leaves_it_as_it_was(
    plain: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = layouts.open_store(plain).repository
    before = (repository.path / "config").read_text()

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(GitConfigParser, "_write", die)
        with pytest.raises(KeyboardInterrupt):
            repository.configure({"crawler.test": "here"})
    assert (repository.path / "config").read_text() == before
    repository.configure({"crawler.test": "here"})
    after = repository.run("config", "--list").decode()
    assert "core.fsync=all\n" in after
    assert "crawler.test=here\n" in after


def test_a_reader_of_the_configuration_that_is_interrupted_says_nothing(
    plain: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = layouts.open_store(plain).repository
    said: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(GitConfigParser, "__init__", interrupt)
        with pytest.raises(KeyboardInterrupt):
            repository.configured("crawler", "layout")
    assert said == []
    assert repository.configured("crawler", "layout") == "single"


def test_a_young_lock_is_respected(plain: Settings) -> None:
    opened = layouts.open_store(plain)
    put(opened, [1])
    opened.parts()[0].patience_s = 0.2
    (opened.repository.path / "refs/heads/main.lock").touch()
    with pytest.raises(Unavailable):
        put(opened, [2])
    assert opened.read("releases", [2]) == {}


def test_a_lock_is_not_stale_while_one_of_us_writes(plain: Settings) -> None:
    repository = layouts.open_store(plain).repository
    lock = repository.path / "HEAD.lock"
    lock.touch()
    os.utime(lock, (1, 1))
    with stale_locks.writing(repository):
        stale_locks.remove_locks(repository)
        assert lock.exists()
    stale_locks.remove_locks(repository)
    assert not lock.exists()


def test_a_half_written_batch_is_no_commit(plain: Settings) -> None:
    """Killed while it sends: fast-import sees the end of its input and must not commit."""
    opened = layouts.open_store(plain)
    tip = put(opened, [1]).revision
    stream = f"commit refs/heads/main\ncommitter a <b> 1 +0000\ndata 1\nx\nfrom {tip}\n"
    stream += "D releases/00/00/00/1.json\n"
    command = ["git", f"--git-dir={opened.repository.path}", "fast-import", "--quiet", "--done"]
    done = subprocess.run(command, input=stream.encode(), capture_output=True, check=False)
    assert done.returncode != 0
    assert opened.tip() == tip


def test_a_full_disk_is_one_line_and_stores_nothing(plain: Settings) -> None:
    opened = layouts.open_store(plain)
    tip = put(opened, [1]).revision
    program = (
        "import resource, signal, sys, os\n"
        "from tests.store.test_store import *\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "opened = layouts.open_store(config.load(environ="
        "{'STATE_DIR': sys.argv[1], 'ENV_FILE': os.devnull}))\n"
        "noise = os.urandom(60_000).hex()\n"
        "try:\n    put(opened, [2], noise)\n"
        "except CrawlerError as error:\n    print(error.exit_code, error)\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", program, str(plain.state_dir)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    path = opened.repository.path
    assert said == f"69 {path}: no space left to write; free some and run it again\n"
    assert opened.tip() == tip
    fsck(opened)


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_a_matter_of_configuration(plain: Settings) -> None:
    opened = layouts.open_store(plain)
    put(opened, [1])
    for folder in (opened.repository.path, *opened.repository.path.rglob("*")):
        folder.chmod(folder.stat().st_mode & ~0o222)
    with pytest.raises(ConfigurationError, match="cannot be written"):
        put(opened, [2])


def test_the_users_configuration_changes_nothing(
    plain: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".gitconfig").write_text(
        "[user]\n\tname = somebody\n[commit]\n\tgpgSign = true\n[core]\n\tautocrlf = true\n"
        "[init]\n\tdefaultBranch = trunk\n\ttemplateDir = /nonexistent\n"
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_DIR", "/nonexistent")
    monkeypatch.setenv("GIT_AUTHOR_NAME", "somebody")
    opened = layouts.open_store(plain)
    done = opened.commit("releases", [Edit(1, b'{\r\n  "id": 1}\n')], everything, {})
    assert opened.read("releases", [1]) == {1: b'{\r\n  "id": 1}\n'}
    author = opened.repository.run("log", "-1", "--format=%an %cn", done.revision).decode()
    assert author.strip() == "crawler_for_discogs crawler_for_discogs"


def test_a_store_that_is_not_there_is_not_made_by_a_reader(plain: Settings) -> None:
    with pytest.raises(ConfigurationError, match="there is no store yet"):
        layouts.open_store(plain, create=False)
    assert not plain.store.exists()


def test_the_formats_of_git_3_are_neither_made_nor_used(
    plain: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DEFAULT_HASH", "sha256")
    monkeypatch.setenv("GIT_DEFAULT_REF_FORMAT", "reftable")
    put(layouts.open_store(plain), [1])
    folder = plain.store / "discogs.git"
    shutil.rmtree(folder)
    subprocess.run(["git", "init", "-q", "--bare", "--object-format=sha256", folder], check=True)
    with pytest.raises(ConfigurationError, match="objectFormat is sha256; only sha1 works here"):
        layouts.open_store(plain)
    config = ["config", "extensions.objectFormat", "sha1"]
    subprocess.run(["git", "-C", folder, *config], check=True)
    subprocess.run(["git", "-C", folder, "config", "extensions.refStorage", "reftable"], check=True)
    with pytest.raises(ConfigurationError, match="refStorage is reftable; only files works here"):
        layouts.open_store(plain)


def test_the_layouts_are_not_mixed(plain: Settings) -> None:
    layouts.open_store(plain)
    environ = {
        "STATE_DIR": str(plain.state_dir),
        "ENV_FILE": os.devnull,
        "STORE_LAYOUT": "submodules",
    }
    with pytest.raises(ConfigurationError, match="--to-submodules"):
        layouts.open_store(config.load(environ=environ))


def test_an_old_git_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", program(tmp_path, "git", "echo git version 2.30.2"))
    git_process.check_version.cache_clear()
    with pytest.raises(ConfigurationError, match=r"2\.30\.2 is too old"):
        git_process.check_version()
    git_process.check_version.cache_clear()


def test_errors_are_one_line(plain: Settings) -> None:
    opened = layouts.open_store(plain)
    put(opened, [1])
    shutil.rmtree(opened.repository.path / "objects")
    with pytest.raises(CrawlerError) as caught:
        put(opened, [2])
    assert str(caught.value) == f"{opened.repository.path}: there is no repository here"
    assert isinstance(caught.value, ConfigurationError)


def test_a_branch_moves_only_forward(plain: Settings) -> None:
    opened = layouts.open_store(plain)
    first, second = put(opened, [1]).revision, put(opened, [2]).revision
    assert opened.top.advance(first).reply is Reply.MOVED
    assert opened.tip() == second


@pytest.mark.parametrize("where", ["a commit before", "nowhere"])
def test_a_branch_that_is_put_back_under_a_writer_is_told(plain: Settings, where: str) -> None:
    """What it commits later would hide that the records between are lost."""
    opened, other = layouts.open_store(plain), layouts.open_store(plain)
    put(opened, [1])
    tip = put(opened, [2]).revision
    put(other, [3])
    put(opened, [4])
    move = ["update-ref", "refs/heads/main", f"{tip}~1"] if where != "nowhere" else []
    opened.repository.run(*(move or ["update-ref", "-d", "refs/heads/main"]))
    with pytest.raises(ConfigurationError, match=r"was reset to before commit .* --refetch"):
        put(opened, [5])
    assert 5 not in opened.ids("releases")


def test_waiting_for_others_ends(plain: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = layouts.open_store(plain)
    part = opened.parts()[0]
    part.patience_s = 0.1

    def refuse() -> Pushed:
        return Pushed(Reply.MOVED, "moved")

    with pytest.raises(Unavailable, match="others always commit first"):
        part.retried(refuse)


@pytest.mark.parametrize("command", ["init", "version"])
def test_a_git_that_is_killed_is_no_fault_of_the_configuration(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = f'case " $* " in *" {command} "*) kill -9 $$;; esac\nexec {shutil.which("git")} "$@"'
    monkeypatch.setenv("PATH", program(tmp_path / "bin", "git", script))
    git_process.check_version.cache_clear()
    with pytest.raises(Unavailable):
        git.create(tmp_path / "store.git", "main", "single")
    monkeypatch.undo()
    git.create(tmp_path / "store.git", "main", "single")
