"""The views answer what the story told, and only to the organization that it belongs to."""

from collections.abc import Sequence
from typing import Any

import pytest
from psycopg import AsyncConnection

from projections import catalogue
from projections.registry import VIEWS
from projections.runner import advance
from projections.views import activity, agents, datasets, jobs, logs, loss_curve, models
from projections.views.jobs import JobView
from schemas.events import agent, dataset, job, model
from schemas.ids import Prefix, derived_id, new_id
from tests.integration.projections.world import Writer
from tests.stories import (
    AGENT,
    DATASET,
    EVERY_EVENT,
    JOB,
    MODEL,
    ORGANIZATION,
    OTHER_AGENT,
    STRANGERS,
    USER,
    WORKSPACE,
    adapter,
    admitted,
    progressed,
    requested,
    started,
    taken,
    whole_agent,
    whole_dataset,
    whole_job,
    whole_model,
)

ADAPTER = derived_id(Prefix.MODEL, JOB, "adapter")


@pytest.fixture
async def fold(connection: AsyncConnection[Any]) -> Any:
    """Fold what the log holds into every view."""
    await catalogue.install(connection)
    for view in VIEWS:
        await catalogue.ensure(connection, view)

    async def fold_all(page_size: int = 7) -> None:
        for view in VIEWS:
            while (step := await advance(connection, view, page_size)) is not None and step.events:
                pass

    return fold_all


@pytest.fixture
async def story(writer: Writer, fold: Any) -> int:
    """One of everything."""
    writer.append(AGENT, *whole_agent())
    writer.append(OTHER_AGENT, *whole_agent("node-2"))
    writer.append(DATASET, *whole_dataset())
    writer.append(MODEL, *whole_model())
    writer.append(JOB, *whole_job())
    (last,) = writer.append(ADAPTER, adapter())
    await fold()
    return last


async def nothing_parked(connection: AsyncConnection[Any]) -> bool:
    return not any(status.parked_streams for status in await catalogue.statuses(connection))


async def test_every_view_has_read_to_the_end(connection: AsyncConnection[Any], story: int) -> None:
    assert {status.view: status.position for status in await catalogue.statuses(connection)} == {
        view.name: story for view in VIEWS
    }
    assert await nothing_parked(connection)


async def test_the_job(connection: AsyncConnection[Any], story: int) -> None:
    found = await jobs.get(connection, ORGANIZATION, JOB)
    assert found is not None
    assert (found.status, found.attempt, found.output_model_id) == ("succeeded", 2, ADAPTER)
    assert [(each.step, each.attempt) for each in found.checkpoints] == [(6, 1)]
    assert found.checkpoints[0].objects[0].path == "optimizer.safetensors"
    assert found.version == len(whole_job())
    (listed,) = await jobs.page(connection, ORGANIZATION, limit=10)
    assert (listed.id, listed.created_at) == (found.id, found.created_at)
    assert JobView.model_validate_json(listed.json).model_dump() == found.model_dump(exclude={"checkpoints"})


async def test_the_curve_keeps_the_points_of_the_attempt_that_counts(
    connection: AsyncConnection[Any], story: int
) -> None:
    curve = await loss_curve.curve(connection, ORGANIZATION, JOB)
    assert [(point.step, point.attempt) for point in curve.points] == [
        *((step, 1) for step in range(1, 7)),
        *((step, 2) for step in range(7, 13)),
    ]
    assert [(each.phase, each.step, each.exact_match, each.token_accuracy) for each in curve.evaluations] == [
        ("before", 0, 0.0, 0.5),
        ("after", 12, 0.75, 0.875),
    ]
    behind = await loss_curve.curve(connection, ORGANIZATION, JOB, after_step=10)
    assert [point.step for point in behind.points] == [11, 12]
    thinned = await loss_curve.curve(connection, ORGANIZATION, JOB, max_points=4)
    assert [point.step for point in thinned.points] == [1, 4, 7, 10, 12]


async def test_an_attempt_from_the_beginning_draws_a_new_curve(
    connection: AsyncConnection[Any], writer: Writer, fold: Any
) -> None:
    writer.append(JOB, *admitted(), *taken(1), progressed(1, 1, 8))
    await fold()
    writer.append(JOB, job.JobQueued(attempt=2, reason="retry"), started(2), progressed(2, 1, 2))
    await fold()
    curve = await loss_curve.curve(connection, ORGANIZATION, JOB)
    assert [(point.step, point.attempt) for point in curve.points] == [(1, 2), (2, 2)]


