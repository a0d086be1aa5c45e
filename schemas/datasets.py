"""What a validated dataset and a validated model are, as facts that others can rely on."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from schemas.base import Message
from schemas.footprint import ModelShape
from schemas.ids import Sha256
from schemas.objects import RelativePath


class Clip(Message):
    """One video file as decoded, not as its header claims."""

    path: RelativePath
    sha256: Sha256
    size_bytes: int
    frames: int = Field(ge=1)
    """Frames that really decoded."""
    duration_seconds: float
    """From the first frame's time to the end of the last one, by presentation timestamps."""
    width: int
    """Pixels after rotation."""
    height: int
    pixel_aspect: float = 1.0
    """Width of a pixel by its height, after rotation: the picture is meant to be `width` times this wide."""
    rotation: int = 0
    """Degrees clockwise that the display matrix asks for: 0, 90, 180 or 270."""
    codec: str
    variable_frame_rate: bool = False
    has_audio: bool = False


Role = Literal["system", "user", "assistant"]
SplitName = Literal["training", "validation"]
FileFormat = Literal["jsonl", "json", "csv", "parquet"]
RowFormat = Literal["prompt_response", "instruction", "messages", "conversations"]
CAPTIONS_NAMES = ("captions.jsonl", "captions.json", "captions.csv", "captions.parquet")
VALIDATION_NAMES = tuple(name.replace("captions.", "captions.validation.") for name in CAPTIONS_NAMES)
"""Rows that are never trained on, in a file of their own."""


MAX_MANIFEST_BYTES = 64 * 2**20
"""What the control plane reads of a manifest."""


class Turn(Message):
    """What one side of a conversation says."""

    role: Role
    text: str


class Example(Message):
    """One row of the captions file: a conversation, about a clip or about none.

    The clip is shown at the beginning of the first user turn. Loss is computed on assistant turns only.
    """

    clip: RelativePath | None = None
    messages: tuple[Turn, ...] = Field(min_length=2)
    """An optional system turn, then user and assistant in turns, the last one an assistant's."""
    file: str = "captions"
    """Name of the file that the row stands in."""
    row: int = Field(ge=1)
    """Line (JSONL) or record (JSON, CSV, Parquet) number, counted from 1, header not counted."""
    split: SplitName | None = None
    """The side that the dataset's owner put the row on; None leaves it to the job."""

    @model_validator(mode="before")
    @classmethod
    def _one_turn(cls, values: Any) -> Any:
        """Manifests older than conversations have a prompt and a response instead of turns."""
        if isinstance(values, dict) and "messages" not in values and {"prompt", "response"} <= values.keys():
            rest = {name: value for name, value in values.items() if name not in ("prompt", "response")}
            return rest | {"messages": one_turn(values["prompt"], values["response"])}
        return values

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if wrong := wrong_order([turn.role for turn in self.messages]):
            raise ValueError(f"{self.where}: {wrong}")
        return self

    @property
    def where(self) -> str:
        """For messages and as a key: ``captions.jsonl:12``."""
        return f"{self.file}:{self.row}"

    @property
    def system(self) -> str | None:
        """The system turn's text."""
        return self.messages[0].text if self.messages[0].role == "system" else None

    @property
    def supervised(self) -> tuple[int, ...]:
        """Places in `messages` of the turns that are trained on."""
        return tuple(place for place, turn in enumerate(self.messages) if turn.role == "assistant")

    @property
    def prompt(self) -> str:
        """What is asked last; everything that is asked in an example of one turn."""
        return self.messages[-2].text

    @property
    def response(self) -> str:
        """What is answered last."""
        return self.messages[-1].text


def one_turn(prompt: str, response: str, system: str | None = None) -> tuple[Turn, ...]:
    """One question and its answer."""
    before = () if system is None else (Turn(role="system", text=system),)
    return (*before, Turn(role="user", text=prompt), Turn(role="assistant", text=response))


def wrong_order(roles: Sequence[Role]) -> str:
    """What is wrong with the order of turns, and the remedy; empty when nothing is."""
    turns = roles[1:] if roles[:1] == ["system"] else list(roles)
    first = len(roles) - len(turns) + 1
    if not turns:
        return "there is no user turn; begin with one"
    if "assistant" not in turns:
        return "there is no assistant turn, so nothing to learn; add the answer"
    for place, role in enumerate(turns):
        wanted = ("user", "assistant")[place % 2]
        if role != wanted:
            return (
                f"turn {first + place} is {role}, but {wanted} must come there; let user and assistant take"
                " turns, after at most one system turn at the beginning"
            )
    if turns[-1] == "user":
        return "the last turn is user, and nothing answers it; add the answer or take the turn away"
    return ""


class Manifest(Message):
    """The validated dataset, in the captions file's order. Its canonical bytes are hashed into the job."""

    clips: tuple[Clip, ...]
    examples: tuple[Example, ...]

    def groups(self) -> tuple[str, ...]:
        """By example, the content that must not be trained on and evaluated on at once.

        The clip's SHA-256, whatever its name; for a row without a clip the hash of what it says.
        """
        content = {clip.path: clip.sha256 for clip in self.clips}
        return tuple(
            text_sha256(example.messages) if example.clip is None else content[example.clip]
            for example in self.examples
        )


def text_sha256(messages: Sequence[Turn]) -> str:
    """SHA-256 of a conversation: the same words by the same roles have the same."""
    text = json.dumps([(turn.role, turn.text) for turn in messages])
    return hashlib.sha256(text.encode()).hexdigest()


class Problem(Message):
    """One reason why a dataset or model cannot be used."""

    code: str
    """Stable, such as ``missing_clip``, ``undecodable_clip``, ``bad_caption_row``, ``unknown_family``."""
    where: str
    """File, and row where there is one: ``captions.jsonl:12``."""
    message: str
    """What is wrong, the value, and what to do."""


class DatasetFacts(Message):
    """The figures of a valid dataset."""

    clips: int
    examples: int
    frames: int
    duration_seconds: float
    size_bytes: int
    smallest_clip_frames: int
    """0 when no row has a clip."""
    smallest_clip: str = ""
    """The path of a clip with so few frames."""
    file_format: FileFormat | None = None
    row_format: RowFormat | None = None
    text_examples: int = 0
    """Examples without a clip."""
    turns: int = 0
    """Assistant turns: what is trained on or evaluated."""
    most_turns: int = 0
    """Assistant turns of the longest conversation."""
    characters: int = 0
    """Of all turns; tokens are known only with a model."""
    split_groups: int = 0
    """Different clips, and different texts without a clip: what a split by hash divides."""
    validation_examples: int | None = None
    """Examples that the dataset's owner held out; None leaves the split to the job."""
    rows: int = 0
    """Rows read, refused ones included."""
    refused_rows: int = 0
    """Rows left out: wrong themselves, or about a quarantined clip."""
    quarantined_clips: int = 0
    """Clips left out because they cannot be used."""
    refused: tuple[Problem, ...] = ()
    """Why rows and clips were left out, the first of them."""
    warnings: tuple[Problem, ...] = ()
    """Things that do not stop a training, such as unused files."""


class ModelFacts(Message):
    """The figures of a usable base model, read from the loaded model."""

    family: str
    architecture: str
    parameters: int
    quantized_linear_layers: int
    vision_linear_layers: int
    connector_linear_layers: int
    text_linear_layers: int
    context_tokens: int
    image_size: int
    shape: ModelShape | None = None
    """Its sizes, which memory and time of a training follow from; absent where it was validated before."""
