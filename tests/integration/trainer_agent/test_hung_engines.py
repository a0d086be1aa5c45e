"""An engine that hangs holds its job only for so long, and a stop that it ignores is carried out anyway."""

import asyncio
import os
import signal
from pathlib import Path

import psutil
import pytest

from schemas.work import Failed, Progressed, Stopped, Warned
from tests.integration.trainer_agent.conftest import MakeTraining, RunningAgent, engines_of
from tests.integration.trainer_agent.peer import Peer
from trainer_agent.engine_process import EngineProcess
from trainer_agent.errors import EngineSilent
from trainer_agent.settings import AgentSettings
from trainer_agent.silence import Silence

LONG = 20_000
"""Steps that no test waits for."""


@pytest.fixture
def settings(settings: AgentSettings) -> AgentSettings:
    return settings.model_copy(update={"engine_stop_seconds": 1.0})


async def test_a_frozen_engine_is_killed_when_its_time_is_up(tmp_path: Path) -> None:
    async with EngineProcess(("--probe",), folder=tmp_path, log_file=tmp_path / "log") as engine:
        os.kill(engine.pid, signal.SIGSTOP)
        with pytest.raises(EngineSilent) as silent:
            async for _ in engine.updates(Silence(1.0, start_seconds=1.0)):
                pass
        process = psutil.Process(engine.pid)
        assert process.status() == psutil.STATUS_STOPPED
    assert not process.is_running()
    assert silent.value.code == "engine_silent"
    assert silent.value.retryable
    assert "engine_silence_seconds" in silent.value.message


async def test_a_stop_that_a_frozen_engine_ignores_is_carried_out_by_force(
    peer: Peer, agent: RunningAgent, make_training: MakeTraining
) -> None:
    training = await make_training(steps=LONG, checkpoint_every=LONG)
    await training.offer()
    await peer.reported(Progressed, 90)
    (engine,) = engines_of(os.getpid())
    engine.suspend()

    await peer.want(training.held, "stop")

    stopped = await peer.reported(Stopped, 30)
    warned = peer.bodies()[-2]
    assert isinstance(warned, Warned)
    assert warned.code == "stop_escalated"
    assert peer.bodies()[-1] == stopped
    assert stopped.step > 0
    assert not any(isinstance(body, Failed) for body in peer.bodies())
    async with asyncio.timeout(10):
        while engines_of(os.getpid()):  # noqa: ASYNC110 - other processes send no events
            await asyncio.sleep(0.05)