async def test_log_segments(connection: AsyncConnection[Any], story: int) -> None:
    (segment,) = await logs.segments(connection, ORGANIZATION, JOB)
    assert (segment.attempt, segment.segment, segment.lines, segment.object.path) == (1, 1, 4, "1.log")
    (series,) = await logs.segments(connection, ORGANIZATION, JOB, "series")
    assert series.object.path == "series.jsonl"


async def test_datasets_and_models(connection: AsyncConnection[Any], story: int) -> None:
    found = await datasets.get(connection, ORGANIZATION, DATASET)
    assert found is not None
    assert (found.status, found.attempt, found.facts is not None) == ("ready", 2, True)
    base = await models.get(connection, ORGANIZATION, MODEL)
    tuned = await models.get(connection, ORGANIZATION, ADAPTER)
    assert base is not None
    assert tuned is not None
    assert (base.kind, base.status, tuned.kind, tuned.job_id) == ("base", "ready", "adapter", JOB)
    assert [each.id for each in await models.page(connection, ORGANIZATION, limit=10)] == [ADAPTER, MODEL]


async def test_deleted_things_are_hidden(
    connection: AsyncConnection[Any], writer: Writer, story: int, fold: Any
) -> None:
    writer.append(DATASET, dataset.DatasetDeleted())
    writer.append(MODEL, model.ModelDeleted())
    await fold()
    assert await datasets.get(connection, ORGANIZATION, DATASET) is None
    assert await datasets.page(connection, ORGANIZATION, limit=10) == []
    assert await datasets.page(connection, ORGANIZATION, limit=10, statuses=["deleted"]) == []
    assert await models.get(connection, ORGANIZATION, MODEL) is None
    assert [each.id for each in await models.page(connection, ORGANIZATION, limit=10)] == [ADAPTER]


async def test_agents_show_what_they_work_on(
    connection: AsyncConnection[Any], writer: Writer, fold: Any
) -> None:
    writer.append(AGENT, *whole_agent())
    writer.append(JOB, *admitted(), *taken(1))
    await fold()
    busy = await agents.get(connection, ORGANIZATION, AGENT)
    assert busy is not None
    assert busy.current is not None
    assert (busy.online, busy.current.item_id, busy.current.attempt) == (True, JOB, 1)
    assert busy.capabilities is not None

    writer.append(AGENT, agent.AgentLost(reason="lease_expired"))
    writer.append(JOB, job.LeaseExpired(attempt=1, agent_id=AGENT))
    await fold()
    (lost,) = await agents.page(connection, ORGANIZATION, limit=10)
    assert (lost.online, lost.lost_reason, lost.current) == (False, "lease_expired", None)

    writer.append(DATASET, *whole_dataset()[:4])
    await fold()
    (validating,) = await agents.page(connection, ORGANIZATION, limit=10)
    assert validating.current is not None
    assert validating.current.item_id == DATASET


async def test_activity_is_newest_first(connection: AsyncConnection[Any], story: int) -> None:
    newest = await activity.recent(connection, ORGANIZATION, limit=3)
    assert [each.position for each in newest] == [story, story - 1, story - 2]
    assert newest[0].sentence == f"Adapter “shapes” of {JOB} became a model: rank 8, 12 steps."
    assert (newest[0].actor, newest[0].workspace_id) == (USER, WORKSPACE)
    older = await activity.recent(connection, ORGANIZATION, limit=3, before=newest[-1].position)
    assert older[0].position == story - 3
    of_agent = await activity.recent(connection, ORGANIZATION, limit=10, stream_id=AGENT)
    assert [each.type for each in of_agent] == [
        "kinora.agent.online",
        "kinora.agent.probed",
        "kinora.agent.joined",
        "kinora.agent.enrolment_token_issued",
        "kinora.agent.enrolled",
    ]
    warnings = await activity.recent(connection, ORGANIZATION, limit=50, min_level="warning")
    assert {each.type for each in warnings} == {
        "kinora.job.warning_raised",
        "kinora.job.lease_expired",
        "kinora.dataset.validation_interrupted",
        "kinora.model.validation_interrupted",
    }
    some = await activity.recent(connection, ORGANIZATION, limit=50, types=["kinora.job.requested"])
    assert [each.stream_id for each in some] == [JOB]


