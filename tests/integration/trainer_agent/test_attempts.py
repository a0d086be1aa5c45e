"""A whole agent with the real engine, and the ways in which an attempt ends."""

import asyncio
import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import psutil
from safetensors.numpy import load_file, save_file

from kinora.local.private_file import revealed_json, write_private
from kinora.local.servers import EmbeddedServers
from schemas.datasets import Manifest
from schemas.ids import Prefix, new_id
from schemas.objects import content_key
from schemas.work import (
    AdapterUploaded,
    CheckpointStored,
    DatasetAssignment,
    DatasetJudged,
    Declined,
    Failed,
    HeldItem,
    LogStored,
    ModelAssignment,
    ModelJudged,
    Progressed,
    Released,
    Report,
    Started,
    Stopped,
)
from tests.integration.trainer_agent.conftest import (
    CAPABILITIES,
    MakeTraining,
    RunningAgent,
    engines_of,
    running_agent,
)
from tests.integration.trainer_agent.peer import Peer
from tests.system_fixtures import Samples
from trainer_agent.settings import AgentSettings

LONG = 20_000
"""Steps that no test waits for."""


def numbered(reports: list[Report], held: HeldItem) -> list[int]:
    return sorted({report.sequence for report in reports if report.item_id == held.item_id})


async def logged(peer: Peer) -> list[dict[str, str]]:
    """Every stored line of the log, in order."""
    segments = [body for body in peer.bodies() if isinstance(body, LogStored) and body.content == "log"]
    assert [body.segment for body in segments] == list(range(1, len(segments) + 1))
    texts = [(await peer.store.get_bytes(body.object.key)).decode() for body in segments]
    lines = [json.loads(line) for text in texts for line in text.splitlines()]
    assert len(lines) == sum(body.lines for body in segments)
    return lines


async def engine_of(pid: int) -> psutil.Process:
    """Wait for the engine that `pid` starts."""
    async with asyncio.timeout(30):
        while not (engines := engines_of(pid)):  # noqa: ASYNC110 - other processes send no events
            await asyncio.sleep(0.05)
    return engines[0]


async def gone(pid: int) -> None:
    """Wait until no engine of `pid` is left."""
    async with asyncio.timeout(20):
        while engines_of(pid):  # noqa: ASYNC110 - other processes send no events
            await asyncio.sleep(0.05)


async def test_a_training_from_offer_to_adapter(
    peer: Peer, agent: RunningAgent, make_training: MakeTraining, settings: AgentSettings
) -> None:
    training = await make_training(steps=10)
    await training.offer()
    uploaded = await peer.reported(AdapterUploaded, 90)

    kinds = peer.kinds()
    # A piece of the log is due after ten seconds, which loading may take on a busy machine.
    assert [kind for kind in kinds if kind != "log_stored"][:2] == ["accepted", "started"]
    assert kinds[-1] == "adapter_uploaded"
    assert kinds.index("started") < kinds.index("progressed") < kinds.index("finished")
    assert numbered(peer.reports, training.held) == list(range(1, len(kinds) + 1))
    steps = [point.step for body in peer.bodies() if isinstance(body, Progressed) for point in body.points]
    assert steps == list(range(1, 11))
    assert not uploaded.partial
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {one.path for one in uploaded.objects}
    stored = [body for body in peer.bodies() if isinstance(body, CheckpointStored)]
    assert [body.step for body in stored][:2] == [4, 8]
    for one in (*uploaded.objects, *(each for body in stored for each in body.objects)):
        assert await peer.store.hash(one.key) == (one.sha256, one.size_bytes)
    series = [body for body in peer.bodies() if isinstance(body, LogStored) and body.content == "series"]
    assert [body.lines for body in series] == [10]
    lines = await logged(peer)
    codes = [line["code"] for line in lines]
    assert codes[:5] == ["staging", "loading_data", "loading_model", "preflight", "model_loaded"]
    assert codes.index("data_split") < codes.index("evaluated") < codes.index("step")
    assert codes.index("saving") < codes.index("training_finished")
    assert codes[-1] == "adapter_stored"
    assert codes.count("evaluated") == 2
    assert codes.count("checkpoint_written") == codes.count("checkpoint_stored") == len(stored)
    assert codes.count("step") == sum(isinstance(body, Progressed) for body in peer.bodies())
    assert [line["time"] for line in lines] == sorted(line["time"] for line in lines)
    assert {line["source"] for line in lines} <= {"agent", "engine"}, "libraries printed something"
    live = {text for told in peer.telemetry for text in told.log}
    assert {f"{line['time'][:19]} {line['level']:<7} {line['message']}" for line in lines} == live
    assert {point.step for line in peer.telemetry for point in line.points} == set(range(1, 11))
    assert await peer.queued() == 0
    held = [beat.held for beat in peer.heartbeats]
    assert training.held in held
    await peer.until(lambda: [beat.held for beat in peer.heartbeats][-1:] == [None])
    assert not list(settings.work_folder.glob("attempts/*"))
    assert not list(settings.work_folder.glob("spool/*"))


