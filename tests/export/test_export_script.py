"""export_changes.py as its users run it: from cron, in pipes, from another machine, and killed."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from discogs_crawler import config, locks
from discogs_crawler.errors import ConfigurationError, TryLater, Unavailable
from discogs_crawler.export import delivery, mirror
from discogs_crawler.export import run as export_run
from discogs_crawler.export.revisions import StoreSource
from discogs_crawler.ledger import consumers
from discogs_crawler.records import record_path
from discogs_crawler.store import git_process, packs
from discogs_crawler.store.git import Repository
from discogs_crawler.store.layouts import Edit, open_store
from tests.conftest import ROOT, Run, make_ledger, program
from tests.plain_git import SingleStore, SubmoduleStore, git, record

SCRIPT = "export_changes.py"


@pytest.fixture
def store(environment: dict[str, str]) -> SingleStore:
    state = Path(environment["STATE_DIR"])
    make_ledger(state / "crawler.db")
    return SingleStore(state / "store" / "discogs.git")


@pytest.fixture
def export(environment: dict[str, str]) -> Run:
    """Run the script for the consumer `test`; `--list` and the like have no consumer."""

    def call(*args: object, **options: object) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            command(*args),
            env=environment,
            stdin=subprocess.DEVNULL,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},  # type: ignore[call-overload]
            text=True,
            timeout=60,
            check=False,
        )

    return call


def command(*args: object) -> list[str]:
    who = [] if "--list" in args or "--consumer" in args else ["--consumer", "test"]
    return [sys.executable, str(ROOT / "bin" / SCRIPT), *who, *map(str, args)]


def place(environment: dict[str, str], name: str = "test") -> str | None:
    with consumers.opened(Path(environment["STATE_DIR"]) / "crawler.db") as db:
        return consumers.get(db, name).revision


def paths(*numbers: int) -> str:
    return "".join(f"releases/00/00/00/{number}.json\n" for number in numbers)


def test_each_change_comes_once(store: SingleStore, export: Run) -> None:
    store.commit({("releases", n): record(n) for n in (1, 2)})
    assert export().stdout == paths(1, 2)
    again = export()
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    store.commit({("releases", 2): None, ("releases", 3): record(3)})
    assert export("--format", "status").stdout == (
        "D\treleases/00/00/00/2.json\nA\treleases/00/00/00/3.json\n"
    )


def test_an_export_leaves_no_journal_that_a_restored_ledger_would_get(
    store: SingleStore, export: Run, tmp_path: Path, environment: dict[str, str]
) -> None:
    folder = Path(environment["STATE_DIR"])
    store.commit({("releases", 1): record(1)})
    assert export().stdout == paths(1)
    assert [path.name for path in folder.glob("crawler.db-*")] == []
    copy = shutil.copy(folder / "crawler.db", tmp_path / "copy.db")
    then = place(environment)
    store.commit({("releases", 2): record(2)})
    assert export().stdout == paths(2)
    shutil.copy(copy, folder / "crawler.db")
    assert place(environment) == then
    assert export().stdout == paths(2)


def test_a_damaged_repository_is_bad_data_and_moves_nobody(store: SingleStore, export: Run) -> None:
    store.commit({("releases", 1): record(1)})
    tree = git(store.folder, "rev-parse", "main:releases/00/00")
    lost = store.folder / "objects" / tree[:2] / tree[2:]
    away = lost.rename(lost.with_suffix(".away"))
    failed = export()
    assert (failed.returncode, failed.stdout) == (65, "")
    assert failed.stderr.startswith(f"export_changes.py: {store.folder}: git diff-tree: fatal: ")
    away.rename(lost)
    assert export().stdout == paths(1)


def test_consumers_do_not_know_of_each_other(store: SingleStore, export: Run) -> None:
    store.commit({("releases", 1): record(1), ("artists", 5): record(5)})
    assert export("--consumer", "a").stdout == paths(1)
    assert export("--consumer", "b", "--kind", "artists", "--format", "ids").stdout == "5\n"
    assert export("--consumer", "c").stdout == paths(1)


def test_a_consumer_can_begin_now(store: SingleStore, export: Run) -> None:
    store.commit({("releases", 1): record(1)})
    assert export("--from", "now").stdout == ""
    store.commit({("releases", 2): record(2)})
    assert export("--from", "now").stdout == paths(2)


def test_a_consumer_that_begins_at_a_revision_still_does_after_a_failure(
    store: SingleStore, export: Run
) -> None:
    for number in (1, 2, 3):
        store.commit({("releases", number): record(number)})
    failed = export("--from", "main~1", "--exec", "cat >&2; exit 3")
    assert failed.returncode == 1
    assert failed.stderr == (
        paths(3) + "export_changes.py: the command of --exec ended with code 3; not exported,"
        " run it again\n"
    )
    assert export("--from", "main~1").stdout == paths(3)
    store.commit({("releases", 4): record(4)})
    assert export().stdout == paths(4)


def test_a_known_consumer_does_not_begin_elsewhere(store: SingleStore, export: Run) -> None:
    first, second = (store.commit({("releases", n): record(n)}) for n in (1, 2))
    crontab = ("--from", first[:12])
    assert export(*crontab).stdout == paths(2)
    store.commit({("releases", 3): record(3)})
    for elsewhere in (second, "start", "main"):
        refused = export("--from", elsewhere)
        assert (refused.returncode, refused.stdout) == (64, "")
        assert refused.stderr == (
            f"export_changes.py: --from {elsewhere}: consumer test is not new, it is at"
            f" {second[:12]}: leave --from off to go on there, or move it with --reset"
            f" {elsewhere}\n"
        )
    assert export("--from", "nonsense").returncode == 64
    assert export(*crontab).stdout == paths(3)
    assert export("--from", "now").returncode == 0, "a crontab says it every time"


def test_the_command_gets_the_changes_and_the_revisions(
    store: SingleStore, export: Run, tmp_path: Path
) -> None:
    first = store.commit({("releases", 1): record(1)})
    export()
    second = store.commit({("releases", 2): record(2)})
    line = f"cat > {tmp_path}/got; env | grep ^EXPORT_ | sort > {tmp_path}/env"
    done = export("--exec", line)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "got").read_text() == paths(2)
    assert (tmp_path / "env").read_text().splitlines() == [
        "EXPORT_CONSUMER=test",
        "EXPORT_FORMAT=names",
        f"EXPORT_FROM={first}",
        "EXPORT_KIND=releases",
        f"EXPORT_REPOSITORY={store.folder}",
        f"EXPORT_TO={second}",
    ]
    assert export("--exec", "touch started").returncode == 0
    assert not Path("started").exists(), "there was nothing to export"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("head -c 10 > /dev/null", "has not read all of its input"),
        ("true", "has not read all of its input"),
        ("exec <&-; sleep 0.1; exit 7", "ended with code 7"),
    ],
)
@pytest.mark.parametrize("records", [1, 3_000])
def test_a_command_that_has_not_read_everything_has_not_got_it(
    store: SingleStore,
    export: Run,
    environment: dict[str, str],
    line: str,
    said: str,
    records: int,
) -> None:
    store.commit({("releases", n): record(n) for n in range(1, records + 1)})
    done = export("--format", "jsonl", "--exec", line)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert said in done.stderr
    assert place(environment) is None
    if line == "true":
        assert export("--format", "jsonl", "--exec", "true; cat > /dev/null").returncode == 0
        assert place(environment) == store.tip()


@pytest.mark.parametrize("records", [3, 3_000])
def test_a_reader_that_goes_early_has_not_got_the_export(
    store: SingleStore, environment: dict[str, str], export: Run, records: int
) -> None:
    store.commit({("releases", n): record(n) for n in range(1, records + 1)})
    with subprocess.Popen(
        command("--format", "jsonl"),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert running.stdout.read(1) == b"{"
        running.stdout.close()
        assert running.wait(60) == 1
        assert running.stderr.read() == (
            b"export_changes.py: standard output: its reader left before it had everything; "
            b"not exported, run it again\n"
        )
    assert place(environment) is None
    assert len(export("--format", "jsonl").stdout.splitlines()) == records


def test_a_reader_that_takes_the_rest_and_goes_has_got_the_export(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    readable, writable = os.pipe()
    look = delivery._unread
    looks: list[int] = []

    def look_before_it_reads(handle: int) -> int:
        looks.append(look(handle))
        if len(looks) == 1:
            os.read(readable, 1_000)
            os.close(readable)
        return looks[-1]

    monkeypatch.setattr(delivery, "_unread", look_before_it_reads)
    with delivery.to_stdout(writable) as write:
        write(b"x" * 1_000)
    os.close(writable)
    assert looks[:2] == [1_000, 0]


def test_a_full_disk_is_one_line_and_exports_nothing(
    store: SingleStore, environment: dict[str, str], export: Run
) -> None:
    store.commit({("releases", 1): record(1)})
    with Path("/dev/full").open("w") as full:
        done = export(stdout=full)
    assert done.returncode == 69
    assert done.stderr == (
        "export_changes.py: standard output: No space left on device; not exported\n"
    )
    assert export().stdout == paths(1)


def test_a_dry_run_changes_nothing(store: SingleStore, export: Run) -> None:
    store.commit({("releases", 1): record(1)})
    for _ in range(2):
        assert export("--dry-run", "--exec", "false").stdout == paths(1)
    assert "test" not in export("--list").stdout
    assert export("--from", "now", "--dry-run").stdout == ""
    assert export().stdout == paths(1)


def test_the_list_shows_where_everyone_is(store: SingleStore, export: Run) -> None:
    first = store.commit({("releases", 1): record(1)})
    export()
    store.commit({("releases", 2): record(2)})
    export("--consumer", "b", "--exec", "false")
    lines = export("--list").stdout.splitlines()
    assert lines[0].split() == [
        *("consumer", "kind", "revision", "behind", "exported", "changes", "file", "where")
    ]
    assert lines[1].split()[:4] == ["b", "releases", "start", "2"]
    assert lines[1].split()[4:] == ["never", "0", "-", str(store.folder)]
    assert lines[2].split()[:4] == ["test", "releases", first[:12], "1"]


def test_a_consumer_can_be_sent_back(store: SingleStore, export: Run) -> None:
    for number in (1, 2, 3):
        store.commit({("releases", number): record(number)})
    export()
    assert export("--reset", "main~1").stdout == ""
    assert export().stdout == paths(3)
    export("--reset", "start")
    assert export().stdout == paths(1, 2, 3)
    unknown = export("--consumer", "tset", "--reset", "start")
    assert unknown.returncode == 64
    assert "there is no consumer 'tset'; did you mean test?" in unknown.stderr
    nowhere = export("--reset", "nonsense")
    assert nowhere.returncode == 64
    assert "there is no revision 'nonsense'" in nowhere.stderr
    assert export("--consumer", "new", "--from", "nonsense").returncode == 64
    assert export("--consumer", "new", "--dry-run").stdout == paths(1, 2, 3)
    locks = sorted(path.name for path in store.folder.parents[1].glob("*.lock"))
    assert locks == ["crawler.db.test.lock", "crawler.db.upgrade.lock"], "no trace of refusals"


def test_a_consumer_can_be_forgotten(store: SingleStore, export: Run) -> None:
    store.commit({("releases", 1): record(1)})
    export()
    unknown = export("--consumer", "tset", "--forget")
    assert (unknown.returncode, unknown.stderr.count("\n")) == (64, 1)
    assert export("--forget", "--dry-run").returncode == 0
    assert "test" in export("--list").stdout
    done = export("--forget")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "test" not in export("--list").stdout.replace(str(store.folder), "")
    assert not list(store.folder.parents[1].glob("*.test.lock"))
    assert export("--from", "start").stdout == paths(1)


def test_a_limit_is_a_number_of_commits(store: SingleStore, export: Run) -> None:
    for number in (1, 2, 3):
        store.commit({("releases", number): record(number)})
    assert export("--limit", "2").stdout == paths(1, 2)
    assert export("--limit", "2").stdout == paths(3)
    assert export("--limit", "0").returncode == 64


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (["--consumer", "a/b"], 64, "a name has 1 to 64"),
        (["--format", "ids", "--kind", "all"], 64, "kinds share their numbers"),
        (["--from", "nonsense"], 64, "no revision 'nonsense'"),
        (["--repository", "/dev/null/nowhere"], 64, "no Git repository"),
        (["--repository", ""], 64, "argument --repository: its value is empty"),
        (["--exec", ""], 64, "argument --exec: its value is empty"),
        (["--into", ""], 64, "argument --into: its value is empty"),
        (
            ["--repository", "file:///dev/null/nowhere"],
            69,
            "does not appear to be a git repository",
        ),
    ],
)
def test_what_makes_no_sense_is_one_line(
    store: SingleStore, export: Run, args: list[str], code: int, text: str
) -> None:
    store.commit({("releases", 1): record(1)})
    done = export(*args)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1)
    assert text in done.stderr


def test_another_kind_for_a_known_consumer_is_refused(store: SingleStore, export: Run) -> None:
    store.commit({("releases", 1): record(1)})
    export()
    refused = export("--kind", "artists")
    assert refused.returncode == 64
    assert "consumer test gets releases, and would miss changes" in refused.stderr


def test_before_the_first_record_there_is_nothing(
    environment: dict[str, str], export: Run, tmp_path: Path
) -> None:
    early = export("-v")
    assert early.returncode == 75
    assert "nothing is stored there yet" in early.stderr
    store = SingleStore(Path(environment["STATE_DIR"]) / "store" / "discogs.git")
    store.commit({("releases", 1): record(1)}, branch="crawl/a")  # not merged yet
    for flags in ([], ["--from", "now"], ["--into", tmp_path / "files"]):
        done = export(*flags)
        assert (done.returncode, done.stdout, done.stderr) == (75, "", "")


def test_without_a_tip_a_consumer_that_has_a_place_is_told(
    store: SingleStore, environment: dict[str, str], export: Run, tmp_path: Path
) -> None:
    first = store.commit({("releases", 1): record(1)})
    assert export().returncode == 0
    git(store.folder, "update-ref", "-d", "refs/heads/main")
    for flags in ([], ["--dry-run"], ["--into", tmp_path / "files"]):
        done = export(*flags)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (65, "", 1)
        assert first in done.stderr
        assert "--consumer test --reset start" in done.stderr
    assert place(environment) == first


def test_a_head_that_names_no_branch_is_told_with_the_branches_there_are(
    export: Run, tmp_path: Path
) -> None:
    upstream = SingleStore(tmp_path / "upstream.git")
    upstream.commit({("releases", 1): record(1)})
    git(upstream.folder, "symbolic-ref", "HEAD", "refs/heads/master")
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(upstream.folder), str(clone))
    new, other = ("--from", "now"), ("--consumer", "other")
    for folder, branch in (
        (upstream.folder, "refs/heads/main"),
        (clone, "refs/remotes/origin/main"),
    ):
        for flags in (new, other, ("--consumer", "files", "--into", tmp_path / "files")):
            done = export("--repository", folder, *flags)
            assert (done.returncode, done.stdout, done.stderr.count("\n")) == (78, "", 1)
            assert f"there are {branch};" in done.stderr
        git(folder, "symbolic-ref", "HEAD", branch)
        assert export("--repository", folder, *new).stdout == ""
        assert export("--repository", folder, *other).stdout == paths(1)


def test_a_branch_of_the_remote_is_named_as_store_branch_must_be(tmp_path: Path) -> None:
    store = SingleStore(tmp_path / "store.git")
    store.commit({("releases", 1): record(1)})
    git(store.folder, "update-ref", "refs/remotes/origin/master", "main")
    git(store.folder, "update-ref", "-d", "refs/heads/main")
    source = StoreSource(store.folder, "refs/heads/main", "the store")
    with pytest.raises(ConfigurationError, match=r"there are master; .*: STORE_BRANCH=NAME"):
        export_run.resolve(source, "now")


def test_a_repository_of_the_format_of_git_3_is_refused(export: Run, tmp_path: Path) -> None:
    for command in (["init", "-q", "--object-format=sha256"], ["commit", "-qm", "x"]):
        names = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@localhost"}
        names |= {"GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@localhost"}
        more = ["--allow-empty"] * (command[0] == "commit")
        subprocess.run(["git", *command, *more], cwd=tmp_path, env=os.environ | names, check=True)
    done = export("--repository", str(tmp_path))
    assert (done.returncode, done.stderr.count("\n")) == (78, 1)
    assert "its objectFormat is sha256; only sha1 works here" in done.stderr


def test_two_exports_to_one_consumer_at_once(
    store: SingleStore, environment: dict[str, str], export: Run, tmp_path: Path
) -> None:
    store.commit({("releases", 1): record(1)})
    os.mkfifo(tmp_path / "hold")
    line = f"cat > /dev/null; read x < {tmp_path}/hold"
    with subprocess.Popen(command("--exec", line), env=environment) as first:
        wait_until(lambda: (tmp_path / "state" / "crawler.db.test.lock").exists())
        second = wait_for(lambda: export(), lambda done: done.returncode == 75)
        assert f"an export to test is already running as process {first.pid}" in second.stderr
        assert export("--reset", "start").returncode == 75
        assert export("--consumer", "other").stdout == paths(1)
        (tmp_path / "hold").write_text("go\n")
        assert first.wait(60) == 0
    assert place(environment) == store.tip()


def wait_until(condition: Callable[[], bool]) -> None:
    wait_for(condition, bool)


def wait_for(attempt: Callable[[], Any], good: Callable[[Any], bool]) -> Any:
    deadline = time.monotonic() + 30
    while not good(result := attempt()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return result


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_terminated_it_ends_its_command_before_that_takes_the_part_for_the_whole(
    store: SingleStore, environment: dict[str, str], tmp_path: Path, number: int
) -> None:
    store.commit({("releases", 1): record(1)})
    line = f"echo > {tmp_path}/started; sleep 60; echo > {tmp_path}/done"
    with subprocess.Popen(
        command("--exec", line), env=environment, stderr=subprocess.PIPE
    ) as running:
        wait_until((tmp_path / "started").exists)
        running.send_signal(number)
        assert running.wait(10) == 1
    assert not (tmp_path / "done").exists()
    assert place(environment) is None


def test_an_export_does_not_overtake_the_command_of_one_that_was_killed(
    store: SingleStore, environment: dict[str, str], export: Run, tmp_path: Path
) -> None:
    store.commit({("releases", 1): record(1)})
    os.mkfifo(tmp_path / "hold")
    line = f"echo > {tmp_path}/started; read x < {tmp_path}/hold"
    with subprocess.Popen(command("--exec", line), env=environment) as running:
        wait_until((tmp_path / "started").exists)
        running.kill()
    assert export().returncode == 75
    (tmp_path / "hold").write_text("go\n")
    assert wait_for(export, lambda done: done.returncode == 0).stdout == paths(1)


def kill_at_random(store: SingleStore, environment: dict[str, str], rounds: int) -> None:
    """Kill exports while a consumer applies what it gets; each that counts was whole."""
    store.commit({("releases", n): record(n) for n in range(1, 400)})
    folder = Path(environment["STATE_DIR"])
    got: dict[int, object] = {}
    chance = random.Random(8)
    for number in range(rounds):
        store.commit({("releases", 1_000 + number): record(number)})
        before = place_or_none(environment)
        with (folder / "out").open("wb") as out:
            running = subprocess.Popen(
                command("--format", "jsonl"), env=environment, stdout=out, stderr=out
            )
            time.sleep(chance.uniform(0, 0.4))
            running.send_signal(signal.SIGKILL)
            running.wait()
        if place_or_none(environment) != before:
            apply((folder / "out").read_bytes(), got)
            assert place_or_none(environment) == store.tip()
    with (folder / "out").open("wb") as out:
        subprocess.run(command("--format", "jsonl"), env=environment, stdout=out, check=True)
    apply((folder / "out").read_bytes(), got)
    assert sorted(got) == [*range(1, 400), *range(1_000, 1_000 + rounds)]


def apply(lines: bytes, records: dict[int, object]) -> None:
    for line in lines.splitlines():
        change = json.loads(line)
        assert change["status"] == ("M" if change["id"] in records else "A")
        records[change["id"]] = change["data"]


def place_or_none(environment: dict[str, str]) -> str | None:
    with consumers.opened(Path(environment["STATE_DIR"]) / "crawler.db") as db:
        known = consumers.find(db, "test")
        return known.revision if known else None


def test_killed_at_any_moment_nothing_is_skipped(
    store: SingleStore, environment: dict[str, str]
) -> None:
    kill_at_random(store, environment, rounds=6)


def test_told_to_end_when_the_place_has_moved_it_says_done(
    store: SingleStore, environment: dict[str, str]
) -> None:
    """Its reader would throw away what came with another exit code, and never get it again."""
    store.commit({("releases", 1): record(1)})
    program = (
        "import os, runpy, signal, sys\n"
        "from discogs_crawler.ledger import consumers\n"
        "move = consumers.move\n"
        "def moved(*arguments):\n"
        "    move(*arguments)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "consumers.move = moved\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    script = str(ROOT / "bin" / "export_changes.py")
    program = program.replace("sys.argv[0]", repr(script))
    command = [sys.executable, "-c", program, "--consumer", "demo"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, paths(1), "")


@pytest.mark.long
def test_killed_at_very_many_moments_nothing_is_skipped(
    store: SingleStore, environment: dict[str, str]
) -> None:
    kill_at_random(store, environment, rounds=200)


def test_a_clone_that_one_keeps_oneself_has_the_places_beside_it(
    tmp_path: Path, export: Run
) -> None:
    upstream = SingleStore(tmp_path / "upstream.git")
    upstream.commit({("releases", 1): record(1)})
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(upstream.folder), str(clone))
    assert export("--repository", clone).stdout == paths(1)
    assert (tmp_path / "clone.consumers.db").exists()
    assert not (tmp_path / "state" / "crawler.db").exists()
    upstream.commit({("releases", 2): record(2)})
    assert export("--repository", clone).stdout == ""
    git(clone, "pull", "-q")
    assert export("--repository", clone).stdout == paths(2)


def test_a_clone_with_its_submodules_is_read_like_any_other(tmp_path: Path, export: Run) -> None:
    upstream = SubmoduleStore(tmp_path / "upstream" / "discogs.git")
    upstream.commit({("releases", n): record(n) for n in (1, 1_000_001)})
    clone = tmp_path / "clone"
    allowed = ["-c", "protocol.file.allow=always"]
    git(tmp_path, *allowed, "clone", "-q", "--recurse-submodules", str(upstream.folder), str(clone))
    assert export("--repository", clone, "--format", "ids").stdout == "1\n1000001\n"
    upstream.commit({("releases", 1): None, ("releases", 2_000_000): record(2)})
    git(clone, "pull", "-q")
    missing = export("--repository", clone)
    assert missing.returncode == 65
    assert "git submodule update --init" in missing.stderr
    git(clone, *allowed, "submodule", "--quiet", "update", "--init")
    assert export("--repository", clone, "--format", "ids").stdout == "1\n2000000\n"
    upstream.commit({("releases", 1): record(1)})
    git(clone, "pull", "-q", "--no-recurse-submodules")
    missing = export("--repository", clone)
    assert missing.returncode == 65
    assert "is not here; run `git submodule update --init`" in missing.stderr


@pytest.mark.parametrize("make", [SingleStore, SubmoduleStore])
def test_a_url_is_enough(
    tmp_path: Path, export: Run, make: Callable[[Path], SingleStore | SubmoduleStore]
) -> None:
    upstream = make(tmp_path / "upstream" / "discogs.git")
    upstream.commit({("releases", n): record(n) for n in (1, 2, 1_000_001)})
    url = f"file://{upstream.folder}"
    assert export("--repository", url, "--format", "ids").stdout == "1\n2\n1000001\n"
    upstream.commit({("releases", 2): record(2, "new"), ("releases", 1): None})
    upstream.commit({("releases", 5_000_000): record(5_000_000)})
    got = [
        json.loads(line)
        for line in export("--repository", url, "--format", "jsonl").stdout.splitlines()
    ]
    assert [(c["id"], c["status"]) for c in got] == [(1, "D"), (2, "M"), (5_000_000, "A")]
    assert got[1]["data"] == json.loads(record(2, "new"))
    assert export("--repository", url).stdout == ""
    copies = list((tmp_path / "state" / "mirrors").glob("*.git"))
    assert len(copies) == 1
    missing = [
        line
        for folder in [copies[0], *(copies[0] / "modules").glob("*/*")]
        if (folder / "HEAD").exists()
        for line in git(folder, "rev-list", "--objects", "--all", "--missing=print").splitlines()
        if line.startswith("?")
    ]
    assert len(missing) >= 2, "records that nobody asked for were fetched"


@pytest.mark.parametrize("make", [SingleStore, SubmoduleStore])
def test_of_a_url_the_records_before_are_fetched_too(
    tmp_path: Path, export: Run, make: Callable[[Path], SingleStore | SubmoduleStore]
) -> None:
    upstream = make(tmp_path / "upstream" / "discogs.git")
    numbers = (1, 2, 1_000_001)
    upstream.commit({("releases", n): record(n) for n in numbers})
    where = ("--repository", f"file://{upstream.folder}", "--format")
    assert export(*where, "ids").stdout == "1\n2\n1000001\n"
    upstream.commit({("releases", n): record(n, "new") for n in numbers})
    done = export(*where, "jsonl", "--previous")
    assert done.stderr == ""
    got = {line["id"]: line["previous"] for line in map(json.loads, done.stdout.splitlines())}
    assert got == {n: json.loads(record(n)) for n in numbers}


def test_what_is_here_is_not_fetched_again(tmp_path: Path, export: Run) -> None:
    upstream = SingleStore(tmp_path / "upstream" / "discogs.git")
    numbers = range(1, 6)
    upstream.commit({("releases", n): record(n) for n in numbers})
    where = ("--repository", f"file://{upstream.folder}", "--format", "jsonl", "--previous")
    assert export(*where).returncode == 0
    upstream.commit({("releases", n): record(n, "new") for n in numbers})
    assert export(*where).returncode == 0
    (copy,) = (tmp_path / "state" / "mirrors").glob("*.git")
    objects = [
        line
        for pack in (copy / "objects" / "pack").glob("*.idx")
        for line in git(copy, "verify-pack", "-v", str(pack)).splitlines()
        if " blob " in line
    ]
    assert len(objects) == 2 * len(numbers)


@pytest.mark.parametrize("output_format", ["names", "status", "ids"])
def test_only_jsonl_has_the_record_before(
    store: SingleStore, export: Run, output_format: str
) -> None:
    done = export("--previous", "--format", output_format)
    assert done.returncode == 64
    assert "--previous goes with --format jsonl" in done.stderr


def test_a_remote_that_is_down_changes_nothing(tmp_path: Path, export: Run) -> None:
    upstream = SingleStore(tmp_path / "upstream.git")
    upstream.commit({("releases", 1): record(1)})
    url = f"file://{upstream.folder}"
    assert export("--repository", url).stdout == paths(1)
    upstream.folder.rename(tmp_path / "away.git")
    assert export("--repository", url).returncode == 69
    (tmp_path / "away.git").rename(upstream.folder)
    upstream.commit({("releases", 2): record(2)})
    assert export("--repository", url).stdout == paths(2)


def test_a_remote_that_falls_silent_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_HTTP_LOW_SPEED_TIME", "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/discogs.git"
        release = threading.Timer(20, silent.close)
        release.start()
        with pytest.raises(Unavailable, match="too slow"):
            mirror.of_url(url, tmp_path)
        release.cancel()


@pytest.mark.parametrize(("answers", "limit"), [(0, "ASK_S"), (1, "FETCH_S"), (2, "RECORDS_S")])
def test_a_remote_that_stops_answering_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: int, limit: str
) -> None:
    upstream = SubmoduleStore(tmp_path / "upstream" / "discogs.git")
    upstream.commit({("releases", 1): record(1)})
    script = f"""
