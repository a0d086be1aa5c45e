"""A process that decodes hostile files for `validation`: paths come in on stdin, findings leave on stdout.

It may hang, crash or eat memory; its parent kills it at the deadline and starts another. Free of torch.
"""

import dataclasses
import resource
import sys
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from qlora_engine.data.video import probe_clip
from qlora_engine.errors import ClipError
from qlora_engine.fingerprints import file_sha256
from qlora_engine.parent import die_with_parent
from schemas.base import Message
from schemas.datasets import Clip

MEMORY_LIMIT = 4 << 30


class Judge(Message):
    """A file to decode."""

    file: str
    path: str
    """Its path in the dataset."""


class Usable(Message):
    kind: Literal["usable"] = "usable"
    clip: Clip


class Unusable(Message):
    kind: Literal["unusable"] = "unusable"
    code: str
    message: str


Finding = Annotated[Usable | Unusable, Field(discriminator="kind")]
FINDING: TypeAdapter[Finding] = TypeAdapter(Finding)


def judge(file: Path, path: str) -> Usable | Unusable:
    """Decode all of one file."""
    try:
        probed = probe_clip(file)
    except ClipError as error:
        return Unusable(code=error.code, message=error.message)
    except MemoryError:
        return Unusable(
            code="undecodable_clip",
            message=f"{file.name} needs more than {MEMORY_LIMIT >> 30} GiB to decode; scale it down",
        )
    clip = Clip(
        path=path, sha256=file_sha256(file), size_bytes=file.stat().st_size, **dataclasses.asdict(probed)
    )
    return Usable(clip=clip)


def main() -> None:
    die_with_parent(int(sys.argv[1]))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    for line in sys.stdin.buffer:
        wanted = Judge.model_validate_json(line)
        finding = judge(Path(wanted.file), wanted.path)
        sys.stdout.buffer.write(finding.model_dump_json().encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
