"""A process that tries a checkpoint's own chat template for `model_validation`, within limits.

A template is a program of somebody else's: it may loop for ever or fill the memory, in ways that nothing
inside of the same process can end. What else is wrong with it, the engine finds when it renders it itself.
Run: ``python -m qlora_engine.models.template_judge PARENT_PID FOLDER``.
"""

import math
import os
import resource
import sys
from pathlib import Path

import psutil

from qlora_engine.errors import EngineError
from qlora_engine.models.families.base import exchange, tried_clip
from qlora_engine.models.families.registry import family_for
from qlora_engine.models.loading import load_tokenizer, read_json
from qlora_engine.parent import die_with_parent

EXCHANGE = exchange("What is shown?", "A noise.")
CPU_SECONDS = 3
MEMORY_BYTES = 1 << 30
OUT_OF_MEMORY = 5
"""The exit code; who needs too much time is killed."""


def main() -> None:
    die_with_parent(int(sys.argv[1]))
    folder = Path(sys.argv[2])
    model_type = (read_json(folder / "config.json") or {}).get("model_type", "")
    family = family_for(model_type)
    config = family.model_class(model_type).config_class.from_pretrained(
        folder, trust_remote_code=False, local_files_only=True
    )
    prompts = family.prompts(config, load_tokenizer(folder))
    vision = family.vision(config, folder)
    _limit()
    try:
        prompts.encode(EXCHANGE, None if vision is None else tried_clip(vision))
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
    except EngineError:
        pass  # the engine will meet it, too, and say so
    os._exit(0)


def _limit() -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = math.ceil(used.ru_utime + used.ru_stime) + CPU_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    memory = psutil.Process().memory_info().vms + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


if __name__ == "__main__":
    main()
