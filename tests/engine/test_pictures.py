"""Pictures are what a person would see: upright, in true colours, of one moment; always the same bytes."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import ColorPrimaries, Colorspace, ColorTrc

from qlora_engine.data.light import HLG, PQ, to_standard_range
from qlora_engine.data.pictures import Picture, Size, digest, resize
from qlora_engine.data.sampling import Sampling
from qlora_engine.data.video import sample_clip
from tests.engine.videos import WIDTH, clip_of, decoded, pictures, write_frames, write_video

ONE = Sampling(frames=1)
WHITE_PAPER = 203
"""cd/m²"""


def flat(level: tuple[int, ...], pixels: str = "rgb24") -> list[av.VideoFrame]:
    """Two frames of one colour."""
    kind = np.uint16 if "48" in pixels else np.uint8
    return [
        av.VideoFrame.from_ndarray(np.full((32, 48, len(level)), level, kind), format=pixels)
        for _ in range(2)
    ]


def colour(picture: Picture) -> list[int]:
    return [int(value) for value in picture[16, 24]]


def test_a_digest_tells_size_and_every_byte() -> None:
    picture = np.zeros((2, 6, 3), np.uint8)
    other = picture.copy()
    other[1, 5, 2] = 1
    assert len({digest(picture), digest(other), digest(picture.reshape(6, 2, 3))}) == 3
    assert digest(picture) == digest(np.asfortranarray(picture))


def test_shrinking_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    small = resize(stripes, Size(8, 8))
    assert small.shape == (8, 8, 3)
    assert 110 <= small.min() <= small.max() <= 145  # picking pixels would give black or white


@pytest.mark.parametrize("rotation", [None, 90, 180, -90])
def test_resizing_and_turning_are_those_of_the_finished_picture(rotation: int | None, tmp_path: Path) -> None:
    file = write_video(tmp_path / "clip.mp4", frames=4, rotation=rotation)
    (whole,) = sample_clip(file, ONE).pictures
    (small,) = sample_clip(file, ONE, Size(24, 40)).pictures
    assert small.shape == (40, 24, 3)
    assert np.abs(small.astype(int) - resize(whole, Size(24, 40))).mean() < 2


def grown_bars(sampled: Sequence[Picture]) -> list[int]:
    return [int((picture[-4, :, 1] > 100).sum()) for picture in sampled]


def test_odd_sizes(tmp_path: Path) -> None:
    source = [
        av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[:63, :95]), "rgb24")
        for picture in pictures(4)
    ]
    file = write_frames(tmp_path / "odd.mkv", source, "ffv1", "yuv444p")
    assert (clip_of(file).width, clip_of(file).height) == (95, 63)
    sampled = sample_clip(file, Sampling(frames=4), Size(32, 32))
    assert grown_bars(sampled.pictures) == pytest.approx([8, 16, 24, 32], abs=1)


@pytest.mark.parametrize(("rotation", "aspect"), [(None, 4 / 3), (90, 3 / 4)])
def test_pixels_that_are_not_square(rotation: int | None, aspect: float, tmp_path: Path) -> None:
    """A model's square holds the whole picture, however wide its pixels are meant to be."""
    options = {"x264-params": "sar=4/3"}
    file = write_video(tmp_path / "wide.mp4", frames=4, options=options, rotation=rotation)
    assert clip_of(file).pixel_aspect == pytest.approx(aspect, abs=1e-5)
    square = write_video(tmp_path / "square.mp4", frames=4, rotation=rotation)
    assert clip_of(square).pixel_aspect == 1
    one, other = (sample_clip(each, Sampling(frames=4), Size(32, 32)).digests for each in (file, square))
    assert one == other


def test_of_interlaced_frames_one_moment_is_taken(tmp_path: Path) -> None:
    """Even lines are white, odd ones black: as a whole it would be grey."""
    woven = np.zeros((64, 96, 3), np.uint8)
    woven[::2] = 255
    frames = [av.VideoFrame.from_ndarray(woven, "rgb24") for _ in range(6)]
    file = tmp_path / "interlaced.mp4"
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"x264-params": "tff=1", "crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for index, frame in enumerate(frames):
            frame.pts, frame.time_base = index, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with av.open(str(file)) as opened:
        assert next(opened.decode(video=0)).interlaced_frame

    (picture,) = sample_clip(file, ONE, Size(16, 16)).pictures

    assert int(picture.min()) > 230


