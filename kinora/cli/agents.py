"""`kinora agents`: list the nodes, admit one, make this machine one, shut one out."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from kinora.cli.datasets import AsJson
from kinora.cli.output import LocalFileError, age, connect, door, print_json, print_table, talk
from kinora.client import Client, Json, at
from kinora.enrolment import join as join_as_agent
from kinora.enrolment import kept_seed
from kinora.settings import SETTINGS_VARIABLE, write_settings
from schemas.api import EnrollAgentBody, EnrolmentTokenBody, RevokeAgentBody
from schemas.settings import NatsUser
from schemas.subjects import DEFAULT_POOL
from trainer_agent.settings import AgentSettings

app = typer.Typer(no_args_is_help=True, help="The machines that train.")

AgentArgument = Annotated[str, typer.Argument(metavar="AGENT", help="Its id: agt_…")]
Hours = Annotated[float, typer.Option(min=1 / 60, max=720, help="How long the token can be spent.")]

SETTINGS_FILE, SEED_FILE, WORK_FOLDER = "agent.json", "nats.seed", "work"


@app.command()
@door
def ls(as_json: AsJson = False) -> None:
    """List agents, newest first."""
    with connect() as client:
        rows = list(client.pages("/agents"))
    if as_json:
        print_json(rows)
        return
    print_table(
        rows,
        {
            "id": lambda row: row["id"],
            "status": _status,
            "pool": lambda row: row["pool"],
            "device": lambda row: (row["capabilities"] or {}).get("device", "–"),
            "works on": lambda row: (row["current"] or {}).get("item_id", "–"),
            "age": lambda row: age(row["created_at"]),
            "name": lambda row: row["name"],
        },
        "No agents yet. Admit one: kinora agents enroll NAME",
    )


@app.command()
@door
def enroll(
    name: Annotated[str, typer.Argument(help="What to call the machine.")],
    pool: Annotated[str, typer.Option(help="The group of machines that share its work.")] = DEFAULT_POOL,
    hours: Hours = 1.0,
    as_json: AsJson = False,
) -> None:
    """Admit a machine, and print the command that it has to run, once."""
    with connect() as client:
        agent = client.post("/agents/enroll", EnrollAgentBody(name=name, pool=pool))
        talk.print(f"agent [bold]{agent['name']}[/] of pool {agent['pool']}: {agent['id']}")
        _print_token(client, agent["id"], hours, as_json=as_json)


@app.command()
@door
def token(agent: AgentArgument, hours: Hours = 1.0, as_json: AsJson = False) -> None:
    """Issue another token for an agent, whose machine was lost or has not joined yet."""
    with connect() as client:
        _print_token(client, agent, hours, as_json=as_json)


@app.command()
@door
def join(
    url: Annotated[str, typer.Argument(help="Address of the API.")],
    token: Annotated[
        str, typer.Argument(envvar="KINORA_ENROLMENT_TOKEN", help="From `kinora agents enroll`.")
    ],
    folder: Annotated[Path, typer.Option(help="Where the agent's settings and work go.")] = Path(
        "kinora-agent"
    ),
) -> None:
    """Make this machine the agent that the token was issued for. Its key is made here and stays here."""
    folder = folder.absolute()
    settings_file = folder / SETTINGS_FILE
    if settings_file.exists():
        raise LocalFileError(
            f"{settings_file} exists: this folder is an agent already; name another --folder, or remove it"
        )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    seed_file = folder / SEED_FILE
    seed = kept_seed(seed_file)
    joined = join_as_agent(url, token, seed)
    settings = AgentSettings(
        agent_id=joined.agent_id,
        organization_id=joined.organization_id,
        pool=joined.pool,
        name=joined.name,
        nats=NatsUser(url=joined.nats_url, jwt=joined.jwt, seed=seed),
        api_url=url,
        work_folder=folder / WORK_FOLDER,
    )
    write_settings(settings_file, settings)
    seed_file.unlink()
    talk.print(f"this machine is agent [bold]{joined.name}[/] of pool {joined.pool}; start it with")
    print(f"{SETTINGS_VARIABLE}={settings_file} kinora agent")


@app.command()
@door
def revoke(
    agent: AgentArgument,
    reason: Annotated[str, typer.Option(help="For the log.")] = "",
    as_json: AsJson = False,
) -> None:
    """Shut an agent out for good; what it works on goes to another one."""
    with connect() as client:
        before = client.get(at("agents", agent))
        answer = client.post(at("agents", agent, "revoke"), RevokeAgentBody(reason=reason))
    if as_json:
        print_json(answer)
        return
    again = "was revoked already" if before["status"] == "revoked" else "is shut out"
    talk.print(f"agent [bold]{escape(answer['name'])}[/] {again}")
    print(answer["id"])


def _status(row: Json) -> str:
    waits = row["status"] == "offline" and row["joined_at"] is None
    return "not joined" if waits else str(row["status"])


def _print_token(client: Client, agent_id: str, hours: float, *, as_json: bool) -> None:
    body = EnrolmentTokenBody(expires_in_seconds=round(hours * 3600))
    issued = client.post(at("agents", agent_id, "enrolment-token"), body)
    if as_json:
        print_json(issued)
        return
    talk.print(f"on the machine, once, until {issued['expires_at'][:16]} UTC:")
    print(f"kinora agents join {client.credentials.url} {issued['token']}")
