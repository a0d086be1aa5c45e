"""``python -m tests.faults.mutant NAME ROLE``: a role with a known fault put back into its code.

The faults are those of the simulation; here they have to show on real processes, servers and wires.
"""

import sys

from kinora.__main__ import main
from tests.simulation.rewriting import applied
from tests.simulation.test_mutations import MUTATIONS

VISIBLE = (
    "appends do not lock the table",
    "a checkpoint is committed before its rows",
    "a checkpoint is committed after its rows",
    "the relay's wake-up has no poll behind it",
    "the shared tail looks before it listens, and never again",
    "the relay trusts JetStream's window and begins anew",
    "the command row is written outside the transaction",
    "a lost COMMIT is told as a conflict",
    "the relay goes on from memory",
    "EVENTS is filled anew without a new epoch",
    "the feed takes `reached` after reading the rows",
)
"""Faults that can show without agents, rebuilds and a second orchestrator, which the black box has not."""


if __name__ == "__main__":
    name, role = sys.argv[1:]
    (mutation,) = (each for each in MUTATIONS if each.name == name)
    sys.argv = ["kinora", role]
    with applied(mutation.patches):
        sys.exit(main())
