"""Tries a checkpoint's own chat template in a process of its own, within limits, for `model_validation`.

A template is a program of somebody else's: it may loop for ever or fill the memory, in ways that nothing
inside of the same process can end. What else is wrong with it, the engine finds when it renders it itself.
The engine keeps tokenizer and family, and asks for one rendered text after the other.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

from pydantic import ValidationError

from qlora_engine.errors import EngineError
from qlora_engine.models.families.base import Family, Shown, exchange
from qlora_engine.models.families.chat import Message, refused
from qlora_engine.models.template_renderer import (
    CPU_SECONDS,
    MEMORY_BYTES,
    MOST_CHARACTERS,
    OUT_OF_MEMORY,
    TOO_LONG,
    Conversation,
    Rendered,
)

EXCHANGE = exchange("What is shown?", "A noise.")


def try_template(family: Family, config: Any, tokenizer: Any, shown: Shown | None) -> None:
    """Prepare one short prompt with the checkpoint's template.

    Raises:
        ModelRefused: it needs too much time or memory (code ``unusable_chat_template``).
    """
    with _Renderer() as renderer:
        prompts = family.prompts(config, _RenderedElsewhere(tokenizer, renderer))
        with suppress(EngineError):  # the engine will meet it, too, and say so
            prompts.encode(EXCHANGE, shown)
        code = renderer.ended()
    if code == TOO_LONG:
        raise refused(f"renders one short prompt as more than {MOST_CHARACTERS} characters")
    if code < 0 or code == OUT_OF_MEMORY:
        raise refused(
            f"needs more than {CPU_SECONDS} s or {MEMORY_BYTES >> 30} GiB of memory for one short prompt"
        )
    if code != 0:
        raise RuntimeError(f"the chat template could not be tried: {renderer.last_words}")


@dataclass(frozen=True)
class _RenderedElsewhere:
    """A tokenizer in all but the rendering."""

    tokenizer: Any
    renderer: "_Renderer"

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self.tokenizer(*arguments, **options)

    def apply_chat_template(
        self,
        messages: Sequence[Message],
        *,
        chat_template: Any,
        add_generation_prompt: bool,
        tokenize: Literal[False],
        **options: Any,
    ) -> str:
        """As the tokenizer's own.

        Raises:
            ChildProcessError: it came to nothing.
        """
        return self.renderer.render(
            Conversation(
                template=self.tokenizer.get_chat_template(chat_template),
                messages=tuple(messages),
                ask=add_generation_prompt,
                options=self.tokenizer.special_tokens_map | options,
            )
        )


class _Renderer:
    """The process that renders, for as long as the context lasts."""

    def __init__(self) -> None:
        self.last_words = ""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "qlora_engine.models.template_renderer", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        return self

    def render(self, conversation: Conversation) -> str:
        """
        Raises:
            ChildProcessError: the template fails, or the process ended over it.
        """
        assert self._process.stdin is not None  # noqa: S101 - an invariant
        assert self._process.stdout is not None  # noqa: S101 - an invariant
        try:
            self._process.stdin.write(conversation.model_dump_json().encode() + b"\n")
            self._process.stdin.flush()
            rendered = Rendered.model_validate_json(self._process.stdout.readline())
        except (BrokenPipeError, ValidationError) as error:
            raise ChildProcessError("nothing was rendered") from error
        if rendered.text is None:
            raise ChildProcessError("the template fails")
        return rendered.text

    def ended(self) -> int:
        """The exit code, after its last conversation."""
        with suppress(BrokenPipeError):
            _, said = self._process.communicate()
            self.last_words = said.decode(errors="replace").strip().rpartition("\n")[2][:500]
        return self._process.wait()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
