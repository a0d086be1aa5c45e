"""What the engine is given of this process, and how its end is told."""

import asyncio
import os
from pathlib import Path

from qlora_engine.updates import EngineFailed
from trainer_agent.engine_process import EngineProcess, describe_exit, engine_environment
from trainer_agent.silence import Silence


def test_the_engine_gets_no_secrets() -> None:
    environment = {
        "PATH": "/usr/bin",
        "HOME": "/home/x",
        "CUDA_VISIBLE_DEVICES": "0",
        "KINORA_SETTINGS_FILE": "/run/agent.json",
        "AWS_SECRET_ACCESS_KEY": "s",
        "NATS_PASSWORD": "s",
        "PGPASSWORD": "s",
        "HF_TOKEN": "s",
        "WANDB_API_KEY": "s",
        "GOOGLE_APPLICATION_CREDENTIALS": "/home/x/key.json",
        "TOKENIZERS_PARALLELISM": "false",
    }
    kept = {"PATH", "HOME", "CUDA_VISIBLE_DEVICES", "TOKENIZERS_PARALLELISM"}
    assert set(engine_environment(environment)) == kept


def test_an_exit_is_named_for_people() -> None:
    assert describe_exit(1) == "exited with code 1"
    assert describe_exit(-9) == "was killed by SIGKILL"
    assert describe_exit(-11) == "was killed by SIGSEGV"


async def test_an_update_that_nobody_can_read_ends_the_attempt(
    tmp_path: Path,
) -> None:
    engine = EngineProcess(folder=tmp_path, log_file=tmp_path / "log")
    reader = asyncio.StreamReader()
    reader.feed_data(b'{"kind":"of_a_later_version"}\n{"kind":"cut o')
    reader.feed_eof()
    ours, theirs = os.pipe()
    os.close(theirs)
    pipe, _ = await asyncio.get_running_loop().connect_read_pipe(
        asyncio.Protocol, os.fdopen(ours, "rb", buffering=0)
    )

    await engine._read(reader, pipe)
    (update,) = [update async for update in engine.updates(Silence(5.0))]

    assert isinstance(update, EngineFailed)
    assert (update.code, update.retryable) == ("engine_misbehaved", False)
    assert "of_a_later_version" in update.message
