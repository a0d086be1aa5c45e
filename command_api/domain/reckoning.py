"""What the rows of a dataset come to before a tokenizer has seen them: bounds, and what is likely between."""

from collections.abc import Sequence
from heapq import nlargest
from typing import NamedTuple

from schemas.datasets import Clip, Example, Manifest
from schemas.footprint import ModelShape
from schemas.preflight import Evaluated, Workload
from schemas.training import MOST_FRAMES, Hyperparameters

PATCH_PIXELS = 16**2
"""Of a patch where the model's shape does not tell."""


class Density(NamedTuple):
    """How many tokens text becomes."""

    characters: float
    """Per token."""
    turn: int
    """Tokens of the chat template around each turn."""
    step: int
    """Tokens around each step of a clip: markers, times in words."""


LEAST, LIKELY, MOST = Density(6, 0, 0), Density(4, 6, 6), Density(2, 16, 16)
"""A token of any usual language and vocabulary is no longer than 6 characters, and seldom shorter than 2."""


class Row(NamedTuple):
    """What one example comes to."""

    tokens: float
    supervised: float
    patches: float = 0
    """Of the vision tower."""
    pixels: float = 0
    """Numbers of its frames."""


def training_rows(
    manifest: Manifest, shape: ModelShape, chosen: Hyperparameters, density: Density
) -> list[Row]:
    """All rows that may be trained on: which of them are held out, only the engine knows."""
    seen = {clip.path: _seen(clip, shape, chosen, density) for clip in manifest.clips}
    return [
        _row(example, seen.get(example.clip or "", Row(0, 0)), density)
        for example in manifest.examples
        if example.split != "validation"
    ]


def all_frames(manifest: Manifest, shape: ModelShape, chosen: Hyperparameters) -> int:
    """Bytes of the frames of every clip; a number of a frame is a byte until it is normalised."""
    return round(sum(_seen(clip, shape, chosen, LEAST).pixels for clip in manifest.clips))


def _row(example: Example, clip: Row, density: Density) -> Row:
    told = sum(len(turn.text) for turn in example.messages)
    answered = sum(len(example.messages[place].text) for place in example.supervised)
    turns = len(example.messages) * density.turn
    return Row(
        told / density.characters + turns + clip.tokens,
        answered / density.characters + len(example.supervised),
        clip.patches,
        clip.pixels,
    )


def _seen(clip: Clip, shape: ModelShape, chosen: Hyperparameters, density: Density) -> Row:
    sight = shape.sight
    if sight is None:
        return Row(0, 0)
    frames = frames_of(clip, chosen)
    width = round(clip.width * clip.pixel_aspect)
    tokens = sight.tokens(width, clip.height, frames, chosen.frame_pixels)
    steps = -(-frames // sight.frames_per_step)
    patches = tokens * sight.patches_per_token
    pixels = tokens * sight.pixels_per_token or patches * PATCH_PIXELS
    return Row(tokens + steps * density.step, 0, patches, 3 * sight.frames_per_step * pixels)


def frames_of(clip: Clip, chosen: Hyperparameters) -> int:
    """Frames that the engine takes of a clip, where it takes it at all."""
    if chosen.frames_per_second is None:
        return chosen.frames
    wanted = max(round(clip.duration_seconds * chosen.frames_per_second), chosen.min_frames or 1)
    return min(wanted, chosen.max_frames or MOST_FRAMES, clip.frames)


def load(
    rows: Sequence[Row],
    steps: int,
    chosen: Hyperparameters,
    *,
    together: bool,
    frame_bytes: int = 0,
    held_out: int = 0,
) -> Workload:
    """What `steps` steps come to. `together`: the largest rows meet in a forward pass, else average ones.

    `held_out` rows are evaluated; which they are, only the engine knows.
    """
    average = Row(*(sum(column) / len(rows) for column in zip(*rows, strict=True)))
    largest = _together(rows, chosen) if together else _alike(average, chosen)
    in_step = (chosen.tokens_per_step or 0) / max(1, average.tokens) or chosen.batch_size
    return Workload(
        tokens=round(largest.tokens),
        supervised=round(largest.supervised),
        patches=round(largest.patches),
        pixels=round(largest.pixels),
        frame_bytes=frame_bytes,
        total_tokens=round(average.tokens * in_step * steps),
        total_patches=round(average.patches * in_step * steps),
        steps=steps,
        evaluated=_evaluated(rows, chosen, held_out),
    )


def _evaluated(rows: Sequence[Row], chosen: Hyperparameters, held_out: int) -> Evaluated:
    at_once = min(chosen.micro_batch_size or chosen.batch_size, held_out)
    if not at_once:
        return Evaluated()
    columns = zip(*rows, strict=True)
    tokens, supervised, patches, pixels = (round(sum(nlargest(at_once, column))) for column in columns)
    prompt = round(max(row.tokens - row.supervised for row in rows))
    return Evaluated(tokens, supervised, patches, pixels, at_once, max(0, prompt))


def _together(rows: Sequence[Row], chosen: Hyperparameters) -> Row:
    budget = chosen.tokens_per_micro_batch
    if budget is None:
        # A batch that is larger than the dataset holds it several times over.
        whole, rest = divmod(chosen.micro_batch_size or chosen.batch_size, len(rows))
        columns = zip(*rows, strict=True)
        return Row(*(whole * sum(column) + sum(nlargest(rest, column)) for column in columns))
    packed = [_times(row, max(1, int(budget // max(1, row.tokens)))) for row in rows]
    return Row(*(max(column) for column in zip(*packed, strict=True)))


def _alike(average: Row, chosen: Hyperparameters) -> Row:
    budget, taken = chosen.tokens_per_micro_batch, chosen.batch_size
    if budget is None:
        return _times(average, chosen.micro_batch_size or taken)
    return _times(average, min(budget / 2 / max(1, average.tokens), taken))


def _times(row: Row, count: float) -> Row:
    return Row(*(value * count for value in row))
