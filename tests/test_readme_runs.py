"""Who types what the texts say gets what they show; see tests/readme.py."""

import fnmatch
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from discogs_crawler.broker import private_server
from discogs_crawler.clock import DAY_S
from tests import readme
from tests.conftest import ROOT
from tests.discogs import dump
from tests.discogs.api import Api
from tests.discogs.quota import Quota
from tests.discogs.site import Site
from tests.discogs.world import invented

# As the README has it.
URL = "https://github.com/armijnhemel/crawler_for_discogs"
PLACE = "/home/you/crawler_for_discogs"
API = "https://api.discogs.com"

# What the README's examples were made of: the world and the months of the quick start.
RELEASES = 250

# Fast, but patient: an answer that takes half a window is given up.
QUOTA, WINDOW_S = 600, 3

FIRST_MONTH = datetime(2026, 11, 1, 12, tzinfo=UTC).timestamp()
SECOND_MONTH = datetime(2026, 12, 1, 12, tzinfo=UTC).timestamp()

# An environment as pip makes it, but in no time: Git runs this when it has cloned.
INSTALL = f"""#!/bin/sh
mkdir -p .venv/bin && ln -s {sys.prefix}/lib {sys.prefix}/pyvenv.cfg .venv/
for program in {sys.prefix}/bin/*; do ln -s "$program" .venv/bin/; done
cat setup.cfg pyproject.toml | tee .venv/installed-test > .venv/installed-embedded
"""
CRONTAB = '#!/bin/sh\ncp "$1" "$HOME/crontab"\n'
MYPY = '#!/bin/sh\necho "mypy $*" >> "$HOME/mypy"\n'


def write_program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The folder of a user whose Git finds this checkout, as it is, at the project's address."""
    folder = tmp_path / "home"
    source = tmp_path / "source"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    write_program(folder / "template" / "hooks" / "post-checkout", INSTALL)
    write_program(folder / "bin" / "crontab", CRONTAB)
    (folder / ".gitconfig").write_text(
        f'[url "{source}"]\n\tinsteadOf = {URL}\n[init]\n\ttemplateDir = {folder}/template\n'
        "[user]\n\tname = you\n\temail = you@localhost\n"
    )
    commit = "git init -q -b main --template= . && git add -A && git commit -qm all"
    subprocess.run(["sh", "-c", commit], cwd=source, env=os.environ | {"HOME": folder}, check=True)
    return folder


@pytest.fixture
def api() -> Iterator[Api]:
    with Api(invented(RELEASES), Quota(QUOTA, window_s=WINDOW_S)) as api:
        yield api


Type = Callable[..., str]


@pytest.fixture
def type_in(home: Path, api: Api) -> Type:
    """Run what a user types in a folder, with the stand-in for the API; what it prints."""

    def call(text: str, folder: Path, **extra: str) -> str:
        done = subprocess.run(
            ["sh", "-ec", text],
            cwd=folder,
            env={
                "PATH": f"{home}/bin:{sys.prefix}/bin:{os.environ['PATH']}",
                "HOME": str(home),
                "LANG": "C.UTF-8",
                # Nobody answers there: the quick start does without the live API.
                "https_proxy": "http://127.0.0.1:9",
                "DISCOGS_API": api.url,
                "DISCOGS_TOKEN": "any",
                "RATE_WINDOW_S": str(WINDOW_S),
            }
            | extra,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}"
        return done.stdout

    return call


def test_every_block_is_of_a_known_kind_and_every_command_is_run_by_some_test() -> None:
    assert {block.language for block in readme.blocks()} == readme.FENCES
    runnable = [block for block in readme.blocks("sh") if not block.marker]
    assert runnable == [block_with(URL), block_with("bin/test ")]
    assert len(readme.shown()) == "".join(readme.TEXTS.values()).count("\n$ ")


def block_with(text: str) -> readme.Block:
    [found] = [block for block in readme.blocks("sh") if text in block.text]
    return found


def test_who_sets_it_up_sees_it_work(home: Path, type_in: Type) -> None:
    folder = home / "src"
    folder.mkdir()
    checkout = folder / "crawler_for_discogs"
    try:
        printed = type_in(block_with(URL).text, folder)
        [quickstart] = [pair for pair in readme.shown() if pair.command == "bin/quickstart"]
        start = printed.index(quickstart.output.splitlines()[0])
        end = printed.index("bin/quickstart --stop\n") + len("bin/quickstart --stop\n")
        assert readme.difference(quickstart.output, printed[start:end]) == ""
        assert (checkout / ".env").stat().st_mode & 0o777 == 0o600
        assert (home / "crontab").read_text() == (ROOT / "crontab.example").read_text()
        stop = type_in("bin/quickstart --stop", checkout)
        assert stop == "The private Redis is stopped.\n"
    finally:
        stop_private_redis(checkout)


