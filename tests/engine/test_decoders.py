"""Files are decoded in processes that may hang, crash and run out of memory without harm to anyone else."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from qlora_engine.data.decoders import Decoders
from qlora_engine.data.pictures import Size
from qlora_engine.data.sampling import Sampling
from qlora_engine.data.video import sample_clip
from qlora_engine.errors import ClipTooSlow, ClipUndecodable, ClipWithoutVideo, FramesExceedClip
from tests.engine.videos import write_broken, write_sound, write_video

FOUR = Sampling(frames=4)
SMALL = Size(16, 16)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("clips") / "good.mp4")


@pytest.fixture
def decoders() -> Iterator[Decoders]:
    with Decoders(1, seconds_per_file=30) as started:
        yield started


def the_process(decoders: Decoders) -> psutil.Process:
    (decoder,) = decoders._all
    assert decoder._process is not None
    return psutil.Process(decoder._process.pid)


def kill_when_asked(decoders: Decoders, how: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The process gets a signal while it has something to do; returns the processes that were hit."""
    (decoder,) = decoders._all
    real, hit = decoder._line, []

    def struck(process: subprocess.Popen[bytes], deadline: float) -> object:
        os.kill(process.pid, how)
        hit.append(process.pid)
        return real(process, deadline)

    monkeypatch.setattr(decoder, "_line", struck)
    return hit


def test_frames_are_those_of_this_process(decoders: Decoders, file: Path) -> None:
    there, here = decoders.sample(file, FOUR, SMALL), sample_clip(file, FOUR, SMALL)
    assert (there.digests, there.seconds, there.duration) == (here.digests, here.seconds, here.duration)


def test_a_decoder_that_hangs_is_killed_at_the_deadline(
    decoders: Decoders, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert decoders.judge(file, "good.mp4").kind == "usable"
    hanging = the_process(decoders)
    decoders._seconds_per_file = 0.4
    with monkeypatch.context() as patched:
        hit = kill_when_asked(decoders, signal.SIGSTOP, patched)
        slow = decoders.judge(file, "good.mp4")
        assert (slow.kind, slow.code) == ("unusable", "clip_too_slow")  # type: ignore[union-attr]
        assert not hanging.is_running()
        with pytest.raises(ClipTooSlow, match=r"good\.mp4 takes longer than 0\.4"):
            decoders.sample(file, FOUR, SMALL)
        assert len(set(hit)) == 3  # a training asks a second time, of a new process
    decoders._seconds_per_file = 30
    assert len(decoders.sample(file, FOUR, SMALL).pictures) == 4


def test_a_decoder_that_dies_is_replaced(
    decoders: Decoders, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        kill_when_asked(decoders, signal.SIGSEGV, patched)
        died = decoders.judge(file, "good.mp4")
        assert (died.kind, died.code) == ("unusable", "undecodable_clip")  # type: ignore[union-attr]
        with pytest.raises(ClipUndecodable, match=r"good\.mp4 makes the decoder crash"):
            decoders.sample(file, FOUR, SMALL)
    assert decoders.judge(file, "good.mp4").kind == "usable"


def test_one_that_died_while_nobody_asked_costs_no_clip_its_verdict(decoders: Decoders, file: Path) -> None:
    decoders.sample(file, FOUR, SMALL)
    idle = the_process(decoders)
    idle.kill()
    psutil.wait_procs([idle], timeout=10)
    assert decoders.judge(file, "good.mp4").kind == "usable"


def test_what_is_wrong_with_a_file_crosses_the_border(decoders: Decoders, tmp_path: Path) -> None:
    with pytest.raises(ClipWithoutVideo, match=r"sound\.m4a holds no video stream"):
        decoders.sample(write_sound(tmp_path / "sound.m4a"), FOUR, SMALL)
    with pytest.raises(ClipUndecodable, match=r"text\.mp4 cannot be decoded"):
        decoders.sample(write_broken("text", tmp_path), FOUR, SMALL)
    with pytest.raises(FramesExceedClip, match=r"frames is 4, but short\.mp4 has only 3 frames"):
        decoders.sample(write_video(tmp_path / "short.mp4", frames=3), FOUR, SMALL)
    with pytest.raises(ClipUndecodable, match=r"gone\.mp4 cannot be read"):
        decoders.sample(tmp_path / "gone.mp4", FOUR, SMALL)


def test_a_long_recording_may_take_longer_than_a_short_clip(tmp_path: Path) -> None:
    decoders = Decoders(1, seconds_per_file=60)
    short, long = tmp_path / "short.mp4", tmp_path / "long.mp4"
    short.write_bytes(b"x" * 20_000)
    with long.open("wb") as stream:
        stream.truncate(200 * 10**6)
    assert decoders.seconds_for(short) == pytest.approx(60, abs=0.1)
    # Ten minutes of 1080p, which one core decodes in about two and a half, have 200 MB at least.
    assert decoders.seconds_for(long) > 240


def test_decoders_do_not_outlive_their_parent(file: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from qlora_engine.data.decoders import Decoders;"
        "d = Decoders(1); d.judge(Path(sys.argv[1]), 'a');"
        "print(d._all[0]._process.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(file)], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    decoder = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.communicate()
    psutil.wait_procs([decoder], timeout=10)
    assert not decoder.is_running() or decoder.status() == psutil.STATUS_ZOMBIE
