"""No damage makes the splitter crash, hang, or call whole what is not."""

import pytest

from tests.fuzz import spelling
from tests.fuzz.dump import fuzz


def test_no_damage_deceives_the_splitter() -> None:
    assert fuzz(inputs=1_000, seed=20261101) == 0


def test_what_needs_no_parser_is_what_the_parser_says() -> None:
    answered, wrong = spelling.fuzz(inputs=10_000, seed=20261101)
    assert answered > 2_000
    assert wrong == 0


@pytest.mark.long
def test_what_needs_no_parser_is_what_the_parser_says_of_many() -> None:
    assert spelling.fuzz(inputs=2_000_000, seed=20261201)[1] == 0


@pytest.mark.long
def test_no_damage_in_many_dumps_deceives_the_splitter() -> None:
    assert fuzz(inputs=100_000, seed=20261201) == 0
