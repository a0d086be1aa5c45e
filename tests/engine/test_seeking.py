"""Whatever way leads through a file, the frames are those of a full decode, at their presentation times."""

from collections.abc import Callable, Sequence
from pathlib import Path

import av
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qlora_engine.data.containers import opened
from qlora_engine.data.packets import WORTH_A_JUMP, Plan, Walk, read_index
from qlora_engine.data.pictures import Developer, digest
from qlora_engine.data.sampling import Sampling
from qlora_engine.data.units import Units
from qlora_engine.data.video import sample_clip
from tests.engine.videos import decoded, trim_end, write_video

FRAMES = 72
PLANS: tuple[Plan, ...] = ("best", "seek", "scan")
X264 = "keyint=12:min-keyint=12:scenecut=0:bframes=3:b-adapt=0"
KINDS: dict[str, Callable[[Path], Path]] = {
    "b-frames": lambda folder: write_video(folder / "b.mp4", frames=FRAMES, options={"x264-params": X264}),
    "open groups": lambda folder: write_video(
        folder / "open.mkv", frames=FRAMES, options={"x264-params": f"{X264}:open-gop=1"}
    ),
    "gradual refresh": lambda folder: write_video(
        folder / "refresh.mkv",
        frames=FRAMES,
        options={"x264-params": "intra-refresh=1:keyint=12:bframes=0:scenecut=0"},
    ),
    "interlaced": lambda folder: write_video(
        folder / "tff.mp4", frames=FRAMES, options={"x264-params": f"{X264}:tff=1"}
    ),
    "transport stream": lambda folder: write_video(
        folder / "stream.ts", frames=FRAMES, options={"x264-params": X264}
    ),
    "times that begin late": lambda folder: write_video(
        folder / "late.mp4", frames=FRAMES, first=30, options={"x264-params": X264}
    ),
    "times that begin below zero": lambda folder: write_video(
        folder / "early.mkv", frames=FRAMES, first=-5, options={"x264-params": X264}
    ),
    "trimmed": lambda folder: trimmed(folder / "trimmed.mp4"),
    "hevc, open groups": lambda folder: write_video(
        folder / "open-hevc.mp4",
        "libx265",
        frames=FRAMES,
        options={"x265-params": "open-gop=1:keyint=12:bframes=3:scenecut=0:log-level=none"},
    ),
    "mpeg-4": lambda folder: write_video(
        folder / "four.mp4", "mpeg4", frames=FRAMES, options={"g": "12", "bf": "2"}
    ),
    "vp9": lambda folder: write_video(folder / "nine.webm", "libvpx-vp9", frames=FRAMES, options={"g": "12"}),
    "one group": lambda folder: write_video(
        folder / "one.mp4", frames=FRAMES, options={"x264-params": "keyint=500:bframes=3"}
    ),
    "only key frames": lambda folder: write_video(folder / "key.mp4", frames=FRAMES, options={"g": "1"}),
    "counted": lambda folder: write_video(folder / "counted.avi", frames=FRAMES),
}


def trimmed(file: Path) -> Path:
    write_video(file, frames=FRAMES, first=-10, options={"x264-params": X264})
    trim_end(file, 0.8)
    return file


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, list[str]]]:
    """A file of this kind and the digests of all its frames, made once."""
    made: dict[str, tuple[Path, list[str]]] = {}
    folder = tmp_path_factory.mktemp("kinds")

    def of(kind: str) -> tuple[Path, list[str]]:
        if kind not in made:
            file = KINDS[kind](folder)
            made[kind] = file, [digest(picture) for picture in decoded(file)]
        return made[kind]

    return of


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_sampled_frames_are_those_of_a_full_decode(
    whole: Callable[[str], tuple[Path, list[str]]], kind: str, data: st.DataObject
) -> None:
    if kind.startswith("hevc") and "libx265" not in av.codecs_available:
        pytest.skip("this PyAV cannot encode libx265")
    file, digests = whole(kind)
    count = data.draw(st.integers(1, min(16, len(digests))))
    plan = data.draw(st.sampled_from(["best", "best", "seek", "scan"]))

    sampled = sample_clip(file, Sampling(frames=count), plan=plan)

    expected = [int((place + 0.5) * len(digests) / count + 1e-9) for place in range(count)]
    assert list(sampled.digests) == [digests[place] for place in expected]
    assert sampled.seconds == pytest.approx([place / 10 for place in expected], abs=0.005)


def walked(file: Path, places: Sequence[int], plan: Plan) -> tuple[list[str], int]:
    """Digests of the frames at these places in the order of showing, and how many packets were decoded."""
    with opened(file) as (container, stream):
        index = read_index(container, stream)
        assert index is not None
        walk, developer = Walk(container, stream, index, plan), Developer(stream)
        found: dict[int, str] = {}

        def keep(stamp: int, frame: av.VideoFrame) -> None:
            found[stamp] = digest(developer.picture(frame))

        stamps = [index.stamps[place] for place in places]
        assert walk.collect(stamps, keep)
        return [found[stamp] for stamp in stamps], walk.decoded


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"counted"}))
@given(wanted=st.sets(st.integers(0, FRAMES - 1), min_size=1, max_size=12))
@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_any_frames_are_found_without_decoding_more_than_needed(
    whole: Callable[[str], tuple[Path, list[str]]], kind: str, wanted: set[int]
) -> None:
    file, digests = whole(kind)
    places = sorted(place for place in wanted if place < len(digests)) or [0]
    costs = {}
    for plan in PLANS:
        found, costs[plan] = walked(file, places, plan)
        assert found == [digests[place] for place in places]
    assert costs["best"] <= min(costs["seek"], costs["scan"]) + WORTH_A_JUMP * len(places)


def test_a_gradual_refresh_is_no_place_to_start(
    whole: Callable[[str], tuple[Path, list[str]]],
) -> None:
    def starts(kind: str) -> int:
        with opened(whole(kind)[0]) as (container, stream):
            index = read_index(container, stream)
            assert index is not None
            return sum(packet.fresh for packet in index.packets)

    assert starts("gradual refresh") == 1
    assert starts("b-frames") == starts("open groups") == FRAMES // 12
    assert starts("only key frames") == FRAMES


def test_frames_that_no_other_leans_on_are_not_decoded(
    whole: Callable[[str], tuple[Path, list[str]]],
) -> None:
    def needless(kind: str) -> int:
        with opened(whole(kind)[0]) as (container, stream):
            context = stream.codec_context
            units = Units.of(context.codec.canonical_name, context.extradata)
            assert units is not None
            return sum(units.needless(bytes(packet)) for packet in container.demux(stream) if packet.size)

    assert needless("b-frames") >= FRAMES // 3
    assert needless("interlaced") == 0  # a second field may be one that no frame leans on
    assert needless("hevc, open groups") == 0
