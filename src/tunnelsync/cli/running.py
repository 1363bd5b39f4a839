"""Runs a coroutine under the signals: the first one cancels it, the second one ends us."""

import asyncio
import gc
import os
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

from tunnelsync.cli.output import Interrupted

Result = TypeVar("Result")
INTERRUPTED = 130


COLLECT_EVERY = 5000
"""Objects made before the youngest are looked through for cycles. Python's own 700 cost a router
of small datasets a fifth of its time; what holds a block in a cycle is cut by hand."""


def spare_the_collector() -> None:
    """Let the garbage collector of a long-lived process leave alone what lives as long as it."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_EVERY, 10, 10)


def run(work: Coroutine[Any, Any, Result], *, terminated_code: int = INTERRUPTED) -> Result:
    """Run to the end. SIGINT or SIGTERM cancels the work and raises `Interrupted`.

    ``terminated_code`` is the exit code after SIGTERM.
    """
    codes: list[int] = []

    async def guarded() -> Result:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None

        def stop(code: int) -> None:
            if codes:
                os._exit(code or INTERRUPTED)
            codes.append(code)
            task.cancel()

        loop.add_signal_handler(signal.SIGINT, stop, INTERRUPTED)
        loop.add_signal_handler(signal.SIGTERM, stop, terminated_code)
        return await work

    try:
        return asyncio.run(guarded())
    except asyncio.CancelledError:
        if codes:
            raise Interrupted(codes[0]) from None
        raise
