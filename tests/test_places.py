"""A crawler goes on wherever it is moved to, whatever its folders are called, in any locale."""

import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from discogs_crawler import config
from discogs_crawler.broker import private_server
from discogs_crawler.clock import DAY_S
from tests.conftest import ROOT
from tests.discogs import dump
from tests.discogs.api import Api
from tests.discogs.quota import Quota
from tests.discogs.world import invented

RECORDS = 120
FIRST, SECOND = "Größe und Maß", "andere/Куда 1"

# Cron of a user who has set nothing, or set much.
BARE = {"LANG": "C", "LC_ALL": "C", "TZ": "Asia/Kathmandu", "COLUMNS": "40"}

Type = Callable[..., str]


@pytest.fixture
def api() -> Iterator[Api]:
    with Api(invented(RECORDS), Quota(1_000, window_s=3)) as api:
        yield api


@pytest.fixture
def type_in(tmp_path: Path, api: Api) -> Type:
    """Run a script of the checkout in a folder, in the month that it is; what it prints."""

    def type_in(folder: str, month: int, script: str, *arguments: object) -> str:
        checkout = tmp_path / folder
        done = subprocess.run(
            [sys.executable, checkout / "bin" / script, *map(str, arguments)],
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(tmp_path / folder / "heim"),
                "DISCOGS_API": api.url,
                "RATE_WINDOW_S": "3",
                "DISCOGS_TOKEN": "any",
                "CLOCK_OFFSET_S": str(month * 31 * DAY_S),
                **BARE,
            },
            cwd=checkout,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), script
        return done.stdout

    return type_in


def stop_redis(checkout: Path) -> None:
    """As a shutdown of the machine does."""
    environ = {"ENV_FILE": os.devnull, "STATE_DIR": str(checkout / "var")}
    private_server.stop(config.load(environ=environ))


def copy_checkout(folder: Path) -> None:
    for name in ("bin", "lib"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "setup.cfg", folder)


@pytest.mark.skipif(sys.prefix == sys.base_prefix, reason="the suite runs in no environment")
def test_a_package_that_python_has_for_another_program_is_no_obstacle(tmp_path: Path) -> None:
    """Such as the `sqlite-utils` of a distribution, with which one looks at the ledger."""
    copy_checkout(tmp_path)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    theirs = sysconfig.get_path("purelib", "posix_user", {"userbase": str(tmp_path / "user")})
    Path(theirs).mkdir(parents=True)
    (Path(theirs) / "sqlite_utils.py").touch()
    command = [Path(sys.base_prefix) / "bin" / "python3", tmp_path / "bin" / "stats.py", "--help"]
    environment = {"PATH": os.environ["PATH"], "PYTHONUSERBASE": str(tmp_path / "user")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_moved_checkout_goes_on_in_any_locale_and_with_any_names(
    tmp_path: Path, api: Api, type_in: Type
) -> None:
    first, second = tmp_path / FIRST, tmp_path / SECOND
    copy_checkout(first)
    (first / ".env").write_text("GIT_AUTHOR_NAME=Jürgen Ünal\n", encoding="utf-8")
    (first / ".env").chmod(0o600)
    consumer = ("export_changes.py", "--consumer", "me", "--format", "ids")

    def crawl(folder: str, month: int) -> None:
        moment = time.time() + month * 31 * DAY_S
        name = time.strftime("discogs_%Y%m%d_releases.xml.gz", time.gmtime(moment))
        (tmp_path / folder / "Ab lage").mkdir(exist_ok=True)
        source = tmp_path / folder / "Ab lage" / name
        dump.write(source, api.world, "releases")
        os.utime(source, (moment, moment))
        hashes = f"Ab lage/häsch {month}"
        type_in(folder, month, "discogs_xml_split.py", "-d", source, "-r", hashes)
        type_in(folder, month, "seed_queue.py", "-n", hashes)
        type_in(folder, month, "worker.py", "--until-empty")

    try:
        crawl(FIRST, 0)
        assert len(type_in(FIRST, 0, *consumer).split()) == RECORDS
        stop_redis(first)
        second.parent.mkdir()
        first.rename(second)
        changed = api.world.let_a_month_go_by()["releases"]
        type_in(SECOND, 1, "maintain_store.py")
        crawl(SECOND, 1)
        exported = set(map(int, type_in(SECOND, 1, *consumer).split()))
        assert exported == {*changed["edited"], *changed["added"]}
        for script in ("maintain_store.py", "--check"), ("stats.py", "--html", "Über sicht.html"):
            assert type_in(SECOND, 1, *script) == ""
        assert "releases" in type_in(SECOND, 1, "stats.py")
        listed = type_in(SECOND, 1, "export_changes.py", "--list")
        assert str(second / "var") in listed
        assert str(first) not in listed
    finally:
        for checkout in (first, second):
            stop_redis(checkout)
