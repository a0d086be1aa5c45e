"""Sample clips made on the spot: coloured shapes that move, so that anyone can try a training at once.

Run: ``python -m qlora_engine.data.shapes FOLDER [--clips 240] [--seed 0] [--mirrored]``
"""

import argparse
import json
import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NoReturn

import av
import numpy as np
from numpy.typing import NDArray

SIDE = 64
FRAMES = 16
FRAMES_PER_SECOND = 8
PROMPT = "What happens in the video?"

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 45, 45),
    "green": (45, 200, 70),
    "blue": (60, 95, 235),
    "yellow": (235, 215, 55),
    "white": (240, 240, 240),
}
SHAPES = ("square", "ring", "triangle")
DIRECTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}

OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}
HELD_OUT_OF_MIRRORED = 0.2

Image = NDArray[np.uint8]
Progress = Callable[[str, int, int], None]
"""Called with (what is being done, done, total)."""

_ROWS, _COLUMNS = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)


@dataclass(frozen=True)
class Figure:
    """What a picture shows; positions and radius are in pixels of a 64 x 64 picture."""

    colour: str
    shape: str
    radius: float
    background: int


def draw(figure: Figure, x: float, y: float) -> Image:
    """One RGB picture of `figure` with its centre at (x, y)."""
    across, down, radius = np.abs(_COLUMNS - x), _ROWS - y, figure.radius
    if figure.shape == "square":
        inside = (across <= radius * 0.9) & (np.abs(down) <= radius * 0.9)
    elif figure.shape == "ring":
        inside = ((radius * 0.5) ** 2 <= across**2 + down**2) & (across**2 + down**2 <= radius**2)
    else:
        inside = (down <= radius * 0.9) & (across * 2 <= down + radius * 0.9)
    picture = np.full((SIDE, SIDE, 3), figure.background, dtype=np.uint8)
    picture[inside] = COLOURS[figure.colour]
    return picture


def random_figure(rng: random.Random) -> Figure:
    """A figure of any colour and shape."""
    return Figure(
        colour=rng.choice(tuple(COLOURS)),
        shape=rng.choice(SHAPES),
        radius=rng.uniform(12, 15),
        background=rng.randint(0, 40),
    )


def moving(figure: Figure, direction: str, rng: random.Random) -> list[Image]:
    """The pictures of a clip; left is the exact mirror of right, so no single picture tells the direction."""
    margin = 15
    step_x, step_y = DIRECTIONS[direction]
    across = rng.uniform(margin, SIDE - margin)
    travel = rng.uniform(26, SIDE - 2 * margin)
    offset = rng.uniform(-1, 1) * (SIDE - 2 * margin - travel) / 2
    pictures = []
    for index in range(FRAMES):
        along = SIDE / 2 + (index / (FRAMES - 1) - 0.5) * travel * (step_x + step_y) + offset
        x, y = (along, across) if step_x else (across, along)
        pictures.append(draw(figure, x, y))
    return pictures


def write_clip(file: Path, pictures: list[Image], *, independent: bool = False) -> None:
    """An H.264 mp4 of `pictures`; decoded, `independent` ones do not depend on those before them."""
    rate = {"qp": "16", "g": "1"} if independent else {"crf": "16"}
    with av.open(str(file), "w") as container:
        stream = container.add_stream(
            "libx264", rate=FRAMES_PER_SECOND, options={"preset": "veryfast", **rate}
        )
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, FRAMES_PER_SECOND)
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def make_sample_dataset(
    folder: Path | str, clips: int = 240, seed: int = 0, progress: Progress | None = None
) -> Path:
    """Write `clips` mp4 files and ``captions.jsonl`` into `folder`; the same seed gives the same captions.

    Colours, shapes and directions take turns, so every direction is equally frequent.
    """
    folder = Path(folder)
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)  # noqa: S311 - pictures, not secrets
    rows = []
    for index in range(clips):
        figure = random_figure(rng)
        direction = tuple(DIRECTIONS)[index % len(DIRECTIONS)]
        path = f"clips/clip-{index:04d}.mp4"
        write_clip(folder / path, moving(figure, direction, rng))
        rows.append(_row(path, figure, direction))
        if progress is not None:
            progress("drawing clips", index + 1, clips)
    return _with_captions(folder, rows)


def make_mirrored_dataset(
    folder: Path | str, clips: int = 240, seed: int = 0, progress: Progress | None = None
) -> Path:
    """Like `make_sample_dataset`, but left and right alone, in pairs of a clip and its exact reverse.

    Whoever cannot know the order of frames gives both the same answer, and is right about one of them at
    most. The last fifth of the pairs is held out, by the column ``split``. An even number of clips is made.
    """
    folder = Path(folder)
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)  # noqa: S311 - pictures, not secrets
    rows, pairs = [], clips // 2
    for index in range(pairs):
        figure = random_figure(rng)
        direction = ("left", "right")[index % 2]
        # An odd number, whose even samples are the same pictures from either end.
        pictures = moving(figure, direction, rng)[1:]
        split = "training" if index < round(pairs * (1 - HELD_OUT_OF_MIRRORED)) else "validation"
        for name, shown, way in (
            ("", pictures, direction),
            ("-reversed", pictures[::-1], OPPOSITE[direction]),
        ):
            path = f"clips/clip-{index:04d}{name}.mp4"
            write_clip(folder / path, shown, independent=True)
            rows.append({**_row(path, figure, way), "split": split})
        if progress is not None:
            progress("drawing clips", 2 * index + 2, 2 * pairs)
    return _with_captions(folder, rows)


def _row(path: str, figure: Figure, direction: str) -> dict[str, str]:
    response = f"a {figure.colour} {figure.shape} moves {direction}"
    return {"video": path, "prompt": PROMPT, "response": response}


def _with_captions(folder: Path, rows: list[dict[str, str]]) -> Path:
    captions = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "captions.jsonl").write_text(captions, "utf-8")
    return folder


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """For commands that fill a new folder: anything in the way is one line for people and exit code 2."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if next(folder.iterdir(), None) is not None:
            _refuse(f"{folder} is not empty; name a folder that is empty or does not exist")
        if not os.access(folder, os.W_OK | os.X_OK):
            _refuse(f"{folder} is not writable; name another folder")
        yield
    except OSError as error:
        _refuse(f"cannot write to {folder}: {error.strerror or error}; name another folder")


def _refuse(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)  # noqa: T201 - this is the command's output
    raise SystemExit(2)


def print_progress(what: str, done: int, total: int) -> None:
    """A line at every tenth, for people at a terminal."""
    if done == total or done % max(1, total // 10) == 0:
        print(f"{what}: {done}/{total}", flush=True)  # noqa: T201 - this is the command's output


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m qlora_engine.data.shapes", description="Write sample clips."
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clips", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mirrored", action="store_true", help="in pairs of a clip and its reverse")
    arguments = parser.parse_args()
    make = make_mirrored_dataset if arguments.mirrored else make_sample_dataset
    with writing_to(arguments.folder):
        make(arguments.folder, arguments.clips, arguments.seed, print_progress)


if __name__ == "__main__":
    main()
