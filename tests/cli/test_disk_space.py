"""A disk that fills up is announced before anything fails; on a real one, of 64 MB."""

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from discogs_crawler.cli import disk_space
from discogs_crawler.config import Settings
from discogs_crawler.ledger import database
from discogs_crawler.ledger.rows import Row
from discogs_crawler.store import layouts
from tests.conftest import ROOT
from tests.store.test_store import put
from tests.test_unattended import watcher  # noqa: F401

NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount")

SCRIPT = """
mount -t tmpfs -o size=64m tmpfs "$STATE_DIR" && cp -a "$COPY/." "$STATE_DIR" || exit 99
bin() { echo "== $*"; "$PYTHON" "$ROOT/bin/$@" 2>&1; }
bin stats.py; bin maintain_store.py
head -c 62000000 /dev/zero >"$STATE_DIR/filler"
bin stats.py; bin maintain_store.py; bin maintain_store.py --merge
bin stats.py --prometheus "$OUT/metrics" --html "$OUT/page.html" --json
"""


@pytest.fixture
def small_disk() -> None:
    """Skips where nobody may mount one."""
    if not shutil.which("unshare") or subprocess.run([*NAMESPACE, "true"], check=False).returncode:
        pytest.skip("no file system can be mounted here")


@pytest.mark.usefixtures("small_disk")
def test_a_disk_that_fills_up_is_announced(
    settings: Settings,
    environment: dict[str, str],
    tmp_path: Path,
    watcher,  # noqa: F811
) -> None:
    put(layouts.open_store(settings), [1])
    with database.open(settings.database) as ledger, ledger.transaction():
        ledger.save("releases", [Row(1, alive=1, crawled=1, status=200)])
    copy = settings.state_dir.rename(tmp_path / "copy")
    settings.state_dir.mkdir()
    variables = {"COPY": copy, "OUT": tmp_path, "PYTHON": sys.executable, "ROOT": ROOT}
    done = subprocess.run(
        [*NAMESPACE, "sh", "-c", SCRIPT],
        env=environment
        | {k: str(v) for k, v in variables.items()}
        | {"HEALTHCHECK_URL": watcher.url},
        capture_output=True,
        text=True,
        check=True,
    )
    parts = dict(enumerate(re.split(r"^== .*\n", done.stdout, flags=re.MULTILINE)))
    assert "nearly full" not in parts[1] + parts[2]
    words = f"the disk of {settings.store} (store, ledger, dumps, state) is nearly full: "
    assert "".join(f"! {words}".split()) in "".join(parts[3].split())
    assert parts[4].startswith(f"maintain_store.py: {words}")
    assert parts[4].count("\n") == 1, "one line in a mail, once a night"
    assert parts[5] == ""
    assert words in parts[6]
    assert '"nearly_full": true' in parts[6]
    assert "nearly full" in (tmp_path / "page.html").read_text()
    assert re.search(
        r"^discogs_crawler_disk_free_bytes\{.*\} \d+$", (tmp_path / "metrics").read_text(), re.M
    )
    ends = [ping for ping in watcher.pings if not ping.endswith("/start")]
    assert ends == ["/secret-key"] * 2 + ["/secret-key/fail"] * 4


@pytest.mark.parametrize(
    ("size_gb", "free_gb", "nearly_full"),
    [(10, 0.9, True), (10, 1.1, False), (250, 2.4, True), (250, 2.6, False), (2, 0.3, False)],
)
def test_one_percent_or_a_gigabyte(size_gb: float, free_gb: float, nearly_full: bool) -> None:
    disk = disk_space.Disk("/", "store", int(free_gb * 1e9), int(size_gb * 1e9))
    assert disk.nearly_full is nearly_full


def test_each_disk_is_named_once(settings: Settings) -> None:
    found = disk_space.disks(dataclasses.replace(settings, dump_dir=Path("/dev/shm/none/yet")))
    assert [disk.holds for disk in found] in (
        ["store, ledger, state", "dumps"],
        ["store, ledger, dumps, state"],  # all on one
    )
    assert found[0].size_bytes > found[0].free_bytes > 0
    assert os.statvfs(found[0].path).f_blocks
