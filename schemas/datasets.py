"""What a validated dataset and a validated model are, as facts that others can rely on."""

from pydantic import Field

from schemas.base import Message
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
    rotation: int = 0
    """Degrees clockwise that the display matrix asks for: 0, 90, 180 or 270."""
    codec: str
    variable_frame_rate: bool = False
    has_audio: bool = False


class Example(Message):
    """One row of the captions file."""

    clip: RelativePath
    prompt: str
    response: str
    row: int = Field(ge=1)
    """Line (JSONL) or record (CSV) number, counted from 1, header not counted."""


class Manifest(Message):
    """The validated dataset, in the captions file's order. Its canonical bytes are hashed into the job."""

    clips: tuple[Clip, ...]
    examples: tuple[Example, ...]


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
    smallest_clip: str = ""
    """The path of a clip with so few frames."""
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
