"""Which stretch of its work an engine is in, for the trace of its attempt. Free of torch.

The engine names the stretches on its pipe and exports nothing itself: it opens files that strangers made,
so it holds no collector's address or key, and its parent can still end the spans of an engine that died.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from qlora_engine.updates import SpanBegan, SpanEnded, Update

Facts = dict[str, str | int | float | bool]


@contextmanager
def span(emit: Callable[[Update], None], name: str, **facts: str | int | float | bool) -> Iterator[Facts]:
    """Tell of a stretch's begin and end; what is put into the yielded facts is told at its end.

    Spans of one engine lie inside of one another: begin and end them on one thread.
    """
    emit(SpanBegan(name=name, at_ns=time.time_ns(), facts=facts))
    learnt: Facts = {}
    try:
        yield learnt
    except BaseException as error:
        emit(SpanEnded(at_ns=time.time_ns(), facts=learnt, error=type(error).__name__))
        raise
    emit(SpanEnded(at_ns=time.time_ns(), facts=learnt))
