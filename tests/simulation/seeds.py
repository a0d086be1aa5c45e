"""The seeds that every test run goes through. `make simulate SEEDS=n` goes through more."""

import pytest

from tests.simulation.run import simulate

SEEDS = 240
CHUNK = 15


def chunks(parity: int) -> list[range]:
    """The even or the odd seeds, in chunks that are one test each."""
    whole = range(parity, SEEDS, 2)
    return [whole[start : start + CHUNK] for start in range(0, len(whole), CHUNK)]


def run_all(seeds: range) -> None:
    """Fail with everything that is known of the first seed that breaks a rule."""
    for seed in seeds:
        verdict = simulate(seed)
        assert verdict.operations >= 200, "a seed is at least 200 operations"
        assert len(verdict.faults) >= 5, "and at least 5 faults"
        if verdict.violations:
            pytest.fail("\n".join([*verdict.trace[-60:], str(verdict)]), pytrace=False)
