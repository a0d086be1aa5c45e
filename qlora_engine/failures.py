"""What an engine says of the error that ended it. Free of torch, as long as nothing else has imported it."""

import sys
import traceback
from collections.abc import Callable
from contextlib import suppress

from qlora_engine.disk import is_disk_full
from qlora_engine.errors import EngineError
from qlora_engine.updates import EngineFailed


def failure_of(work: Callable[[], None]) -> EngineFailed | None:
    """Do `work`; why it failed, None if it did not. For the door of a process: nothing gets past it."""
    try:
        work()
    except EngineError as error:
        return EngineFailed(code=error.code, message=error.message, retryable=error.retryable)
    except MemoryError as error:
        return _out_of_memory(error)
    except Exception as error:  # noqa: BLE001 - the process's door
        with suppress(OSError):  # the log may be on the very disk that is full
            traceback.print_exc()
        return _failure(error)
    return None


def _failure(error: Exception) -> EngineFailed:
    if is_out_of_memory(error):
        return _out_of_memory(error)
    return _disk_full(error) if is_disk_full(error) else _unexpected(error)


def _disk_full(error: Exception) -> EngineFailed:
    return EngineFailed(
        code="disk_full",
        message=f"this node has no room for what the training writes ({error}); free space on the disk of the"
        " agent's work folder: the next attempt goes on from the last stored checkpoint",
        retryable=True,
    )


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory did not suffice."""
    if "torch" not in sys.modules:  # which validating videos needs not
        return False
    from qlora_engine import memory

    return memory.is_out_of_memory(error)


def _out_of_memory(error: BaseException) -> EngineFailed:
    return EngineFailed(
        code="oom",
        message=f"the memory does not suffice ({error}); lower micro_batch_size or frames,"
        " or turn on gradient_checkpointing",
        retryable=False,
    )


def _unexpected(error: Exception) -> EngineFailed:
    return EngineFailed(
        code="internal",
        message=f"{type(error).__name__}: {error}; the traceback is in the engine's log",
        retryable=isinstance(error, OSError),
    )
