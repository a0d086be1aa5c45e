"""A process that renders conversations with a stranger's chat template, within limits: see `template_judge`.

A conversation is a line of JSON on stdin, its reply a line on stdout. Free of torch, families and tokenizers,
so that it stands within a second. Run: ``python -m qlora_engine.models.template_renderer PARENT_PID``.
"""

import math
import os
import resource
import sys
from collections.abc import Callable
from typing import Any

import psutil

from qlora_engine.imports import uncollected
from qlora_engine.parent import die_with_parent
from schemas.base import Message

CPU_SECONDS = 3
MEMORY_BYTES = 1 << 30
MOST_CHARACTERS = 1 << 20
OUT_OF_MEMORY = 5
"""An exit code; who needs too much time is killed."""
TOO_LONG = 6


class Conversation(Message):
    template: str
    messages: tuple[dict[str, Any], ...]
    ask: bool
    """Whether the beginning of another answer is wanted."""
    options: dict[str, Any]
    """What else the template sees, such as the tokenizer's special tokens."""


class Rendered(Message):
    text: str | None
    """None where the template fails."""


def main() -> None:
    die_with_parent(int(sys.argv[1]))
    render = _library()
    _limit()
    for line in sys.stdin.buffer:
        sys.stdout.write(rendered(line, render).model_dump_json() + "\n")
        sys.stdout.flush()
    os._exit(0)


def rendered(line: bytes, render: Callable[..., Any]) -> Rendered:
    """What becomes of a conversation; the process ends where that is too much."""
    wanted = Conversation.model_validate_json(line)
    try:
        (text,), _ = render(
            [list(wanted.messages)],
            chat_template=wanted.template,
            add_generation_prompt=wanted.ask,
            **wanted.options,
        )
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
    except Exception:  # noqa: BLE001 - a template is a program: it may fail in any way
        return Rendered(text=None)
    if len(text) > MOST_CHARACTERS:
        os._exit(TOO_LONG)
    return Rendered(text=text)


def _library() -> Callable[..., Any]:
    # Imported here, because the other end imports this module for its messages alone.
    with uncollected():
        from transformers.utils.chat_template_utils import render_jinja_template
    library: Callable[..., Any] = render_jinja_template
    return library


def _limit() -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = math.ceil(used.ru_utime + used.ru_stime) + CPU_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    memory = psutil.Process().memory_info().vms + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


if __name__ == "__main__":
    main()
