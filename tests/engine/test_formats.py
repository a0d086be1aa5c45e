"""The same rows say the same in every file format, and whatever is wrong is named by row and field."""

import csv
import io
import json
import string
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from qlora_engine.data import rows as row_files
from qlora_engine.data.captions import read_captions
from qlora_engine.data.conversations import MOST_TURNS
from qlora_engine.errors import CaptionsError
from schemas.datasets import CAPTIONS_NAMES, VALIDATION_NAMES, Example, Turn, wrong_order

Rows = list[dict[str, Any]]

words = (
    st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=20)
    .map(lambda text: f"{text} a\n“b”, c")
    .map(str.strip)
)


@st.composite
def conversations(draw: st.DrawFn) -> tuple[Turn, ...]:
    turns = [Turn(role="system", text=draw(words))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        turns += [Turn(role="user", text=draw(words)), Turn(role="assistant", text=draw(words))]
    return tuple(turns)


def as_messages(turns: tuple[Turn, ...]) -> dict[str, Any]:
    return {"messages": [{"role": turn.role, "content": turn.text} for turn in turns]}


def as_conversations(turns: tuple[Turn, ...]) -> dict[str, Any]:
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    return {"conversations": [{"from": names[turn.role], "value": turn.text} for turn in turns]}


def as_instruction(turns: tuple[Turn, ...]) -> dict[str, Any]:
    said = [turn.text for turn in turns if turn.role != "system"]
    pairs = list(zip(said[::2], said[1::2], strict=True))
    system = turns[0].text if turns[0].role == "system" else None
    row = {"instruction": pairs[-1][0], "output": pairs[-1][1], "system": system, "input": ""}
    return row | {"history": [list(pair) for pair in pairs[:-1]]}


def as_prompt(turns: tuple[Turn, ...]) -> dict[str, Any]:
    system = turns[0].text if turns[0].role == "system" else None
    return {"prompt": turns[-2].text, "response": turns[-1].text, "system": system}


def written(file: Path, rows: Rows) -> None:
    """As a person's tools would."""
    match file.suffix:
        case ".jsonl":
            file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        case ".json":
            file.write_text(json.dumps(rows, ensure_ascii=False, indent=1), "utf-8")
        case ".csv":
            names = list(dict.fromkeys(name for row in rows for name in row))
            text = io.StringIO(newline="")
            writer = csv.DictWriter(text, names)
            writer.writeheader()
            writer.writerows(
                {name: json.dumps(value) if isinstance(value, list) else value for name, value in row.items()}
                for row in rows
            )
            file.write_text(text.getvalue(), "utf-8", newline="")
        case _:
            parquet.write_table(pyarrow.Table.from_pylist(rows), file)


def said(example: Example) -> tuple[Any, ...]:
    return example.clip, example.messages, example.split, example.row


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    for name in ("a.mp4", "b.mp4"):
        (folder / name).write_bytes(b"x")
    return folder


@pytest.fixture
def empty(folder: Path) -> Path:
    for name in (*CAPTIONS_NAMES, *VALIDATION_NAMES):
        (folder / name).unlink(missing_ok=True)
    return folder


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_every_format_says_what_was_written(empty: Path, data: st.DataObject) -> None:
    shape = data.draw(st.sampled_from([as_messages, as_conversations, as_instruction, as_prompt]))
    talks = (
        conversations() if shape is not as_prompt else conversations().filter(lambda turns: len(turns) <= 3)
    )
    given_rows = data.draw(
        st.lists(
            st.tuples(
                talks, st.sampled_from(["a.mp4", "b.mp4", None]), st.sampled_from(["train", "val", None])
            ),
            min_size=1,
            max_size=4,
        )
    )
    splits = {"train": "training", "val": "validation", None: None}
    expected = [
        (clip, turns, splits[split], row) for row, (turns, clip, split) in enumerate(given_rows, start=1)
    ]
    rows = [shape(turns) | {"video": clip, "split": split} for turns, clip, split in given_rows]
    for name in CAPTIONS_NAMES:
        written(empty / name, rows)
        captions = read_captions(empty)
        (empty / name).unlink()
        assert captions.problems == ()
        assert [said(example) for example in captions.examples] == expected
        assert (captions.file, captions.file_format) == (name, name.split(".")[1])


def only(folder: Path, row: Any, name: str = "captions.jsonl") -> Example:
    written(folder / name, [row])
    captions = read_captions(folder)
    assert captions.problems == ()
    return captions.examples[0]


def test_alpaca_input_follows_the_instruction(empty: Path) -> None:
    example = only(empty, {"instruction": "Translate.", "input": "Hund", "output": "dog"})
    assert (example.prompt, example.response, example.clip) == ("Translate.\n\nHund", "dog", None)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Why?", "response": "So.", "videos": ["a.mp4"]},
        {"prompt": "<video>\nWhy?", "response": "So.", "video": "./a.mp4"},
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "video", "video": "a.mp4"}, {"type": "text", "text": "Why?"}],
                },
                {"role": "assistant", "content": "So."},
            ]
        },
        {
            "video": "a.mp4",
            "messages": [
                {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Why?"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "So."}]},
            ],
        },
        {
            "video": "a.mp4",
            "conversations": [{"from": "human", "value": "<video>Why?"}, {"from": "gpt", "value": "So."}],
        },
    ],
)
def test_ways_to_name_the_clip(empty: Path, row: dict[str, Any]) -> None:
    example = only(empty, row)
    assert (example.clip, example.prompt, example.response) == ("a.mp4", "Why?", "So.")


