"""Loss curves: one point per measured step, of the attempt that counts, and the evaluations beside them."""

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal, LiteralString

from psycopg import AsyncConnection, AsyncCursor
from psycopg.rows import class_row

from projections.documents import ViewModel
from projections.view import Census, Row, Table
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
    token_accuracy: float | None
    evaluated_at: datetime


class LossCurve(ViewModel):
    """What a job's chart is drawn from; empty for a job that has not begun or does not exist."""

    job_id: str
    points: tuple[LossPoint, ...]
    evaluations: tuple[EvaluationPoint, ...]


class LossCurves:
    name = "loss_curve"
    version = 2
    types: tuple[str, ...] | None = (
        events.TrainingStarted.TYPE,
        events.JobProgressed.TYPE,
        events.JobEvaluated.TYPE,
    )
    census: Census = ()
    tables: tuple[Table, ...] = (
        Table(
            name="points",
            stream="job_id",
            columns=(
                "job_id text NOT NULL",
                "organization_id text NOT NULL",
                "step integer NOT NULL",
                "attempt integer NOT NULL",
                "loss double precision NOT NULL",
                "learning_rate double precision NOT NULL",
                "grad_norm double precision NOT NULL",
                "tokens bigint NOT NULL",
                "tokens_per_second double precision NOT NULL",
                "step_seconds double precision NOT NULL",
            ),
            key="job_id, step",
        ),
        Table(
            name="evaluations",
            stream="job_id",
            columns=(
                "job_id text NOT NULL",
                "organization_id text NOT NULL",
                "step integer NOT NULL",
                "phase text NOT NULL",
                "attempt integer NOT NULL",
                "examples integer NOT NULL",
                "loss double precision",
                "exact_match double precision",
                "token_accuracy double precision",
                "evaluated_at timestamptz NOT NULL",
            ),
            key="job_id, step, phase",
        ),
    )

    def begin(self) -> "CurveFold":
        return CurveFold()

    async def apply(self, cursor: AsyncCursor[Any], events_of_page: Sequence[Recorded]) -> None:
        curves: defaultdict[str, CurveFold] = defaultdict(CurveFold)
        for recorded in events_of_page:
            curves[recorded.stream_id].add(recorded)
        cuts = [(job_id, step, attempt) for job_id, one in curves.items() for step, attempt in one.cuts]
        points = [row for one in curves.values() for row in one.points.values()]
        evaluations = [row for one in curves.values() for row in one.evaluations.values()]
        async with cursor.connection.pipeline():
            # What was there before the page is cut first: the page's own points are cut already.
            if cuts:
                await cursor.execute(_CUT_POINTS, _columns(cuts))
                await cursor.execute(_CUT_EVALUATIONS, _columns(cuts))
            if points:
                await cursor.execute(_PUT_POINTS, _columns(points))
            if evaluations:
                await cursor.execute(_PUT_EVALUATIONS, _columns(evaluations))


class CurveFold:
    """A job's points and evaluations as far as these events tell, and what they take back of earlier ones."""

    def __init__(self) -> None:
        self.points: dict[int, Row] = {}
        self.evaluations: dict[tuple[int, str], Row] = {}
        self.cuts: list[tuple[int, int]] = []
        """Step and attempt: who goes on from step k repeats whatever an earlier attempt did after k."""

    def add(self, recorded: Recorded) -> None:
        match recorded.event:
            case events.JobProgressed() as event:
                stream_id, organization_id = recorded.stream_id, recorded.metadata.organization_id
                attempt = event.attempt
                for point in event.points:
                    self.points[point.step] = (
                        stream_id,
                        organization_id,
                        point.step,
                        attempt,
                        point.loss,
                        point.learning_rate,
                        point.grad_norm,
                        point.tokens,
                        point.tokens_per_second,
                        point.step_seconds,
                    )
            case events.TrainingStarted(start_step=start, attempt=attempt):
                self.cuts.append((start, attempt))
                self.points = {
                    step: row for step, row in self.points.items() if step <= start or row[3] >= attempt
                }
                self.evaluations = {
                    key: row for key, row in self.evaluations.items() if key[0] <= start or row[4] >= attempt
                }
            case events.JobEvaluated() as event:
                self.evaluations[event.step, event.phase] = (
                    recorded.stream_id,
                    recorded.metadata.organization_id,
                    event.step,
                    event.phase,
                    event.attempt,
                    event.evaluation.examples,
                    event.evaluation.loss,
                    event.evaluation.exact_match,
                    event.evaluation.token_accuracy,
                    recorded.metadata.recorded_at,
                )
            case _:
                pass

    def rows(self) -> dict[str, list[Row]]:
        return {"points": list(self.points.values()), "evaluations": list(self.evaluations.values())}


_CUT_POINTS: LiteralString = """
DELETE FROM points p
 USING unnest(%s::text[], %s::integer[], %s::integer[]) AS cut (job_id, step, attempt)
 WHERE p.job_id = cut.job_id AND p.step > cut.step AND p.attempt < cut.attempt
"""
_CUT_EVALUATIONS: LiteralString = _CUT_POINTS.replace("FROM points", "FROM evaluations")
_PUT_POINTS: LiteralString = """
INSERT INTO points (job_id, organization_id, step, attempt, loss, learning_rate, grad_norm, tokens,
                    tokens_per_second, step_seconds)
SELECT * FROM unnest(%s::text[], %s::text[], %s::integer[], %s::integer[], %s::float8[], %s::float8[],
                     %s::float8[], %s::bigint[], %s::float8[], %s::float8[])
ON CONFLICT (job_id, step) DO UPDATE
   SET attempt = excluded.attempt, loss = excluded.loss, learning_rate = excluded.learning_rate,
       grad_norm = excluded.grad_norm, tokens = excluded.tokens,
       tokens_per_second = excluded.tokens_per_second, step_seconds = excluded.step_seconds
"""
_PUT_EVALUATIONS: LiteralString = """
INSERT INTO evaluations
       (job_id, organization_id, step, phase, attempt, examples, loss, exact_match, token_accuracy,
        evaluated_at)
SELECT * FROM unnest(%s::text[], %s::text[], %s::integer[], %s::text[], %s::integer[], %s::integer[],
                     %s::float8[], %s::float8[], %s::float8[], %s::timestamptz[])
ON CONFLICT (job_id, step, phase) DO UPDATE
   SET attempt = excluded.attempt, examples = excluded.examples, loss = excluded.loss,
       exact_match = excluded.exact_match, token_accuracy = excluded.token_accuracy,
       evaluated_at = excluded.evaluated_at
"""


def _columns(rows: Sequence[Row]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]


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
            SELECT step, phase, attempt, examples, loss, exact_match, token_accuracy, evaluated_at
              FROM view_loss_curve.evaluations
             WHERE job_id = %s AND organization_id = %s
             ORDER BY evaluated_at, step
            """,
            [job_id, organization_id],
        )
        evaluations = tuple(await cursor.fetchall())
    return LossCurve(job_id=job_id, points=points, evaluations=evaluations)
