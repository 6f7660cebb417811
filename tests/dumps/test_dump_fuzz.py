"""No damage makes the splitter crash, hang, or call whole what is not."""

import pytest

from tests.fuzz.dump import fuzz


def test_no_damage_deceives_the_splitter() -> None:
    assert fuzz(inputs=1_000, seed=20261101) == 0


@pytest.mark.long
def test_no_damage_in_many_dumps_deceives_the_splitter() -> None:
    assert fuzz(inputs=100_000, seed=20261201) == 0
