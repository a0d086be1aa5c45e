"""A disk that is full while a checkpoint is saved: a clear failure, and no half checkpoint."""

import asyncio
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from kinora.local.private_file import revealed_json, write_private
from schemas.work import AdapterUploaded, CheckpointStored, Failed
from tests.integration.trainer_agent.conftest import MakeTraining, RunningAgent, engines_of
from tests.integration.trainer_agent.peer import Peer
from tests.mounting import IN_OWN_MOUNTS, need_own_mounts
from trainer_agent.settings import AgentSettings

LONG = 20_000
"""Steps that no test waits for."""


@asynccontextmanager
async def agent_on_a_tiny_disk(settings: AgentSettings, settings_file: Path) -> AsyncIterator[int]:
    """A real agent process whose work folder is 16 MiB; its process id."""
    write_private(settings_file, revealed_json(settings))
    settings.work_folder.mkdir()
    mount_and_be_it = 'mount -t tmpfs -o size=16m tmpfs "$1" && shift && exec "$@"'
    process = await asyncio.create_subprocess_exec(
        *(*IN_OWN_MOUNTS, "sh", "-c", mount_and_be_it, "sh", str(settings.work_folder)),
        *(sys.executable, "-m", "kinora", "agent"),
        env={**os.environ, "KINORA_SETTINGS_FILE": str(settings_file)},
    )
    try:
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 60) == 0


async def test_a_full_disk_fails_the_attempt_with_the_remedy_and_leaves_no_half_checkpoint(
    peer: Peer, make_training: MakeTraining, settings: AgentSettings, tmp_path: Path
) -> None:
    need_own_mounts()
    training = await make_training(steps=LONG)
    await training.offer()
    async with agent_on_a_tiny_disk(settings, tmp_path / "agent.json") as pid:
        await peer.reported(CheckpointStored, 100)
        filler = Path(f"/proc/{pid}/root{settings.work_folder}/filler")  # in the agent's own mounts

        def fill_up() -> None:
            with filler.open("wb", buffering=0) as file:
                for size in (2**16, 2**10):
                    while True:
                        try:
                            file.write(bytes(size))
                        except OSError:
                            break

        await asyncio.to_thread(fill_up)
        failed = await peer.reported(Failed, 60)
        assert (failed.code, failed.retryable) == ("disk_full", True), failed.message
        assert "free space" in failed.message
        assert str(settings.work_folder) not in failed.message
        assert peer.kinds()[-1] == "failed"
        checkpoints = [body for body in peer.bodies() if isinstance(body, CheckpointStored)]
        for stored in checkpoints[-1].objects:  # what was reported is whole
            assert await peer.store.hash(stored.key) == (stored.sha256, stored.size_bytes)


async def test_a_file_that_may_not_grow_is_a_full_disk_too(
    peer: Peer, agent: RunningAgent, make_training: MakeTraining
) -> None:
    training = await make_training(steps=LONG)
    await training.offer()
    await peer.reported(CheckpointStored, 90)
    (engine,) = engines_of(os.getpid())

    # As a quota would: Python ignores the signal, and the write fails.
    _, hard = resource.prlimit(engine.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(engine.pid, resource.RLIMIT_FSIZE, (4096, hard))

    failed = await peer.reported(Failed, 60)
    assert (failed.code, failed.retryable) == ("disk_full", True), failed.message
    steps = [body.step for body in peer.bodies() if isinstance(body, CheckpointStored)]
    assert steps == sorted(set(steps))
    assert not any(isinstance(body, AdapterUploaded) for body in peer.bodies())