def chat(*roles: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": f"{role} speaks"} for role in roles]} | more


def parts(*content: dict[str, Any], **more: Any) -> dict[str, Any]:
    said = {"role": "assistant", "content": "So."}
    return {"messages": [{"role": "user", "content": list(content)}, said]} | more


TEXT = {"type": "text", "text": "Why?"}
BAD: list[tuple[Any, tuple[str, ...]]] = [
    (chat("user"), ("no assistant turn", "add the answer")),
    (chat("system"), ("no user turn",)),
    (chat("assistant", "user"), ("turn 1 is assistant, but user must come there",)),
    (chat("user", "user", "assistant"), ("turn 2 is user, but assistant",)),
    (chat("user", "system", "assistant"), ("turn 2 is system",)),
    (chat("user", "assistant", "user"), ("last turn is user",)),
    (chat("user", "tool", "assistant"), ('messages[1].role is "tool"', "system, user, assistant")),
    (chat("system", "user", "assistant", system="x"), ("both system and a system turn",)),
    (chat(), ("messages is empty",)),
    (chat(*["user", "assistant"] * MOST_TURNS), (f"at most {MOST_TURNS}",)),
    ({"messages": "hello"}, ('messages is "hello", not a list',)),
    ({"messages": ["hello"]}, ("messages[0] is str, not an object",)),
    ({"messages": [{"role": "user", "content": 7}]}, ("messages[0].content is 7, not text",)),
    ({"messages": [{"role": "user"}]}, ("messages[0].content is missing",)),
    (parts({"type": "image", "image": "x.png"}), ('messages[0].content[0].type is "image"',)),
    (parts(TEXT, {"type": "video"}, video="a.mp4"), ("shows the video after text",)),
    (parts({"type": "video"}, TEXT), ("does not name it; add video",)),
    (parts({"type": "video", "video": "b.mp4"}, TEXT, video="a.mp4"), ("'a.mp4' and 'b.mp4'",)),
    (parts({"type": "video"}, {"type": "video"}, TEXT, video="a.mp4"), ("second video",)),
    (chat("user", "assistant", videos=["a.mp4", "b.mp4"]), ("videos names 2 clips",)),
    (chat("user", "assistant", images=["x.png"]), ("images is given",)),
    (chat("user", "assistant", split="test"), ('split is "test"; write training or validation',)),
    (chat("user", "assistant", vidoe="a.mp4"), ("unknown field 'vidoe'",)),
    (chat("user", "assistant", clip_file="a.mp4"), ("unknown field 'clip_file'",)),
    (
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]},
        ("messages[1].weight is 0",),
    ),
    (
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "\u200b"}]},
        ("messages[1].content '\\u200b' shows nothing",),
    ),
    (
        {"messages": [{"role": "user", "content": "a\x07"}, {"role": "assistant", "content": "b"}]},
        ("messages[0].content holds the control character U+0007",),
    ),
    ('{"messages": [{"role": "user", "role": "system"}]}', ("messages[0] names 'role' twice",)),
    ('{"messages": [], "messages": []}', ("the row names 'messages' twice",)),
    ('{"messages": ' + "[" * 100_000, ("nested too deeply",)),
    ('{"messages": ' + "9" * 5_000 + "}", ("does not parse", "digits")),
    ('{"messages": "' + "x" * row_files.LONGEST_ROW + '"}', ("the line has", "shorten it")),
]


