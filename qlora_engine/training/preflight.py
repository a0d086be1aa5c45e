"""Refuses before the first step what would otherwise fail hours later, when its turn comes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from qlora_engine.data.collate import Collator
from qlora_engine.data.frames import shown_clip
from qlora_engine.data.samples import Split
from qlora_engine.data.sampling import Sampling
from qlora_engine.errors import (
    ControlTokenInCaption,
    DatasetError,
    EmptyResponse,
    EngineError,
    SequenceTooLong,
)
from qlora_engine.models.families.base import Vision
from qlora_engine.updates import Logged, Preparing, Update
from schemas.datasets import Example, Manifest
from schemas.training import Hyperparameters

ROWS_PER_UPDATE = 1000


class Tokens(NamedTuple):
    """Of one row of the captions file."""

    whole: int
    supervised: int


def check_clips(manifest: Manifest, folder: Path, sampling: Sampling) -> None:
    """
    Raises:
        FramesExceedClip: a clip cannot give the frames that the job asks for.
        DatasetError: a clip's file is not the validated one.
    """
    for clip in manifest.clips:
        sampling.count(clip.path, clip.duration_seconds, clip.frames)
        file = folder / clip.path
        if not file.is_file() or file.stat().st_size != clip.size_bytes:
            raise DatasetError(
                f"{clip.path} is missing or changed since the dataset was validated; fetch it again"
            )


def check_captions(
    manifest: Manifest,
    collator: Collator,
    vision: Vision | None,
    sampling: Sampling,
    emit: Callable[[Update], None],
) -> dict[str, Tokens]:
    """What every row comes to, by `Example.where`.

    Nothing is decoded: see `shown_clip`.

    Raises:
        SequenceTooLong, ControlTokenInCaption, EmptyResponse: a row cannot be used; says how many others
            there are.
        ModelRefused: the model sees no clips (code ``no_vision``).
    """
    shown = {clip.path: shown_clip(clip, vision, sampling) for clip in manifest.clips}
    lengths: dict[str, Tokens] = {}
    refusals: list[EngineError] = []
    for done, example in enumerate(manifest.examples, start=1):
        try:
            encoded = collator.encoded(example, shown[example.clip] if example.clip else None)
            lengths[example.where] = Tokens(len(encoded.ids), sum(encoded.supervised))
        except (SequenceTooLong, ControlTokenInCaption, EmptyResponse) as refusal:
            refusals.append(refusal)
        if done % ROWS_PER_UPDATE == 0:
            emit(Preparing(phase="loading_data", done=done, total=len(manifest.examples)))
    if refusals:
        others = f" ({len(refusals) - 1} further rows cannot be used either)" if len(refusals) > 1 else ""
        raise type(refusals[0])(refusals[0].message + others, code=refusals[0].code)
    return lengths


def check_budget(
    examples: Sequence[Example], lengths: dict[str, Tokens], hyperparameters: Hyperparameters
) -> None:
    """
    Raises:
        SequenceTooLong: a row does not fit into tokens_per_micro_batch.
    """
    budget = hyperparameters.tokens_per_micro_batch
    if budget is None or not examples:
        return
    longest = max(examples, key=lambda example: lengths[example.where].whole)
    if (tokens := lengths[longest.where].whole) > budget:
        raise SequenceTooLong(
            f"{longest.where} makes {tokens} tokens, but tokens_per_micro_batch is {budget};"
            f" raise it to at least {tokens}, lower frames or shorten the caption"
        )


def cautions(
    split: Split, evaluated: Sequence[Example], lengths: dict[str, Tokens], hyperparameters: Hyperparameters
) -> list[Logged]:
    """What people should know about their data before they trust the figures."""
    found = []
    if hyperparameters.held_out_fraction > 0 and not split.held_out:
        found.append(
            _caution(
                "nothing_held_out",
                "there are fewer than 5 different clips or texts, so all are trained on and nothing is"
                " evaluated; add some",
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
    cut = sum(lengths[example.where].supervised - 1 > limit for example in evaluated)
    if cut:
        longest = max(lengths[example.where].supervised for example in evaluated)
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
