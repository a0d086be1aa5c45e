"""What would happen if a job was requested: its figures, whether it fits on which agent, and what to know."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from command_api.domain.plan import Plan, facts_of, fits, foreseen, plan_training, too_large
from command_api.domain.reckoning import LEAST, LIKELY, MOST, all_frames, load, training_rows
from schemas.datasets import DatasetFacts, Manifest, ModelFacts
from schemas.events.agent import AgentProfile, Capabilities
from schemas.events.job import JobRequested
from schemas.footprint import ModelShape, Preflight
from schemas.job_plan import AgentOutlook, Caution, JobPlan, Range, Verdict
from schemas.preflight import (
    DISPATCH_SECONDS,
    ERROR,
    FLOPS,
    WATTS,
    Device,
    Workload,
    dispatches,
    predict,
    room,
    timed,
)
from schemas.training import Hyperparameters

SPEED_DOUBT = 3.0
"""Nodes of one kind are up to so many times faster or slower than is assumed of them."""
_GIB = 2**30
_FRAMES_SHARE = 4
"""Of what is free the engine keeps at most one part in so many for frames."""
_MOST_FRAME_BYTES = 8 << 30


@dataclass(frozen=True)
class PoolAgent:
    """An agent of the job's pool."""

    agent_id: str
    name: str
    online: bool
    capabilities: Capabilities | None


@dataclass(frozen=True)
class _Loads:
    """The same steps by three densities."""

    least: Workload
    likely: Workload
    most: Workload
    longest: float
    """Tokens of the longest row, likely."""

    def range(self, name: str) -> Range:
        least, likely, most = (float(getattr(each, name)) for each in (self.least, self.likely, self.most))
        return _range(least, likely, most)


def job_plan(
    request: JobRequested,
    manifest: Manifest,
    dataset: DatasetFacts,
    model: ModelFacts,
    agents: Sequence[PoolAgent],
) -> JobPlan:
    """
    Args:
        dataset: what its validation found, beyond what the manifest says.
        agents: those of the job's pool that are not revoked.
    """
    chosen, facts = request.hyperparameters, facts_of(manifest)
    plan = plan_training(facts, chosen)
    loads = _loads(manifest, request.model_shape, chosen, plan)
    probed = [agent.capabilities for agent in agents if agent.capabilities is not None]
    outlooks = [_on(agent, request.model_shape, loads, chosen) for agent in agents]
    return JobPlan(
        hyperparameters=chosen,
        pool=request.pool,
        total_steps=plan.total_steps,
        training_examples=plan.training_examples,
        held_out_examples=plan.held_out_examples,
        epochs=plan.epochs,
        tokens=loads.range("total_tokens"),
        largest_pass_tokens=loads.range("tokens"),
        agents=tuple(sorted(outlooks, key=lambda each: -(each.room_bytes or 0))),
        refusal=_refusal(request, facts, plan, probed),
        warnings=tuple(_warnings(request, plan, loads, dataset, model, agents)),
        assumptions=tuple(_assumptions(sorted({node.profile for node in probed}))),
    )


def _loads(manifest: Manifest, shape: ModelShape | None, chosen: Hyperparameters, plan: Plan) -> _Loads:
    known = shape or ModelShape(parts=(), dense_parameters=0, vocabulary=1)

    least, likely, most = (
        training_rows(manifest, known, chosen, density) for density in (LEAST, LIKELY, MOST)
    )
    steps, kept = plan.total_steps, all_frames(manifest, known, chosen)
    largest = partial(load, together=True, frame_bytes=kept, held_out=plan.held_out_examples)
    return _Loads(
        load(least, steps, chosen, together=False),
        largest(likely, steps, chosen),
        largest(most, steps, chosen),
        max(row.tokens for row in likely),
    )