case "$*" in *BatchMode=yes*) ;; *) exit 1;; esac
echo >> {tmp_path}/log
test $(wc -l < {tmp_path}/log) -gt {answers} && exec sleep 50
for last; do :; done
exec sh -c "$last"
"""
    monkeypatch.setenv("PATH", program(tmp_path / "bin", "ssh", script))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("GIT_SSH_COMMAND", "GIT_SSH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(mirror, limit, 0.3)
    with pytest.raises(Unavailable, match=r"no answer in 0\.3 seconds"):
        mirror.of_url(f"ssh://host{upstream.folder}", tmp_path / "mirrors")


def test_a_slow_git_gets_all_of_a_long_request(tmp_path: Path) -> None:
    upstream = SingleStore(tmp_path / "upstream.git")
    slow = f"alias.slow=!sleep {3 * git_process.LOOK_S}; wc -c"
    deadline = time.monotonic() + 30
    done = git_process.talk(
        *(upstream.folder, "-c", slow, "slow"),
        extra={},
        is_given_up=lambda: time.monotonic() > deadline,
        stdin=b"x" * 1_000_000,
    )
    assert done is not None
    assert done.stdout.strip() == b"1000000"


def test_nobody_queues_for_long_behind_the_fetch_of_another_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream = SingleStore(tmp_path / "upstream.git")
    upstream.commit({("releases", 1): record(1)})
    where = f"file://{upstream.folder}", tmp_path / "mirrors"
    mirror.of_url(*where)
    monkeypatch.setattr(mirror, "PATIENCE_S", 0.1)
    (lock,) = where[1].glob("*.lock")
    told = r"an export that fetches file://.* is already running as process \d+"
    with locks.exclusive(lock, "another"), pytest.raises(TryLater, match=told):
        mirror.of_url(*where)
    mirror.of_url(*where)


def test_why_records_cannot_be_fetched_is_said(tmp_path: Path) -> None:
    upstream = SingleStore(tmp_path / "upstream.git")
    upstream.commit({("releases", 1): record(1)})
    copy = mirror.of_url(f"file://{upstream.folder}", tmp_path / "mirrors")
    upstream.folder.rename(tmp_path / "away.git")
    with pytest.raises(Unavailable, match=r"does not answer: fatal: .*upstream\.git"):
        mirror.fetch_objects(copy.folder, "origin", b"0123456789" * 4 + b"\n")


def test_the_packs_that_exports_of_a_url_leave_are_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "MOST_PACKS", 4)
    upstream = SingleStore(tmp_path / "upstream.git")
    for number in range(1, 13):
        upstream.commit({("releases", number): record(number)})
        copy = mirror.of_url(f"file://{upstream.folder}", tmp_path / "mirrors")
        blob = git(upstream.folder, "rev-parse", f"main:{record_path('releases', number)}")
        mirror.fetch_objects(copy.folder, "origin", blob.encode())
        assert len(packs.find(Repository(copy.folder))) <= 6
    counted = ("rev-list", "--objects", "--all", "--missing=print")
    assert b"?" not in git_process.run(copy.folder, *counted), "nothing was lost"
    # Without the mark of what a remote has sent, Git would take what is not fetched for damage.
    upstream.commit({("releases", 13): record(13)})
    copy = mirror.of_url(f"file://{upstream.folder}", tmp_path / "mirrors")
    git_process.run(copy.folder, "fsck", "--no-progress", "--no-dangling")


def test_a_password_in_a_url_stays_with_git() -> None:
    assert (
        git_process.without_login("https://me:secret@host:8080/a.git") == "https://host:8080/a.git"
    )
    assert git_process.without_login("git@host:a.git") == "git@host:a.git"


@pytest.mark.parametrize(
    ("relative", "url"),
    [
        ("../releases/13.git", "https://host/x/releases/13.git"),
        ("./13.git", None),
        ("../../y/13.git", None),
        ("https://other/13.git", None),
    ],
)
def test_relative_urls_of_submodules_are_seen_from_the_superproject(
    relative: str, url: str | None
) -> None:
    assert mirror.resolved("https://host/x/discogs.git", relative) == url


def stored(environment: dict[str, str], numbers: Iterable[int], text: str = "") -> None:
    """Commit these releases as a worker does."""
    settings = config.load(environ=environment)
    make_ledger(settings.database)
    store = open_store(settings)
    changes = [Edit(number, record(number, text)) for number in numbers]
    store.commit("releases", changes, lambda: [change.id for change in changes], {})


def test_the_store_in_submodules_is_read_up_to_its_last_commit(
    environment: dict[str, str], export: Run
) -> None:
    environment["STORE_LAYOUT"] = "submodules"
    stored(environment, [1, 2, 1_000_001])
    assert export("--format", "ids").stdout == "1\n2\n1000001\n"
    stored(environment, [2, 3_000_000], "new")
    assert export("--format", "status").stdout == (
        "M\treleases/00/00/00/2.json\nA\treleases/03/00/00/3000000.json\n"
    )
    assert export().stdout == ""


def test_only_what_the_remote_has_is_exported(
    tmp_path: Path, environment: dict[str, str], export: Run
) -> None:
    remote = SingleStore(tmp_path / "remote.git")
    remote.commit({("releases", 1): record(1)})
    environment["STORE_REMOTE"] = f"file://{remote.folder}"
    stored(environment, [2])
    assert export().stdout == paths(1, 2)
    folder = tmp_path / "state" / "store" / "discogs.git"
    git(folder, "update-ref", "refs/heads/main", "refs/remotes/origin/main")
    git(folder, "update-ref", "refs/heads/mine", "refs/remotes/origin/main")
    here = SingleStore.__new__(SingleStore)
    here.folder, here.branch = folder, "mine"
    here.commit({("releases", 3): record(3)})
    assert export().stdout == "", "it was not pushed"
    git(folder, "push", "-q", "origin", "mine:main")
    assert export().stdout == paths(3)
