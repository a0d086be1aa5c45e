"""The checker is checked: known faults are put back into our code, and the simulation has to find each.

| fault | rules that catch it |
|---|---|
| appends do not lock the table | overtaken, seen_gap, stream_hole, view_differs |
| a checkpoint is committed before its rows | view_differs |
| a checkpoint is committed after its rows | view_differs |
| the relay's wake-up has no poll behind it | stuck |
| the shared tail looks before it listens, and never again | stuck, seen_gap |
| a second relay is not fenced | stream_doubled, stream_hole, stream_of_two_epochs, stream_rewritten |
| new code writes into tables of an old version | view_of_two_versions |
| reports are acknowledged before they are committed | report_lost, report_skipped |
| reports are told apart by JetStream's window alone | report_twice, report_out_of_order |
| the relay trusts JetStream's window and begins anew | stream_doubled |
| the command row is written outside the transaction | answer_lost, event_of_nobody, answers_differ |
| a lost COMMIT is told as a conflict | false_conflict, wrong_error |
| the relay goes on from memory | stuck, stream_hole |
| EVENTS is filled anew without a new epoch | refilled_without_epoch, stuck |
| the feed takes `reached` after reading the rows | seen_gap |
| later events of a parked stream are applied | view_differs |
| the board reads the log's end after the page | report_lost, stuck |
| a report is committed over a missing one | report_skipped, report_out_of_order |
"""

from functools import cache

import pytest

from tests.simulation.mutations import MUTATIONS, Mutation
from tests.simulation.rewriting import applied
from tests.simulation.run import Verdict, simulate


@cache
def _unharmed(seed: int, may_fail: tuple[str, ...]) -> Verdict:
    return simulate(seed, may_fail=may_fail)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda one: one.name.replace(" ", "-"))
def test_the_simulation_finds(mutation: Mutation) -> None:
    broken: list[str] = []
    for seed in range(mutation.first, mutation.first + mutation.seeds):
        with applied(mutation.patches):
            verdict = simulate(seed, may_fail=mutation.may_fail)
        broken = [violation.rule for violation in verdict.violations]
        if mutation.rules & set(broken):
            assert not _unharmed(seed, mutation.may_fail).violations, "the fault is what broke the rule"
            return
    pytest.fail(f"{mutation.seeds} seeds did not find it; the last one broke {broken}")
