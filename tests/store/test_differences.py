"""Large differences are read in portions: all of them, and in the same form as in one piece."""

from pathlib import Path

import pytest

from discogs_crawler.config import Settings
from discogs_crawler.export import formats
from discogs_crawler.export.revisions import LeftOut, Subtree
from discogs_crawler.store import git_process, layouts, objects
from discogs_crawler.store.fast_import import Entry
from discogs_crawler.store.layouts import SingleStore
from discogs_crawler.store.objects import EMPTY_TREE
from tests.plain_git import git
from tests.store.test_store import plain, put  # noqa: F401

# In 50 folders of 10,000 ids, in two segments.
IDS = [number * 20_011 + extra for number in range(1, 51) for extra in (0, 1, 5_000)]


@pytest.fixture
def opened(plain: Settings) -> SingleStore:  # noqa: F811
    store = layouts.open_store(plain)
    assert isinstance(store, SingleStore)
    put(store, [1])
    put(store, IDS)
    others = ("README.md", "releases/notes.txt", "releases/00/notes.txt", "releases/ö/05/x.txt")
    made = store.publish(store.tip(), [Entry(path, b"x") for path in others], "by hand\n")
    assert isinstance(made, str)
    return store


def test_portions_are_small_and_together_everything(opened: SingleStore) -> None:
    folder, tip = opened.repository.path, opened.tip() or ""
    for old in (EMPTY_TREE, f"{tip}~2", f"{tip}~1"):
        wanted = git(folder, "-c", "core.quotePath=false", "diff", "--name-only", old, tip)
        found = [change.path for change in objects.differences(folder, old, tip)]
        assert sorted(found) == sorted(wanted.splitlines())
    portions = list(objects.portions(folder, EMPTY_TREE, tip))
    assert len(portions) == 3
    assert max(map(len, portions)) <= 20
    assert list(objects.portions(folder, f"{tip}~1", tip)) == [()]


@pytest.mark.parametrize(
    ("form", "options"), [("names", ["--name-only"]), ("status", ["--name-status"])]
)
def test_an_export_of_much_is_as_git_has_it(
    opened: SingleStore, form: str, options: list[str]
) -> None:
    folder, tip = opened.repository.path, opened.tip() or ""
    segment = git(folder, "rev-parse", f"{tip}:releases/00")
    subtree = Subtree(folder, "releases/00/", EMPTY_TREE, segment)
    assert len(list(objects.portions(folder, EMPTY_TREE, segment, subtree.prefix))) > 1
    blocks = formats.blocks(form, subtree, tip, LeftOut(), end=b"\n")
    lines = b"".join(block for block, _ in blocks).decode().splitlines()
    wanted = git(folder, "diff", *options, EMPTY_TREE, tip, "--", "releases/00").splitlines()
    assert sorted(lines) == sorted(wanted)
    jsonl = formats.blocks("jsonl", subtree, tip, LeftOut(), end=b"\n")
    ids = [number for number in (1, *IDS) if number < 1_000_000]
    assert sum(number for _, number in jsonl) == len(ids)


def test_a_missing_tree_is_told(opened: SingleStore, tmp_path: Path) -> None:
    """Nothing would look like no difference."""
    folder, tip = opened.repository.path, opened.tip() or ""
    copy = tmp_path / "copy.git"
    git(tmp_path, "clone", "-q", "--bare", "--depth=1", f"file://{folder}", str(copy))
    unknown = git(folder, "rev-parse", f"{tip}:releases")
    (copy / "objects" / "pack").rename(tmp_path / "pack")
    for name in (f"{tip}^{{tree}}", unknown):
        data = git_process.run(folder, "cat-file", "tree", name)
        git_process.run(copy, "hash-object", "-t", "tree", "-w", "--stdin", stdin=data)
    with pytest.raises(git_process.GitFailed):
        list(objects.differences(copy, EMPTY_TREE, git(folder, "rev-parse", f"{tip}^{{tree}}")))
