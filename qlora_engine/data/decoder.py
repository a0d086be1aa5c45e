"""A process that decodes hostile files: requests come in on stdin, replies leave on stdout.

It may hang, crash or eat memory; its parent kills it at the deadline and starts another (`decoders`). A reply
is a line of JSON; after `Taken` come its pictures, one after the other, as RGB bytes. Free of torch.
"""

import dataclasses
import resource
import sys
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

from pydantic import Field, TypeAdapter

from qlora_engine.data.pictures import Picture, Size
from qlora_engine.data.sampling import Sampling
from qlora_engine.data.video import probe_clip, sample_clip
from qlora_engine.errors import ClipError, ClipUndecodable
from qlora_engine.fingerprints import file_sha256
from qlora_engine.parent import die_with_parent
from schemas.base import Message
from schemas.datasets import Clip

MEMORY_LIMIT = 4 << 30


class Judge(Message):
    """A file to decode as a whole."""

    kind: Literal["judge"] = "judge"
    file: str
    path: str
    """Its path in the dataset."""


class Take(Message):
    """A file to take some frames of."""

    kind: Literal["take"] = "take"
    file: str
    sampling: Sampling
    width: int = Field(ge=1)
    height: int = Field(ge=1)


Request = Annotated[Judge | Take, Field(discriminator="kind")]
REQUEST: TypeAdapter[Request] = TypeAdapter(Request)


class Usable(Message):
    kind: Literal["usable"] = "usable"
    clip: Clip


class Taken(Message):
    kind: Literal["taken"] = "taken"
    seconds: tuple[float, ...]
    duration: float
    width: int
    height: int


class Unusable(Message):
    kind: Literal["unusable"] = "unusable"
    code: str
    message: str


Reply = Annotated[Usable | Taken | Unusable, Field(discriminator="kind")]
REPLY: TypeAdapter[Reply] = TypeAdapter(Reply)


def answer(request: Judge | Take) -> tuple[Usable | Taken | Unusable, tuple[Picture, ...]]:
    """What to say to a request, and the pictures that follow."""
    file = Path(request.file)
    try:
        match request:
            case Judge():
                return _judged(file, request.path), ()
            case Take():
                sampled = sample_clip(file, request.sampling, Size(request.width, request.height))
                taken = Taken(
                    seconds=sampled.seconds,
                    duration=sampled.duration,
                    width=request.width,
                    height=request.height,
                )
                return taken, sampled.pictures
    except ClipError as error:
        return Unusable(code=error.code, message=error.message), ()
    except MemoryError:
        message = f"{file.name} needs more than {MEMORY_LIMIT >> 30} GiB to decode; scale it down"
        return Unusable(code=ClipUndecodable.code, message=message), ()


def _judged(file: Path, path: str) -> Usable:
    probed = probe_clip(file)
    return Usable(
        clip=Clip(
            path=path, sha256=file_sha256(file), size_bytes=file.stat().st_size, **dataclasses.asdict(probed)
        )
    )


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Answer until the requests end."""
    for line in requests:
        reply, pictures = answer(REQUEST.validate_json(line))
        replies.write(reply.model_dump_json().encode() + b"\n")
        for picture in pictures:
            replies.write(picture.data)
        replies.flush()


def main() -> None:
    die_with_parent(int(sys.argv[1]))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    serve(sys.stdin.buffer, sys.stdout.buffer)


if __name__ == "__main__":
    main()
