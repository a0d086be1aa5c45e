"""What the engine is given of this process, and how its end is told."""

from trainer_agent.engine_process import describe_exit, engine_environment


def test_the_engine_gets_no_secrets() -> None:
    environment = {
        "PATH": "/usr/bin",
        "HOME": "/home/x",
        "CUDA_VISIBLE_DEVICES": "0",
        "KINORA_SETTINGS_FILE": "/run/agent.json",
        "AWS_SECRET_ACCESS_KEY": "s",
        "NATS_PASSWORD": "s",
        "PGPASSWORD": "s",
    }
    assert set(engine_environment(environment)) == {"PATH", "HOME", "CUDA_VISIBLE_DEVICES"}


def test_an_exit_is_named_for_people() -> None:
    assert describe_exit(1) == "exited with code 1"
    assert describe_exit(-9) == "was killed by SIGKILL"
    assert describe_exit(-11) == "was killed by SIGSEGV"
