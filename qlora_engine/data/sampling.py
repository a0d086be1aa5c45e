"""How many frames a job takes of a clip, and at which moments: pure, so plan, check and reader agree.

Free of torch.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

from pydantic import ConfigDict, Field

from qlora_engine.errors import FramesExceedClip
from schemas.base import Message
from schemas.datasets import Clip
from schemas.training import MOST_FRAMES, Hyperparameters


class Sampling(Message):
    """`frames` of every clip, or `frames_per_second` within bounds; always evenly spaced in time."""

    model_config = ConfigDict(allow_inf_nan=False)

    frames: int = Field(1, ge=1)
    """Ignored with `frames_per_second`."""
    frames_per_second: float | None = Field(None, gt=0)
    min_frames: int = Field(1, ge=1)
    max_frames: int | None = Field(None, ge=1)

    @classmethod
    def of(cls, hyperparameters: Hyperparameters) -> Self:
        """What the job asks for."""
        if hyperparameters.frames_per_second is None:
            return cls(frames=hyperparameters.frames)
        return cls(
            frames_per_second=hyperparameters.frames_per_second,
            min_frames=hyperparameters.min_frames or 1,
            max_frames=hyperparameters.max_frames,
        )

    def described(self) -> dict[str, object]:
        """For people and programs that read an adapter: only what counts."""
        if self.frames_per_second is None:
            return {"count": self.frames}
        return self.model_dump(mode="json", exclude={"frames"})

    def fewer(self, divisor: int) -> "Sampling":
        """So many times fewer frames of each clip, but at least one."""
        rate = self.frames_per_second
        return Sampling(
            frames=max(1, self.frames // divisor),
            frames_per_second=None if rate is None else rate / divisor,
            min_frames=max(1, self.min_frames // divisor),
            # A clip may give so many when nothing is said, and the rate is lower now.
            max_frames=None if self.max_frames is None else max(1, self.max_frames // divisor),
        )

    def count(self, name: str, duration: float, available: int) -> int:
        """Frames to take of the clip `name`, which lasts `duration` seconds and holds `available` frames.

        Raises:
            FramesExceedClip: there are fewer, or they are more than a clip may give.
        """
        if self.frames_per_second is None:
            if self.frames > available:
                raise FramesExceedClip(
                    f"frames is {self.frames}, but {name} has only {available} frame{'s' * (available != 1)};"
                    f" lower frames to {available} or less, or leave the clip out"
                )
            return self.frames
        meant = f"frames_per_second {self.frames_per_second:g}"
        wanted = max(round(duration * self.frames_per_second), self.min_frames)
        if self.max_frames is not None:
            wanted = min(wanted, self.max_frames)
        elif wanted > MOST_FRAMES:
            raise FramesExceedClip(
                f"{meant} takes {wanted} frames of {name}, which lasts {duration:.1f} s, but a clip gives"
                f" at most {MOST_FRAMES}; lower frames_per_second, or set max_frames to spread that many over"
                " the clip"
            )
        if wanted > available:
            raise FramesExceedClip(
                f"{meant}{f' with min_frames {self.min_frames}' if wanted == self.min_frames else ''} takes"
                f" {wanted} frames of {name}, which has only {available} in {duration:.3g} s;"
                " lower frames_per_second or min_frames, or leave the clip out"
            )
        return wanted

    def moments(self, clip: Clip) -> tuple[float, ...]:
        """The moments, in seconds, whose pictures are taken: known from the clip's facts, without decoding.

        The frame on the screen then may have come up to one frame's time earlier.

        Raises:
            FramesExceedClip: as `count`.
        """
        return evenly(clip.duration_seconds, self.count(clip.path, clip.duration_seconds, clip.frames))


def evenly(duration: float, count: int) -> tuple[float, ...]:
    """The middle of each of `count` equal stretches of time."""
    return tuple((index + 0.5) * duration / count for index in range(count))


@dataclass(frozen=True)
class Timeline:
    """When each frame of a clip is shown; `end` is the end of the last one. Seconds from the first frame."""

    times: tuple[float, ...]
    end: float

    @classmethod
    def from_stamps(
        cls, stamps: Sequence[int | None], last_duration: int, tick: float, rate: float
    ) -> "Timeline":
        """From presentation stamps in ticks of `tick` seconds; by counting at `rate` frames per second where
        stamps are missing or do not grow."""
        known = [stamp for stamp in stamps if stamp is not None]
        if len(known) < len(stamps) or any(later <= earlier for earlier, later in pairwise(known)):
            return cls(tuple(index / rate for index in range(len(stamps))), len(stamps) / rate)
        times = tuple((stamp - known[0]) * tick for stamp in known)
        last = last_duration * tick or (times[-1] / (len(times) - 1) if len(times) > 1 else 1 / rate)
        return cls(times, times[-1] + last)

    def evenly(self, count: int) -> list[int]:
        """Indices of the frames on the screen in the middle of each of `count` equal stretches of time."""
        return [max(0, bisect_right(self.times, moment + 1e-9) - 1) for moment in evenly(self.end, count)]

    def varies(self, tick: float) -> bool:
        """Whether the frames are not all shown equally long."""
        gaps = sorted(later - earlier for earlier, later in pairwise(self.times))
        if not gaps:
            return False
        return gaps[-1] - gaps[0] > max(2.5 * tick, 0.1 * gaps[len(gaps) // 2])
