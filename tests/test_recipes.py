"""The recipes for several machines, step by step: one joins, one dies, the first one is lost."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from discogs_crawler import config
from discogs_crawler.broker import connect
from discogs_crawler.errors import EXIT_CONFIGURATION, EXIT_USAGE
from discogs_crawler.store import layouts
from discogs_crawler.store.remote import is_partial
from tests.conftest import ROOT
from tests.discogs import dump
from tests.machines import wait_until
from tests.test_backups import Installation, crawler

__all__ = ["crawler"]


@pytest.fixture(params=[pytest.param("single", marks=pytest.mark.long), "submodules"])
def first(request: pytest.FixtureRequest, crawler: Installation, tmp_path: Path) -> Installation:
    """The machine with the ledger, whose store is pushed to the other side."""
    (tmp_path / "there").mkdir()
    crawler.environment["STORE_LAYOUT"] = request.param
    if request.param == "single":
        path = tmp_path / "there" / "discogs.git"
        subprocess.run(["git", "init", "-q", "--bare", "-b", "main", path], check=True)
        crawler.environment["STORE_REMOTE"] = f"file://{path}"
    else:
        crawler.environment["STORE_REMOTE"] = f"file://{tmp_path}/there"
    return crawler


def another(first: Installation, name: str) -> dict[str, str]:
    """The `.env` of another machine: Redis, the remote and whose address it has."""
    names = ("REDIS_URL", "STORE_REMOTE", "STORE_LAYOUT", "RATE_IDENTITY")
    shared = {name: first.environment[name] for name in names if name in first.environment}
    return shared | {"STATE_DIR": str(first.state.with_name(name))}


def test_a_machine_joins(first: Installation) -> None:
    first.run("seed_queue.py", "--ids", *first.ids[:10])
    first.run("worker.py", "--until-empty")
    first.run("seed_queue.py", "--ids", *first.ids[10:])
    second = another(first, "second")
    assert "will be made" in first.run("worker.py", "--check", **second)
    first.run("worker.py", "--until-empty", **second)
    first.run("seed_queue.py")
    assert first.asked() == first.ids
    held = layouts.open_store(config.load(environ=first.environment | second))
    assert all(is_partial(part.repository) for part in held.parts())
    assert not Path(second["STATE_DIR"], "crawler.db").exists()
    first.assert_whole()


def test_a_dead_machine_is_replaced(first: Installation) -> None:
    first.run("seed_queue.py", "--ids", *first.ids)
    first.environment["LEASE_S"] = "2"
    dead = first.environment | another(first, "dead") | {"COMMIT_SECONDS": "60"}
    command = [sys.executable, str(ROOT / "bin" / "worker.py"), "--threads", "1"]
    with subprocess.Popen(command, env=dead, stderr=subprocess.DEVNULL) as worker:
        wait_until(lambda: len(first.api.journal.asked()) >= 3, lambda: "it asks for nothing")
        os.kill(worker.pid, signal.SIGKILL)
    shutil.rmtree(dead["STATE_DIR"])
    new = another(first, "new")
    first.run("worker.py", "--check", **new)
    time.sleep(2)
    first.run("worker.py", "--until-empty", **new)
    first.run("seed_queue.py")
    first.assert_whole()


def lose_the_first_machine(first: Installation) -> None:
    first.live()
    shutil.rmtree(first.state)
    first.client.flushall()
    first.state.mkdir()


@pytest.mark.long
def test_the_first_machine_is_made_again_from_the_last_backup(first: Installation) -> None:
    lose_the_first_machine(first)
    shutil.copy(first.backup / "crawler.db", first.state)
    first.run("worker.py", "--check")
    first.run("seed_queue.py")
    first.run("worker.py", "--until-empty")
    assert first.asked() == first.later, "what was fetched since the backup"
    first.run("maintain_store.py", "--refetch")
    first.crawl()
    first.day += 2
    first.crawl()
    first.assert_whole()
    held = layouts.open_store(config.load(environ=first.environment))
    assert not any(is_partial(part.repository) for part in held.parts())


@pytest.mark.long
def test_the_first_machine_is_made_again_without_a_backup(
    first: Installation, tmp_path: Path
) -> None:
    lose_the_first_machine(first)
    path = tmp_path / "discogs_20200101_releases.xml.gz"
    dump.write(path, first.api.world, "releases")
    first.run("discogs_xml_split.py", "-d", path, "-r", tmp_path / "hashes")
    first.run("seed_queue.py", "--rebuild-ledger", "--adopt", "-n", tmp_path / "hashes")
    held = layouts.open_store(config.load(environ=first.environment))
    assert not any(is_partial(part.repository) for part in held.parts()), "who stored it is lost"
    first.crawl()
    assert first.asked() == []
    first.known.clear()
    first.assert_whole()
    assert first.run("maintain_store.py") == ""


def test_a_machine_of_workers_remains_one_although_it_has_an_empty_ledger(
    first: Installation, tmp_path: Path
) -> None:
    first.run("seed_queue.py", "--ids", *first.ids)
    first.run("worker.py", "--limit", 2)
    second = another(first, "second")
    ledger = Path(second["STATE_DIR"], "crawler.db")
    settings = config.load(environ=first.environment | second)
    queue = connect.queue_of(first.client, settings, "releases")
    announced = queue.store()
    first.run("worker.py", "--segments", 5, "--until-empty", **second)
    first.run("worker.py", "--check", **second)
    first.run("worker.py", "--limit", 2, **second)
    said = first.run("seed_queue.py", "--ids", "5", code=EXIT_CONFIGURATION, **second)
    assert "the ledger knows nothing, but there are records" in said
    assert not ledger.exists()
    path = tmp_path / "discogs_20200101_releases.xml.gz"
    dump.write(path, first.api.world, "releases")
    first.run("discogs_xml_split.py", "-d", path, "-r", tmp_path / "hashes", **second)
    assert ledger.exists()
    first.run("worker.py", "--branch", "b", "--limit", 2, **second)
    before = layouts.open_store(settings).settle()
    first.run("maintain_store.py", **second)
    first.run("maintain_store.py", "--merge", code=EXIT_CONFIGURATION, **second)
    for arguments in (["--until-empty"], ["--check"]):
        first.run("worker.py", *arguments, code=EXIT_CONFIGURATION, **second | {"STORE_REMOTE": ""})
    held = layouts.open_store(settings)
    assert held.settle() == before, "it has merged"
    assert all(is_partial(part.repository) for part in held.parts())
    assert queue.store() == announced
    first.run("worker.py", "--check", **second)
    first.run("maintain_store.py")
    first.run("worker.py", "--until-empty", **second)
    export = ["export_changes.py", "--consumer", "y", "--format", "status"]
    first.run(*export, "--from", "nonsense", code=EXIT_USAGE, **second)
    exported = first.run(*export, **second)
    assert len(exported.splitlines()) == len(first.ids), "an export needs everything"
    first.run("seed_queue.py")
    first.assert_whole()


@pytest.mark.long
def test_a_machine_whose_store_is_not_that_of_the_ledger_fetches_nothing(
    first: Installation, tmp_path: Path
) -> None:
    """A `.env` without STORE_REMOTE, or one that is older than a conversion."""
    first.run("seed_queue.py", "--ids", *first.ids)
    layout = first.environment["STORE_LAYOUT"]
    old = tmp_path / "old"
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", old], check=True)
    another_layout = {"single": "submodules", "submodules": "single"}[layout]
    for number, wrong in enumerate(
        (
            {"STORE_REMOTE": ""},
            {"STORE_LAYOUT": another_layout, "STORE_REMOTE": f"file://{old}"},
        )
    ):
        second = another(first, f"second-{number}") | wrong
        for arguments in (["--until-empty"], ["--check"]):
            said = first.run("worker.py", *arguments, code=EXIT_CONFIGURATION, **second)
            assert f"the machine with the ledger has STORE_LAYOUT={layout} with" in said
    del first.environment["STORE_REMOTE"]
    first.run("worker.py", "--limit", 1)  # where the ledger is nobody has to be asked
    assert len(first.asked()) == 1
    second = another(first, "no-remote")
    said = first.run("worker.py", "--until-empty", code=EXIT_CONFIGURATION, **second)
    assert "there is no ledger" in said
    assert first.asked() == []
    first.run("worker.py", "--until-empty")
    assert len(first.asked()) == len(first.ids) - 1
