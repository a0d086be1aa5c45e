from command_api.handlers.registry import HANDLERS
from schemas.commands import Command


def test_every_command_has_a_handler() -> None:
    commands = {command for command in Command.__subclasses__() if command.__module__.startswith("schemas.")}
    assert set(HANDLERS) == commands


def test_command_types_are_unique() -> None:
    assert len({command.TYPE for command in HANDLERS}) == len(HANDLERS)
