"""What the command line says of bad input: the field, the value, the remedy, a documented exit code."""

import asyncio
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from kinora.cli import output
from kinora.cli.app import app
from schemas import work
from tests.integration.api.running import PASSWORD, Account, Service, Visit
from tests.integration.api.stories import Agent, request_job, start_training
from tests.integration.api.things import Things

SUBMIT = ("jobs", "submit", "--dataset", "{dataset}", "--model", "{model}")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keeps the access token from one command to the next."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "run").mkdir()
    return folder


@pytest.fixture(autouse=True)
def at_home(
    service: Service, accounts: dict[str, Account], monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    monkeypatch.setenv("KINORA_HOME", str(home))
    monkeypatch.setenv("KINORA_URL", service.url)
    monkeypatch.setenv("KINORA_USERNAME", accounts["ada"].username)
    monkeypatch.setenv("KINORA_PASSWORD", PASSWORD)
    monkeypatch.setattr(output.talk, "width", 1000)


def kinora(*arguments: str, things: Things | None = None) -> Result:
    """The command in this process; ids of things are filled in."""
    if things is not None:
        names = {"dataset": things.inputs.dataset_id, "model": things.inputs.model_id}
        names |= {"rejected": things.datasets["rejected"], "waiting": things.waiting_job}
        names |= {"finished": things.finished_job, "others": things.others_job}
        arguments = tuple(argument.format(**names) for argument in arguments)
    return CliRunner().invoke(app, list(arguments))


def parameters(*pairs: str) -> tuple[str, ...]:
    return (*SUBMIT, *(part for pair in pairs for part in ("-p", pair)))


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ((*SUBMIT, "--rank", "0"), 2, ("/rank", "rank is 0; it must be at least 1")),
        ((*SUBMIT, "--rank", "many"), 2, ("/rank", 'rank is "many"; it must be a whole number')),
        (parameters("dropout=1"), 2, ("dropout is 1; it must be less than 1",)),
        (parameters("learning_rate=-1"), 2, ("learning_rate is -1; it must be greater than 0",)),
        (parameters("alpha=NaN", "epochs=x"), 2, ("alpha is NaN", 'epochs is "x"; it must be a number')),
        (parameters("ranc=4"), 2, ('there is no field "ranc"; did you mean rank?',)),
        (parameters("rank=" + "9" * 5000), 2, ("rank is", "must be a whole number")),
        (parameters("rank"), 2, ("'rank' is not name=value", "weight_decay=0.01")),
        (parameters("=4"), 2, ("'=4' is not name=value",)),
        ((*parameters("rank=4"), "--rank", "8"), 2, ("rank is given twice",)),
        (parameters("batch_size=2", "micro_batch_size=4"), 2, ("micro_batch_size 4", "lower it")),
        ((*SUBMIT, "--frames", "9"), 2, ("/hyperparameters/frames", "frames is 9", "has 8")),
        ((*SUBMIT, "--priority", "urgent"), 2, ("/priority", "urgent", "'high'")),
        ((*SUBMIT, "--pool", "A b"), 2, ("/pool", "small letters")),
        (("jobs", "submit", "--dataset", "mine", "--model", "{model}"), 2, ("/dataset_id", "ds_ and 32")),
        (("jobs", "submit", "--dataset", "{rejected}", "--model", "{model}"), 5, ("dataset_rejected",)),
        (("jobs", "ls", "--status", "asleep"), 2, ("status names 'asleep'", "running")),
        (("jobs", "show", ""), 2, ("the id is empty",)),
        (("jobs", "show", "nope"), 4, ("nope", "job_")),
        (("jobs", "show", "{others}"), 4, ("does not exist",)),
        (("jobs", "stop", "{others}"), 4, ("does not exist",)),
        (("jobs", "stop", "{finished}"), 5, ("job_ended", "has succeeded already")),
        (("jobs", "stop", "{waiting}", "--mode", "gently"), 2, ("/mode", "gently", "'graceful'")),
        (("datasets", "rm", f"ds_{1:032x}"), 4, ("does not exist",)),
        (("datasets", "add", "/nowhere"), 2, ("/nowhere is not a folder", "captions.jsonl")),
        (("models", "add", "/nowhere"), 2, ("/nowhere has no config.json",)),
    ],
    ids=lambda given: " ".join(given)[:60] if isinstance(given, tuple) else None,
)
def test_bad_input(arguments: tuple[str, ...], code: int, says: tuple[str, ...], things: Things) -> None:
    result = kinora(*arguments, things=things)
    assert result.exit_code == code, result.output
    said = " ".join(result.stderr.split())
    assert [part for part in says if part not in said] == [], said
    for foreign in ("Traceback", "Input should be", "pydantic", "For further information"):
        assert foreign not in said


