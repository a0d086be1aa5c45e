"""Opens clips with PyAV, and only those: playlists, which can name other files and addresses, are refused."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av

from qlora_engine.errors import ClipUndecodable, ClipWithoutVideo

CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,live_flv,ogg,asf,gif,h264,hevc,ivf"
)
READ_OPTIONS = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}


@contextmanager
def opened(file: Path) -> Iterator[tuple[Any, Any]]:
    """The container and its video stream; whatever FFmpeg raises inside becomes `ClipUndecodable`.

    Raises:
        ClipUndecodable: empty, truncated, damaged or not a video container.
        ClipWithoutVideo: there is no video stream.
    """
    try:
        if file.stat().st_size == 0:
            raise damaged(file, "the file is empty")
        with av.open(str(file), options=READ_OPTIONS) as container:
            pictures = [stream for stream in container.streams.video if not _is_cover(stream)]
            if not pictures:
                raise ClipWithoutVideo(f"{file.name} holds no video stream (sound only?); leave it out")
            yield container, pictures[0]
    except av.error.FFmpegError as error:
        raise damaged(file, str(error.strerror or error)) from error
    except (ValueError, OverflowError) as error:
        raise damaged(file, str(error)) from error


def damaged(file: Path, reason: str) -> ClipUndecodable:
    """That `file` cannot be decoded, and why."""
    return ClipUndecodable(f"{file.name} cannot be decoded: {reason}; record or convert it again")


def _is_cover(stream: Any) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)
