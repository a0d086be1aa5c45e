"""Refuses before the first step what would otherwise fail hours later, when its turn comes."""

from collections.abc import Callable, Sequence
from pathlib import Path

from qlora_engine.data.collate import Collator
from qlora_engine.data.samples import Split
from qlora_engine.data.video import Timeline
from qlora_engine.errors import (
    ControlTokenInCaption,
    DatasetError,
    EngineError,
    FramesExceedClip,
    ModelRefused,
    SequenceTooLong,
)
from qlora_engine.models.families.base import Moments, Shown, Vision
from qlora_engine.updates import Logged, Preparing, Update
from schemas.datasets import Clip, Example, Manifest
from schemas.training import Hyperparameters

ROWS_PER_UPDATE = 1000


def check_clips(manifest: Manifest, folder: Path, frames: int) -> None:
    """
    Raises:
        FramesExceedClip: a clip is too short.
        DatasetError: a clip's file is not the validated one.
    """
    for clip in manifest.clips:
        if clip.frames < frames:
            raise FramesExceedClip(
                f"frames is {frames}, but {clip.path} has only {clip.frames} frames;"
                f" lower frames to {min(clip.frames for clip in manifest.clips)}, or leave short clips out"
            )
        file = folder / clip.path
        if not file.is_file() or file.stat().st_size != clip.size_bytes:
            raise DatasetError(
                f"{clip.path} is missing or changed since the dataset was validated; fetch it again"
            )


def check_captions(
    manifest: Manifest,
    collator: Collator,
    vision: Vision | None,
    frames: int,
    emit: Callable[[Update], None],
) -> dict[str, int]:
    """The number of answer tokens of every row, by `Example.where`.

    Nothing is decoded: see `shown_clip`.

    Raises:
        SequenceTooLong, ControlTokenInCaption: a row cannot be used; says how many others there are.
        ModelRefused: the model sees no clips (code ``no_vision``).
    """
    shown = {clip.path: shown_clip(clip, vision, frames) for clip in manifest.clips}
    lengths: dict[str, int] = {}
    refusals: list[EngineError] = []
    for done, example in enumerate(manifest.examples, start=1):
        try:
            encoded = collator.encoded(example, shown[example.clip] if example.clip else None)
            lengths[example.where] = sum(encoded.supervised)
        except (SequenceTooLong, ControlTokenInCaption) as refusal:
            refusals.append(refusal)
        if done % ROWS_PER_UPDATE == 0:
            emit(Preparing(phase="loading_data", done=done, total=len(manifest.examples)))
    if refusals:
        others = f" ({len(refusals) - 1} further rows cannot be used either)" if len(refusals) > 1 else ""
        raise type(refusals[0])(refusals[0].message + others, code=refusals[0].code)
    return lengths


def shown_clip(clip: Clip, vision: Vision | None, frames: int) -> Shown:
    """A clip as its prompt will see it, from the manifest alone.

    The moments are those of `sample_clip` where the frame rate is constant, and near them where it varies.

    Raises:
        ModelRefused: the model sees no clips (code ``no_vision``).
        ClipError: no layout fits.
    """
    if vision is None:
        raise ModelRefused(
            f"the model reads text alone and cannot see {clip.path}; choose a video-text model,"
            " or a dataset without clips",
            code="no_vision",
        )
    times = tuple(index * clip.duration_seconds / clip.frames for index in range(clip.frames))
    timeline = Timeline(times, clip.duration_seconds)
    moments = Moments(tuple(times[index] for index in timeline.evenly(frames)), clip.duration_seconds)
    return Shown(vision.layout(clip.width, clip.height, frames), moments)


def cautions(
    split: Split, evaluated: Sequence[Example], lengths: dict[str, int], hyperparameters: Hyperparameters
) -> list[Logged]:
    """What people should know about their data before they trust the figures."""
    found = []
    if hyperparameters.held_out_fraction > 0 and not split.held_out:
        found.append(
            _caution(
                "nothing_held_out",
                "there are fewer than 5 different clips, so all are trained on and nothing is evaluated;"
                " add clips",
            )
        )
    if len(evaluated) < len(split.held_out):
        found.append(
            _caution(
                "evaluation_sampled",
                f"of {len(split.held_out)} held-out rows {len(evaluated)}, always the same, are evaluated;"
                " lower held_out_fraction to train on more",
            )
        )
    limit = hyperparameters.max_new_tokens
    cut = sum(lengths[example.where] - 1 > limit for example in evaluated)  # its end need not be generated
    if cut:
        longest = max(lengths[example.where] for example in evaluated)
        found.append(
            _caution(
                "answers_cut",
                f"{cut} of {len(evaluated)} evaluated responses are longer than max_new_tokens {limit}, so"
                f" no answer can match them word for word; raise max_new_tokens to {longest}",
            )
        )
    return found


def _caution(code: str, message: str) -> Logged:
    return Logged(level="warning", code=code, message=message)