async def test_a_stopped_training_goes_on_from_its_checkpoint_and_is_given_back_at_shutdown(
    peer: Peer, agent: RunningAgent, make_training: MakeTraining
) -> None:
    training = await make_training(steps=LONG, checkpoint_every=LONG)
    await training.offer()
    await peer.reported(Progressed, 90)
    await peer.want(training.held, "stop")
    stopped = await peer.reported(Stopped, 60)
    assert stopped.step > 0
    assert peer.kinds()[-2:] == ["adapter_uploaded", "stopped"]
    assert [line["code"] for line in await logged(peer)][-2:] == ["adapter_stored", "stopped"]
    uploaded = await peer.reported(AdapterUploaded)
    assert uploaded.partial
    assert uploaded.facts.steps == stopped.step
    checkpoint = await peer.reported(CheckpointStored)
    assert checkpoint.step == stopped.step

    peer.reports.clear()
    peer.desired = "run"
    training.held = training.held.model_copy(update={"attempt": 2})
    training.assignment = training.assignment.model_copy(
        update={"resume_step": stopped.step, "resume_objects": checkpoint.objects}
    )
    await training.offer()
    assert (await peer.reported(Progressed, 90)).points[0].step == stopped.step + 1
    assert (await peer.reported(Started)).start_step == stopped.step
    await agent.ends()
    await peer.reported(Released)
    assert peer.kinds()[-1] == "released"
    assert "adapter_uploaded" not in peer.kinds()
    assert (await peer.reported(CheckpointStored)).step > stopped.step
    assert peer.heartbeats[-1].shutting_down
    assert engines_of(os.getpid()) == []


async def test_an_immediate_stop_is_heard_with_the_heartbeat_too(
    peer: Peer, agent: RunningAgent, make_training: MakeTraining
) -> None:
    training = await make_training(steps=LONG)
    await training.offer()
    await engine_of(os.getpid())
    peer.desired = "stop_immediately"
    assert (await peer.reported(Stopped)).step == 0
    assert "adapter_uploaded" not in peer.kinds()
    codes = [line["code"] for line in await logged(peer)]
    assert (codes[0], codes[-1]) == ("staging", "stopped")
    await gone(os.getpid())


async def test_an_abandoned_attempt_falls_silent(
    peer: Peer, agent: RunningAgent, make_training: MakeTraining, settings: AgentSettings
) -> None:
    training = await make_training(steps=LONG)
    await training.offer()
    await engine_of(os.getpid())
    await peer.want(training.held, "abandon")
    await gone(os.getpid())
    await peer.until(lambda: [beat.held for beat in peer.heartbeats][-1:] == [None])
    assert not {"stopped", "released", "failed"} & set(peer.kinds())
    assert not list(settings.work_folder.glob("spool/*"))


async def test_what_does_not_fit_into_what_the_agent_offers_is_given_back_before_the_first_step(
    peer: Peer, settings: AgentSettings, make_training: MakeTraining
) -> None:
    """Of 1 GiB it keeps a quarter for others, and the libraries take most of the rest."""
    sparing = CAPABILITIES.model_copy(update={"reserved_bytes": 2**28})
    async with running_agent(settings, sparing):
        training = await make_training(steps=LONG)
        await training.offer()
        declined = await peer.reported(Declined, 90)
    assert re.search(
        r"needs \d.* GiB = .* \(an estimate\), but 0\.05 GiB are free here, .*; (choose|take) ",
        declined.reason,
    )
    assert "progressed" not in peer.kinds()
    assert peer.kinds()[-1] == "declined"


async def test_a_killed_engine_is_a_failure_that_may_be_tried_again(
    peer: Peer, agent: RunningAgent, make_training: MakeTraining
) -> None:
    training = await make_training(steps=LONG)
    await training.offer()
    await peer.reported(CheckpointStored, 90)
    (await engine_of(os.getpid())).kill()
    failed = await peer.reported(Failed)
    assert failed.code == "engine_died"
    assert failed.retryable
    assert "SIGKILL" in failed.message
    last = (await logged(peer))[-1]
    assert (last["level"], last["code"]) == ("error", "engine_died")
    assert "SIGKILL" in last["message"]
    assert peer.kinds()[-1] == "failed"


