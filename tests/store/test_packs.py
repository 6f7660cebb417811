"""Joining packs: few of them are left, and what is full is not written again."""

import random
import resource
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from discogs_crawler import config, files
from discogs_crawler.config import Settings
from discogs_crawler.errors import BadData
from discogs_crawler.store import git, git_process, layouts, objects, packs
from discogs_crawler.store.git import Repository
from tests.bench import memory
from tests.conftest import ROOT, make_ledger
from tests.store.test_store import fsck, plain, put  # noqa: F401
from tests.store.test_store_remote import bare, machine, opened  # noqa: F401


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


def all_objects(repository: Repository) -> set[bytes]:
    command = ("cat-file", "--batch-all-objects", "--batch-check=%(objectname)", "--unordered")
    return set(repository.run(*command).split())


def test_nothing_is_lost_where_packs_are_split(plain: Settings) -> None:  # noqa: F811
    """With such a limit Git makes of packs the same ones again, and was told to remove them."""
    store = layouts.open_store(plain)
    for number in range(4):
        text = random.Random(number).randbytes(400_000).hex()
        put(store, [number + 1], text)
        put(store, [number + 100], text[::-1])
    store.repository.configure({"pack.packSizeLimit": "1m"})
    before = all_objects(store.repository)
    packs.join(store.repository)
    assert all_objects(store.repository) == before
    assert len(packs.find(store.repository)) == 1
    fsck(store)


def test_a_damaged_pack_ends_the_joining(
    plain: Settings,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Git complains at each of its objects: both sides waited for room in a pipe for ever."""
    monkeypatch.setattr(packs, "SEARCHED", 0)
    store = layouts.open_store(plain)
    for start in (1, 5_000, 10_000):
        put(store, range(start, start + 2_000))
    before = packs.find(store.repository)
    damaged = before[0].file.with_suffix(".pack")
    damaged.chmod(0o644)
    damaged.write_bytes(b"")
    failed: list[BaseException] = []

    def join() -> None:
        try:
            packs.join(store.repository)
        except git_process.GitFailed as error:
            failed.append(error)

    joining = threading.Thread(target=join, daemon=True)
    joining.start()
    joining.join(60)
    assert "too short to be a packfile" in str(failed)
    assert packs.find(store.repository) == before


@pytest.mark.parametrize("size_b", [0, 500, 1_032, 1_100, -1])
def test_an_index_that_is_cut_off_is_named(plain: Settings, size_b: int) -> None:  # noqa: F811
    store = layouts.open_store(plain)
    put(store, range(1, 5))
    put(store, [5])
    index = packs.find(store.repository)[-1].file
    whole = index.read_bytes()
    index.chmod(0o644)
    index.write_bytes(whole[:size_b])
    with pytest.raises(BadData, match="it is cut off") as found:
        packs.join(store.repository)
    command = str(found.value).partition("to make it again: ")[2]
    subprocess.run(command.split(), check=True, stderr=subprocess.DEVNULL, cwd=plain.store)
    assert index.read_bytes() == whole
    packs.join(store.repository)
    fsck(store)


def test_what_the_disk_has_no_room_for_stays_as_it_is(
    plain: Settings,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Git would fill it, and what it had written would stay there for a day."""
    store = layouts.open_store(plain)
    for number in range(1, 4):
        put(store, [number])
    before = packs.find(store.repository)
    free = shutil.disk_usage(plain.store).free
    monkeypatch.setattr(packs, "ROOM_SHARE", 1 / free)
    packs.join(store.repository)
    assert packs.find(store.repository) == before
    assert "3 packs of " in caplog.text
    monkeypatch.undo()
    packs.join(store.repository)
    assert len(packs.find(store.repository)) == 1


def test_a_pack_is_saved_before_the_old_ones_go(
    plain: Settings,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = layouts.open_store(plain)
    for number in range(1, 4):
        put(store, [number])
    before = {pack.file for pack in packs.find(store.repository)}
    saved: list[set[Path]] = []

    def fsync_folder(folder: Path) -> None:
        saved.append({pack.file for pack in packs.find(store.repository)})
        files_fsync_folder(folder)

    files_fsync_folder = files.fsync_folder
    monkeypatch.setattr(files, "fsync_folder", fsync_folder)
    packs.join(store.repository)
    [after] = packs.find(store.repository)
    assert saved == [{*before, after.file}]


def test_an_index_whose_pack_is_still_to_come_stays(plain: Settings) -> None:  # noqa: F811
    """Whoever puts a store back copies the files in the order of their names."""
    store = layouts.open_store(plain)
    put(store, [1])
    [pack] = packs.find(store.repository)
    content = pack.file.with_suffix(".pack").rename(plain.state_dir / "to come")
    packs.join(store.repository)
    content.rename(pack.file.with_suffix(".pack"))
    assert packs.find(store.repository) == [pack]
    fsck(store)


def test_what_a_remote_has_sent_stays_apart(
    tmp_path: Path,
    bare: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a clone without records: what it lacks is named by what the remote has sent."""
    url = f"file://{bare}"
    whole = opened(machine(tmp_path, "a", url, ledger=True))
    put(whole, range(100, 150))
    worker = opened(machine(tmp_path, "b", url))
    for number in range(1, 5):
        put(whole, [number])
        put(worker, [10 + number])
    folder = worker.repository.path / "objects" / "pack"
    assert len(list(folder.glob("*.promisor"))) > 2
    before = all_objects(worker.repository)
    compared: list[str] = []
    introduced = objects.introduced

    def watched(folder: Path, commits: list[str]) -> object:
        compared.extend(commits)
        return introduced(folder, commits)

    with monkeypatch.context() as watching:
        watching.setattr(objects, "introduced", watched)
        packs.join(worker.repository)
    shallow = set((worker.repository.path / "shallow").read_text().split())
    assert shallow, "a commit without parents here seems to have brought the whole store"
    assert compared
    assert not shallow & set(compared)
    assert all_objects(worker.repository) == before
    [sent] = folder.glob("*.promisor")
    assert sent.with_suffix(".idx").exists()
    assert len(packs.find(worker.repository)) == 2
    fsck(worker)
    put(whole, [5])
    put(worker, [15, 100], "new")
    whole.settle()
    assert set(whole.read("releases", range(1, 20))) == {1, 2, 3, 4, 5, 11, 12, 13, 14, 15}


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
    if script[0] == "export_changes.py":
        make_ledger(settings.database)
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
