"""Frames of clips: how fast, how exact, how little more than the better way, and what hostile files cost.

Every figure of time is a median of interleaved rounds; every frame is compared with one of a full decode.
"""

import random
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import psutil

from benchmarks.installation import console, scratch
from benchmarks.report import Result
from qlora_engine.data.containers import opened
from qlora_engine.data.decoder import Judge, Unusable, Usable, answer
from qlora_engine.data.decoders import Decoders
from qlora_engine.data.packets import Plan
from qlora_engine.data.pictures import Developer, Size, digest
from qlora_engine.data.sampling import Sampling
from qlora_engine.data.shapes import make_sample_dataset
from qlora_engine.data.video import sample_clip

SIZE = Size(384, 384)
PLANS: tuple[Plan, ...] = ("best", "seek", "scan")
RATE = 30
CORRUPT_SHARE = 0.02
FEW = 200
"""Clips after which a process has all it needs; what it grows by afterwards it loses."""
MEBIBYTE = 2**20


@dataclass(frozen=True, slots=True)
class Shape:
    """A clip to take frames of."""

    name: str
    width: int
    height: int
    seconds: int
    group: int
    """Frames from one key frame to the next."""
    frames: int
    """To take."""


SHAPES = (
    Shape("8 frames, 60 s of 640x360", 640, 360, 60, 60, 8),
    Shape("64 frames, 60 s of 640x360", 640, 360, 60, 60, 64),
    Shape("8 frames, 20 s of 640x360 in one group", 640, 360, 20, 10_000, 8),
    Shape("16 frames, 10 s of 1280x720", 1280, 720, 10, 48, 16),
    Shape("4 frames, 2 s of 64x64", 64, 64, 2, 12, 4),
)


def measure(*, quick: bool = False) -> list[Result]:
    """Run the benchmark; about five minutes, or one when quick."""
    with scratch() as folder:
        results = _taking(folder, rounds=5 if quick else 15)
        results += _varying(folder)
        results += _hostile(folder / "many", 300 if quick else 2000)
        results += _training(folder, steps=6 if quick else 16)
    return results


# ---- taking frames ------------------------------------------------------------------------------------


def _taking(folder: Path, rounds: int) -> list[Result]:
    ratios, different, off = [], 0, 0.0
    first: dict[Plan, list[float]] = {}
    beside: list[float] = []
    computed: list[float] = []
    with Decoders(1) as decoders:
        for shape in SHAPES:
            file = _encode(folder / f"{shape.width}-{shape.seconds}-{shape.group}.mp4", shape)
            whole, sampling = _all_digests(file), Sampling(frames=shape.frames)
            taken: dict[Plan, list[float]] = {plan: [] for plan in PLANS}
            for number in range(rounds):
                for plan in random.Random(number).sample(PLANS, len(PLANS)):
                    began, busy = time.perf_counter(), time.process_time()
                    sampled = sample_clip(file, sampling, SIZE, plan=plan)
                    taken[plan].append(time.perf_counter() - began)
                    if not first and plan == "best":
                        computed.append(time.process_time() - busy)
                    places = [round(seconds * RATE) for seconds in sampled.seconds]
                    different += [whole[place] for place in places] != list(sampled.digests)
                    off = max(off, *_frames_off(sampled.seconds, len(whole) / RATE))
                if not first:
                    began = time.perf_counter()
                    decoders.sample(file, sampling, SIZE)
                    beside.append(time.perf_counter() - began)
            first = first or taken
            medians = {plan: statistics.median(seconds) for plan, seconds in taken.items()}
            ratio = medians["best"] / min(medians["seek"], medians["scan"])
            ratios.append(Result(f"time by the better of seek and scan: {shape.name}", ratio, "ratio", 1.2))
            console.print(
                f"engine.video: {shape.name}: "
                + ", ".join(f"{plan} {1000 * median:.0f} ms" for plan, median in medians.items())
            )
    return [
        Result(SHAPES[0].name, statistics.median(first["best"]), "s", 0.1),
        Result("processor time of that", statistics.median(computed), "s"),
        Result("the same in a process that may die", statistics.median(beside[1:]), "s"),
        *ratios,
        Result("samples that differ from a full decode", different, "samples", 0),
        Result("distance of a frame's time from what was asked for", off, "frames", 0.5),
    ]


