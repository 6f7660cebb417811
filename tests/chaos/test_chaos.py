"""A few seeded rounds of violence against the whole system; the long form is in __main__.py."""

from pathlib import Path

import pytest

from tests.chaos.system import System

WRONG = ("lost", "not removed", "stale", "consumer differs", "follower differs")
WRONG += ("bugs", "fsck errors", "pins differ", "did not stop")


@pytest.mark.parametrize(
    ("seed", "remote", "submodules"),
    [
        pytest.param(1, False, False, marks=pytest.mark.long),
        pytest.param(2, True, False, marks=pytest.mark.long),
        pytest.param(3, False, True, marks=pytest.mark.long),
        (4, True, True),
    ],
)
def test_after_a_few_bad_days_everything_is_as_upstream_has_it(
    seed: int, remote: bool, submodules: bool, tmp_path: Path
) -> None:
    system = System(tmp_path, seed, remote=remote, submodules=submodules)
    try:
        for _ in range(3):
            system.round()
        system.recover()
        system.judge()
    finally:
        system.close()
    assert {name: system.table[name] for name in WRONG if system.table[name]} == {}