def test_a_job_that_failed(things: Things, accounts: dict[str, Account], service: Service) -> None:
    async def failed_job() -> str:
        async with Visit(service) as visit:
            ada = await visit.come_in(accounts["ada"])
            agent = await Agent.enrolled(visit, ada)
            job_id: str = (await request_job(ada, things.inputs))["id"]
            await start_training(agent, job_id)
            failure = work.Failed(code="oom", message="lower frames", retryable=False)
            await agent.report(job_id, failure)
            return job_id

    job_id = asyncio.run(failed_job())
    assert kinora("jobs", "watch", job_id, "--ndjson").exit_code == 6
    shown = kinora("jobs", "show", job_id)
    assert (shown.exit_code, "oom: lower frames" in shown.stderr) == (0, True)


@pytest.mark.parametrize(
    ("variable", "value", "code", "says"),
    [
        ("KINORA_PASSWORD", "wrong horse battery", 3, "wrong_credentials"),
        ("KINORA_PASSWORD", "", 3, "no credentials file"),
        ("KINORA_URL", "http://127.0.0.1:9", 7, "does not answer"),
        ("KINORA_URL", "http://[", 2, "'http://[' is no address"),
        ("KINORA_URL", "nonsense", 2, "write http://HOST:PORT"),
        ("KINORA_URL", "{store}", 7, "is no Kinora"),
    ],
)
def test_no_way_in(
    variable: str,
    value: str,
    code: int,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    service: Service,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("KINORA_HOME", str(tmp_path))  # where no token is kept
    monkeypatch.setenv(variable, value.format(store=service.s3.endpoint_url))
    result = kinora("jobs", "ls")
    assert result.exit_code == code, result.output
    assert says in " ".join(result.stderr.split())
    assert "Traceback" not in result.output


def test_a_kept_session_is_not_for_another_password(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    assert kinora("jobs", "ls").exit_code == 0
    session = (home / "run" / "cli-session.json").read_text()
    assert PASSWORD not in session
    assert kinora("jobs", "ls").exit_code == 0
    assert (home / "run" / "cli-session.json").read_text() == session, "nobody had to log in"
    monkeypatch.setenv("KINORA_PASSWORD", "wrong horse battery")
    result = kinora("jobs", "ls")
    assert (result.exit_code, "wrong_credentials" in result.stderr) == (3, True)


def test_a_job_for_a_pool_without_agents(things: Things) -> None:
    submitted = kinora(*SUBMIT, "--pool", "nopool", things=things)
    assert submitted.exit_code == 0
    assert "no agent is enrolled in pool nopool" in submitted.stderr
    assert "there are agents in default" in submitted.stderr
    assert "is enrolled" not in kinora(*SUBMIT, things=things).stderr

    (job_id,) = re.findall(r"^job_[0-9a-f]{32}$", submitted.stdout, re.MULTILINE)
    assert kinora("jobs", "stop", job_id).exit_code == 0
    assert "none: it was stopped before its first step" in kinora("jobs", "show", job_id).stdout
    assert f"{job_id}  cancelled" in kinora("jobs", "ls").stdout


@pytest.mark.usefixtures("things")
def test_an_agent_is_shut_out_once() -> None:
    admitted = kinora("agents", "enroll", "spare", "--pool", "spare")
    (agent_id,) = re.findall(r"agt_[0-9a-f]{32}$", admitted.stderr, re.MULTILINE)
    assert "is shut out" in kinora("agents", "revoke", agent_id).stderr
    assert "was revoked already" in kinora("agents", "revoke", agent_id).stderr


def test_a_fault_of_the_program_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError("nobody thought of this")

    monkeypatch.setattr("kinora.cli.jobs.connect", broken)
    result = kinora("jobs", "ls")
    assert (result.exit_code, "Traceback" in result.output) == (1, False)
    assert "ZeroDivisionError: nobody thought of this; KINORA_TRACEBACK=1 shows where" in result.stderr
    monkeypatch.setenv("KINORA_TRACEBACK", "1")
    assert isinstance(kinora("jobs", "ls").exception, ZeroDivisionError)
