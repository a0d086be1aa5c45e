"""Reads one row, in any of the four shapes that the field uses, as turns of a conversation. Free of torch.

| shape | fields |
|---|---|
| prompt_response | ``prompt``, ``response`` |
| instruction | ``instruction``, ``output``, and if wanted ``input`` and ``history`` (Alpaca) |
| messages | ``messages``: objects with ``role`` and ``content`` (OpenAI) |
| conversations | ``conversations``: objects with ``from`` and ``value`` (ShareGPT) |

Each may have ``video`` (or ``videos`` with one path), ``system`` and ``split``. Other fields are ignored,
unless one of ours is missing or they hold something that would change the meaning, such as pictures.
"""

import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from qlora_engine.data.rows import Repeated
from qlora_engine.errors import RowRefused
from schemas.datasets import Role, RowFormat, SplitName, Turn, one_turn, wrong_order

MARKS: dict[RowFormat, tuple[str, ...]] = {
    "messages": ("messages",),
    "conversations": ("conversations",),
    "instruction": ("instruction", "output"),
    "prompt_response": ("prompt", "response"),
}
"""By shape, the fields that tell it; the first shape wins, because chat sets often repeat their prompt."""
KNOWN = {"video", "videos", "system", "split", "input", "history"}.union(*MARKS.values())
UNSUPPORTED = ("image", "images", "audio", "audios", "tools", "functions")
"""Fields that a training without them would not be what the row says."""
LONGEST_TEXT = 100_000
MOST_TURNS = 1_000
MOST_NAMED = 10
"""Rows or fields that one message lists."""
_INVISIBLE = ("Cc", "Cf", "Zs", "Zl", "Zp")
PLACEHOLDER = "<video>"
VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".gif", ".mpg", ".mpeg", ".ts", ".flv")
_ROLES: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}
_SPEAKERS: dict[str, Role] = {"human": "user", "gpt": "assistant", **_ROLES}
_SPLITS: dict[str, SplitName] = {
    "train": "training",
    "training": "training",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
}


@dataclass(frozen=True)
class Conversation:
    """What one row says."""

    video: str | None
    """As written; whether there is such a clip is not looked at."""
    turns: tuple[Turn, ...]
    split: SplitName | None


def recognised(contents: Iterable[Any]) -> RowFormat | None:
    """The shape that most rows have; None when no row has any."""
    found = Counter(
        shape
        for content in contents
        if isinstance(content, Mapping)
        for shape in [_shape(content)]
        if shape is not None
    )
    return found.most_common(1)[0][0] if found else None


def _shape(content: Mapping[str, Any]) -> RowFormat | None:
    for shape, fields in MARKS.items():
        if any(content.get(field) is not None for field in fields):
            return shape
    return None


def conversation(shape: RowFormat, content: Any) -> Conversation:
    """
    Raises:
        RowRefused: the row cannot be used.
    """
    if isinstance(content, RowRefused):
        raise content
    row = _object(content, "the row")
    for name in UNSUPPORTED:
        if row.get(name):
            raise RowRefused(f"{name} is given, but only video and text are trained on; remove the row")
    read = _READERS[shape](row)
    video = _video(row, read)
    turns = list(read.turns)
    if _given(row, "system"):
        if turns[0].role == "system":
            raise RowRefused("there are both system and a system turn; keep only one of them")
        turns.insert(0, Turn(role="system", text=_text(row["system"], "system")))
    if wrong := wrong_order([turn.role for turn in turns]):
        raise RowRefused(wrong)
    return Conversation(video, _without_placeholder(turns, video), _split(row))


# ---- shapes --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Read:
    turns: Sequence[Turn]
    shows_video: bool = False
    """Whether a part of a message is a video…"""
    video: str | None = None
    """… and which, if it says so."""


def _prompt_response(row: Mapping[str, Any]) -> _Read:
    return _Read(one_turn(_required(row, "prompt"), _required(row, "response")))


def _instruction(row: Mapping[str, Any]) -> _Read:
    prompt = _required(row, "instruction")
    if _given(row, "input"):
        prompt += "\n\n" + _text(row["input"], "input")
    turns: list[Turn] = []
    for index, pair in enumerate(_list(row.get("history") or [], "history")):
        where = f"history[{index}]"
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise RowRefused(
                f"{where} is {_shown(pair)}, not a question and its answer; write [question, answer]"
            )
        turns += one_turn(_text(pair[0], f"{where}[0]"), _text(pair[1], f"{where}[1]"))
    return _Read((*turns, *one_turn(prompt, _required(row, "output"))))


