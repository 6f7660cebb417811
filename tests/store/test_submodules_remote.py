"""STORE_LAYOUT=submodules with STORE_REMOTE: several machines, a repository for each million."""

import itertools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from discogs_crawler import config
from discogs_crawler.config import Settings
from discogs_crawler.errors import EXIT_PARTLY, ConfigurationError, Unavailable
from discogs_crawler.maintenance import merge_branches
from discogs_crawler.records import record_path
from discogs_crawler.store import layouts, objects, remote, single, stale_locks
from discogs_crawler.store.fast_import import Pushed
from discogs_crawler.store.git import Repository
from discogs_crawler.store.layouts import SubmoduleStore
from discogs_crawler.store.objects import GITLINK
from discogs_crawler.store.remote import is_partial
from tests.conftest import ROOT, Run, make_ledger, program
from tests.machines import served, wait_until
from tests.plain_git import git
from tests.store.test_store import changes, fsck, put, record


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """The folder of the repositories on the other side, which is empty."""
    folder = tmp_path / "there"
    folder.mkdir()
    return folder


def machine(tmp_path: Path, name: str, url: object, *, ledger: bool = False) -> Settings:
    """The settings of a machine of its own; with `ledger` the one that exports."""
    state = tmp_path / name
    state.mkdir(exist_ok=True)
    if ledger:
        make_ledger(state / "crawler.db")
    layout = {"STORE_LAYOUT": "submodules", "STORE_REMOTE": str(url)}
    return config.load(environ={"STATE_DIR": str(state), "ENV_FILE": os.devnull} | layout)


def opened(settings: Settings, branch: str | None = None) -> SubmoduleStore:
    found = layouts.open_store(settings, branch=branch)
    assert isinstance(found, SubmoduleStore)
    return found


def first(tmp_path: Path, url: object, name: str = "a") -> SubmoduleStore:
    """The store of the machine that has the ledger."""
    return opened(machine(tmp_path, name, url, ledger=True))


def worker(tmp_path: Path, url: object, name: str = "w") -> SubmoduleStore:
    return opened(machine(tmp_path, name, url))


def pins(folder: Path, revision: str = "main") -> dict[str, str]:
    return objects.segments(folder / "discogs.git", revision, GITLINK)


def history(folder: Path, path: str) -> list[str]:
    """The pins of a segment that readers of the remote have ever seen, oldest first."""
    revisions = git(folder / "discogs.git", "rev-list", "--first-parent", "--reverse", "main")
    found = [pins(folder, revision).get(path) for revision in revisions.split()]
    return [
        pin for pin, before in zip(found, [None, *found], strict=False) if pin and pin != before
    ]


def assert_only_forward(folder: Path) -> None:
    for path in pins(folder):
        seen = history(folder, path)
        assert len(set(seen)) == len(seen)
        for old, new in itertools.pairwise(seen):
            assert objects.contains(folder / f"{path}.git", new, old)


