"""A store and a remote are joined only where one descends from the other, and nothing is lost."""

import shutil
import subprocess
from pathlib import Path

import pytest

from discogs_crawler import config
from discogs_crawler.config import Settings
from discogs_crawler.errors import ConfigurationError
from discogs_crawler.store import layouts
from tests.conftest import Run, make_ledger
from tests.plain_git import SingleStore, git
from tests.store.test_store import fsck, put
from tests.store.test_store import record as stored_record
from tests.store.test_store_remote import bare, machine, opened, tip_of

__all__ = ["bare"]


def local(
    tmp_path: Path, name: str = "a", *, ledger: bool = True, branch: str | None = None
) -> layouts.SingleStore:
    """The store of that machine without STORE_REMOTE."""
    return opened(machine(tmp_path, name, "", ledger=ledger), branch)


def ids(opened: layouts.SingleStore) -> list[int]:
    return list(opened.ids("releases"))


def descends(folder: Path, old: str, new: str) -> bool:
    command = ["git", "-C", str(folder), "merge-base", "--is-ancestor", old, new]
    return subprocess.run(command, check=False).returncode == 0


@pytest.mark.parametrize("ledger", [True, False])
def test_a_store_that_exists_is_pushed_whole_to_an_empty_remote(
    tmp_path: Path, bare: Path, ledger: bool
) -> None:
    first = put(local(tmp_path, ledger=ledger), [1, 2]).revision
    last = put(local(tmp_path, ledger=ledger), [3]).revision
    joined = opened(machine(tmp_path, "a", f"file://{bare}", ledger=ledger))
    assert joined.settle() == last == tip_of(bare)
    done = put(joined, [4])
    assert descends(bare, first, done.revision)
    assert ids(joined) == [1, 2, 3, 4]
    other = opened(machine(tmp_path, "b", f"file://{bare}", ledger=True))
    other.settle()
    assert set(other.read("releases", range(1, 9))) == {1, 2, 3, 4}
    fsck(other)


def test_branches_that_are_not_merged_are_pushed_too(tmp_path: Path, bare: Path) -> None:
    put(local(tmp_path), [1])
    done = put(local(tmp_path, branch="two"), [2])
    joined = opened(machine(tmp_path, "a", f"file://{bare}", ledger=True))
    joined.settle()
    assert tip_of(bare, "crawl/two") == done.revision
    assert joined.branches() == {"two": done.revision}


def test_what_was_stored_while_there_was_no_remote_is_pushed(tmp_path: Path, bare: Path) -> None:
    put(opened(machine(tmp_path, "a", f"file://{bare}", ledger=True)), [1])
    branch = put(opened(machine(tmp_path, "b", f"file://{bare}"), "two"), [2])
    opened(machine(tmp_path, "a", f"file://{bare}", ledger=True)).settle()
    alone = local(tmp_path)
    assert alone.branches() == {"two": branch.revision}
    assert ids(alone) == [1]
    done = put(alone, [3])
    joined = opened(machine(tmp_path, "a", f"file://{bare}", ledger=True))
    assert joined.settle() == done.revision == tip_of(bare)


def test_a_store_joins_a_remote_that_has_its_history_and_more(tmp_path: Path, bare: Path) -> None:
    put(opened(machine(tmp_path, "b", f"file://{bare}")), [1])
    shutil.copytree(tmp_path / "b", tmp_path / "a")
    done = put(opened(machine(tmp_path, "b", f"file://{bare}")), [2])
    joined = opened(machine(tmp_path, "a", f"file://{bare}", ledger=True))
    assert joined.settle() == done.revision


@pytest.mark.parametrize("how", ["--bare", "--mirror"])
def test_a_clone_that_git_made_of_the_remote_is_a_store(tmp_path: Path, how: str) -> None:
    there = SingleStore(tmp_path / "there.git")
    there.commit({("releases", 1): stored_record(1)})
    url = f"file://{there.folder}"
    git(tmp_path, "clone", "-q", how, url, str(tmp_path / "a" / "store" / "discogs.git"))
    there.commit({("releases", 2): stored_record(2)})
    cloned = opened(machine(tmp_path, "a", url, ledger=True))
    assert cloned.repository.configured("core", "fsync") == "all"
    assert put(cloned, [3]).revision == there.tip()
    assert ids(cloned) == [1, 2, 3]


def assert_refused(store_a: layouts.SingleStore, url: str, ours: str, theirs: str) -> None:
    for what in (store_a.settle, lambda: put(store_a, [9])):
        with pytest.raises(ConfigurationError) as caught:
            what()
        said = str(caught.value)
        assert "\n" not in said
        assert ours[:12] in said
        assert theirs[:12] in said
        assert url in said
        assert store_a.tip() == ours, "readers see what they saw"