async def test_the_evidence_of_a_loss_that_is_no_number_reaches_the_jobs_log(
    peer: Peer, agent: RunningAgent, make_training: MakeTraining, samples: Samples, tmp_path: Path
) -> None:
    """One broken weight, and every row costs nobody knows what."""
    broken = tmp_path / "broken"
    await asyncio.to_thread(shutil.copytree, samples.model, broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.text_model.norm.weight"][0] = float("nan")
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    training = await make_training(steps=10, held_out=0, base=broken)
    await training.offer()
    failed = await peer.reported(Failed, 90)
    assert (failed.code, failed.retryable) == ("non_finite_loss", False)
    assert "the loss is nan at step 1" in failed.message
    assert "The training's log has all rows" in failed.message
    lines = {line["code"]: line["message"] for line in await logged(peer)}
    assert re.search(r"captions row \d+ \(\S+\) nan", lines["non_finite_evidence"])
    assert lines["non_finite_evidence"] in failed.message
    assert lines["non_finite_rows"].count(" nan") >= 1


async def test_a_killed_agent_leaves_no_engine_and_its_successor_gives_the_attempt_back(
    peer: Peer, make_training: MakeTraining, settings: AgentSettings, tmp_path: Path
) -> None:
    settings_file = tmp_path / "agent.json"
    write_private(settings_file, revealed_json(settings))

    async def start() -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "kinora", "agent"),
            env={**os.environ, "KINORA_SETTINGS_FILE": str(settings_file)},
        )

    training = await make_training(steps=LONG)
    await training.offer()
    first = await start()
    try:
        await peer.reported(CheckpointStored, 100)
        assert len(engines_of(first.pid)) == 1
    finally:
        first.kill()
        await first.wait()
    await gone(first.pid)

    second = await start()
    try:
        await peer.reported(Released, 60)
        assert peer.kinds()[-1] == "released"
        count = len(peer.kinds())
        assert numbered(peer.reports, training.held) == list(range(1, count + 1))
    finally:
        second.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(second.wait(), 60) == 0


async def test_training_goes_on_through_a_restart_of_nats(
    peer: Peer, agent: RunningAgent, make_training: MakeTraining, servers: EmbeddedServers
) -> None:
    training = await make_training(steps=60)
    await training.offer()
    await peer.reported(Progressed, 90)
    await servers.restart("nats")
    await peer.reported(AdapterUploaded, 90)
    mine = [report.sequence for report in peer.reports]
    assert mine == sorted(mine)
    assert numbered(peer.reports, training.held) == list(range(1, max(mine) + 1))


async def test_a_damaged_input_fails_for_good(
    peer: Peer, agent: RunningAgent, make_training: MakeTraining, samples: Samples
) -> None:
    training = await make_training(steps=4)
    listing = json.loads(await peer.store.get_bytes(training.assignment.dataset_listing.key))
    clip = next(file for file in listing["files"] if file["path"].endswith(".mp4"))
    await peer.store.put_bytes(content_key(peer.organization_id, clip["sha256"]), b"rotten")
    await training.offer()
    failed = await peer.reported(Failed)
    assert failed.code == "data_unreadable"
    assert not failed.retryable
    assert clip["path"] in failed.message
    lines = await logged(peer)
    assert [line["code"] for line in lines] == ["staging", "data_unreadable"]
    assert clip["path"] in lines[-1]["message"]


async def test_dataset_and_model_are_judged_although_claims_go_unanswered_or_gone(
    peer: Peer, agent: RunningAgent, samples: Samples
) -> None:
    listing, files = await peer.put_folder(samples.clips)
    dataset = HeldItem(item_id=new_id(Prefix.DATASET), attempt=1)
    peer.answers_claims = False
    await peer.offer(dataset, DatasetAssignment(listing=listing), "validate", "low")
    await peer.until(lambda: len(peer.claims) == 1)
    withdrawn = HeldItem(item_id=new_id(Prefix.DATASET), attempt=1)
    await peer.offer(withdrawn, DatasetAssignment(listing=listing), "validate", "high")
    del peer.assignments[withdrawn]
    peer.answers_claims = True

    judged = await peer.reported(DatasetJudged, 60)
    assert [claim.item_id for claim in peer.claims] == [dataset.item_id, withdrawn.item_id, dataset.item_id]
    assert judged.problems == ()
    assert judged.facts is not None
    assert judged.facts.clips == 24
    assert judged.manifest is not None
    manifest = Manifest.model_validate_json(await peer.store.get_bytes(judged.manifest.key))
    assert {clip.sha256 for clip in manifest.clips} <= {file.sha256 for file in files}

    listing, _ = await peer.put_folder(samples.model)
    model = HeldItem(item_id=new_id(Prefix.MODEL), attempt=1)
    await peer.offer(model, ModelAssignment(listing=listing), "validate")
    verdict = await peer.reported(ModelJudged, 60)
    assert verdict.facts is not None, verdict.problems
    assert verdict.facts.quantized_linear_layers == 27
    assert verdict.content_sha256 is not None
    assert await peer.queued() == 0
    assert {report.item_id for report in peer.reports} == {dataset.item_id, model.item_id}