async def test_strangers_see_nothing(connection: AsyncConnection[Any], story: int) -> None:
    assert await jobs.get(connection, STRANGERS, JOB) is None
    assert await jobs.checkpoints(connection, STRANGERS, JOB) == ()
    assert await jobs.page(connection, STRANGERS, limit=10) == []
    assert (await loss_curve.curve(connection, STRANGERS, JOB)).points == ()
    assert (await loss_curve.curve(connection, STRANGERS, JOB)).evaluations == ()
    assert await logs.segments(connection, STRANGERS, JOB) == ()
    assert await datasets.get(connection, STRANGERS, DATASET) is None
    assert await datasets.page(connection, STRANGERS, limit=10) == []
    assert await models.get(connection, STRANGERS, MODEL) is None
    assert await models.page(connection, STRANGERS, limit=10) == []
    assert await agents.get(connection, STRANGERS, AGENT) is None
    assert await agents.page(connection, STRANGERS, limit=10) == []
    assert await activity.recent(connection, STRANGERS, limit=10) == []


async def test_events_of_no_organization_are_nobodys_activity(
    connection: AsyncConnection[Any], writer: Writer, fold: Any
) -> None:
    for event in EVERY_EVENT[:3]:
        writer.append(USER, event, organization_id=None)
    await fold()
    assert await activity.recent(connection, ORGANIZATION, limit=10) == []
    assert await nothing_parked(connection)


async def test_pages_hold_every_row_once(connection: AsyncConnection[Any], writer: Writer, fold: Any) -> None:
    mine, theirs = [new_id(Prefix.JOB) for _ in range(7)], new_id(Prefix.JOB)
    for number, job_id in enumerate(mine):
        writer.append(job_id, requested(f"job {number}"))
    writer.append(theirs, requested("theirs"), organization_id=STRANGERS)
    writer.append(
        mine[2], job.JobFailed(attempt=0, code="does_not_fit", message="too large", retryable=False)
    )
    # The same instant for all: then only the id tells one row from the next.
    await fold()
    await connection.execute(
        "UPDATE view_jobs.jobs SET created_at = '2026-01-01' WHERE id = ANY(%s)", [mine[:4]]
    )
    seen: list[str] = []
    after = None
    while page := await jobs.page(connection, ORGANIZATION, limit=2, after=after):
        seen += [each.id for each in page]
        after = (await created_at(connection, page[-1].id), page[-1].id)
    assert sorted(seen) == sorted(mine)
    newer = sorted(mine[4:], key=mine.index, reverse=True)
    assert seen == newer + sorted(mine[:4], reverse=True)
    failed = await jobs.page(connection, ORGANIZATION, limit=10, statuses=["failed", "cancelled"])
    assert [each.id for each in failed] == [mine[2]]


async def created_at(connection: AsyncConnection[Any], job_id: str) -> Any:
    found = await connection.execute("SELECT created_at FROM view_jobs.jobs WHERE id = %s", [job_id])
    (value,) = await found.fetchone() or (None,)
    return value


async def test_text_that_postgresql_cannot_hold_does_not_park(
    connection: AsyncConnection[Any], writer: Writer, fold: Any
) -> None:
    writer.append(JOB, requested("nul \x00 here"))
    await fold()
    found = await jobs.get(connection, ORGANIZATION, JOB)
    assert found is not None
    assert found.name == "nul \ufffd here"
    (told,) = await activity.recent(connection, ORGANIZATION, limit=10)
    assert "nul \ufffd here" in told.sentence


@pytest.mark.parametrize("page_sizes", [(1,), (3, 5), (1000,)])
async def test_the_page_size_makes_no_difference(
    connection: AsyncConnection[Any], writer: Writer, fold: Any, page_sizes: Sequence[int]
) -> None:
    writer.append(JOB, *whole_job())
    for size in page_sizes:
        await fold(size)
    found = await jobs.get(connection, ORGANIZATION, JOB)
    curve = await loss_curve.curve(connection, ORGANIZATION, JOB)
    assert found is not None
    assert (found.status, found.version, len(found.checkpoints)) == ("succeeded", len(whole_job()), 1)
    assert len(curve.points) == 12