@pytest.mark.parametrize(("codec", "container"), [("libx264", "mp4"), ("ffv1", "mkv")])
def test_ten_bits_look_like_eight(codec: str, container: str, tmp_path: Path) -> None:
    file = write_frames(tmp_path / f"deep.{container}", flat((40, 160, 90)), codec, "yuv420p10le")
    assert colour(sample_clip(file, ONE).pictures[0]) == pytest.approx([40, 160, 90], abs=5)


def test_colours_follow_the_matrix_that_the_file_names(tmp_path: Path) -> None:
    seen = []
    for name, matrix in (("hd", Colorspace.ITU709), ("sd", Colorspace.ITU601)):
        frames = [frame.reformat(format="yuv444p", dst_colorspace=matrix) for frame in flat((40, 160, 90))]
        file = write_frames(
            tmp_path / f"{name}.mkv", frames, "ffv1", "yuv444p", colorspace=1 if name == "hd" else 6
        )
        seen.append(colour(sample_clip(file, ONE).pictures[0]))
    assert seen[0] == pytest.approx([40, 160, 90], abs=3)
    assert seen[1] == pytest.approx([40, 160, 90], abs=3)


def test_what_is_transparent_is_black(tmp_path: Path) -> None:
    for alpha, expected in ((0, [0, 0, 0]), (255, [200, 100, 50]), (128, [100, 50, 25])):
        file = write_frames(tmp_path / f"{alpha}.mov", flat((200, 100, 50, alpha), "rgba"), "qtrle", "argb")
        assert colour(sample_clip(file, ONE).pictures[0]) == pytest.approx(expected, abs=1)


def coded(light: float, transfer: int) -> int:
    """The 16-bit code of a grey that shines with `light` cd/m² (PQ) or is that share of the peak (HLG)."""
    if transfer == PQ:
        power = (light / 10_000) ** 0.1593017578125
        code = ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375
    else:
        code = (
            (3 * light) ** 0.5
            if light <= 1 / 12
            else 0.17883277 * np.log(12 * light - 0.28466892) + 0.55991073
        )
    return round(float(code) * 65535)


@pytest.mark.parametrize(("transfer", "paper", "peak"), [(PQ, float(WHITE_PAPER), 4000.0), (HLG, 0.265, 1.0)])
def test_high_dynamic_range_looks_like_the_standard_one(transfer: int, paper: float, peak: float) -> None:
    def shown(light: float) -> int:
        grey = np.full((1, 1, 3), coded(light, transfer), np.uint16)
        return int(to_standard_range(grey, transfer)[0, 0, 1])

    assert shown(0) == 0
    assert 235 <= shown(paper) <= 250  # white paper is nearly white
    assert shown(peak) in (254, 255)
    steps = [shown(share * paper) for share in np.linspace(0, 1, 12)]
    assert steps == sorted(set(steps))
    grey = np.full((1, 1, 3), coded(paper / 4, transfer), np.uint16)
    assert len(set(to_standard_range(grey, transfer)[0, 0].tolist())) == 1


def test_high_dynamic_range_of_a_file(tmp_path: Path) -> None:
    code = coded(WHITE_PAPER, PQ)
    deep = [
        frame.reformat(format="yuv420p10le", dst_colorspace=Colorspace.BT2020)
        for frame in flat((code,) * 3, "rgb48le")
    ]
    file = write_frames(
        tmp_path / "hdr.mkv",
        deep,
        "ffv1",
        "yuv420p10le",
        color_trc=int(ColorTrc.SMPTE2084),
        color_primaries=int(ColorPrimaries.BT2020),
        colorspace=9,
    )
    (picture,) = sample_clip(file, ONE, Size(16, 16)).pictures
    assert int(picture.min()) >= 235


def test_every_decode_gives_the_same_bytes(tmp_path: Path) -> None:
    file = write_video(tmp_path / "clip.mp4", frames=12)
    size = Size(40, 40)
    found = {tuple(digest(picture) for picture in decoded(file, size)) for _ in range(3)}
    assert len(found) == 1
    assert WIDTH > 40
