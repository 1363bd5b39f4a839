"""Runs a coroutine under the signals: the first one cancels it, the second one ends us.

And what a process that serves many needs of its system before that.
"""

import asyncio
import gc
import os
import resource
import signal
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from tunnelsync import signals
from tunnelsync.cli.output import Interrupted

Result = TypeVar("Result")
INTERRUPTED = 130
GC_THRESHOLDS = 5_000, 5, 100
"""Of the generations of the garbage collector. With Python's own (700, 10, 10) a router to which
10,000 connectors come looks at all that it holds ten times meanwhile, up to 0.4 s each, for little:
what a connection leaves is mostly freed at once. So it does at every 2.5 million new objects."""


def run(work: Coroutine[Any, Any, Result], *, terminated_code: int = INTERRUPTED) -> Result:
    """Run to the end. SIGINT, SIGTERM or SIGHUP cancels the work and raises `Interrupted`.

    ``terminated_code`` is the exit code after SIGTERM. A SIGHUP is never the second one, for a
    terminal that is closed sends two.
    """
    codes: list[int] = []

    def code(number: int) -> int:
        return terminated_code if number == signal.SIGTERM else INTERRUPTED

    async def guarded() -> Result:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None

        def stop(number: int, _: object = None) -> None:
            if not codes:
                codes.append(code(number))
                task.cancel()
            elif number != signal.SIGHUP:
                os._exit(code(number) or INTERRUPTED)

        for number in (listened := signals.heeded()):
            loop.add_signal_handler(number, stop, number)
        try:
            return await work
        finally:
            for number in listened if codes else ():
                # asyncio stops listening before the process has ended.
                loop.remove_signal_handler(number)
                signal.signal(number, stop)

    try:
        return asyncio.run(guarded())
    except asyncio.CancelledError:
        if codes:
            raise Interrupted(codes[0]) from None
        raise


def serve_many() -> None:
    """Get this process ready for thousands of connections."""
    # The soft limit is 1024 in most places, for programs that use ``select``.
    with suppress(ValueError, OSError):  # where the hard one is no limit that a soft one can have
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    gc.freeze()  # what is imported lives as long as the process
    gc.set_threshold(*GC_THRESHOLDS)
