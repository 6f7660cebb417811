"""Settings that are changed on an installation that exists: nothing is lost, or it is refused."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from discogs_crawler.errors import EXIT_CONFIGURATION, EXIT_DONE
from tests.conftest import Run
from tests.discogs.api import Api
from tests.discogs.quota import Quota
from tests.discogs.world import invented
from tests.plain_git import git
from tests.store.test_store_remote import bare

__all__ = ["bare"]

RECORDS = 20


class Installation:
    """A crawler that has fetched half of what is wanted, and a consumer who has got that."""

    def __init__(self, run: Run, environment: dict[str, str], api: Api) -> None:
        self._run, self.environment, self.api = run, environment, api
        self.ids = sorted(api.world.alive["releases"])
        self.state = Path(environment["STATE_DIR"])
        self.repository = self.state / "store" / "discogs.git"
        self.known: dict[str, str] = {}

    def run(self, script: str, *arguments: object, code: int = EXIT_DONE, **extra: str) -> str:
        done = self._run(script, *arguments, **extra)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout if code == EXIT_DONE else done.stderr

    def refused(self, script: str, *arguments: object, says: str, **extra: str) -> None:
        said = self.run(script, *arguments, code=EXIT_CONFIGURATION, **extra)
        assert says in said
        assert len(said.splitlines()) == 1

    def crawl(self, *arguments: str, **extra: str) -> None:
        self.run("worker.py", "--until-empty", *arguments, **extra)

    def export(self, **extra: str) -> None:
        """What the consumer now knows; it is never told of a deletion."""
        out = self.run("export_changes.py", "--consumer", "x", "--format", "status", **extra)
        for line in out.splitlines():
            status, path = line.split("\t")
            assert status == ("M" if path in self.known else "A")
            self.known[path] = status

    def half(self) -> None:
        half = self.ids[: RECORDS // 2]
        self.run("seed_queue.py", "--ids", *half)
        self.crawl()
        self.run("seed_queue.py")
        self.export()
        assert len(self.known) == len(half)
        self.run("seed_queue.py", "--ids", *self.ids[RECORDS // 2 :])

    def assert_whole(self, **extra: str) -> None:
        """All that was wanted is crawled, once, and reaches the consumer."""
        self.run("seed_queue.py", **extra)
        self.crawl(**extra)
        self.run("seed_queue.py", **extra)
        self.export(**extra)
        assert len(self.known) == RECORDS
        asked = sorted(request.id for request in self.api.journal.since(0) if request.id)
        assert asked == self.ids, "each was asked for once"
        assert [r for r in self.api.journal.since(0) if r.status == 429] == []
        self.run("maintain_store.py", "--check", **extra)


@pytest.fixture
def crawler(
    run: Run, environment: dict[str, str], redis_client: redis.Redis
) -> Iterator[Installation]:
    with Api(invented(RECORDS), Quota(50_000, 50_000, 1)) as api:
        environment |= {
            "DISCOGS_API": api.url,
            "DISCOGS_TOKEN": "not-a-real-one",
            "RATE_WINDOW_S": "1",
            "COMMIT_SECONDS": "0.2",
        }
        installation = Installation(run, environment, api)
        installation.half()
        yield installation


@pytest.mark.long
@pytest.mark.parametrize(
    "change",
    [
        {"REDIS_PREFIX": "other"},
        {"REDIS_URL": "?db=1"},
        {"RATE_IDENTITY": "other"},
        {"LEASE_S": "100", "COMMIT_EVERY": "7", "WORKER_THREADS": "1"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_is_not_the_store_may_change(crawler: Installation, change: dict[str, str]) -> None:
    if "REDIS_URL" in change:
        change = {"REDIS_URL": crawler.environment["REDIS_URL"] + change["REDIS_URL"]}
    crawler.assert_whole(**change)
    # And back again, where Redis still has what was queued in the first place.
    crawler.run("seed_queue.py")
    crawler.export()
    assert len(crawler.known) == RECORDS


def test_what_would_begin_a_new_history_is_refused(
    crawler: Installation, tmp_path: Path, bare: Path
) -> None:
    worker = ("worker.py", "--until-empty")
    maintenance = ("maintain_store.py",)
    export = ("export_changes.py", "--consumer", "x")
    remote, nowhere = f"file://{bare}", str(tmp_path / "nowhere")
    for command in (worker, maintenance, export):
        crawler.refused(*command, says="set STORE_BRANCH=main", STORE_BRANCH="trunk")
        crawler.refused(*command, says="set STORE_LAYOUT=single", STORE_LAYOUT="submodules")
    crawler.refused(*worker, says="10 records", STORE=nowhere)
    crawler.refused(*worker, says="10 records", STORE=nowhere, STORE_REMOTE=remote)
    other = {"DATABASE": str(tmp_path / "new.db")}
    crawler.refused("seed_queue.py", says="--rebuild-ledger", **other)
    # Nor where all records are on the remote, and the folder is lost as well.
    crawler.export(STORE_REMOTE=remote)
    other |= {"STORE": str(tmp_path / "gone"), "STORE_REMOTE": remote}
    crawler.refused("seed_queue.py", says="--rebuild-ledger", **other)
    crawler.assert_whole()


@pytest.mark.long
@pytest.mark.parametrize("layout", ["single", "submodules"])
def test_a_branch_may_be_renamed_as_it_says(crawler: Installation, layout: str) -> None:
    if layout == "submodules":
        crawler.run("maintain_store.py", "--to-submodules")
        crawler.environment["STORE_LAYOUT"] = "submodules"
    for path in [crawler.repository, *crawler.repository.parent.glob("*/*.git")]:
        says = f"git --git-dir={path} branch -m main trunk"
        crawler.refused("worker.py", "--until-empty", says=says, STORE_BRANCH="trunk")
        git(path, "branch", "-m", "main", "trunk")
    crawler.assert_whole(STORE_BRANCH="trunk")


@pytest.mark.long
def test_a_store_that_was_cloned_back_is_known_by_what_is_in_it(crawler: Installation) -> None:
    crawler.run("maintain_store.py", "--to-submodules")
    git(crawler.repository, "config", "--unset", "crawler.layout")
    crawler.refused("worker.py", "--until-empty", says="set STORE_LAYOUT=submodules")
    assert "already" in crawler.run("maintain_store.py", "--to-submodules")


@pytest.mark.long
@pytest.mark.parametrize("setting", ["STORE", "STATE_DIR"])
def test_a_folder_may_move_with_what_is_in_it(
    crawler: Installation, tmp_path: Path, setting: str
) -> None:
    old = crawler.state / "store" if setting == "STORE" else crawler.state
    old.rename(tmp_path / "elsewhere")
    crawler.assert_whole(**{setting: str(tmp_path / "elsewhere")})


def test_a_remote_may_be_set_changed_and_unset(
    crawler: Installation, tmp_path: Path, bare: Path
) -> None:
    crawler.export(STORE_REMOTE=f"file://{bare}")
    other = tmp_path / "other.git"
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(other)], check=True)
    crawler.export(STORE_REMOTE=f"file://{other}")
    crawler.export()
    crawler.assert_whole(STORE_REMOTE=f"file://{other}")


@pytest.mark.long
def test_a_remote_of_several_repositories_may_be_set_changed_and_unset(
    crawler: Installation, tmp_path: Path
) -> None:
    crawler.run("maintain_store.py", "--to-submodules")
    crawler.environment["STORE_LAYOUT"] = "submodules"
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        crawler.export(STORE_REMOTE=f"file://{tmp_path}/{name}")
    crawler.export()
    says = "it must be a folder"
    crawler.refused("worker.py", says=says, STORE_REMOTE=f"file://{tmp_path}/other/discogs.git")
    remote = {"STORE_REMOTE": f"{tmp_path}/x-{{repository}}.git"}
    crawler.assert_whole(**remote)
    assert "store" in crawler.run("worker.py", "--check", **remote)
    crawler.run("maintain_store.py", **remote)
    assert sorted(path.name for path in tmp_path.glob("x-*")) == [
        "x-discogs.git",
        "x-releases-00.git",
    ]


@pytest.mark.long
def test_a_store_with_a_remote_is_converted_with_what_others_have_pushed(
    crawler: Installation, tmp_path: Path, bare: Path
) -> None:
    crawler.environment["STORE_REMOTE"] = f"file://{bare}"
    crawler.export()
    other = {"STORE": str(tmp_path / "store of another machine"), "DATABASE": str(tmp_path / "no")}
    crawler.refused("worker.py", says="use the same on both, then run seed_queue.py", **other)
    crawler.run("seed_queue.py")
    crawler.crawl(**other)
    said = crawler.run("maintain_store.py", "--to-submodules")
    assert "let STORE_REMOTE name a folder" in said
    crawler.refused("worker.py", says="STORE_LAYOUT=submodules")
    crawler.environment["STORE_LAYOUT"] = "submodules"
    crawler.refused("worker.py", says="it must be a folder")
    (tmp_path / "there").mkdir()
    crawler.environment["STORE_REMOTE"] = f"file://{tmp_path}/there"
    crawler.assert_whole()
    old = {"STORE_LAYOUT": "single", "STORE_REMOTE": f"file://{tmp_path}/there/discogs.git"}
    says = "the machine with the ledger has STORE_LAYOUT=submodules"
    crawler.run("seed_queue.py", "--ids", *crawler.ids)
    crawler.refused("worker.py", says=says, **old, STORE=str(tmp_path / "s"), DATABASE="/nowhere")
