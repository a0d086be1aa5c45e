from collections.abc import Iterator

from command_api.handlers.registry import HANDLERS
from schemas.commands import Command


def test_every_command_has_a_handler() -> None:
    commands = {command for command in descendants(Command) if command.__module__.startswith("schemas.")}
    assert set(HANDLERS) == commands


def descendants(cls: type[Command]) -> Iterator[type[Command]]:
    """Every command that has a name; some only share their fields with others."""
    for child in cls.__subclasses__():
        if "TYPE" in vars(child):
            yield child
        yield from descendants(child)


def test_command_types_are_unique() -> None:
    assert len({command.TYPE for command in HANDLERS}) == len(HANDLERS)
