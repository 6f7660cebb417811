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
