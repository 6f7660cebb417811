"""Lines come out sorted, whatever does not fit into memory."""

import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discogs_crawler.dumps import external_sort
from discogs_crawler.dumps.external_sort import sort_lines
from discogs_crawler.dumps.hashfile import key_of


@given(
    lines=st.lists(st.integers(1, 10**9 - 1).map(lambda n: b"%d\tx\n" % n), max_size=300),
    memory=st.integers(1, 20_000),
)
def test_lines_are_sorted_by_id_with_any_memory(
    lines: list[bytes], memory: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp()
    assert list(sort_lines(lines, key_of, folder, memory)) == sorted(lines, key=key_of)


def test_equal_lines_keep_their_order(tmp_path: Path) -> None:
    lines = [b"%d\t%d\n" % (n % 3, n) for n in range(100)]
    assert list(sort_lines(lines, key_of, tmp_path, 500)) == sorted(lines, key=key_of)


def test_a_hundred_thousand_lines_take_little_memory(tmp_path: Path) -> None:
    lines = (b"%d\t%040d\n" % (n * 7919 % 100_003, n) for n in range(1, 100_001))
    tracemalloc.start()
    count = sum(1 for _ in sort_lines(lines, key_of, tmp_path, 1_000_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 100_000
    assert peak < 2_000_000 + (external_sort.FAN_IN + 1) * external_sort.BUFFER_SIZE
    assert not list(tmp_path.iterdir())
