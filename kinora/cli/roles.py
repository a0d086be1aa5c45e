"""`kinora api|orchestrator|projections|auditor|agent`: one process of the service each."""

import structlog
import typer

from kinora.cli.output import door
from kinora.roles import Role
from trainer_agent.errors import ShutOut

log = structlog.get_logger(__name__)


def run_role(role: Role) -> None:
    """Run a role until a signal ends it."""
    # A web server and the export of traces, which no other command should pay.
    from kinora.running import run_role as run

    run(role)


@door
def api() -> None:
    """Run the REST API and live feed (settings: KINORA_SETTINGS_FILE)."""
    run_role("api")


@door
def orchestrator() -> None:
    """Run relay, inbox, policies and leases; a second one waits for its turn."""
    run_role("orchestrator")


@door
def projections(context: typer.Context) -> None:
    """Run the read side, or do something to a read model."""
    if context.invoked_subcommand is None:
        run_role("projections")


@door
def auditor() -> None:
    """Compare stream and read models with the log, for ever; a second one waits for its turn."""
    run_role("auditor")


@door
def agent() -> None:
    """Run the agent of one node."""
    try:
        run_role("agent")
    except ShutOut as error:
        log.error(error.code, error=error.message)  # noqa: TRY400 - a decision of people, no fault to trace
        raise typer.Exit(error.exit_code) from None