def _on(agent: PoolAgent, shape: ModelShape | None, loads: _Loads, chosen: Hyperparameters) -> AgentOutlook:
    node = agent.capabilities
    if node is None or shape is None:
        missing = "it was not probed yet" if node is None else "the model's sizes are not known"
        return AgentOutlook(
            agent_id=agent.agent_id, name=agent.name, online=agent.online, verdict="unknown", reason=missing
        )
    gpu = node.profile in ("cuda", "jetson")
    processes = chosen.processes or max(1, node.gpus)
    space = room(node, processes)
    where = Device.of(gpu=gpu, chosen=chosen)

    def predicted(work: Workload) -> Preflight:
        kept = min(work.frame_bytes, node.memory_bytes // _FRAMES_SHARE, _MOST_FRAME_BYTES)
        given = predict(shape, work.keeping(kept), chosen, where)
        sharing = min(processes, max(1, node.gpus))
        return timed(given, node.profile, devices=sharing, dispatches=dispatches(shape, work, chosen))

    least, likely, most = map(predicted, (loads.least, loads.likely, loads.most))
    verdict, reason = _verdict(least.peak_bytes, likely.peak_bytes, space)
    return AgentOutlook(
        agent_id=agent.agent_id,
        name=agent.name,
        online=agent.online,
        verdict=verdict,
        reason=reason,
        profile=node.profile,
        device=node.device,
        room_bytes=space,
        processes=processes,
        compute_dtype="bfloat16" if where.half else "float32",
        preflight=likely,
        peak_bytes=_range(least.peak_bytes, likely.peak_bytes, most.peak_bytes),
        seconds=_doubted(least.seconds, likely.seconds, most.seconds),
        watt_hours=_doubted(least.watt_hours, likely.watt_hours, most.watt_hours),
    )


def _verdict(least: int, likely: int, space: int) -> tuple[Verdict, str]:
    has = f"of {space / _GIB:.2f} GiB that a training may take there"
    if likely * ERROR <= space:
        return "fits", f"about {likely / _GIB:.2f} GiB {has}"
    if least <= space:
        return (
            "may_fit",
            f"{least / _GIB:.2f} GiB at least, about {likely / _GIB:.2f} GiB {has}; the engine, which counts"
            " the tokens of every row, decides before the first step",
        )
    return "does_not_fit", f"{least / _GIB:.2f} GiB at least {has}"


def _range(least: float, likely: float, most: float) -> Range:
    return Range(least=min(least, likely), likely=likely, most=max(most, likely))


def _doubted(least: float | None, likely: float | None, most: float | None) -> Range | None:
    if least is None or likely is None or most is None:
        return None
    return _range(least / SPEED_DOUBT, likely, most * SPEED_DOUBT)


def _refusal(
    request: JobRequested, facts: DatasetFacts, plan: Plan, nodes: Sequence[Capabilities]
) -> Caution | None:
    """As the job's admission decides."""
    preflight = foreseen(request, facts, plan, nodes)
    if preflight is None or any(fits(preflight, node) for node in nodes):
        return None
    return Caution(code="does_not_fit", message=too_large(preflight, nodes))


def _warnings(
    request: JobRequested,
    plan: Plan,
    loads: _Loads,
    dataset: DatasetFacts,
    model: ModelFacts,
    agents: Sequence[PoolAgent],
) -> Iterator[Caution]:
    chosen = request.hyperparameters
    if not any(agent.online for agent in agents):
        none = "no agent" if not agents else f"none of the {len(agents)} agents"
        yield Caution(
            code="no_agent_online",
            message=f"{none} of pool {request.pool} is online, so the job would wait; start one, or choose"
            " another pool",
        )
    if request.model_shape is None:
        yield Caution(
            code="sizes_unknown",
            message="the model was validated before its sizes were looked at, so nothing is said of memory"
            " and time; register it again",
        )
    if chosen.held_out_fraction > 0 and not plan.held_out_examples:
        yield Caution(
            code="nothing_held_out",
            message="there are fewer than 5 different clips or texts, so all are trained on and nothing is"
            " evaluated; add some",
        )
    if loads.longest > model.context_tokens:
        yield Caution(
            code="sequence_may_be_too_long",
            message=f"the longest row comes to about {loads.longest:,.0f} tokens, but the model's context has"
            f" {model.context_tokens:,}; lower frames or shorten the row, or the job will be refused",
        )
    budget = chosen.tokens_per_micro_batch
    if budget is not None and loads.longest > budget:
        yield Caution(
            code="row_may_exceed_budget",
            message=f"the longest row comes to about {loads.longest:,.0f} tokens, but tokens_per_micro_batch"
            f" is {budget:,}; raise it, lower frames or shorten the row, or the job will be refused",
        )
    if dataset.refused_rows or dataset.quarantined_clips:
        yield Caution(
            code="rows_left_out",
            message=f"{dataset.refused_rows} rows and {dataset.quarantined_clips} clips of the dataset were"
            " left out when it was validated; the dataset says why",
        )


def _assumptions(profiles: Sequence[AgentProfile]) -> Iterator[str]:
    yield (
        f"A token is {LIKELY.characters:g} characters of text ({MOST.characters:g} to {LEAST.characters:g});"
        " the engine asks the model's own tokenizer before the first step."
    )
    yield "The largest examples of the dataset come together in one forward pass; at least, average ones do."
    for profile in profiles:
        yield (
            f"A node of profile {profile} computes {FLOPS[profile] / 1e12:g} TFLOP/s"
            f" (a third to three times that), sets off a layer in {DISPATCH_SECONDS * 1e3:g} ms and draws"
            f" {WATTS[profile]:g} W."
        )
    yield "Time and energy are those of the optimizer steps, without loading, evaluations and checkpoints."