@pytest.mark.parametrize("ledger", [True, False])
def test_a_store_and_a_remote_with_another_history_are_not_joined(
    tmp_path: Path, bare: Path, ledger: bool
) -> None:
    ours = put(local(tmp_path, ledger=ledger), [1]).revision
    theirs = put(opened(machine(tmp_path, "b", f"file://{bare}", ledger=True)), [2]).revision
    url = f"file://{bare}"
    assert_refused(opened(machine(tmp_path, "a", url, ledger=ledger)), url, ours, theirs)
    assert tip_of(bare) == theirs
    assert ids(local(tmp_path, ledger=ledger)) == [1]


@pytest.fixture
def crawled(tmp_path: Path, bare: Path) -> list[str]:
    """A machine with the ledger, `a`, and one with workers only, `b`; the revisions so far."""
    made = [put(opened(machine(tmp_path, "a", f"file://{bare}", ledger=True)), [1]).revision]
    made.append(put(opened(machine(tmp_path, "b", f"file://{bare}")), [2]).revision)
    opened(machine(tmp_path, "a", f"file://{bare}", ledger=True)).settle()
    return made


def emptied(bare: Path) -> None:
    shutil.rmtree(bare)
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(bare)], check=True)
    subprocess.run(["git", "-C", str(bare), "config", "uploadpack.allowFilter", "true"], check=True)


def test_a_remote_that_was_emptied_is_filled_again(
    tmp_path: Path, bare: Path, crawled: list[str]
) -> None:
    worker = opened(machine(tmp_path, "b", f"file://{bare}"))
    emptied(bare)
    with pytest.raises(ConfigurationError, match="the machine that has the ledger") as caught:
        put(worker, [3])
    assert crawled[-1][:12] in str(caught.value)
    whole = opened(machine(tmp_path, "a", f"file://{bare}", ledger=True))
    assert whole.settle() == crawled[-1] == tip_of(bare)
    assert descends(bare, crawled[0], put(worker, [3]).revision)
    whole.settle()
    assert ids(whole) == [1, 2, 3]


def test_a_remote_that_was_made_anew_by_others_is_not_joined(
    tmp_path: Path, bare: Path, crawled: list[str]
) -> None:
    emptied(bare)
    theirs = put(opened(machine(tmp_path, "c", f"file://{bare}")), [7]).revision
    url = f"file://{bare}"
    for name, ledger in (("a", True), ("b", False)):
        store_a = opened(machine(tmp_path, name, url, ledger=ledger))
        assert_refused(store_a, url, crawled[-1], theirs)


def test_a_remote_from_an_older_backup_gets_back_what_it_lacks(
    tmp_path: Path, bare: Path, crawled: list[str]
) -> None:
    git(bare, "update-ref", "refs/heads/main", crawled[0])
    worker = opened(machine(tmp_path, "b", f"file://{bare}"))
    with pytest.raises(ConfigurationError, match="the machine that has the ledger"):
        put(worker, [3])
    whole = opened(machine(tmp_path, "a", f"file://{bare}", ledger=True))
    assert whole.settle() == crawled[-1] == tip_of(bare)
    put(worker, [3])


def test_another_remote_gets_everything_or_nothing(
    tmp_path: Path, bare: Path, crawled: list[str]
) -> None:
    put(opened(machine(tmp_path, "b", f"file://{bare}"), "two"), [5])
    opened(machine(tmp_path, "a", f"file://{bare}", ledger=True)).settle()
    other = SingleStore(tmp_path / "other.git")
    moved = opened(machine(tmp_path, "a", f"file://{other.folder}", ledger=True))
    assert moved.settle() == crawled[-1] == other.tip()
    assert set(moved.branches()) == {"two"}
    assert git(other.folder, "rev-parse", "crawl/two")
    foreign = SingleStore(tmp_path / "foreign.git")
    theirs = foreign.commit({("releases", 1): stored_record(1)})
    url = f"file://{foreign.folder}"
    assert_refused(opened(machine(tmp_path, "a", url, ledger=True)), url, crawled[-1], theirs)
    assert opened(machine(tmp_path, "a", f"file://{bare}", ledger=True)).settle() == crawled[-1]


def test_a_clone_of_workers_is_no_store_without_its_remote(
    tmp_path: Path, bare: Path, crawled: list[str]
) -> None:
    with pytest.raises(ConfigurationError, match=f"STORE_REMOTE=file://{bare}"):
        local(tmp_path, "b", ledger=False)


def exported(run: Run, **extra: str) -> "list[str]":
    done = run("export_changes.py", "--consumer", "x", "--format", "status", **extra)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_consumer_hears_of_no_deletion_when_a_remote_is_set(
    run: Run, settings: Settings, environment: dict[str, str], bare: Path
) -> None:
    make_ledger(settings.database)
    put(layouts.open_store(settings), [1, 2, 3])
    assert len(exported(run)) == 3
    url = f"file://{bare}"
    put(layouts.open_store(config.load(environ=environment | {"STORE_REMOTE": url})), [4])
    assert exported(run, STORE_REMOTE=url) == ["A\treleases/00/00/00/4.json"]
    assert exported(run) == []