def test_every_bad_row_names_its_field(empty: Path) -> None:
    good = json.dumps(chat("user", "assistant", video=None))
    lines = [row if isinstance(row, str) else json.dumps(row) for row, _ in BAD]
    (empty / "captions.jsonl").write_text("\r\n".join([*lines, *[good] * 9]), "utf-8-sig", newline="")
    captions = read_captions(empty)
    assert len(captions.examples) == 9
    found = {problem.where: problem for problem in captions.problems}
    assert list(found) == [f"captions.jsonl:{row}" for row in range(1, len(BAD) + 1)]
    for (_, says), problem in zip(BAD, found.values(), strict=True):
        assert problem.code == "bad_caption_row"
        assert [part for part in says if part not in problem.message] == [], problem


INSTRUCTION = {"instruction": "a", "output": "b"}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (INSTRUCTION | {"history": [["x"]]}, 'history[0] is ["x"], not a question and its answer'),
        (INSTRUCTION | {"history": "x"}, 'history is "x", not a list'),
        (INSTRUCTION | {"input": 7}, "input is 7, not text"),
        (INSTRUCTION | {"output": None}, "output is missing"),
        ({"conversations": [{"from": "bot", "value": "x"}]}, 'conversations[0].from is "bot"'),
        ({"conversations": [{"from": "human", "value": None}]}, "conversations[0].value is missing"),
        (
            {"prompt": "<video>", "response": "b", "video": "a.mp4"},
            "the first question after <video> is empty",
        ),
        ({"prompt": "<video>a", "response": "b"}, "does not name it; add video"),
    ],
)
def test_bad_rows_of_the_other_shapes(empty: Path, row: dict[str, Any], says: str) -> None:
    written(empty / "captions.json", [row])
    (problem,) = read_captions(empty).problems
    assert (problem.where, says in problem.message) == ("captions.json:1", True), problem


def test_parquet_with_odd_types(empty: Path) -> None:
    turn = pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.large_string())])
    talk = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    table = pyarrow.table(
        {
            "video": pyarrow.array(["a.mp4", None, "b.mp4"]).dictionary_encode(),
            "messages": pyarrow.array([talk, talk, None], pyarrow.large_list(turn)),
            "bytes": pyarrow.array([b"\x00", b"\xff", None]),
            "when": pyarrow.array([0, 1, 2], pyarrow.timestamp("ms")),
        }
    )
    parquet.write_table(table, empty / "captions.parquet")
    captions = read_captions(empty)
    assert [(example.clip, example.prompt) for example in captions.examples] == [
        ("a.mp4", "Why?"),
        (None, "Why?"),
    ]
    (problem,) = captions.problems
    assert (problem.where, problem.message) == ("captions.parquet:3", "messages is missing; add it")

    odd = pyarrow.table(
        {
            "prompt": pyarrow.array([0, 1], pyarrow.timestamp("ms")),
            "response": pyarrow.array([{"a": 1}, {"a": 2}]),
        }
    )
    parquet.write_table(odd, empty / "captions.parquet")
    first, _ = read_captions(empty).problems
    assert first.message == "prompt is of type datetime, not text; put it in quotes"


def test_parquet_text_that_is_not_utf_8(empty: Path) -> None:
    values = pyarrow.array([b"ok", b"\xff\xfe"]).view(pyarrow.string())
    table = pyarrow.table({"prompt": values, "response": ["x", "y"]})
    parquet.write_table(table, empty / "captions.parquet")
    captions = read_captions(empty)
    assert [example.row for example in captions.examples] == [1]
    assert "not UTF-8" in captions.problems[0].message


WHOLE: list[tuple[str, bytes, str]] = [
    ("captions.jsonl", "{}".encode("utf-16"), "is UTF-16, not UTF-8"),
    ("captions.jsonl", b'{"prompt": "a"}\n{"prompt": "\xe9"}', "line 2, byte 28"),
    ("captions.json", b"{}", "holds an object, not a list of rows"),
    ("captions.json", b'{"prompt": "a"}\n{"prompt": "b"}', "name it captions.jsonl"),
    ("captions.json", b"[" * 100_000, "nested too deeply"),
    ("captions.json", b"", "no rows"),
    ("captions.csv", b'prompt,response\n"a,b\n', "row|does not parse|is not CSV"),
    ("captions.csv", b"prompt,prompt\na,b\n", "names 'prompt' twice"),
    ("captions.csv", b"", "no rows"),
    ("captions.parquet", b"PAR1 no", "cannot be read as Parquet"),
    ("captions.parquet", b"", "cannot be read as Parquet"),
    (
        "captions.jsonl",
        b'{"question": "a", "answer": "b"}',
        "'question,answer', which fit no known kind of row",
    ),
]


