"""What agents report: told to the job, dataset or model that the attempt is of.

A report names objects by key. Keys outside the attempt's own prefixes are refused here, so that no agent
can make the control plane hand out somebody else's object later.
"""

from collections.abc import Mapping
from typing import assert_never

from command_api.domain import dataset, job, model
from command_api.domain.errors import Invalid
from command_api.domain.fencing import attempt_not_held
from command_api.domain.job_phases import Absent
from command_api.domain.job_reports import output_model_id
from command_api.handlers.base import Changes, Context, Handler, StreamEvents, Streams, reading
from schemas import work
from schemas.commands import Command
from schemas.commands.dataset import InterruptDatasetValidation, JudgeDataset
from schemas.commands.job import ReportAttempt
from schemas.commands.model import InterruptModelValidation, JudgeModel, RegisterAdapter
from schemas.events import Event
from schemas.events.job import AdapterStored, JobSucceeded
from schemas.ids import Prefix, id_prefix
from schemas.objects import StoredObject, adapter_prefix, checkpoint_prefix, log_prefix, validation_prefix


@reading(lambda command: (command.report.item_id,))
def report_attempt(command: ReportAttempt, _context: Context, streams: Streams) -> Changes:
    item_id = command.report.item_id
    loaded = streams.load(item_id)
    _check_keys(command.report, loaded.organization_id or "")
    match id_prefix(item_id):
        case Prefix.DATASET:
            return [StreamEvents(item_id, loaded.version, _on_dataset(loaded.state, command))]
        case Prefix.MODEL:
            return [StreamEvents(item_id, loaded.version, _on_model(loaded.state, command))]
        case _:
            events = job.decide(loaded.state, command)
            return [
                *_output_model(loaded.state, command, events, streams),
                StreamEvents(item_id, loaded.version, events),
            ]


def _output_model(
    state: job.State, command: ReportAttempt, events: list[Event], streams: Streams
) -> list[StreamEvents]:
    """The adapter as a model of its own, before the job's terminal event, whose readers look for it."""
    if not isinstance(command.report.body, work.AdapterUploaded):
        return []  # most reports; the looks below take longer than deciding on those
    stored = next((event for event in events if isinstance(event, AdapterStored)), None)
    if isinstance(state, Absent) or stored is None or not any(isinstance(e, JobSucceeded) for e in events):
        return []
    job_id, request = command.report.item_id, state.history.request
    register = RegisterAdapter(
        model_id=output_model_id(job_id),
        name=request.name or f"adapter of {job_id}",
        owner_id=request.owner_id,
        job_id=job_id,
        base_model_id=request.model_id,
        objects=stored.objects,
        facts=stored.facts,
    )
    loaded = streams.load(register.model_id)
    return [StreamEvents(register.model_id, loaded.version, model.decide(loaded.state, register))]


def _on_dataset(state: dataset.State, command: ReportAttempt) -> list[Event]:
    report, agent_id = command.report, command.agent_id
    match report.body:
        case work.DatasetJudged(facts=facts, manifest=manifest, problems=problems):
            judge = JudgeDataset(
                dataset_id=report.item_id,
                agent_id=agent_id,
                attempt=report.attempt,
                facts=facts,
                manifest=manifest,
                problems=problems,
            )
            return dataset.decide(state, judge)
        case work.Failed() | work.Released() | work.Declined() as ending:
            interrupt = InterruptDatasetValidation(
                dataset_id=report.item_id,
                agent_id=agent_id,
                attempt=report.attempt,
                reason=ending.kind,
                detail=_detail(ending),
            )
            return dataset.decide(state, interrupt)
        case _:
            return _nothing_to_note(command, held=dataset.holds(state, agent_id, report.attempt))


def _on_model(state: model.State, command: ReportAttempt) -> list[Event]:
    report, agent_id = command.report, command.agent_id
    match report.body:
        case work.ModelJudged(facts=facts, content_sha256=content_sha256, problems=problems):
            judge = JudgeModel(
                model_id=report.item_id,
                agent_id=agent_id,
                attempt=report.attempt,
                facts=facts,
                content_sha256=content_sha256,
                problems=problems,
            )
            return model.decide(state, judge)
        case work.Failed() | work.Released() | work.Declined() as ending:
            interrupt = InterruptModelValidation(
                model_id=report.item_id,
                agent_id=agent_id,
                attempt=report.attempt,
                reason=ending.kind,
                detail=_detail(ending),
            )
            return model.decide(state, interrupt)
        case _:
            return _nothing_to_note(command, held=model.holds(state, agent_id, report.attempt))


def _nothing_to_note(command: ReportAttempt, *, held: bool) -> list[Event]:
    """A validation keeps only its verdict; other reports are fenced all the same."""
    report = command.report
    if not held:
        raise attempt_not_held(report.item_id, command.agent_id, report.attempt)
    return []


def _detail(ending: work.Failed | work.Released | work.Declined) -> str:
    match ending:
        case work.Failed(code=code, message=message):
            return f"{code}: {message}"
        case work.Released(reason=reason) | work.Declined(reason=reason):
            return reason
        case _:
            assert_never(ending)


def _check_keys(report: work.Report, organization_id: str) -> None:
    item, attempt = report.item_id, report.attempt
    match report.body:
        case work.CheckpointStored(step=step, objects=objects):
            _under(checkpoint_prefix(organization_id, item, attempt, step), objects)
        case work.AdapterUploaded(objects=objects):
            _under(adapter_prefix(organization_id, item, attempt), objects)
        case work.LogStored(object=stored):
            _under(log_prefix(organization_id, item, attempt), (stored,))
        case work.DatasetJudged(manifest=manifest) if manifest is not None:
            _under(validation_prefix(organization_id, item, attempt), (manifest,))
        case _:
            pass


def _under(prefix: str, objects: tuple[StoredObject, ...]) -> None:
    for stored in objects:
        if stored.key != f"{prefix}/{stored.path}":
            raise Invalid(
                f"object {stored.key} is not {stored.path} under {prefix};"
                " report the object that came with its URL",
                code="object_outside_attempt",
            )


HANDLERS: Mapping[type[Command], Handler] = {ReportAttempt: report_attempt}