def _messages(row: Mapping[str, Any]) -> _Read:
    turns: list[Turn] = []
    shown: list[tuple[str, str | None]] = []
    for index, value in enumerate(_turns(row, "messages")):
        where = f"messages[{index}]"
        message = _object(value, where)
        role = _role(message, "role", where, _ROLES)
        for name in ("tool_calls", "function_call"):
            if message.get(name):
                raise RowRefused(f"{where}.{name} is given, but tools are not supported; remove the row")
        if message.get("weight") == 0:
            raise RowRefused(
                f"{where}.weight is 0, but every assistant turn is trained on; remove the turn or the weight"
            )
        text, videos = _content(message.get("content"), f"{where}.content")
        if videos and (role != "user" or any(turn.role == "user" for turn in turns)):
            raise RowRefused(f"{where} shows a video, but only the first user turn may; move it there")
        shown += [(where, video) for video in videos]
        turns.append(Turn(role=role, text=text))
    if len(shown) > 1:
        raise RowRefused(f"{shown[1][0]} shows a second video; write a row per clip")
    return _Read(turns, bool(shown), shown[0][1] if shown else None)


def _conversations(row: Mapping[str, Any]) -> _Read:
    turns = []
    for index, value in enumerate(_turns(row, "conversations")):
        where = f"conversations[{index}]"
        said = _object(value, where)
        role = _role(said, "from", where, _SPEAKERS)
        turns.append(Turn(role=role, text=_text(said.get("value"), f"{where}.value")))
    return _Read(turns)


_READERS: dict[RowFormat, Callable[[Mapping[str, Any]], _Read]] = {
    "prompt_response": _prompt_response,
    "instruction": _instruction,
    "messages": _messages,
    "conversations": _conversations,
}


def _turns(row: Mapping[str, Any], field: str) -> list[Any]:
    if row.get(field) is None:
        raise RowRefused(_missing(row, field))
    turns = _list(row[field], field)
    if not turns:
        raise RowRefused(f"{field} is empty; fill it in or remove the row")
    if len(turns) > MOST_TURNS:
        raise RowRefused(f"{field} has {len(turns)} turns; at most {MOST_TURNS}, split the conversation")
    return turns


def _role(turn: Mapping[str, Any], field: str, where: str, known: Mapping[str, Role]) -> Role:
    value = turn.get(field)
    if not isinstance(value, str) or value not in known:
        raise RowRefused(f"{where}.{field} is {_shown(value)}; write one of {', '.join(known)}")
    return known[value]


def _content(content: Any, where: str) -> tuple[str, list[str | None]]:
    """The text of a message, and the videos that it shows; a path is None where the part names none."""
    if not isinstance(content, list):
        return _text(content, where), []
    texts: list[str] = []
    videos: list[str | None] = []
    for index, value in enumerate(content):
        place = f"{where}[{index}]"
        part = _object(value, place)
        match part.get("type"):
            case "text":
                texts.append(_plain(part.get("text"), f"{place}.text"))
            case "video":
                if texts:
                    raise RowRefused(f"{place} shows the video after text; put the video first")
                path = part.get("video") or part.get("path")
                videos.append(None if path is None else _text(path, f"{place}.video"))
            case other:
                raise RowRefused(f"{place}.type is {_shown(other)}; only text and video are supported")
    return _text("".join(texts), where), videos


# ---- fields --------------------------------------------------------------------------------------------


def _video(row: Mapping[str, Any], read: _Read) -> str | None:
    named = [_text(row["video"], "video")] if _given(row, "video") else []
    if _given(row, "videos"):
        videos = _list(row["videos"], "videos")
        if len(videos) > 1:
            raise RowRefused(f"videos names {len(videos)} clips; write a row per clip")
        named += [_text(video, "videos[0]") for video in videos]
    if read.video is not None:
        named.append(read.video)
    if len(set(named)) > 1:
        raise RowRefused(f"the row names {named[0]!r} and {named[1]!r}; write a row per clip")
    if read.shows_video and not named:
        raise RowRefused("a message shows a video, but the row does not name it; add video")
    if not named:
        _refuse_misspelt_video(row)
    return named[0] if named else None


