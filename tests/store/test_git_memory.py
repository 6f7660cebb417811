"""Git's memory is bounded: each process is given the settings, and they follow the machine."""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from discogs_crawler.config import Settings
from discogs_crawler.store import git_memory, layouts
from tests.conftest import ROOT, Run, program
from tests.discogs.world import invented
from tests.importing.test_import_dump import Copy
from tests.store.test_store import put

SETTINGS = (
    "core.bigFileThreshold",
    "core.deltaBaseCacheLimit",
    "core.packedGitLimit",
    "core.packedGitWindowSize",
    "pack.deltaCacheSize",
    "pack.threads",
    "pack.windowMemory",
)


def watched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every git process note what it is given."""
    real, notes = shutil.which("git"), folder / "notes"
    script = f'for name in {" ".join(SETTINGS)}; do {real} config "$name"; done >>"{notes}.$$"\n'
    script += f'echo "$2" >>"{notes}.$$"; exec {real} "$@"'
    monkeypatch.setenv("PATH", program(folder / "bin", "git", script))


def test_every_git_process_is_given_the_limits(
    run: Run,
    settings: Settings,
    environment: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watched(tmp_path, monkeypatch)
    path = {"PATH": os.environ["PATH"]}
    copy = Copy(run, tmp_path, environment, invented(20))
    copy.settings = path
    copy.call("import_dump.py", "-d", copy.accept("--adopt"))
    put(layouts.open_store(settings), [10**8])
    copy.call("export_changes.py", "--consumer", "one", "--format", "jsonl")
    copy.call("maintain_store.py", code=0)
    copy.call("maintain_store.py", "--check", code=65)  # a record behind the ledger's back
    seen: dict[str, set[str]] = {}
    for note in tmp_path.glob("notes.*"):
        *values, command = note.read_text().splitlines()
        seen.setdefault(command, set()).add(" ".join(values))
    seen.pop("", None)  # git version
    wanted = git_memory.configuration()
    assert {
        "fast-import",
        "cat-file",
        "diff-tree",
        "pack-objects",
        "index-pack",
        "rev-list",
    } <= set(seen)
    assert set().union(*seen.values()) == {" ".join(wanted[name] for name in SETTINGS)}


def under(limit_mb: int) -> dict[str, str]:
    """The settings of a process that may have so much memory."""
    code = "import json; from discogs_crawler.store import git_memory as m; "
    done = subprocess.run(
        [sys.executable, "-c", code + "print(json.dumps(m.configuration()))"],
        env={"PYTHONPATH": str(ROOT / "lib")},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, [limit_mb << 20] * 2),
        capture_output=True,
        check=True,
    )
    given: dict[str, str] = json.loads(done.stdout)
    return given


def test_the_settings_follow_the_memory() -> None:
    assert under(512) | {"pack.threads": ""} == {
        "core.bigFileThreshold": "16m",
        "core.deltaBaseCacheLimit": "4m",
        "core.packedGitLimit": "64m",
        "core.packedGitWindowSize": "32m",
        "pack.deltaCacheSize": "8m",
        "pack.threads": "",
        "pack.windowMemory": "16m",
    }
    assert under(512)["pack.threads"] == "1"
    assert under(2_048)["core.deltaBaseCacheLimit"] == "8m"
    assert under(4_096)["core.packedGitLimit"] == "512m"


@pytest.mark.parametrize(
    ("line", "file"),
    [
        ("0::/system.slice/discogs.service", "system.slice/memory.max"),
        ("0::/", "memory.max"),
        ("4:memory:/docker/abc", "memory/docker/abc/memory.limit_in_bytes"),
    ],
)
def test_the_limit_of_a_container_or_a_unit_counts(
    line: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = tmp_path / file
    limit.parent.mkdir(parents=True, exist_ok=True)
    (limit.parent / "memory.high").write_text("max\n")
    limit.write_text("300000000\n")
    assert git_memory.machine_b() > 300_000_000
    monkeypatch.setattr(git_memory, "CGROUPS", tmp_path)
    monkeypatch.setattr(git_memory, "OWN_CGROUP", tmp_path / "own")
    (tmp_path / "own").write_text(f"1:name=systemd:/x\n{line}\n")
    assert git_memory.machine_b() == 300_000_000
