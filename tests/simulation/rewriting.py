"""Re-introduces known faults: a function of our code with a few words of its source replaced."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any
from unittest import mock


def rewritten(owner: type | ModuleType, name: str, *replacements: tuple[str, str]) -> Any:
    """`owner.name` with its source changed; each replaced text has to be there exactly once.

    Raises:
        LookupError: it is not, so the code has changed and the fault has to follow.
    """
    function: Any = inspect.unwrap(inspect.getattr_static(owner, name))
    source = inspect.getsource(function)
    for old, new in replacements:
        if source.count(old) != 1:
            raise LookupError(
                f"{owner.__name__}.{name} holds {old!r} {source.count(old)} times;"
                " the code has changed, so bring the fault up to date"
            )
        source = source.replace(old, new)
    names: dict[str, Any] = {}
    if source[0] == " ":
        source = f"if True:\n{source}"
    exec(compile(source, f"<{name} with a fault>", "exec"), function.__globals__, names)
    return names[function.__name__]


def fault(owner: type | ModuleType, name: str, *replacements: tuple[str, str]) -> "Patch":
    """`owner.name`, replaced by itself with its source changed."""
    return lambda: mock.patch.object(owner, name, rewritten(owner, name, *replacements))


Patch = Callable[[], Any]


@contextmanager
def applied(patches: Sequence[Patch]) -> Iterator[None]:
    """All patches at once."""
    with ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch())
        yield
