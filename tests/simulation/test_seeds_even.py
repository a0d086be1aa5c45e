"""Every second seed; the others are in a file of their own, so that two workers share them."""

import pytest

from tests.simulation.seeds import chunks, run_all


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seeds", chunks(0), ids=lambda seeds: f"from-{seeds[0]}")
def test_nothing_is_lost_doubled_or_out_of_order(seeds: range) -> None:
    run_all(seeds)