def stop_private_redis(checkout: Path) -> None:
    from discogs_crawler import config

    for state in (checkout / "var", checkout / "var" / "quickstart"):
        if (state / "redis").exists():
            environment = {"ENV_FILE": os.devnull, "STATE_DIR": str(state)}
            private_server.stop(config.load(environ=environment))


def test_who_develops_it_runs_all_checks(home: Path, type_in: Type) -> None:
    type_in(f"git clone -q {URL} checkout", home)
    checkout = home / "checkout"
    (checkout / ".venv/bin/mypy").unlink()
    write_program(checkout / ".venv/bin/mypy", MYPY)
    few = "-p no:cacheprovider tests/test_records.py"
    printed = type_in(block_with("bin/test ").text, checkout, PYTEST_ADDOPTS=few)
    assert " passed" in printed or "[100%]" in printed
    assert (home / "mypy").read_text() == "mypy \n"


def test_the_scripts_print_what_is_shown_of_them(home: Path, api: Api, type_in: Type) -> None:
    type_in(f"git clone -q {URL} checkout && touch checkout/.env", home)
    checkout = home / "checkout"
    with Site() as site:
        try:
            Months(checkout, api, site, type_in).show_all()
        finally:
            stop_private_redis(checkout)


class Months:
    """A crawler that has lived through a month when the console blocks begin."""

    def __init__(self, checkout: Path, api: Api, site: Site, type_in: Type) -> None:
        self.checkout, self.api, self.site, self._type_in = checkout, api, site, type_in
        self.travel(FIRST_MONTH)

    def travel(self, now: float) -> None:
        self.now, self.offset_s = now, now - time.time()

    def type_in(self, text: str) -> str:
        extra = {"CLOCK_OFFSET_S": str(self.offset_s), "DUMP_SITE": self.site.url}
        return self._type_in(text, self.checkout, **extra)

    def make_dump(self) -> str:
        name = f"discogs_{datetime.fromtimestamp(self.now, UTC):%Y%m%d}_releases.xml.gz"
        dump.write(self.checkout / name, self.api.world, "releases")
        os.utime(self.checkout / name, (self.now, self.now))
        return name

    def show_all(self) -> None:
        name = self.make_dump()
        self.type_in(
            f"bin/discogs_xml_split.py -d {name} -r hashes; bin/seed_queue.py -n hashes;"
            "bin/worker.py --until-empty; bin/export_changes.py --consumer demo"
        )
        self.travel(SECOND_MONTH)
        self.type_in("bin/maintain_store.py")
        self.api.world.let_a_month_go_by()
        self.make_dump()
        differences = [self.show(pair) for pair in readme.shown()[1:]]
        assert not any(differences), "\n".join(differences)
        self.site.publish(20261201, {"releases": dump.compressed(self.api.world, "releases")})
        self.type_in("bin/download_dump.py releases; bin/maintain_store.py")
        self.compare_folder()

    def compare_folder(self) -> None:
        rows = re.findall(
            r"^\| (`.*`) \| ",
            readme.section("The state folder", f"{readme.LIB}/maintenance/README.md"),
            re.MULTILINE,
        )
        named = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
        found = {path.name for path in (self.checkout / "var").iterdir()}
        assert [n for n in found if not any(fnmatch.fnmatch(n, each) for each in named)] == []
        missing = {each for each in named if not fnmatch.filter(found, each)}
        assert missing <= {"crawler.db-wal", "crawler.db-shm", "mirrors", "reclean.json"}

    def show(self, pair: readme.Shown) -> str:
        """What is wrong with what the README shows of a command."""
        if pair.command.startswith("bin/stats"):
            return ""
        if pair.command.startswith("bin/worker.py -v"):
            self.type_in("bin/import_dump.py -d discogs_20261201_releases.xml.gz")
        if pair.command.startswith("bin/export_changes.py --consumer"):
            self.travel(self.now + DAY_S + 3_600)
            self.type_in("bin/seed_queue.py; bin/worker.py --until-empty")
        found = self.type_in(pair.command)
        limits = (f"{QUOTA} requests", "60 requests")
        for here, there in ((str(self.checkout), PLACE), (self.api.url, API), limits):
            found = found.replace(here, there)
        wrong = readme.difference(pair.output, found)
        return f"{pair.command}: {wrong}\n{found}" if wrong else ""
