"""What `kinora jobs plan` prints: the sum and its parts as bars, the verdict on each agent, what to know."""

import io

from rich.console import Console

from kinora.job_plan import job_plan
from tests.unit.domain.test_foreseen import node
from tests.unit.domain.test_outlook import TEXTS, agent, planned


def test_the_plan_is_printed_with_every_part_of_the_sum() -> None:
    plan = planned(TEXTS, [agent(node(64, gpu=80)), agent(node(2), online=False)])
    console = Console(file=io.StringIO(), width=120, color_system=None)
    console.print(job_plan(plan.model_dump(mode="json")), highlight=False)
    told = console.file.getvalue()  # type: ignore[attr-defined]
    best = plan.agents[0].preflight
    assert best is not None
    for part in best.parts:
        assert part.name in told
    assert "node (offline)" in told
    assert "does not fit" in told
    (sum_line,) = (line for line in told.splitlines() if line.startswith("together"))
    assert sum_line.split()[1:] == [f"{best.peak_bytes / 2**30:.2f}", "GiB"]
    for sentence in plan.assumptions:
        assert sentence.split(";")[0] in " ".join(told.split())
