"""Joining packs: few of them are left, and what is full is not written again."""

import resource
import subprocess
import sys

import pytest

from discogs_crawler import config
from discogs_crawler.config import Settings
from discogs_crawler.maintenance import packs
from discogs_crawler.store import git, layouts
from tests.bench import memory
from tests.conftest import ROOT
from tests.store.test_store import fsck, plain, put  # noqa: F401


def test_full_packs_are_left_alone(
    plain: Settings,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(packs, "SEARCHED", 30)
    monkeypatch.setattr(packs, "FULL", 60)
    store = layouts.open_store(plain)
    put(store, range(1, 101))
    [full] = packs.find(store.repository)
    known = {full}
    for night in range(6):
        for turn in range(6):
            put(store, [1_000 * night + 10 * turn + 200])
        packs.join(store.repository)
        found = packs.find(store.repository)
        now = {pack for pack in found if pack.objects >= 60}
        assert known <= now, "a full pack was written again"
        known = now
        assert len(found) - len(now) <= 4
    assert len(known) > 2
    assert max(pack.objects for pack in known - {full}) <= 120
    fsck(store)
    assert len(list(store.ids("releases"))) == 136


def test_nothing_is_left_of_packs_that_are_joined(plain: Settings) -> None:  # noqa: F811
    """An index of several packs that names one that is gone makes Git read in vain."""
    store = layouts.open_store(plain)
    for number in range(1, 6):
        put(store, [number])
    store.repository.run("multi-pack-index", "write")
    folder = store.repository.path / "objects" / "pack"
    kept, *joined = (pack.file for pack in packs.find(store.repository))
    kept.with_suffix(".keep").touch()
    for file in joined:
        file.with_suffix(".rev").touch()
    packs.join(store.repository)
    [_, made] = sorted(packs.find(store.repository), key=lambda pack: pack.file != kept)
    left = {path.name for path in folder.iterdir()} - {made.file.with_suffix(".rev").name}
    suffixes = [(kept, ".idx"), (kept, ".keep"), (kept, ".pack")]
    suffixes += [(made.file, ".idx"), (made.file, ".pack")]
    assert left == {file.with_suffix(suffix).name for file, suffix in suffixes}
    fsck(store)
    assert list(store.ids("releases")) == [1, 2, 3, 4, 5]


@pytest.mark.long
@pytest.mark.parametrize(
    "script",
    [
        ("maintain_store.py",),
        ("maintain_store.py", "--check"),
        ("export_changes.py", "--consumer", "one", "--format", "jsonl"),
    ],
)
def test_little_memory_is_enough(script: tuple[str, ...], environment: dict[str, str]) -> None:
    """Half of what Git takes by itself with that many records."""
    settings = config.load(environ=environment)
    memory.fill(git.create(settings.store / "discogs.git", "main", "single"), 300_000)
    limit = 96 << 20
    done = subprocess.run(
        [sys.executable, str(ROOT / "bin" / script[0]), *script[1:]],
        env=environment,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
