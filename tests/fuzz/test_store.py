"""Hostile stores: nothing crashes, is written elsewhere, or taken for a record."""

from pathlib import Path

import pytest

from tests.fuzz.store import run

# Long enough for every outcome to occur.
SAMPLE = 24


def test_a_hostile_store_neither_harms_nor_deceives(tmp_path: Path) -> None:
    outcomes = run(iter(range(SAMPLE)), tmp_path)
    assert any(outcome.refused for outcome in outcomes)
    assert any(outcome.warned for outcome in outcomes)
    assert sum(outcome.records for outcome in outcomes) >= SAMPLE / 2


@pytest.mark.long
def test_very_many_hostile_stores_do_not_either(tmp_path: Path) -> None:
    run(iter(range(SAMPLE, 5_000)), tmp_path)
