"""Spares the engine what its libraries import for uses it has not: a third of the time. Free of torch."""

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def import_less() -> None:
    """Call once, before torch is imported.

    Nothing here compiles: bitsandbytes wraps functions for it when imported, which loads TorchInductor, and
    would call the node's C++ compiler for odd shapes. Accelerate imports boto3, where it is installed,
    for its questions about SageMaker; None in `sys.modules` is Python's own way to say that it is absent.
    """
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    sys.modules.setdefault("boto3", None)  # type: ignore[arg-type]


@contextmanager
def uncollected() -> Iterator[None]:
    """Import without garbage collections: libraries make a million objects that stay.

    They are then left out of all later collections, too.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
