"""``python -m tests.faults.mutant PLACE CODE ROLE``: a role with the failpoints of `PLANTED[PLACE]`.

With the CODE `faulty` it has the known fault as well, which is one of those of the simulation; here they have
to show on real processes, servers and wires.
"""

import sys
from typing import cast

from kinora.__main__ import main
from kinora.roles import Role
from tests.faults import failpoints
from tests.faults.planted import PLANTED
from tests.simulation.rewriting import applied

if __name__ == "__main__":
    place, code, role = sys.argv[1:]
    failpoints.seed_chance(role)
    sys.argv = ["kinora", role]
    with applied(PLANTED[int(place)].patches(cast(Role, role), faulty=code == "faulty")):
        main()