def _refuse_misspelt_video(row: Mapping[str, Any]) -> None:
    """A row without a clip is trained on as text; one whose clip was only named wrongly must not be."""
    unknown = [name for name in row if name not in KNOWN]
    likely = get_close_matches("video", unknown, n=1, cutoff=0.8) or [
        name
        for name in unknown
        if isinstance(row[name], str) and row[name].strip().lower().endswith(VIDEO_SUFFIXES)
    ]
    if likely and row[likely[0]]:
        raise RowRefused(
            f"video is missing, and the row has the unknown field {likely[0][:200]!r}; rename it if that is"
            " the video, or remove it"
        )


def _without_placeholder(turns: Sequence[Turn], video: str | None) -> tuple[Turn, ...]:
    """The sign for the clip taken off the first user turn, where every family shows the clip anyway."""
    place = next(index for index, turn in enumerate(turns) if turn.role == "user")
    text = turns[place].text
    if not text.startswith(PLACEHOLDER):
        return tuple(turns)
    if video is None:
        raise RowRefused(f"the first question shows {PLACEHOLDER}, but the row does not name it; add video")
    text = _text(text.removeprefix(PLACEHOLDER), f"the first question after {PLACEHOLDER}")
    return (*turns[:place], Turn(role="user", text=text), *turns[place + 1 :])


def _split(row: Mapping[str, Any]) -> SplitName | None:
    if not _given(row, "split"):
        return None
    value = row["split"]
    name = value.strip().lower() if isinstance(value, str) else value
    if not isinstance(name, str) or name not in _SPLITS:
        raise RowRefused(f"split is {_shown(value)}; write training or validation, or leave it out")
    return _SPLITS[name]


def _given(row: Mapping[str, Any], field: str) -> bool:
    """Tables have a cell where there is nothing to say; so nothing and no text are the same."""
    value = row.get(field)
    return value is not None and value != [] and not (isinstance(value, str) and not value.strip())


def _required(row: Mapping[str, Any], field: str) -> str:
    if row.get(field) is None:
        raise RowRefused(_missing(row, field))
    return _text(row[field], field)


def _missing(row: Mapping[str, Any], field: str) -> str:
    unknown = [str(name) for name in row if name not in KNOWN]
    if field in row or not unknown:
        return f"{field} is missing; add it"
    likely = get_close_matches(field, unknown, n=1) or unknown[:MOST_NAMED]
    return (
        f"{field} is missing, and the row has the unknown field {', '.join(map(repr, likely))[:200]};"
        f" rename it if that is the {field}, or add {field}"
    )


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if isinstance(value, Repeated):
        raise RowRefused(f"{where} names {value.field[:120]!r} twice; keep only one of them")
    if not isinstance(value, Mapping):
        raise RowRefused(f"{where} is {type(value).__name__}, not an object; write {{...}}")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise RowRefused(f"{where} is {_shown(value)}, not a list; write [...]")
    return value


def _text(value: Any, where: str) -> str:
    """Text as it is trained on: without white space around it, lines ended by a line feed."""
    text = _plain(value, where).replace("\r\n", "\n").strip()
    if not text:
        raise RowRefused(f"{where} is empty; fill it in or remove the row")
    if len(text) > LONGEST_TEXT:
        raise RowRefused(f"{where} has {len(text)} characters; at most {LONGEST_TEXT}, shorten it")
    kinds = {sign: unicodedata.category(sign) for sign in set(text)}
    if "Cs" in kinds.values():
        raise RowRefused(f"{where} holds half a character (a lone surrogate); retype it")
    for sign, kind in kinds.items():
        if kind == "Cc" and sign not in "\n\t":
            raise RowRefused(f"{where} holds the control character U+{ord(sign):04X}; take it out")
    if all(kind in _INVISIBLE for kind in kinds.values()):
        raise RowRefused(f"{where} {text[:60]!a} shows nothing; fill it in or remove the row")
    return text


def _plain(value: Any, where: str) -> str:
    if value is None:
        raise RowRefused(f"{where} is missing; add it")
    if not isinstance(value, str):
        raise RowRefused(f"{where} is {_shown(value)}, not text; put it in quotes")
    return value


def _shown(value: Any) -> str:
    try:
        return json.dumps(value)[:80]
    except (TypeError, ValueError, RecursionError):  # what Parquet has and JSON has not, such as bytes
        return f"of type {type(value).__name__}"
