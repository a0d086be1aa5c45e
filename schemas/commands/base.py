"""The base of every command."""

from typing import ClassVar

from schemas.base import Message


class Command(Message):
    """Asks, and may be refused. Who asks and when stands in the handler's context, not here."""

    TYPE: ClassVar[str]
