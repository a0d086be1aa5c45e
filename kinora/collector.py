"""How Python's garbage collector works in a process that serves: seldom, and never on what stays anyway."""

import gc

YOUNG_OBJECTS = 20_000
"""Made and not freed between two looks at the young ones. Commands and events are freed by their counts; of
Python's 700, the log's writer would spend a twentieth of its time on looking."""


def settle() -> None:
    """Called once the process is ready, with everything that it is going to keep."""
    # What is there now stays. Looking through it again and again would stop everything for some 100 ms.
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])
