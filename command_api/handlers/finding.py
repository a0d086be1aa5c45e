"""Findings: each is decided alone."""

from collections.abc import Mapping

from command_api.domain import finding
from command_api.handlers.base import Handler, single_aggregate
from schemas.commands import Command
from schemas.commands.finding import OpenFinding, ResolveFinding

HANDLERS: Mapping[type[Command], Handler] = {
    command: single_aggregate(finding.decide, lambda command: command.finding_id)
    for command in (OpenFinding, ResolveFinding)
}
