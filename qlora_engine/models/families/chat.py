"""Renders a conversation with a chat template and finds the answers in it, whatever the template looks like.

An answer begins where the template, asked for the turns before it and for a prompt to answer, ends; it ends
with the first special token after that. So a model is trained on exactly the prefix that it generates from.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from qlora_engine.errors import ControlTokenInCaption, EmptyResponse, ModelRefused
from qlora_engine.models.families.base import Encoded, Shown, Turn

Message = dict[str, Any]
"""What templates are given: ``role`` and ``content``."""

WITHOUT_TEMPLATE = "correct it, or remove chat_template to use the family's own"
_WAYS_TO_ASK: tuple[dict[str, bool], ...] = ({"enable_thinking": False}, {})
"""Templates of models that can think ask for the answer alone with the first; others do not know it.
They leave the empty thoughts out of earlier answers, which the second finds."""


@dataclass(frozen=True)
class Piece:
    """A stretch of a rendered conversation."""

    text: str
    is_answer: bool


@dataclass(frozen=True)
class Chat:
    """A tokenizer and the template that renders for it."""

    tokenizer: Any
    own_template: str
    """The family's, for checkpoints that come without one."""
    placeholders: tuple[str, ...] = ()
    """Tokens that steer the model even where the tokenizer does not know them."""

    @property
    def brings_a_template(self) -> bool:
        own = self.tokenizer.chat_template
        return own is not None and own != self.own_template

    @cached_property
    def _template(self) -> Any:
        return self.tokenizer.chat_template or self.own_template

    @cached_property
    def control_tokens(self) -> tuple[str, ...]:
        # all_special_tokens leaves out tokens such as <row_1_col_1>.
        added = self.tokenizer.added_tokens_decoder.values()
        return (*self.placeholders, *(token.content for token in added if token.special))

    @cached_property
    def _special(self) -> re.Pattern[str]:
        return re.compile("|".join(re.escape(token) for token in self.control_tokens) or r"(?!)")

    def refuse_control_tokens(self, turns: Sequence[Turn]) -> None:
        """
        Raises:
            ControlTokenInCaption: a turn's text holds one.
        """
        for turn in turns:
            if (found := self._special.search(turn.text)) is not None:
                what = {"assistant": "response", "user": "prompt"}.get(turn.role, turn.role)
                raise ControlTokenInCaption(
                    f"{what} {turn.text[:80]!r} holds {found.group()!r}, which steers the model; take it out"
                )

    def rendered(
        self, messages: Sequence[Message], *, ask: bool = False, options: dict[str, bool] | None = None
    ) -> str:
        """The conversation as text; with `ask`, the beginning of another answer is added.

        Raises:
            ModelRefused: code ``unusable_chat_template``.
        """
        try:
            text = self.tokenizer.apply_chat_template(
                list(messages),
                chat_template=self._template,
                add_generation_prompt=ask,
                tokenize=False,
                **(options or {}),
            )
        except MemoryError:
            raise
        except Exception as error:  # a template is a program: it may fail in any way
            raise refused(f"fails ({type(error).__name__}: {str(error)[:200]})") from error
        return str(text)

    def pieces(self, messages: Sequence[Message]) -> list[Piece]:
        """The conversation up to the end of its last answer.

        Raises:
            ModelRefused: the answers cannot be told apart (code ``unusable_chat_template``).
            EmptyResponse: an answer is nothing but its end.
        """
        whole = self.rendered(messages)
        found: list[Piece] = []
        place = 0
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            start = self._start(whole, messages[:index], place)
            ending = self._special.search(whole, start)
            if ending is None:
                raise refused(f"ends no answer with a special token: {whole[start:][:120]!r}")
            if not whole[start : ending.start()].strip():
                raise EmptyResponse(
                    f"the chat template leaves nothing of the response {_text_of(message)[:80]!r};"
                    " reword it or remove the row"
                )
            found += [Piece(whole[place:start], False), Piece(whole[start : ending.end()], True)]
            place = ending.end()
        return found

    def _start(self, whole: str, before: Sequence[Message], least: int) -> int:
        for options in _WAYS_TO_ASK:
            asking = self.rendered(before, ask=True, options=options)
            if len(asking) > least and whole.startswith(asking):
                return len(asking)
        raise refused(f"renders a question as {asking[-120:]!r}, with which no answer begins")

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def encoded(self, pieces: Sequence[Piece]) -> Encoded:
        ids: list[int] = []
        supervised: list[bool] = []
        last_answer = 0
        for piece in pieces:
            if piece.is_answer:
                last_answer = len(ids)
            added = self.ids(piece.text)
            ids += added
            supervised += [piece.is_answer] * len(added)
        return Encoded(tuple(ids), tuple(supervised), last_answer)

    def answer(self, generated: list[int]) -> str:
        """The text of generated ids, without special tokens and surrounding white space."""
        return str(
            self.tokenizer.decode(generated, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        ).strip()


def _text_of(message: Message) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def refused(what: str) -> ModelRefused:
    """The checkpoint's chat template cannot be used."""
    return ModelRefused(
        f"the checkpoint's chat template {what}; {WITHOUT_TEMPLATE}", code="unusable_chat_template"
    )


def in_parts(turns: Sequence[Turn], shown: Sequence[Message]) -> list[Message]:
    """Messages whose content is a list of parts; `shown` stand before the first user turn's text."""
    messages: list[Message] = []
    ahead = list(shown)
    for turn in turns:
        parts: list[Message] = [{"type": "text", "text": turn.text}]
        if turn.role == "user" and ahead:
            parts, ahead = [*ahead, *parts], []
        messages.append({"role": turn.role, "content": parts})
    return messages


def check_tokens(tokenizer: Any, wanted: Sequence[str]) -> dict[str, int]:
    """The vocabulary, once it is known to hold these tokens and a padding token.

    Raises:
        ModelRefused: code ``unusable_tokenizer``.
    """
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    missing = [token for token in wanted if token not in vocabulary]
    if missing or tokenizer.pad_token_id is None:
        raise ModelRefused(
            f"the tokenizer lacks {', '.join(missing) or 'a padding token'}; use the checkpoint's own",
            code="unusable_tokenizer",
        )
    return vocabulary


def check_id(vocabulary: dict[str, int], token: str, field: str, configured: int) -> None:
    """
    Raises:
        ModelRefused: config.json and tokenizer disagree (code ``unusable_tokenizer``).
    """
    if vocabulary[token] != configured:
        raise ModelRefused(
            f"config.json has {field} {configured}, but the tokenizer's {token} is "
            f"{vocabulary[token]}; use the tokenizer files of the checkpoint",
            code="unusable_tokenizer",
        )


@dataclass(frozen=True)
class ClipPrompts(ABC):
    """Prompts of the families that see clips, for one tokenizer: what only their chat decides."""

    end: ClassVar[str]
    """The token that ends a turn."""
    chat: Chat

    @property
    def pad_token_id(self) -> int:
        return int(self.chat.tokenizer.pad_token_id)

    @property
    def end_token_id(self) -> int:
        return int(self.chat.tokenizer.convert_tokens_to_ids(self.end))

    @property
    def brings_a_template(self) -> bool:
        return self.chat.brings_a_template

    def encode(self, turns: Sequence[Turn], clip: Shown | None) -> Encoded:
        return self.chat.encoded(self.pieces(turns, clip))

    def answer(self, generated: list[int]) -> str:
        return self.chat.answer(generated)

    @abstractmethod
    def pieces(self, turns: Sequence[Turn], clip: Shown | None) -> list[Piece]:
        """The sample as text, the clip's placeholders filled in."""