def _frames_off(seconds: Sequence[float], duration: float) -> list[float]:
    """How far the middle of each shown frame is from the moment asked for, in frames."""
    count = len(seconds)
    moments = [(place + 0.5) * duration / count for place in range(count)]
    return [abs(shown + 0.5 / RATE - moment) * RATE for shown, moment in zip(seconds, moments, strict=True)]


def _all_digests(file: Path) -> list[str]:
    with opened(file) as (container, stream):
        developer = Developer(stream, SIZE)
        return [digest(developer.picture(frame)) for frame in container.decode(stream)]


def _encode(file: Path, shape: Shape, milliseconds: Sequence[int] | None = None) -> Path:
    """A camera that moves over a coarse texture: as hard to decode as a quiet recording."""
    count = shape.seconds * RATE if milliseconds is None else len(milliseconds)
    coarse = np.random.default_rng(0).integers(0, 256, (shape.height // 8 + 16, 512, 3), np.uint8)
    scene = coarse.repeat(8, axis=0).repeat(8, axis=1)
    with av.open(str(file), "w") as container:
        options = {"g": str(shape.group), "keyint_min": "1", "preset": "veryfast", "crf": "26"}
        stream = container.add_stream("libx264", rate=RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = shape.width, shape.height, "yuv420p"
        if milliseconds is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(count):
            left, top = number % (scene.shape[1] - shape.width), number % 60
            picture = scene[top : top + shape.height, left : left + shape.width]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            if milliseconds is not None:
                frame.pts, frame.time_base = milliseconds[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file


def _varying(folder: Path) -> list[Result]:
    """A phone's recording, whose frames last between 10 and 400 ms."""
    rng, times = random.Random(0), [0]
    for _ in range(199):
        times.append(times[-1] + rng.choice((10, 17, 33, 50, 400)))
    file = _encode(folder / "varying.mp4", Shape("", 320, 192, 0, 30, 0), times)
    with opened(file) as (container, stream):
        shown = [float(frame.pts * frame.time_base) for frame in container.decode(stream)]
    whole = _all_digests(file)
    worst, different = 0.0, 0
    for count in (1, 4, 16, 50):
        sampled = sample_clip(file, Sampling(frames=count), SIZE)
        for number, (seconds, found) in enumerate(zip(sampled.seconds, sampled.digests, strict=True)):
            moment = (number + 0.5) * sampled.duration / count
            expected = max(place for place, time_ in enumerate(shown) if time_ - shown[0] <= moment + 1e-9)
            different += found != whole[expected]
            worst = max(worst, abs(seconds - (times[expected] / 1000)))
    return [
        Result("frames of a varying rate that are not on the screen then", different, "frames", 0),
        Result("error of their times", 1000 * worst, "ms", 1),
    ]


# ---- hostile files ------------------------------------------------------------------------------------


def _hostile(folder: Path, clips: int) -> list[Result]:
    make_sample_dataset(folder, clips=24)
    good = [file.read_bytes() for file in sorted((folder / "clips").iterdir())]
    corrupt = set(random.Random(0).sample(range(clips), round(clips * CORRUPT_SHARE)))
    refused, wrong, sizes = 0, 0, []
    sampling, size = Sampling(frames=4), Size(64, 64)
    with Decoders(1) as decoders:
        for number in range(clips):
            file = folder / f"{number}.mp4"
            content = good[number % len(good)]
            file.write_bytes(content[: len(content) // 2] if number in corrupt else content)
            reply = decoders.judge(file, file.name)
            refused += isinstance(reply, Unusable) and bool(reply.message)
            wrong += isinstance(reply, Usable) == (number in corrupt)
            if isinstance(reply, Usable):
                decoders.sample(file, sampling, size)
            file.unlink()
            children = psutil.Process().children()
            sizes.append(psutil.Process().memory_info().rss + sum(one.memory_info().rss for one in children))
    few = min(FEW, clips // 3)
    growth = (statistics.median(sizes[-20:]) - statistics.median(sizes[few - 20 : few])) / MEBIBYTE
    return [
        Result("clips judged and sampled", clips, "clips"),
        Result("corrupt clips refused with a reason", refused, "clips", round(clips * CORRUPT_SHARE), True),
        Result("wrong verdicts", wrong, "clips", 0),
        Result(f"memory from clip {few} to the last, decoder included", growth, "MiB", 16),
    ]


# ---- a training ---------------------------------------------------------------------------------------


def _training(folder: Path, steps: int) -> list[Result]:
    """Every step wants clips that were never decoded: the worst case, which is a first epoch."""
    from benchmarks.engine.small_model import BATCH, make_model
    from qlora_engine.stopping import StopWish
    from qlora_engine.training.attempt import train
    from schemas.datasets import Example, Manifest, Turn
    from schemas.training import Hyperparameters, TrainingSpec

    make_model(folder / "model")
    source = folder / f"640-60-{SHAPES[0].group}.mp4"
    reply, _ = answer(Judge(file=str(source), path="clip"))
    assert isinstance(reply, Usable)
    (folder / "clips").mkdir()
    names = [f"{number}.mp4" for number in range(steps * BATCH)]
    for name in names:
        (folder / "clips" / name).hardlink_to(source)
    turns = (Turn(role="user", text="What happens?"), Turn(role="assistant", text="a camera moves"))
    manifest = Manifest(
        clips=tuple(reply.clip.model_copy(update={"path": name}) for name in names),
        examples=tuple(
            Example(clip=name, messages=turns, row=row) for row, name in enumerate(names, start=1)
        ),
    )
    (folder / "manifest.json").write_text(manifest.model_dump_json(), "utf-8")
    spec = TrainingSpec(
        job_id="job_" + "0" * 32,
        attempt=1,
        hyperparameters=Hyperparameters(
            batch_size=BATCH, frames=8, max_steps=steps, held_out_fraction=0.0, checkpoint_every_steps=10_000
        ),
        model_folder=str(folder / "model"),
        dataset_folder=str(folder / "clips"),
        manifest_file=str(folder / "manifest.json"),
        output_folder=str(folder / "output"),
    )
    waits, whole = _timed(lambda: train(spec, lambda _: None, StopWish()))
    # The first batch has nothing to hide behind.
    return [
        Result(
            "waiting for data by time of a step, clips never seen",
            sum(waits[1:]) / sum(whole[1:]),
            "ratio",
            0.05,
        ),
        Result("time of a step", statistics.median(whole[1:]), "s"),
        Result("wait for the first batch", waits[0], "s"),
    ]


def _timed(run: Callable[[], None]) -> tuple[list[float], list[float]]:
    """Seconds that each step waited for its batch, and that it took as a whole."""
    from qlora_engine.training.loop import Loop
    from qlora_engine.training.step import Prepared, Taken

    take = Loop.take
    waits: list[float] = []
    whole: list[float] = []

    def timed(self: Loop, ahead: Future[Prepared]) -> Taken:
        began = time.perf_counter()
        ahead.result()
        waits.append(time.perf_counter() - began)
        taken = take(self, ahead)
        whole.append(time.perf_counter() - began)
        return taken

    Loop.take = timed  # type: ignore[method-assign]
    try:
        run()
    finally:
        Loop.take = take  # type: ignore[method-assign]
    return waits, whole