@pytest.mark.parametrize(("name", "content", "says"), WHOLE)
def test_files_that_are_refused_as_a_whole(empty: Path, name: str, content: bytes, says: str) -> None:
    (empty / name).write_bytes(content)
    with pytest.raises(CaptionsError, match=says):
        read_captions(empty)


def test_a_csv_row_with_an_unquoted_comma(empty: Path) -> None:
    (empty / "captions.csv").write_text("prompt,response\na,b\na,b,c\na\n", "utf-8")
    captions = read_captions(empty)
    assert [problem.message for problem in captions.problems] == [
        "the row has 3 fields, but the header 2; quote text that holds commas",
        "response is missing; add it",
    ]


def test_limits(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [INSTRUCTION] * 4
    monkeypatch.setattr(row_files, "MOST_ROWS", 3)
    for name in CAPTIONS_NAMES:
        written(empty / name, rows)
        with pytest.raises(CaptionsError, match=r"more than 3 rows|4 rows") as many:
            read_captions(empty)
        assert many.value.code == "captions_too_large"
        (empty / name).unlink()
    monkeypatch.setattr(row_files, "LARGEST_FILE", 10)
    written(empty / "captions.json", rows)
    with pytest.raises(CaptionsError, match="MiB"):
        read_captions(empty)


def test_a_parquet_file_that_is_small_and_stands_for_much(
    empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal texts are kept once, so that the file keeps every promise of its metadata."""
    monkeypatch.setattr(row_files, "LARGEST_FILE", 8 << 20)
    long = "x" * (1 << 16)
    file = empty / "captions.parquet"
    for column in ([long] * 1000, [[{"role": "user", "content": long}]] * 1000, [[long] * 1000]):
        parquet.write_table(pyarrow.table({"prompt": column}), file)
        promised = parquet.read_metadata(file)
        assert sum(promised.row_group(at).total_byte_size for at in range(promised.num_row_groups)) < 1 << 20
        with pytest.raises(CaptionsError, match=r"unpacks to more than 8 MiB; at most .* split it") as bomb:
            row_files.read_rows(file)
        assert bomb.value.code == "captions_too_large"
    parquet.write_table(pyarrow.table({"prompt": [long] * 100, "response": ["x"] * 100}), file)
    assert len(row_files.read_rows(file)) == 100
    monkeypatch.setattr(row_files, "MOST_VALUES", 199)
    with pytest.raises(CaptionsError, match="100 rows and 200 values"):
        row_files.read_rows(file)


def test_a_file_of_validation_rows(empty: Path) -> None:
    written(empty / "captions.csv", [as_prompt(one) for one in [talk("a"), talk("b")]])
    written(
        empty / "captions.validation.jsonl",
        [as_messages(talk("c")), as_messages(talk("d")) | {"split": "train"}],
    )
    captions = read_captions(empty)
    assert [(example.where, example.split) for example in captions.examples] == [
        ("captions.csv:1", None),
        ("captions.csv:2", None),
        ("captions.validation.jsonl:1", "validation"),
    ]
    (problem,) = captions.problems
    assert problem.where == "captions.validation.jsonl:2"
    assert "split is training" in problem.message


def talk(word: str) -> tuple[Turn, ...]:
    return Turn(role="user", text=word), Turn(role="assistant", text=f"{word}!")


def test_a_file_with_another_name_is_guessed(empty: Path) -> None:
    (empty / "train.jsonl").write_text("{}", "utf-8")
    with pytest.raises(CaptionsError, match=r"if 'train\.jsonl' is meant, name it captions\.jsonl"):
        read_captions(empty)
    (empty / "train.jsonl").unlink()


@given(st.lists(st.sampled_from(["system", "user", "assistant"]), max_size=8))
def test_an_order_is_right_or_is_not_an_example(roles: list[Any]) -> None:
    right = "".join(role[0] for role in roles).removeprefix("s")
    assert (wrong_order(roles) == "") == (right != "" and right == "ua" * (len(right) // 2))
    if len(roles) >= 2:
        turns = tuple(Turn(role=role, text=string.ascii_letters) for role in roles)
        if wrong_order(roles):
            with pytest.raises(ValueError, match="captions:1"):
                Example(messages=turns, row=1)
        else:
            assert len(Example(messages=turns, row=1).supervised) == len(right) // 2


def test_a_manifest_older_than_conversations_is_read() -> None:
    example = Example.model_validate({"clip": "a.mp4", "prompt": "Why?", "response": "So.", "row": 3})
    assert example.messages == (Turn(role="user", text="Why?"), Turn(role="assistant", text="So."))
    assert Example.model_validate_json(example.model_dump_json()) == example
