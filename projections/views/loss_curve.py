"""Loss curves: one point per measured step, of the attempt that counts, and the evaluations beside them."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal, LiteralString

from psycopg import AsyncConnection, AsyncCursor
from psycopg.rows import class_row

from projections.documents import ViewModel
from projections.view import Census
from schemas.envelope import Recorded
from schemas.events import job as events


class LossPoint(ViewModel):
    """One optimizer step."""

    step: int
    attempt: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    tokens_per_second: float
    step_seconds: float


class EvaluationPoint(ViewModel):
    """One pass over the held-out clips."""

    step: int
    phase: Literal["before", "during", "after"]
    attempt: int
    examples: int
    loss: float | None
    exact_match: float | None
    evaluated_at: datetime


class LossCurve(ViewModel):
    """What a job's chart is drawn from; empty for a job that has not begun or does not exist."""

    job_id: str
    points: tuple[LossPoint, ...]
    evaluations: tuple[EvaluationPoint, ...]


class LossCurves:
    name = "loss_curve"
    version = 1
    types: tuple[str, ...] | None = (
        events.TrainingStarted.TYPE,
        events.JobProgressed.TYPE,
        events.JobEvaluated.TYPE,
    )
    census: Census = ()
    ddl: tuple[LiteralString, ...] = (
        """
        CREATE TABLE points (
            job_id text NOT NULL,
            organization_id text NOT NULL,
            step integer NOT NULL,
            attempt integer NOT NULL,
            loss double precision NOT NULL,
            learning_rate double precision NOT NULL,
            grad_norm double precision NOT NULL,
            tokens bigint NOT NULL,
            tokens_per_second double precision NOT NULL,
            step_seconds double precision NOT NULL,
            PRIMARY KEY (job_id, step)
        )
        """,
        """
        CREATE TABLE evaluations (
            job_id text NOT NULL,
            organization_id text NOT NULL,
            step integer NOT NULL,
            phase text NOT NULL,
            attempt integer NOT NULL,
            examples integer NOT NULL,
            loss double precision,
            exact_match double precision,
            evaluated_at timestamptz NOT NULL,
            PRIMARY KEY (job_id, step, phase)
        )
        """,
    )

    async def apply(self, cursor: AsyncCursor[Any], events_of_page: Sequence[Recorded]) -> None:
        async with cursor.connection.pipeline():
            for recorded in events_of_page:
                match recorded.event:
                    case events.TrainingStarted() as event:
                        await _forget_beyond(cursor, recorded, event)
                    case events.JobProgressed() as event:
                        await _add_points(cursor, recorded, event)
                    case events.JobEvaluated() as event:
                        await _add_evaluation(cursor, recorded, event)


async def _forget_beyond(cursor: AsyncCursor[Any], recorded: Recorded, event: events.TrainingStarted) -> None:
    """An attempt that goes on from step k repeats whatever an earlier one did after k."""
    values = [recorded.stream_id, event.start_step, event.attempt]
    await cursor.execute("DELETE FROM points WHERE job_id = %s AND step > %s AND attempt < %s", values)
    await cursor.execute("DELETE FROM evaluations WHERE job_id = %s AND step > %s AND attempt < %s", values)


async def _add_points(cursor: AsyncCursor[Any], recorded: Recorded, event: events.JobProgressed) -> None:
    points = event.points
    await cursor.execute(
        """
        INSERT INTO points (job_id, organization_id, attempt,
                            step, loss, learning_rate, grad_norm, tokens, tokens_per_second, step_seconds)
        SELECT %s, %s, %s, fresh.*
          FROM unnest(%s::integer[], %s::float8[], %s::float8[], %s::float8[], %s::bigint[],
                      %s::float8[], %s::float8[]) AS fresh
        ON CONFLICT (job_id, step) DO UPDATE
           SET attempt = excluded.attempt, loss = excluded.loss, learning_rate = excluded.learning_rate,
               grad_norm = excluded.grad_norm, tokens = excluded.tokens,
               tokens_per_second = excluded.tokens_per_second, step_seconds = excluded.step_seconds
        """,
        [
            recorded.stream_id,
            recorded.metadata.organization_id,
            event.attempt,
            [point.step for point in points],
            [point.loss for point in points],
            [point.learning_rate for point in points],
            [point.grad_norm for point in points],
            [point.tokens for point in points],
            [point.tokens_per_second for point in points],
            [point.step_seconds for point in points],
        ],
    )


async def _add_evaluation(cursor: AsyncCursor[Any], recorded: Recorded, event: events.JobEvaluated) -> None:
    await cursor.execute(
        """
        INSERT INTO evaluations
               (job_id, organization_id, step, phase, attempt, examples, loss, exact_match, evaluated_at)
        VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)
        ON CONFLICT (job_id, step, phase) DO UPDATE
           SET attempt = excluded.attempt, examples = excluded.examples, loss = excluded.loss,
               exact_match = excluded.exact_match, evaluated_at = excluded.evaluated_at
        """,
        [
            recorded.stream_id,
            recorded.metadata.organization_id,
            event.step,
            event.phase,
            event.attempt,
            event.evaluation.examples,
            event.evaluation.loss,
            event.evaluation.exact_match,
            recorded.metadata.recorded_at,
        ],
    )


async def curve(
    connection: AsyncConnection[Any],
    organization_id: str,
    job_id: str,
    *,
    after_step: int = 0,
    max_points: int | None = None,
) -> LossCurve:
    """The job's points behind `after_step`, evenly thinned to about `max_points` with the last one kept."""
    async with connection.cursor(row_factory=class_row(LossPoint)) as cursor:
        await cursor.execute(
            """
            SELECT step, attempt, loss, learning_rate, grad_norm, tokens, tokens_per_second, step_seconds
              FROM (SELECT p.*, row_number() OVER (ORDER BY step) AS place, count(*) OVER () AS total
                      FROM view_loss_curve.points p
                     WHERE job_id = %(job_id)s AND organization_id = %(organization_id)s
                       AND step > %(after)s) numbered
             WHERE %(max)s::bigint IS NULL
                OR place = total
                OR (place - 1) %% greatest(ceil(total::numeric / %(max)s)::bigint, 1) = 0
             ORDER BY step
            """,
            {"job_id": job_id, "organization_id": organization_id, "after": after_step, "max": max_points},
        )
        points = tuple(await cursor.fetchall())
    async with connection.cursor(row_factory=class_row(EvaluationPoint)) as cursor:
        await cursor.execute(
            """
            SELECT step, phase, attempt, examples, loss, exact_match, evaluated_at
              FROM view_loss_curve.evaluations
             WHERE job_id = %s AND organization_id = %s
             ORDER BY evaluated_at, step
            """,
            [job_id, organization_id],
        )
        evaluations = tuple(await cursor.fetchall())
    return LossCurve(job_id=job_id, points=points, evaluations=evaluations)