def made(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.git"))


# Several machines ---------------------------------------------------------------------------------


def test_workers_on_other_machines_are_exported_by_the_first(tmp_path: Path, there: Path) -> None:
    one, two = worker(tmp_path, there, "w1"), worker(tmp_path, there, "w2")
    put(one, [1, 2_000_000])
    done = put(two, [2, 1_000_001])
    assert done.segments[0] == git(there / "releases/00.git", "rev-parse", "main")
    assert made(there) == ["discogs.git", *(f"releases/0{n}.git" for n in range(3))]
    exporting = first(tmp_path, there)
    tip = exporting.settle()
    assert list(exporting.ids("releases")) == [1, 2, 1_000_001, 2_000_000]
    assert tip == git(there / "discogs.git", "rev-parse", "main")
    assert pins(there) == {
        f"releases/0{n}": git(there / f"releases/0{n}.git", "rev-parse", "main") for n in range(3)
    }
    put(two, [1], "new")
    put(one, [3])
    exporting.settle()
    assert exporting.read("releases", [1, 3]) == {1: record(1, "new"), 3: record(3)}
    assert_only_forward(there)
    fsck(exporting)


def test_a_worker_has_only_the_segments_that_it_works_on_and_no_records(
    tmp_path: Path, there: Path
) -> None:
    whole = first(tmp_path, there)
    put(whole, range(100, 150))
    put(whole, [1_000_001])
    whole.settle()
    at_work = worker(tmp_path, there)
    put(at_work, [100, 500], "new")
    assert [part.prefix for part in at_work.parts()] == ["releases/00/"]
    (part,) = at_work.parts()
    assert is_partial(part.repository)
    missing = part.repository.run("rev-list", "--objects", "--missing=print", "--all").count(b"?")
    assert missing >= 49, "it has downloaded records"
    assert not is_partial(at_work.repository)
    whole.settle()
    assert whole.read("releases", [100, 500]).keys() == {100, 500}


def test_a_worker_leaves_the_pins_to_the_machine_that_has_the_history(
    tmp_path: Path, there: Path
) -> None:
    at_work = worker(tmp_path, there)
    put(at_work, [1])
    assert at_work.settle() == git(there / "discogs.git", "rev-parse", "main")
    assert pins(there) == {}
    with pytest.raises(ConfigurationError, match="on the machine that has the ledger"):
        at_work.settled_tip(at_work.parts()[0])


def test_a_rejected_push_is_repeated_on_the_new_tip_of_its_segment(
    tmp_path: Path, there: Path
) -> None:
    one, two = worker(tmp_path, there, "w1"), worker(tmp_path, there, "w2")
    put(one, [1])
    asked: list[str] = []

    def still_ours() -> range:
        if not asked:
            asked.append(put(two, [2]).revision)
        return range(1, 100)

    done = one.commit("releases", changes([3]), still_ours, {})
    line = git(there / "releases/00.git", "rev-list", "--first-parent", "main").split()
    assert line[:2] == [done.revision, asked[0]]


def test_two_machines_that_begin_a_segment_at_once_begin_the_same(
    tmp_path: Path, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them announces and makes it while the other is about to."""
    one, two = worker(tmp_path, there, "w1"), worker(tmp_path, there, "w2")
    publish = single.SingleStore.publish
    begun: list[str] = []

    def late(self: single.SingleStore, *arguments: object) -> str | Pushed:
        if self.repository.path == one.repository.path and not begun:
            begun.append(put(two, [2]).revision)
        return publish(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(single.SingleStore, "publish", late)
    put(one, [1, 1_000_001])
    whole = first(tmp_path, there)
    whole.settle()
    assert list(whole.ids("releases")) == [1, 2, 1_000_001]


# Pins ---------------------------------------------------------------------------------------------


def test_a_pin_never_goes_back(tmp_path: Path, there: Path) -> None:
    one, two = first(tmp_path, there, "a"), first(tmp_path, there, "b")
    old = put(one, [1]).segments[0]
    one.settle()
    new = put(two, [2]).segments[0]
    two.settle()
    assert one.pin({"releases/00/": old}, {}) == two.tip(), "it does not even know the newer one"
    assert pins(there) == {"releases/00": new}
    assert history(there, "releases/00") == [old, new]


def test_a_pin_never_goes_back_without_a_remote(tmp_path: Path) -> None:
    """A copy of a segment that somebody has kept beside it is none of the store."""
    alone = opened(machine(tmp_path, "a", ""))
    old = put(alone, [1]).segments[0]
    segments = tmp_path / "a" / "store" / "releases"
    shutil.copytree(segments / "00.git", segments / "00.old.git")
    new = put(alone, [2]).segments[0]
    tip = alone.settle()
    assert alone.pin({"releases/00/": old}, {}) == tip
    assert alone.pins(tip) == {"releases/00": new}


def test_machines_that_pin_at_once_only_pin_forward(
    tmp_path: Path, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other machine commits and pins after each step of ours."""
    one, two = first(tmp_path, there, "a"), first(tmp_path, there, "b")
    put(one, [1, 1_000_001])
    steps = list(range(2, 8))

    def disturb() -> None:
        if steps:
            put(two, [steps.pop(), 1_000_001], str(len(steps)))
            two.settle()

    def disturbed(method: str) -> None:
        real = getattr(remote.Remote, method)

        def call(self: remote.Remote, *arguments: object) -> object:
            if self._repository.path.is_relative_to(tmp_path / "a"):
                disturb()
            return real(self, *arguments)

        monkeypatch.setattr(remote.Remote, method, call)

    disturbed("fetch")
    disturbed("push")
    tip = one.settle()
    assert steps == []
    assert_only_forward(there)
    assert tip == git(there / "discogs.git", "rev-parse", "main")
    for path, pin in one.pins(tip).items():
        folder = tmp_path / "a" / "store" / f"{path}.git"
        assert objects.look_up(folder, [f"{pin}^{{commit}}"]) == [pin], "readers here need it"


def test_readers_of_the_remote_get_what_was_pinned(
    tmp_path: Path, there: Path, run: Run, environment: dict[str, str]
) -> None:
    whole = first(tmp_path, there, "state")
    put(whole, [1, 1_000_001])
    whole.settle()
    put(whole, [2])

    def export() -> list[str]:
        url = f"file://{there}/discogs.git"
        done = run("export_changes.py", "--repository", url, "--consumer", "x")
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.splitlines()

    assert export() == [record_path("releases", n) for n in (1, 1_000_001)]
    assert export() == []
    ours = environment | {"STORE_LAYOUT": "submodules", "STORE_REMOTE": str(there)}
    done = run("export_changes.py", "--consumer", "y", **ours)
    assert done.stdout.splitlines() == [record_path("releases", n) for n in (1, 2, 1_000_001)]
    assert export() == [record_path("releases", 2)], "that export has pinned it"


# The repositories on the other side ---------------------------------------------------------------


def test_over_ssh_what_is_missing_is_made(
    tmp_path: Path, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_default = "export GIT_DEFAULT_HASH=sha256"
    script = f'{other_default}; for last; do :; done; eval "$last"'
    monkeypatch.setenv("PATH", program(tmp_path / "bin", "ssh", script))
    monkeypatch.delenv("GIT_SSH_COMMAND", raising=False)
    put(worker(tmp_path, f"ssh://host{there}"), [1])
    put(worker(tmp_path, f"me@host:{there}", "w2"), [1_000_001])
    assert made(there) == ["discogs.git", "releases/00.git", "releases/01.git"]
    settings = git(there / "releases/00.git", "config", "--list")
    assert "uploadpack.allowfilter=true" in settings


def test_a_host_that_makes_repositories_at_the_first_push_is_let_do_so(
    tmp_path: Path, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (
        'for last; do :; done\neval "set -- $last"\n'
        '[ "$1" = git-receive-pack ] && [ ! -d "$2" ] && git init -q --bare -b main "$2"\n'
        'case "$1" in git-*) exec "$1" "$2";; esac\necho "only Git" >&2; exit 1'
    )
    monkeypatch.setenv(
        "GIT_SSH_COMMAND", program(tmp_path / "bin", "host", script).split(":")[0] + "/host"
    )
    put(worker(tmp_path, f"git@host:{there}/x-{{repository}}.git"), [1])
    assert made(there) == ["x-discogs.git", "x-releases-00.git"]


def test_where_no_repository_can_be_made_it_says_which_is_missing(
    tmp_path: Path, there: Path
) -> None:
    with served(there) as port:
        url = f"git://127.0.0.1:{port}/"
        git(there, "init", "-q", "--bare", "-b", "main", "discogs.git")
        with pytest.raises(ConfigurationError) as caught:
            put(worker(tmp_path, url), [1])
        assert f"STORE_REMOTE {url}releases/00.git: there is no such repository" in str(
            caught.value
        )
        assert "\n" not in str(caught.value)
        git(there, "init", "-q", "--bare", "-b", "main", "releases/00.git")
        assert put(worker(tmp_path, url), [1]).added == 1


def test_nothing_is_made_where_the_folder_is_missing(tmp_path: Path, there: Path) -> None:
    """The other side's disk may not be mounted."""
    put(worker(tmp_path, there), [1])
    there.rename(tmp_path / "away")
    old = worker(tmp_path, there)
    with pytest.raises(Unavailable, match="cannot be reached"):
        old.refresh()
    with pytest.raises(
        ConfigurationError, match=r"there/discogs\.git: there is no such repository"
    ):
        put(worker(tmp_path, there, "new"), [2])
    assert not there.exists()
    (tmp_path / "away").rename(there)
    assert put(old, [2]).added == 1
    assert put(worker(tmp_path, there, "new"), [2]).added == 0


def test_what_was_pinned_and_is_missing_is_not_begun_anew(tmp_path: Path, there: Path) -> None:
    whole = first(tmp_path, there)
    put(whole, [1])
    whole.settle()
    (there / "releases").rename(tmp_path / "away")
    for name in ("a", "w"):
        broken = opened(machine(tmp_path, name, there, ledger=name == "a"))
        broken.part("releases", 0).patience_s = 0
        with pytest.raises(Unavailable, match=r"cannot be reached: .*releases/00\.git"):
            put(broken, [2])
    assert made(there) == ["discogs.git"]


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("https://me:sesame@host/me/discogs.git", "it must be a folder for all repositories"),
        ("https://host/{repository}/x.git", "must stand after the last /"),
    ],
)
def test_an_address_of_one_repository_is_refused(tmp_path: Path, url: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        worker(tmp_path, url)
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "path", "url"),
    [
        ("https://host/me", "discogs", "https://host/me/discogs.git"),
        ("git@host:me/x/", "releases/13", "git@host:me/x/releases/13.git"),
        ("git@host:me/{repository}.git", "discogs", "git@host:me/discogs.git"),
        ("git@host:{repository}", "releases/13", "git@host:releases-13"),
    ],
)
def test_where_a_repository_is(address: str, path: str, url: str) -> None:
    assert remote.address_of(address, path) == url


@pytest.mark.long
def test_an_export_that_is_told_to_end_does_not_wait_for_a_segment_that_is_silent(
    tmp_path: Path, there: Path, environment: dict[str, str]
) -> None:
    put(first(tmp_path, there, "state"), [1])
    silent = f'case "$*" in *releases*) touch {tmp_path}/felt; sleep 60;; esac'
    program(tmp_path / "bin", "ssh", f'{silent}\nfor last; do :; done; eval "$last"')
    environment |= {"STORE_LAYOUT": "submodules", "STORE_REMOTE": f"ssh://host{there}"}
    environment["GIT_SSH_COMMAND"] = str(tmp_path / "bin" / "ssh")
    command = [sys.executable, str(ROOT / "bin" / "export_changes.py"), "--consumer", "x"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as export:
        wait_until((tmp_path / "felt").exists, lambda: "it fetches nothing")
        export.terminate()
        assert export.wait(30) == EXIT_PARTLY


# A store and a remote that have been before -------------------------------------------------------


def test_a_store_that_exists_is_pushed_whole_to_an_empty_folder(
    tmp_path: Path, there: Path
) -> None:
    alone = opened(machine(tmp_path, "a", "", ledger=True))
    put(alone, [1, 1_000_001])
    seen = alone.settle()
    put(alone, [2])
    joined = first(tmp_path, there)
    tip = joined.settle()
    assert tip == git(there / "discogs.git", "rev-parse", "main")
    assert seen in git(there / "discogs.git", "rev-list", "main").split()
    assert_only_forward(there)
    other = worker(tmp_path, there)
    assert put(other, [1, 2, 3]).changed == {3}


def test_the_superproject_follows_what_it_pins(tmp_path: Path, there: Path) -> None:
    alone = opened(machine(tmp_path, "a", "", ledger=True))
    put(alone, [1, 1_000_001])
    alone.settle()
    for name in ("discogs", "releases/00", "releases/01"):
        git(there, "init", "-q", "--bare", "-b", "main", f"{name}.git")
    hook = there / "releases/01.git/hooks/pre-receive"
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    with pytest.raises(Unavailable, match="hook declined"):
        first(tmp_path, there).top.refresh()
    assert git(there / "discogs.git", "for-each-ref") == ""
    hook.unlink()
    tip = first(tmp_path, there).top.refresh()
    assert tip == git(there / "discogs.git", "rev-parse", "main")


def test_another_remote_gets_everything(tmp_path: Path, there: Path) -> None:
    put(worker(tmp_path, there), [1, 1_000_001])
    tip = first(tmp_path, there).settle()
    other = tmp_path / "other"
    other.mkdir()
    assert first(tmp_path, other).settle() == tip
    assert made(other) == made(there)
    assert pins(other) == pins(there)


def test_a_remote_that_was_emptied_is_filled_by_the_machine_with_the_ledger(
    tmp_path: Path, there: Path
) -> None:
    at_work = worker(tmp_path, there)
    put(at_work, [1])
    whole = first(tmp_path, there)
    put(whole, [1_000_001])
    tip = whole.settle()
    at_work.refresh()
    for path in made(there):
        shutil.rmtree(there / path)
        git(there, "init", "-q", "--bare", "-b", "main", path)
    with pytest.raises(ConfigurationError, match="the machine that has the ledger"):
        at_work.refresh()
    assert git(there / "discogs.git", "for-each-ref") == ""
    assert whole.settle() == tip
    assert put(at_work, [2]).added == 1


@pytest.mark.parametrize("ledger", [True, False])
def test_a_store_and_a_remote_with_another_history_are_not_joined(
    tmp_path: Path, there: Path, ledger: bool
) -> None:
    put(worker(tmp_path, there), [1])
    theirs = first(tmp_path, there).settle()
    alone = opened(machine(tmp_path, "b", "", ledger=ledger))
    put(alone, [2])
    ours = alone.settle()
    assert ours
    assert theirs
    mixed = opened(machine(tmp_path, "b", there, ledger=ledger))
    for what in (mixed.settle, lambda: put(mixed, [9])):
        with pytest.raises(ConfigurationError) as caught:
            what()
        assert re.search(f"{ours[:12]} here and at {theirs[:12]}", str(caught.value))
        assert "\n" not in str(caught.value)
    assert git(there / "discogs.git", "rev-parse", "main") == theirs


def test_the_layouts_are_not_mixed(tmp_path: Path, there: Path) -> None:
    put(worker(tmp_path, there), [1])
    state = {"STATE_DIR": str(tmp_path / "x"), "ENV_FILE": os.devnull}
    url = f"{there}/discogs.git"
    mixed = layouts.open_store(config.load(environ=state | {"STORE_REMOTE": url}))
    with pytest.raises(ConfigurationError, match="its layout is submodules; set STORE_LAYOUT"):
        put(mixed, [2])
    assert mixed.tip() is None
    single_there = tmp_path / "single"
    git(tmp_path, "init", "-q", "--bare", "-b", "main", "single/discogs.git")
    state["STATE_DIR"] = str(tmp_path / "y")
    url = f"{single_there}/discogs.git"
    put(layouts.open_store(config.load(environ=state | {"STORE_REMOTE": url})), [1])
    with pytest.raises(ConfigurationError, match="its layout is single; set STORE_LAYOUT=single"):
        put(worker(tmp_path, single_there, "z"), [2])


def test_a_clone_of_workers_is_no_store_without_its_remote(tmp_path: Path, there: Path) -> None:
    put(worker(tmp_path, there), [1])
    with pytest.raises(ConfigurationError, match="set STORE_REMOTE again"):
        put(worker(tmp_path, ""), [2])


# Branches, leases, locks --------------------------------------------------------------------------


def test_branches_of_other_machines_are_merged(tmp_path: Path, there: Path) -> None:
    put(worker(tmp_path, there), [1])
    put(opened(machine(tmp_path, "w2", there), "two"), [2, 1_000_001])
    whole = first(tmp_path, there)
    whole.settle()
    assert list(whole.ids("releases")) == [1]
    assert merge_branches.merge(whole.parts(), [], list) == 1
    whole.settle()
    assert list(whole.ids("releases")) == [1, 2, 1_000_001]
    assert pins(there).keys() == {"releases/00", "releases/01"}
    fsck(whole)


def test_leases_are_renewed_while_a_new_segment_waits_for_the_remote(
    tmp_path: Path, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(single, "DOWN_S", 0.05)
    at_work = worker(tmp_path, there)
    put(at_work, [1])
    there.rename(tmp_path / "away")
    renewed = []

    def still_ours() -> range:
        renewed.append(1)
        if len(renewed) == 3:
            (tmp_path / "away").rename(there)
        return range(1, 10**9)

    assert at_work.commit("releases", changes([1_000_001]), still_ours, {}).added == 1
    assert len(renewed) == 4


@pytest.mark.parametrize("name", ["discogs", "releases/00"])
def test_the_locks_of_a_fetch_that_was_killed_are_removed(
    tmp_path: Path, there: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    whole = first(tmp_path, there)
    put(whole, [1])
    git(there / f"{name}.git", "update-ref", "refs/heads/passing", "main")
    whole.settle()
    put(worker(tmp_path, there), [2, 1_000_001])
    git(there / f"{name}.git", "update-ref", "-d", "refs/heads/passing")
    folder = whole.repository.path.parent / f"{name}.git"
    Repository(folder).configure({"core.packedRefsTimeout": "0"})
    locks = [folder / "refs/remotes/origin/main.lock", folder / "packed-refs.lock"]
    for lock in locks:
        lock.touch()
    monkeypatch.setattr(stale_locks, "STALE_LOCK_S", 0.5)
    whole.settle()
    assert list(whole.ids("releases")) == [1, 2, 1_000_001]
    assert not any(lock.exists() for lock in locks)


def test_what_was_announced_and_never_made_stops_nobody(tmp_path: Path, there: Path) -> None:
    """A worker was killed between the two."""
    whole = first(tmp_path, there)
    put(whole, [1])
    whole._announce("releases/07")
    whole.settle()
    at_work = worker(tmp_path, there)
    assert put(at_work, [7_000_001]).added == 1
    tip = whole.settle()
    assert (
        Repository(there / "releases/07.git").tip("refs/heads/main") == pins(there)["releases/07"]
    )
    at_work._announce("releases/08")
    git(there / "discogs.git", "update-ref", "refs/heads/main", tip or "")
    announced = at_work.top.refresh()
    assert announced == git(there / "discogs.git", "rev-parse", "main") != tip
